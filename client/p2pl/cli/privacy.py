"""`p2pl privacy` and `p2pl audit`: what privacy costs, if it is kept, and how safe a run is."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from p2pl.cli import options
from p2pl.cli.app import extra
from p2pl.errors import InputError, wrong
from p2pl.run.files import write_atomically


def privacy(
    examples: Annotated[
        int,
        typer.Option(
            min=2,
            help="Number of examples that you have, those held back for validation included.",
        ),
    ],
    session: Annotated[
        Path | None,
        typer.Option(
            help="Session file (.torrent or .toml) to take from what no option says.  [default: "
            "none; then 20 rounds, 1 epoch, batches of 256, a cohort of 5, 7850 parameters]"
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of examples expected in a training step.  [default: the session's]"
        ),
    ] = None,
    rounds: options.Rounds = None,
    local_epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of passes over the data in a round.  [default: the session's]"
        ),
    ] = None,
    cohort: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of other peers' models that are mixed with yours in a round.  [default: "
            "the session's]",
        ),
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(min=1, help="Number of parameters of the model.  [default: the session's]"),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            help="Privacy budget, above 0, to show the noise for. Repeatable.  [default: 1, 2, 3 "
            "and 8, or none with --noise]"
        ),
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            help="Noise multiplier, above 0, to show the epsilon for. Repeatable.  [default: none]"
        ),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            help="Probability that the guarantee does not hold, below 1/n for n examples.  "
            "[default: the session's, or 1e-5, or a tenth of 1/n where that is less]"
        ),
    ] = None,
    clip: Annotated[
        float,
        typer.Option(help="Norm, above 0, to which the gradient of each example is clipped."),
    ] = 1.0,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="PNG file to draw the noise by epsilon into.  [default: nothing is drawn]"
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Plan private training: the noise that a budget needs.

    The table shows, for each budget: the noise multiplier (noise in units of the clipping norm,
    which is the most that one example can add to a step), the norm of the noise in one step's mean
    gradient, and this noise as a percentage of the most that all examples together can move the
    model: in one step, over the whole session (noise adds up by a square root only), and after
    mixing with other peers' models, whose noise is independent.
    """
    with extra("client"):
        from p2pl.api.simulate import session_to_simulate
        from p2pl.privacy import plan as private
        from p2pl.report.privacy import plan_table
    read = session_to_simulate(session).session if session else None
    base = private.Setting.of(read, examples) if read else private.Setting(examples)
    setting = base.changed(
        batch=batch,
        rounds=rounds,
        epochs=local_epochs,
        cohort=cohort,
        parameters=parameters,
        delta=delta,
        clip=clip,
    )
    with extra("dp"):
        made = private.plan(setting, epsilon or (() if noise else private.EPSILONS), noise or ())
    if plot:
        with extra("report"):
            from p2pl.report.plots import draw_plan
        write_atomically(plot, draw_plan(made.curves(), title="What privacy costs"))
    if as_json:
        print(json.dumps(made.as_dict()))
        return
    from rich.console import Console

    Console().print(plan_table(made))
    if plot:
        print(f"picture {plot}")


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="SESSION|RUN...",
            help="Session file, NAME.torrent, or the TOML file that it is made from; with "
            "--security also run directories of one session or a folder of them, or both.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help=f"Data set: {options.DATA_SETS}  [required, except with --security]"),
    ] = None,
    security: Annotated[
        bool,
        typer.Option(
            "--security",
            help="Say in figures what is protected against what, of a session or of what its runs "
            "have logged; nothing is trained.",
        ),
    ] = False,
    faulty: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of --security: how many peers act together.  [default: those known to be bad, or "
            "the most that are fewer than half]",
        ),
    ] = None,
    privacy_audit: Annotated[
        Path | None,
        typer.Option(
            help="Of --security: file with what `p2pl audit --json` printed.  [default: none]"
        ),
    ] = None,
    partition: options.Partition = "iid",
    shard: options.Shard = None,
    partition_seed: options.PartitionSeed = 0,
    rounds: options.Rounds = None,
    dp_epsilon: options.DpEpsilon = None,
    dp_delta: options.DpDelta = None,
    dp_clip: options.DpClip = None,
    canaries: Annotated[
        int,
        typer.Option(
            min=20,
            help="Number of canaries (examples made up for the attack), at most; a coin decides "
            "for each whether it is trained on.",
        ),
    ] = 1_000,
    models: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of models to train for the membership attacks; 0 leaves these attacks "
            "out.",
        ),
    ] = 16,
    confidence: Annotated[
        float,
        typer.Option(
            help="Probability, 0.5 to below 1, with which the reported lower bound on epsilon "
            "holds."
        ),
    ] = 0.95,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random seed that decides what is trained on; the noise of private training is "
            "never seeded.",
        ),
    ] = 0,
    threads: options.Threads = None,
    fault: Annotated[str, typer.Option(hidden=True)] = "none",
    as_json: options.AsJson = False,
) -> None:
    """Attack your own training, to test its privacy.

    The attacks test whether training is as private as --dp-epsilon claims. Canaries are planted
    among your examples and guessed from the versions of the model that other peers would get; what
    they betray is a lower bound on epsilon. Which examples were trained on is guessed from the
    final model. Without --dp-epsilon, this shows what training without privacy reveals. Nothing is
    sent. The exit code is 1 if the claim is false.

    With --security nothing is attacked: influence of others, how long attacks had one, what is
    authenticated, epsilon, and who may take part, as figures that the documentation defines.
    """
    if security:
        _secure(paths, faulty, privacy_audit, as_json=as_json)
        return
    file, data = _one_session(paths, data)
    part = options.part_of(shard, partition, partition_seed)
    with extra("client"):
        from rich.console import Console

        from p2pl.api.simulate import session_to_simulate
        from p2pl.data import load as datasets
        from p2pl.privacy.audit import run as audits
        from p2pl.privacy.policy import budget, wanted
        from p2pl.progress import RoundsBar
        from p2pl.report.privacy import audit_table
    session = session_to_simulate(file).session
    asked = wanted(dp_epsilon, dp_delta, dp_clip)
    mine = datasets.load(
        data,
        session.task,
        form=datasets.form_of(session),
        data_dir=options.data_dir(),
        shard=datasets.Shard(*part) if part else None,
    ).train
    what = audits.Audit(
        budget=budget(session.privacy, asked, len(mine)) if asked else None,
        rounds=rounds or session.exchange.rounds,
        canaries=canaries,
        models=models,
        confidence=confidence,
        seed=seed,
        fault=fault,
        threads=threads,
        **({"clip": asked.clip} if asked else {}),
    )
    bar = RoundsBar("auditing", what.rounds_of_all, Console(file=sys.stderr))
    with extra("dp"), bar:
        verdict, attacks = audits.audit(session, mine, what, bar.show, bar.advance)
    if as_json:
        print(json.dumps(audits.as_dict(verdict, attacks)))
    else:
        Console().print(audit_table(verdict, attacks))
    if verdict.broken:
        raise typer.Exit(1)


def _one_session(paths: list[Path], data: str | None) -> tuple[Path, str]:
    if len(paths) == 1 and data is not None:
        return paths[0], data
    got = " ".join(map(str, paths)) if data else "no --data"
    allowed = "one session file and --data; or --security"
    raise InputError(wrong("p2pl audit", got=got, allowed=allowed))


def _secure(
    paths: list[Path], faulty: int | None, privacy_audit: Path | None, *, as_json: bool
) -> None:
    """Prints the security of a session or of runs."""
    with extra("client"):
        from p2pl.api.security import read_audit, security
        from p2pl.report.security import security_tables
    audited = read_audit(privacy_audit) if privacy_audit else None
    found = security(paths, faulty=faulty, audited=audited)
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    from rich.console import Console

    console = Console()
    for table in security_tables(found):
        console.print(table)
