"""Learned trust on tasks that are no classification: regression, several labels, texts."""

import statistics
from functools import partial

from experiments.grid import Cell, Figures, Results, Study
from experiments.page import part, table

# What learned trust may cost: percent of the metric; of an AUROC, which is no loss, points.
SPLITS = {"iid": 2.0, "dirichlet:0.5": 6.0}  # under attack
POINTS = {"iid": 1.0, "dirichlet:0.5": 3.0}
CLEAN, CLEAN_POINTS = 1.0, 0.3  # where nobody is bad
TASKS = {
    "friedman": "Regression, 66 examples to judge by",
    "multilabel": "Several labels, 100 examples to judge by",
    "markov": "Texts, 20 examples to judge by",
    "diabetes": "Regression, 11 examples to judge by",
}
ARMS = {"honest": "the honest by themselves", "uniform": "equal sharing", "degroot": "learned"}


# Texts are of no class by which they could be divided.
CELLS = tuple(
    (task, split)
    for task in TASKS
    for split in SPLITS
    if (task, split) != ("markov", "dirichlet:0.5")
)


def cell(task: str, split: str) -> Cell:
    """Returns one cell: all attacks on one task, five seeds of each."""
    name = f"{task}-{split}".replace(":", "-")
    return Cell(name, (task, split), 6.0, script="scripts/trust_task_run.py", timed=False)


def section(results: Results) -> str:
    """Returns a table a task and split."""
    parts = ["# Learned trust on other tasks", _INTRODUCTION]
    for task, split in CELLS:
        show_it = partial(show, task=task, split=split)
        parts.append(part(f"{TASKS[task]}: `{task}`, {split}", show_it, results))
    return "\n\n".join(parts)


def show(results: Results, task: str, split: str) -> str:
    """Returns a row an attack, and in a sentence how many are within the bound."""
    found = results.figures[cell(task, split).name]["by_attack"]
    metric = found["none"]["uniform"][0]["metric"]
    in_points = metric == "AUROC"
    clean, attacked = (CLEAN_POINTS, POINTS[split]) if in_points else (CLEAN, SPLITS[split])
    unit = "points" if in_points else "%"
    rows, held = [], 0
    for attack, arms in found.items():
        cost = cost_of(attack, arms, in_points=in_points)
        held += cost <= (clean if attack == "none" else attacked)
        shown = [spread(arms.get(arm)) for arm in ARMS]
        rows.append([attack, *shown, f"{cost:+.2f} {unit}", weight(arms["degroot"])])
    head = [metric, *ARMS.values(), "cost of learned trust", "its weight for the bad"]
    bound = f"at most {clean:g} {unit} where nobody is bad, {attacked:g} {unit} under attack"
    return f"{table(head, rows)}\n\nWithin the bound ({bound}): {held} of {len(found)}."


def cost_of(attack: str, arms: Figures, *, in_points: bool) -> float:
    """Returns by how much learned trust is worse than what it is compared with.

    Where nobody is bad that is equal sharing; under attack, the honest peers by themselves. In
    percent of the metric, which is better the lower it is; or in points of one that is better the
    higher it is.
    """
    beside = statistics.fmean(values(arms["uniform" if attack == "none" else "honest"]))
    learned = statistics.fmean(values(arms["degroot"]))
    return beside - learned if in_points else 100 * (learned / beside - 1)


def values(seeds: list[Figures]) -> list[float]:
    """Returns the metric by seed."""
    return [one["value"] for one in seeds]


def spread(seeds: list[Figures] | None) -> str:
    """Returns mean ± standard deviation over the seeds; a dash where there are none."""
    if seeds is None:
        return "-"
    found = values(seeds)
    mean = statistics.fmean(found)
    if mean > 1e4:
        return "diverged"
    return f"{mean:.3f} ± {statistics.stdev(found) if len(found) > 1 else 0:.3f}"


def weight(seeds: list[Figures]) -> str:
    """Returns the mean weight of the bad peers together, percent; a dash where there are none."""
    found = [one["bad_weight"] for one in seeds if one["bad_weight"] is not None]
    return f"{statistics.fmean(found):.1f} %" if found else "-"


_INTRODUCTION = """Does the rule hold for tasks, losses and units that none of its constants was
chosen on? Six peers, the last two bad; 15 rounds; **5** seeds, which draw the data too. `honest`
are the same four by themselves, as if the bad were not there. The figures are of seeds 0 to 4.

The judge for tasks that are no classification, which calls harm the share of what was learned that
a model undoes, was shaped on seeds 100 to 104 of `friedman`, `multilabel` and `diabetes`; `markov`
was not looked at before. For several labels it was not enough: a first run of this page showed that
with skewed labels it took honest peers for bad ones (30 % of their models rejected, 84.0 % where
equal sharing reached 85.7 %). Several labels now have a judge of their own, which takes back what
shifts a label's score for all examples alike; it was shaped on seeds 100 and 101 (nobody bad: 86.3
and 86.5 %, equal sharing 85.6 and 86.3 %; labels flipped: 82.3 and 85.4 %, the honest by themselves
82.4 and 85.4 %).

With eleven examples to judge by, as in `diabetes`, no peer can tell turned-round targets from
chance. `alie`, `ipm` and `free-rider` do little and are seldom found: they are as near the honest
as these are to each other. Texts are of no class, so they are divided iid alone."""


STUDY = Study(
    "trust_tasks",
    "Learned trust on regression, several labels and texts",
    tuple(cell(*one) for one in CELLS),
    section,
)
