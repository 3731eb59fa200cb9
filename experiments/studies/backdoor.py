"""A backdoor that bad peers train into their models: what learned trust sees of it."""

import statistics
from functools import partial

from experiments.grid import MNIST, Cell, Results, Study
from experiments.page import part, table

SPLITS = {"iid": 1.0, "dirichlet:0.5": 3.0}  # points that learned trust may cost
MODELS = ("logreg", "mlp")
ARMS = {"honest": "the honest by themselves", "uniform": "equal sharing", "degroot": "learned"}


def cell(model: str, split: str) -> Cell:
    """Returns one cell: five seeds, all arms."""
    words = (MNIST, split, "--model", model)
    name = f"{model}-{split}".replace(":", "-")
    return Cell(name, words, 2.0, script="scripts/backdoor_run.py", timed=False)


def section(results: Results) -> str:
    """Returns a table a model and split."""
    parts = ["# A backdoor", _INTRODUCTION]
    for model in MODELS:
        for split in SPLITS:
            parts.append(
                part(f"MNIST, {model}, {split}", partial(show, model=model, split=split), results)
            )
    return "\n\n".join(parts)


def show(results: Results, model: str, split: str) -> str:
    """Returns what each arm came to, and whether the accuracy is within the bound."""
    seeds = results.figures[cell(model, split).name]["per_seed"]
    rows = [
        [title, *(spread([one[arm][what] for one in seeds]) for what in ("accuracy", "success"))]
        for arm, title in ARMS.items()
    ]
    for row, arm in zip(rows, ARMS, strict=True):
        held = [one[arm]["bad_weight"] for one in seeds]
        row.append("-" if arm == "honest" else f"{statistics.fmean(held):.1f} %")
    honest, learned = (
        statistics.fmean(one[arm]["accuracy"] for one in seeds) for arm in ("honest", "degroot")
    )
    head = ["", "accuracy, %", "taken in, %", "weight of the bad"]
    within = "within" if honest - learned <= SPLITS[split] else "beyond"
    return (
        f"{table(head, rows)}\n\nOf the accuracy, learned trust costs {honest - learned:+.2f} "
        f"points, {within} the {SPLITS[split]:g} allowed."
    )


def spread(found: list[float]) -> str:
    """Returns mean ± standard deviation over the seeds."""
    return f"{statistics.fmean(found):.2f} ± {statistics.stdev(found) if len(found) > 1 else 0:.2f}"


_INTRODUCTION = """Two of six peers mark every other one of their images with a bright square in a
corner and call it class 0 (Gu et al. 2017, arXiv:1708.06733). *Taken in* is the share of the test
images of other classes that honest peers take for class 0 once they bear the square. MNIST, 12
rounds, cohorts of 4, **5** seeds, ± the standard deviation over them.

**Learned trust does not see a backdoor, nor can it**: it asks what a model does to a peer's own
examples, and none of them has the square. It keeps the accuracy, which is what it measures, and no
more. Who must fear backdoors needs peers that are known; where one peer in ten is bad,
[other rules](attacks.md) keep one out, and cost accuracy."""


STUDY = Study(
    "backdoor",
    "A backdoor that two of six train into their models",
    tuple(cell(model, split) for model in MODELS for split in SPLITS),
    section,
)
