"""What can tell how good other peers' parameters are on a peer's own examples.

Rules that learn trust ask a judge and nothing else, so a judge is also where an answer is noised
and paid for under privacy.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SHARE = 1 / 3  # of the mix, given to a model that is judged; chosen: 1/5 sees less
# Of an example's probability, between a mix with one model and without it. Chosen: with a few dozen
# examples one example's worth is more than this, and decides; with hundreds this does.
SPREAD = 0.1
# Of rightness: what counts as learned at least, so that first rounds are not judged by noise.
LEAST_LEARNED = 0.1
MIN_EXAMPLES = 4  # fewer say nothing about their spread
FEW = 10  # the standard error of so many is taken twice: their spread is known badly, and skewed


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
    before the change. A harm is the share of what has been learned that it undoes: of how much
    righter the model is than one whose parameters are all 0. So no unit counts: the same targets in
    metres or in millimetres, and losses in nats or in squares, are judged alike.
    """

    def __init__(self, losses: Callable[[Tensor], Tensor]) -> None:
        """Asks nothing yet.

        Args:
            losses: of parameters [P], the loss of each example, [n]; none below 0.
        """
        self._losses = losses
        self._ignorant: Tensor | None = None  # [n]

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns the share of what was learned that a change undoes, and its standard error."""
        old, new = self._losses(before), self._losses(after)
        if self._ignorant is None:
            # Zeros that nobody writes to take no memory.
            zeros = torch.from_numpy(np.zeros(before.shape, dtype=np.float32))
            self._ignorant = self._losses(zeros.to(before))
        if len(old) < MIN_EXAMPLES:
            return 0.0, 1.0
        usual = float(old.median()) or float(old.mean()) or 1.0
        right = _right(old, usual)
        learned = max(LEAST_LEARNED, float((right - _right(self._ignorant, usual)).mean()))
        lost = (right - _right(new, usual)) / learned
        wider = 1 + FEW / len(lost)
        return float(lost.mean()), wider * float(lost.std()) / math.sqrt(len(lost))


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
        self._ignorant: float | None = None

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns the share of what was learned that a change undoes, and its noise.

        How the examples spread is not known, so a spread is assumed, and no noise smaller than one
        example.
        """
        old, new = self._mean_loss(before), self._mean_loss(after)
        count = self._examples()
        if self._ignorant is None:
            self._ignorant = self._mean_loss(torch.zeros_like(before))
        if not math.isfinite(old):
            return 0.0, 1.0
        usual = max(0.0, old) or 1.0
        right, left, ignorant = (_worth(loss, usual) for loss in (old, new, self._ignorant))
        learned = max(LEAST_LEARNED, right - ignorant)
        return (right - left) / learned, max(1 / count, SPREAD / math.sqrt(count))


def _worth(loss: float, usual: float) -> float:
    return math.exp(-max(0.0, loss) / usual) if math.isfinite(loss) else 0.0
