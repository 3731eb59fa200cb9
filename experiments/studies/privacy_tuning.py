"""How each way of training privately is tuned: chosen without the test set, and each by itself.

Every setting is tried on another seed (100) than those of `scripts/reproduce privacy` (0 to 4),
trained on 50,000 of the training examples and judged on the other 10,000. Whoever trains together
may need another setting than who trains alone, and twenty with little data another than six with
more, so each arm has the best of its own on each data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from experiments import page
from experiments.grid import FASHION, MNIST, NAMES, SESSIONS, Cell, Results, Study
from experiments.page import table

NAME = "privacy_tuning"
ARMS = ("mixed", "isolated", "centralised")
EPSILONS = (1, 3)
# Data, peers. All data in one place are the same, however many share them.
SETUPS = ((MNIST, 6), (MNIST, 20), (FASHION, 6), (FASHION, 20))
# Batch and rounds, with the learning rates tried; gradients are clipped to 1, so only the product
# of clip and rate matters. The first was wide; it showed where to look for the others.
WIDE = {(512, 10): (1, 2, 4, 8, 16), (512, 20): (1, 2, 4, 8, 16), (1024, 20): (1, 2, 4, 8, 16)}
NARROW = {(512, 20): (1, 2, 4, 8), (1024, 20): (1, 2, 4, 8)}
WIDE_CENTRE = {(1024, 10): (2, 4, 8, 16, 32), (2048, 20): (2, 4, 8, 16, 32)}
NARROW_CENTRE = {(2048, 20): (2, 4, 8, 16)}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is tuned."""

    rate: float
    batch: int
    rounds: int

    @property
    def words(self) -> tuple[str, ...]:
        """As options of `p2pl simulate`."""
        changes = (
            f"training.learning_rate={float(self.rate)}",
            f"training.batch_size={self.batch}",
            "training.momentum=0.0",
            'training.schedule="constant"',
        )
        changed = [word for change in changes for word in ("--set", change)]
        return (*changed, "--rounds", str(self.rounds))

    def __str__(self) -> str:
        """As in a table."""
        return f"rate {self.rate:g}, batches of {self.batch}, {self.rounds} rounds"


def arm_words(arm: str, peers: int) -> tuple[str, ...]:
    """Returns the options that make an arm of the comparison."""
    words = ("--peers", str(peers), "--cohort", str(min(5, peers - 1)))
    if arm == "mixed":
        return (*words, "--mixing", "uniform")
    return (*words, "--mixing", "uniform", "--baseline", arm)


def private_words(epsilon: float) -> tuple[str, ...]:
    """Returns the options that make training private."""
    return ("--dp-epsilon", f"{epsilon:g}", "--dp-delta", "1e-5", "--no-curves")


def arms(peers: int) -> tuple[str, ...]:
    """Returns the arms to run among so many."""
    return ARMS if peers == SETUPS[0][1] else ARMS[:2]


def tried(arm: str, data: str, peers: int) -> tuple[Setting, ...]:
    """Returns the settings tried for an arm."""
    if arm == "centralised":
        grid = WIDE_CENTRE if data == MNIST else NARROW_CENTRE
    else:
        grid = WIDE if (data, peers) == SETUPS[0] else NARROW
    return tuple(Setting(rate, *shape) for shape, rates in grid.items() for rate in rates)


def cell(arm: str, data: str, peers: int, epsilon: int, setting: Setting) -> Cell:
    """Returns one setting of one arm."""
    name = f"{arm}-{NAMES[data]}-{peers}-{epsilon}".lower()
    return Cell(
        f"{name}-{setting.rate:g}-{setting.batch}-{setting.rounds}",
        (
            *(str(SESSIONS / "logreg.toml"), "--data", data, *arm_words(arm, peers)),
            *("--held-out", "10000", "--first-seed", "100", *private_words(epsilon)),
            *setting.words,
        ),
        minutes=0.1,
    )


def cells() -> tuple[Cell, ...]:
    """Returns every setting of every arm and budget."""
    return tuple(
        cell(arm, data, peers, epsilon, setting)
        for data, peers in SETUPS
        for epsilon in EPSILONS
        for arm in arms(peers)
        for setting in tried(arm, data, peers)
    )


def best(
    results: Results, arm: str, data: str, peers: int, epsilon: int
) -> Sequence[tuple[float, Setting]]:
    """Returns the settings of an arm with their accuracies, the best first."""
    found = [
        (results.figures[cell(arm, data, peers, epsilon, one).name]["accuracy"]["mean"], one)
        for one in tried(arm, data, peers)
    ]
    return sorted(found, key=lambda pair: -pair[0])


@cache
def kept() -> Results:
    """Returns the figures that settings are chosen from: the project's own, whatever is written."""
    return page.read(STUDY, page.Place()).results


@cache
def is_tuned(data: str, peers: int) -> bool:
    """Returns whether all settings of all arms were tried."""
    return all(
        cell(arm, data, peers, epsilon, one).name in kept().figures
        for epsilon in EPSILONS
        for arm in arms(peers)
        for one in tried(arm, data, peers)
    )


@cache
def chosen(arm: str, data: str, peers: int, epsilon: int) -> Setting:
    """Returns an arm's best setting, from the raw figures that are kept.

    Where not all settings were tried yet, it is that of MNIST among six.

    Args:
        arm: one of `ARMS`.
        data: of the arm.
        peers: among so many.
        epsilon: any; below 3 it takes the setting of 1, from 3 on that of 3.
    """
    if not is_tuned(data, peers):
        data, peers = SETUPS[0]
    tuned = EPSILONS[0] if epsilon < EPSILONS[1] else EPSILONS[1]
    return best(kept(), arm, data, peers, tuned)[0][1]


def section(results: Results) -> str:
    """Returns the best settings of every arm."""
    rows = [
        [f"{NAMES[data]}, {peers}", arm, str(epsilon), str(setting), f"{mean:.2f}"]
        for data, peers in SETUPS
        if is_tuned(data, peers)
        for epsilon in EPSILONS
        for arm in arms(peers)
        for mean, setting in best(results, arm, data, peers, epsilon)[:3]
    ]
    return (
        "# Settings tried for private training\n\n"
        "Logistic regression, six or twenty peers or everybody's data in one place, gradients "
        "clipped to 1. Accuracy on 10,000 held-out training examples, seed 100; the three best of "
        "each.\n\n" + table(["data, peers", "arm", "epsilon", "setting", "accuracy"], rows)
    )


STUDY = Study(NAME, "Settings tried for private training", cells(), section)
