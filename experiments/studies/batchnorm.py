"""A residual network with BatchNorm on skewed CIFAR-10: its statistics mixed, or kept at home.

Small, so that two cores bear it in some minutes: eight layers, six peers, eight rounds.
"""

from experiments.grid import CIFAR, SESSIONS, Cell, Results, Study
from experiments.page import accuracy, table

MIXED, HOME = "BatchNorm, mixed", "BatchNorm, at home (FedBN)"
NORMALISATIONS = {
    MIXED: (),
    HOME: ("--set", 'training.buffers="local"'),
    "GroupNorm": ("--set", 'model.name="resnet-gn"'),
}
COLUMNS = {
    "equal sharing": ("--mixing", "uniform"),
    "learned trust": ("--mixing", "degroot"),
    "alone": ("--baseline", "isolated"),
}


def cell(normalisation: str, column: str) -> Cell:
    """Returns one cell of the table: six peers, one seed."""
    if column == "alone" and normalisation == HOME:
        normalisation = MIXED  # where nothing is exchanged, both are the same
    name = f"{normalisation}-{column}".lower().replace(",", "").replace(" ", "-")
    return Cell(
        name.replace("(", "").replace(")", ""),
        (
            str(SESSIONS / "resnet.toml"),
            *("--data", CIFAR, "--peers", "6", "--partition", "dirichlet:0.5", "--no-curves"),
            *COLUMNS[column],
            *NORMALISATIONS[normalisation],
        ),
        2.0,
    )


def section(results: Results) -> str:
    """Returns the table."""
    rows = [
        [name, *(accuracy(results.figures.get(cell(name, column).name)) for column in COLUMNS)]
        for name in NORMALISATIONS
    ]
    head = ["", *COLUMNS]
    return "\n\n".join(["# BatchNorm, skewed labels", _INTRODUCTION, table(head, rows)])


_INTRODUCTION = """Accuracy on the whole test set, mean over six peers, **1** seed. CIFAR-10,
Dirichlet 0.5, a residual network of eight layers and 4 to 16 channels, eight rounds of one local
epoch, batches of 128, nothing tuned. *Mixed*: parameters and running statistics of BatchNorm are
mixed as all others are. *At home*: they stay with their peer, as in FedBN (Li et al. 2021,
arXiv:2102.07623), which was made for peers whose inputs differ. Here the labels differ, and a
peer's statistics are those of its own labels, while the test set has all of them."""


STUDY = Study(
    "batchnorm",
    "BatchNorm mixed, or kept at home, with skewed labels",
    tuple({cell(name, column): None for name in NORMALISATIONS for column in COLUMNS}),
    section,
)
