"""How each way of training privately is tuned: chosen without the test set, and each by itself.

Every setting is tried on another seed (100) than those of `scripts/reproduce privacy` (0 to 4),
trained on 50,000 of the training examples and judged on the other 10,000. Whoever trains together
may need another setting than who trains alone, so each arm has the best of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments import MNIST, SESSIONS, Cell, Experiment, Results, main, table

ARMS = ("mixed", "isolated", "centralised")
EPSILONS = (1, 3)
# learning rate, batch, rounds; gradients are clipped to 1, so only the product of both matters.
PEERS = tuple(
    (rate, *rest) for rest in ((512, 10), (512, 20), (1024, 20)) for rate in (1, 2, 4, 8, 16)
)
CENTRE = tuple((rate, *rest) for rest in ((1024, 10), (2048, 20)) for rate in (2, 4, 8, 16, 32))


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


def tried(arm: str) -> tuple[Setting, ...]:
    """Returns the settings tried for an arm."""
    return tuple(Setting(*one) for one in (CENTRE if arm == "centralised" else PEERS))


def cell(arm: str, epsilon: int, setting: Setting) -> Cell:
    """Returns one setting of one arm."""
    return Cell(
        f"{arm}-{epsilon}-{setting.rate:g}-{setting.batch}-{setting.rounds}",
        (
            *(str(SESSIONS / "logreg.toml"), "--data", MNIST, *arm_words(arm, 6)),
            *("--held-out", "10000", "--first-seed", "100", *private_words(epsilon)),
            *setting.words,
        ),
        minutes=0.2,
    )


def cells() -> tuple[Cell, ...]:
    """Returns every setting of every arm and budget."""
    return tuple(
        cell(arm, epsilon, setting)
        for epsilon in EPSILONS
        for arm in ARMS
        for setting in tried(arm)
    )


def best(results: Results, arm: str, epsilon: int) -> Sequence[tuple[float, Setting]]:
    """Returns the settings of an arm with their accuracies, the best first."""
    found = [
        (results.figures[cell(arm, epsilon, one).name]["accuracy"]["mean"], one)
        for one in tried(arm)
    ]
    return sorted(found, key=lambda pair: -pair[0])


def section(results: Results) -> str:
    """Returns the best settings of every arm."""
    rows = [
        [arm, str(epsilon), str(setting), f"{mean:.2f}"]
        for epsilon in EPSILONS
        for arm in ARMS
        for mean, setting in best(results, arm, epsilon)[:3]
    ]
    return (
        "## Settings tried for private training\n\n"
        "Logistic regression, MNIST, six peers or everybody's data in one place, gradients clipped "
        "to 1. Accuracy on 10,000 held-out training examples, seed 100; the three best of each.\n\n"
        + table(["arm", "epsilon", "setting", "accuracy"], rows)
    )


EXPERIMENT = Experiment("privacy_tuning", cells(), section)

if __name__ == "__main__":
    main(EXPERIMENT)
