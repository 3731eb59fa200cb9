"""A residual network with BatchNorm on skewed CIFAR-10: its statistics mixed, or kept at home.

Small, so that two cores bear it in some minutes: 2,000 images, six peers, eight rounds.
"""

import statistics

from experiments.compare import paired
from experiments.grid import Cell, Results, Study
from experiments.page import table

NORMALISATIONS = {
    "mixed": "BatchNorm, mixed",
    "home": "BatchNorm, at home (FedBN)",
    "group": "GroupNorm",
}
COLUMNS = {
    "equal": "equal sharing",
    "learned": "learned trust",
    "alone": "alone",
    "pooled": "all in one place",
}
SEEDS = range(5)


def cell(case: str, seed: int) -> Cell:
    """Returns one cell: one seed of one kind of normalisation, all columns."""
    words = (case, "--seeds", "1", "--first-seed", str(seed))
    return Cell(f"{case}-{seed}", words, 1.0, script="scripts/norms_run.py")


def section(results: Results) -> str:
    """Returns the table, and what the two kinds of buffers differ by."""
    rows = [
        [title, *(spread(figures_of(results, case, arm)) for arm in COLUMNS)]
        for case, title in NORMALISATIONS.items()
    ]
    parts = ["# BatchNorm, skewed labels", _INTRODUCTION, table(["", *COLUMNS.values()], rows)]
    return "\n\n".join([*parts, differences(results)])


def figures_of(results: Results, case: str, arm: str) -> list[float]:
    """Returns the accuracy of each seed that has been run."""
    if arm in ("alone", "pooled") and case == "home":
        case = "mixed"  # where nothing is exchanged, both are the same
    names = [cell(case, seed).name for seed in SEEDS]
    return [results.figures[n]["per_seed"][0][arm] for n in names if n in results.figures]


def spread(values: list[float]) -> str:
    """Returns mean ± standard deviation over the seeds, and how many these are if not all."""
    if len(values) < 2:
        return "not run"
    some = "" if len(values) == len(SEEDS) else f" ({len(values)} seeds)"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}{some}"


def differences(results: Results) -> str:
    """Returns how far statistics at home are from mixed ones, and both from alone."""
    runs = [len(figures_of(results, case, "equal")) for case in ("mixed", "home")]
    if min(runs) < 2 or runs[0] != runs[1]:
        return ""
    lines = []
    for arm in ("equal", "learned"):
        mixed, home = (figures_of(results, case, arm) for case in ("mixed", "home"))
        alone = figures_of(results, "mixed", "alone")
        lines.append(
            f"With {COLUMNS[arm]}: at home against mixed {paired(home, mixed)} points; against "
            f"alone, mixed {paired(mixed, alone)} and at home {paired(home, alone)}."
        )
    return "\n\n".join(lines)


_INTRODUCTION = """Accuracy on 1,000 images of the test set, mean over six peers and **5** seeds,
± the standard deviation over the seeds. **2,000** images of CIFAR-10's 50,000, the same for all
seeds, Dirichlet 0.5: a peer has some 330, of which a fifth is held back. So the accuracies are low,
and say how the kinds compare, not how good such a network can be. A residual network of eight
layers and 4 to 16 channels, eight rounds of one local epoch, batches of 32, nothing tuned.
*Mixed*: parameters and running statistics of BatchNorm are mixed as all others are. *At home*: they
stay with their peer, as in FedBN (Li et al. 2021, arXiv:2102.07623), which was made for peers whose
inputs differ. Here the labels differ, and a peer's statistics are those of its own labels, while
the test set has all of them. What is in brackets is a 95 % confidence interval.

**Learned trust is equal sharing here, to the last digit, in nine of ten runs with BatchNorm**:
nobody is bad, nothing that matters speaks against anybody, and then its weights are exactly equal.
Models with GroupNorm have hardly learned anything by then, and trust among them is chance. With two
of six bad (mixed, seed 100, 4 honest by themselves 23.4 %): of parameters of turned sign all are
refused, by both rules, for a variance is below 0. Flipped labels it does not see: 21.1 %, as with
equal sharing. A peer holds back 39 to 107 images and is right about a fifth of them, and a harm
that matters is then less than what one image says. Trust needs more examples, or a model that has
learned more."""


STUDY = Study(
    "batchnorm",
    "BatchNorm mixed, or kept at home, with skewed labels",
    tuple(cell(case, seed) for case in NORMALISATIONS for seed in SEEDS),
    section,
)
