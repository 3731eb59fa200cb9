"""What can tell how good other peers' parameters are on a peer's own examples.

Rules that learn trust ask a judge and nothing else, so a judge is also where an answer is noised
and paid for under privacy.
"""

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

SHARE = 1 / 3  # of the mix, given to a model that is judged; chosen: 1/5 sees less
# Of an example's probability, between a mix with one model and without it. Chosen: with a few dozen
# examples one example's worth is more than this, and decides; with hundreds this does.
SPREAD = 0.1


class Judge(Protocol):
    """What can tell how good parameters are on a peer's own examples."""

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns how much of the right answer's probability a change costs, and its noise.

        The change is what comes of a mix when one model is given `SHARE` of it.

        Args:
            before: [P], the parameters before the change.
            after: [P], those after it.
        """
        ...


class LossJudge:
    """A judge that knows the loss of each example, for a task of any kind.

    How right a model is about an example is exp(-loss / usual), where `usual` is the median loss
    that the peer's examples had before the change. So no unit counts: the same targets in metres or
    in millimetres, and losses in nats or in squares, are judged alike.
    """

    def __init__(self, losses: Callable[[Tensor], Tensor]) -> None:
        """Asks nothing yet.

        Args:
            losses: of parameters [P], the loss of each example, [n]; none below 0.
        """
        self._losses = losses

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns the mean loss of rightness, and its standard error: at least one example's."""
        old, new = self._losses(before), self._losses(after)
        usual = float(old.median()) or float(old.mean()) or 1.0
        lost = _right(old, usual) - _right(new, usual)
        count = len(lost)
        spread = float(lost.std()) if count > 1 else 0.0
        return float(lost.mean()), max(1 / count, spread / math.sqrt(count))


def _right(losses: Tensor, usual: float) -> Tensor:
    """Returns how right a model is about each example, 0..1; a loss that is no number is wrong."""
    return (-losses.clamp(min=0) / usual).exp().nan_to_num(0.0)


class MeanLossJudge:
    """A judge that knows mean losses alone, as a client of Flower tells them."""

    def __init__(self, mean_loss: Callable[[Tensor], float], examples: Callable[[], int]) -> None:
        """Asks nothing yet.

        Args:
            mean_loss: of parameters [P]; not finite where it is not known.
            examples: how many the last mean was over.
        """
        self._mean_loss, self._examples = mean_loss, examples

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns how much rightness a change costs, and its noise; see `LossJudge`.

        How the examples spread is not known, so a spread is assumed, and no noise smaller than one
        example.
        """
        old, new = self._mean_loss(before), self._mean_loss(after)
        count = self._examples()
        noise = max(1 / count, SPREAD / math.sqrt(count))
        if not math.isfinite(old):
            return 0.0, noise
        usual = max(0.0, old) or 1.0
        worth = math.exp(-max(0.0, new) / usual) if math.isfinite(new) else 0.0
        return math.exp(-max(0.0, old) / usual) - worth, noise
