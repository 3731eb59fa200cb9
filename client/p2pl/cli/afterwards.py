"""`p2pl predict`, `p2pl evaluate` and `p2pl export`: what a trained model is for."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from p2pl.cli import options
from p2pl.cli.app import extra
from p2pl.errors import DataError, InputError, wrong

if TYPE_CHECKING:
    from p2pl.api.run import Run
    from p2pl.api.use import Chosen

RunDir: TypeAlias = Annotated[Path, typer.Argument(help="Run directory of `p2pl join`.")]
Best: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--best",
        help="Use the model of the round that did best on the peer's own validation examples, "
        "instead of the last one. Private runs keep none.",
    ),
]
Personal: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--personal", help="Use the personal model, of a run that was joined with --personal."
    ),
]


def predict(
    run_dir: RunDir,
    data: Annotated[
        str,
        typer.Option(
            help=f"What to predict for: {options.DATA_SETS} Or inputs without answers: a folder "
            "of images without classes, a table without its target columns, or FILE.npy, inputs as "
            "the model takes them, the first axis being the examples. Of data with a test split, "
            "that is taken."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: FILE.csv, or FILE.safetensors with the numbers as they are.  "
            "[default: CSV on standard output]"
        ),
    ] = None,
    tokenizer: options.Tokenizer = None,
    best: Best = False,
    personal: Personal = False,
) -> None:
    """Predict with a run's model, one row for each example."""
    with extra("client"):
        from p2pl.api.run import load
        from p2pl.api.tables import csv_of, write_predictions
        from p2pl.api.use import predicted
    run = load(run_dir, best=best, personal=personal)
    mine = _without_targets(run, data) or _chosen(run, data, tokenizer)
    said = predicted(run, mine.examples)
    targets = mine.examples.y if mine.has_targets else None
    if out is None:
        sys.stdout.write(csv_of(said, targets, mine.labels, mine.names))
        return
    write_predictions(out, said, targets, mine.labels, mine.names)
    print(f"predictions {out}, {len(mine.examples)} examples")


def evaluate(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(help="Run directories of `p2pl join`: your own, and those of others."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help=f"Data to score on: {options.DATA_SETS} That is their test split; all of them, "
            "where they have none: whoever was trained on them then looks better than it is."
        ),
    ],
    tokenizer: options.Tokenizer = None,
    best: Best = False,
    personal: Personal = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare the models of several runs on your own data."""
    with extra("client"):
        from rich.console import Console

        from p2pl.api.run import load
        from p2pl.api.use import scored
        from p2pl.learning.task import task_of
        from p2pl.tasks.measures import why_no_auroc
    runs = [load(one, best=best, personal=personal) for one in run_dirs]
    tasks = [run.session.session.task for run in runs]
    _check_alike(sorted({task.kind for task in tasks}))
    chosen = [_chosen(run, data, tokenizer) for run in _first_of_each(runs)]
    of_task = {_about(run): mine for run, mine in zip(_first_of_each(runs), chosen, strict=True)}
    scores = [scored(run, of_task[_about(run)].examples) for run in runs]
    about = f"{len(chosen[0].examples)} examples, {_SPLITS[chosen[0].split]} of {data}"
    if as_json:
        rows = [
            {
                "run": str(run.directory),
                "session_id": run.session.id,
                "peer_id": run.peer_id,
                "model": run.kind,
                "loss": score.loss if math.isfinite(score.loss) else None,
                "metrics": {name: one for name, one in score.metrics.items() if math.isfinite(one)},
            }
            for run, score in zip(runs, scores, strict=True)
        ]
        examples = {"examples": len(chosen[0].examples), "split": chosen[0].split}
        print(json.dumps({"data": data, **examples, "runs": rows}))
        return
    from p2pl.metric import figure
    from p2pl.report.tables import terminal_table
    from p2pl.terminal import short_id

    metrics = task_of(tasks[0]).metrics
    head = ("run", "peer", "model", *(metric.name for metric in metrics), "loss")
    rows_shown = [
        (
            str(run.directory),
            short_id(run.peer_id),
            run.kind,
            *(metric.shown(score.metrics.get(metric.name)) for metric in metrics),
            figure(score.loss),
        )
        for run, score in zip(runs, scores, strict=True)
    ]
    Console().print(terminal_table(about, head, rows_shown))
    if why := why_no_auroc(metrics, chosen[0].examples.y):
        print(why)


def export(
    run_dir: RunDir,
    to: Annotated[
        str,
        typer.Option(
            help="onnx: a graph that other programs can run (needs the extra `onnx`); or "
            "safetensors: the weights alone."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the model and its card, README.md, into.  [default: "
            "RUN_DIR/export]"
        ),
    ] = None,
    best: Best = False,
    personal: Personal = False,
) -> None:
    """Write a run's model for other programs, with a card.

    The card holds the session, how much data the peer had, the metrics, the peers that it met, the
    weight of each in the mix, and what privacy was spent. Publish neither before you have read
    "Privacy" in the README: a model says something of the data that it was trained on.
    """
    with extra("client"):
        from p2pl.api.export import export as write
        from p2pl.api.run import load
    with extra("onnx"):
        written = write(load(run_dir, best=best, personal=personal), to, out)  # type: ignore[arg-type]
    print(f"model {written}")
    print(f"card  {written.parent / 'README.md'}")


_SPLITS = {"test": "the test split", "all": "all"}


def _check_alike(kinds: list[str]) -> None:
    """Raises InputError unless the runs are of one kind of task."""
    if len(kinds) > 1:
        raise InputError(wrong("tasks of the runs", got=kinds, allowed="one task for all"))


def _about(run: "Run") -> str:
    """Returns what data are read by: runs for which it is the same are scored on the same ones."""
    session = run.session.session
    return repr((session.task, session.table, session.text))


def _first_of_each(runs: "list[Run]") -> "list[Run]":
    """Returns a run of each way to read data, in the order of the runs."""
    return list({_about(run): run for run in reversed(runs)}.values())[::-1]


def _chosen(run: "Run", data: str, tokenizer: Path | None) -> "Chosen":
    """Returns the examples that a person named, for a run's session."""
    from p2pl.api.use import Chosen, chosen, given_inputs

    session = run.session.session
    if not data.endswith(".npy"):
        return chosen(session, data, data_dir=options.data_dir(), tokenizer=tokenizer)
    return Chosen(given_inputs(session, _read_array(Path(data))), "all", _names(run), False)


def _without_targets(run: "Run", data: str) -> "Chosen | None":
    """Returns inputs whose answers nobody has told yet; None: the data are of another kind."""
    from p2pl.api.use import Chosen
    from p2pl.data.load import load_inputs

    session = run.session.session
    found = load_inputs(data, session.task, session.table)
    if found is None or session.text is not None:
        return None
    examples, names = found
    return Chosen(examples, "all", _names(run), has_targets=False, names=names)


def _read_array(path: Path) -> Any:  # noqa: ANN401  # an array of numbers
    """Returns the array in a file of NumPy's; objects in it are refused.

    Raises:
        DataError: it cannot be read, or is none.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        allowed = "an array of numbers, as numpy.save writes it"
        raise DataError(wrong(f"--data {path}", got=str(fault), allowed=allowed)) from fault


def _names(run: "Run") -> tuple[str, ...]:
    """Returns the names of the classes: the session's, or those of the data of the run."""
    return run.session.session.task.labels or (run.summary.labels if run.summary else ())
