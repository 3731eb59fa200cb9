"""What is scored between the rounds of a simulation: which peers, how often, on how much.

After the last round everybody is scored on the whole test set, whatever is said here.
"""

from dataclasses import dataclass, replace

import torch

from p2pl.errors import InputError, wrong
from p2pl.learner import Learner
from p2pl.learning.torch_trainer import TorchTrainer

MAX_SCORED = 20  # peers, where nobody asks for another number; of more, these are evenly spaced
# A gradient takes about three times what a score takes. So scoring is a third of a round where it
# sees half as many examples as three times those that are trained on.
EXAMPLES_A_SAMPLE = 1.5
MIN_EXAMPLES = 1_000  # chosen: an accuracy is then within 3 points, 19 times of 20


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is scored before the last round is over.

    Attributes:
        every: rounds from one that is scored to the next; 0: only the last round is.
        peers: how many are scored before and after the mix, the last round included.
        examples: how many of the test set they are scored on, evenly spaced. None: all of it up to
            `MAX_SCORED` peers; with more peers so many that scoring is about a third of a round.
    """

    every: int = 1
    peers: int = MAX_SCORED
    examples: int | None = None

    def check(self) -> None:
        """Raises InputError where a number is out of range."""
        least = {"every": 0, "peers": 1, "examples": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(wrong(f"--score-{name}", got=value, allowed=f"{low} or more"))

    def scores(self, index: int, rounds: int) -> bool:
        """Returns whether a round is scored, of so many rounds."""
        return index == rounds or (self.every > 0 and index % self.every == 0)

    def numbers(self, peers: int) -> tuple[int, ...]:
        """Returns the numbers of those that are scored, of so many peers."""
        some = min(self.peers, peers)
        return tuple(number * peers // some for number in range(some))

    def examples_of(self, learners: tuple[Learner, ...], epochs: int) -> int | None:
        """Returns on how many test examples peers are scored; None: on all of them.

        Args:
            learners: by peer.
            epochs: that each trains in a round.
        """
        test = getattr(learners[0].trainer, "test", None)
        if test is None or (self.examples is None and len(learners) <= MAX_SCORED):
            return None
        wanted = self.examples
        if wanted is None:
            trained = epochs * sum(learner.trainer.own_samples for learner in learners)
            models = 2 * min(self.peers, len(learners)) + 1  # around the mix, and the mean
            wanted = max(MIN_EXAMPLES, int(EXAMPLES_A_SAMPLE * trained / models))
        return wanted if wanted < len(test) else None


USUAL = Scoring()


def on_fewer(learners: tuple[Learner, ...], examples: int | None) -> tuple[Learner, ...]:
    """Returns the learners with so many of the examples of their one test set, evenly spaced."""
    trainer = learners[0].trainer
    if examples is None or not isinstance(trainer, TorchTrainer) or trainer.test is None:
        return learners
    rows = torch.linspace(0, len(trainer.test) - 1, examples).round().long()
    test = trainer.test.take(rows)
    return tuple(replace(one, trainer=replace(one.trainer, test=test)) for one in learners)  # type: ignore[type-var]
