"""Private training of a small convolutional network: is company worth more to it?

What two cores can bear: MNIST among six, two budgets, three learning rates tried for each arm, ten
rounds, few seeds. `scripts/reproduce privacy` is the same for logistic regression, in full.
"""

from collections.abc import Iterator
from functools import partial

from experiments.compare import paired
from experiments.grid import MNIST, SESSIONS, Cell, Results, Study
from experiments.page import accuracy, table
from experiments.studies.privacy_tuning import ARMS, arm_words, private_words

EPSILONS = (1, 3)
SEEDS = 3
RATES = {  # tried for each arm and budget, on 10,000 held-out training examples and another seed
    ("mixed", 1): (1, 2, 4),
    ("isolated", 1): (0.5, 1, 2),
    ("centralised", 1): (0.5, 1, 2),
    ("mixed", 3): (2, 4, 8),
    ("isolated", 3): (1, 2, 4),
    ("centralised", 3): (1, 2, 4),
}
CHOSEN: dict[tuple[str, int], float] = {  # the best of these, by the section that this writes
    ("mixed", 1): 2,
    ("isolated", 1): 1,
    ("centralised", 1): 1,
    ("mixed", 3): 4,
    ("isolated", 3): 2,
    ("centralised", 3): 1,
}
# Centralised, by Opacus' MNIST example (its README): epsilon -> accuracy.
PUBLISHED = {1.16: 94.63, 2.91: 96.78}


def cell(arm: str, epsilon: int, rate: float, *, tuning: bool) -> Cell:
    """Returns one arm with one budget, to choose its rate or to show."""
    of = ("--held-out", "10000", "--first-seed", "100") if tuning else ("--seeds", str(SEEDS))
    return Cell(
        f"{arm}-{epsilon}-{rate:g}" if tuning else f"{arm}-{epsilon}",
        (
            *(str(SESSIONS / "private-cnn.toml"), "--data", MNIST, *arm_words(arm, 6), *of),
            *(*private_words(epsilon), "--set", f"training.learning_rate={float(rate)}"),
        ),
        minutes=2.3 if tuning else 6.5,
    )


def cells() -> Iterator[Cell]:
    """Yields the cells by which rates are chosen, and those that are shown."""
    for (arm, epsilon), rates in RATES.items():
        yield from (cell(arm, epsilon, rate, tuning=True) for rate in rates)
    for arm, epsilon in RATES:
        yield cell(arm, epsilon, CHOSEN[arm, epsilon], tuning=False)


def section(results: Results) -> str:
    """Returns what was tried, and the comparison."""
    for (arm, epsilon), rates in RATES.items():
        assert CHOSEN[arm, epsilon] == max(rates, key=partial(held_out, results, arm, epsilon))
    tried = [
        [
            f"{arm}, epsilon {epsilon}",
            *(f"{held_out(results, arm, epsilon, rate):.2f} ({rate:g})" for rate in rates),
        ]
        for (arm, epsilon), rates in RATES.items()
    ]
    rows = []
    for epsilon in EPSILONS:
        figures = {
            arm: results.figures[cell(arm, epsilon, CHOSEN[arm, epsilon], tuning=False).name]
            for arm in ARMS
        }
        mixed, alone = (figures[arm]["accuracy"]["per_seed"] for arm in ("mixed", "isolated"))
        shown = (accuracy(figures[arm]) for arm in ("isolated", "mixed", "centralised"))
        rows.append([str(epsilon), *shown, str(paired(mixed, alone))])
    head = ["epsilon", "alone", "mixed", "one place", "gain"]
    return "\n\n".join(
        [
            "# Privacy: a small convolutional network",
            _WHAT,
            table(head, rows),
            "Accuracy on 10,000 held-out training examples of another seed (learning rate):",
            table(["arm", "slower", "", "faster"], tried),
            _PUBLISHED,
        ]
    )


def held_out(results: Results, arm: str, epsilon: int, rate: float) -> float:
    """Returns the accuracy by which a rate was chosen."""
    mean: float = results.figures[cell(arm, epsilon, rate, tuning=True).name]["accuracy"]["mean"]
    return mean


_WHAT = f"""MNIST, six peers, iid; two convolutions of 4 and 8 channels, 13,818 parameters; 10
rounds, batches of 256, delta 1e-5, gradients clipped to 1. **{SEEDS} seeds**, and only three
learning rates tried for each arm: what two cores can bear."""

_PUBLISHED = (
    "What is published for one place: Opacus' own MNIST example reaches "
    + " and ".join(f"{value} % at epsilon {epsilon}" for epsilon, value in PUBLISHED.items())
    + ". It has 60,000 examples, where ours has 48,000; 26,010 parameters; 15 epochs or more of "
    "batches of 240, which are 3,750 steps, where ours takes 1,880 in one place and 320 at a peer; "
    "and a clip and a rate of its own for each budget. A peer has 8,000 examples, so each of them "
    "weighs six times as much as in one place, and needs that much more noise to hide."
)

STUDY = Study("privacy_cnn", "Privacy: a small convolutional network", tuple(cells()), section)
