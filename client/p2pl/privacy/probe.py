"""Private validation examples as an evaluator of other peers' models: every answer has noise.

Others can see what a peer makes of an evaluation: it mixes, and serves the mix. So an evaluation is
a release like any other. It asks the examples that are held back, and those pay from an account of
their own.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from p2pl.data.examples import Source
from p2pl.learning.weights import Layout
from p2pl.privacy import noise
from p2pl.privacy.accountant import Accountant

RELEASES = 2  # for one answer: how far scores shifted, and what is lost beside that
# How much one example can add. Chosen: a fifth of a mix that is a liar's costs most examples more
# than this, and a fifth that is an honest peer's far less.
MAX_LOSS = 0.25  # of the right class's probability
MAX_SHIFT = 1.0  # norm, of the change of an example's scores


class PrivateProbe:
    """Evaluates models as `p2pl.tasks.probe.Probe` does, with bounded answers and noise on them.

    All examples count alike, so a class counts as often as the peer holds it: the probe does not
    look at how many examples each class has.
    """

    def __init__(
        self,
        model: nn.Module,
        validation: Source,
        accountant: Accountant,
        gaussian: Callable[[int], Tensor] = noise.gaussian,
    ) -> None:
        """Keeps the examples.

        Args:
            model: what the parameters mean; its own are neither read nor changed.
            validation: at least one example, on the model's device; in no other use.
            accountant: pays for each answer; changes in place.
            gaussian: returns that many standard normal numbers, [count] float64.
        """
        part = validation.take(torch.arange(len(validation)))
        self._model, self._layout, self._x, self._y = model, Layout.of(model), part.x, part.y
        self._accountant, self._gaussian = accountant, gaussian

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns how much of the right class's probability a change costs, and its standard error.

        The cost is the mean over the examples, each between -`MAX_LOSS` and `MAX_LOSS`, plus noise.
        The standard error is infinite when the account is spent: then no example was asked, and the
        cost is 0. It depends on nothing that is secret, because the part of it that is due to
        sampling is the largest possible.

        Args:
            before: [P], parameters to compare with.
            after: [P], parameters after the change.
        """
        if self._accountant.charge(1.0, RELEASES) < RELEASES:
            return 0.0, math.inf
        count = len(self._y)
        deviation = self._accountant.account.noise_multiplier / count
        with torch.no_grad():
            old, new = self._scores(before), self._scores(after)
            changes = (new - old).nan_to_num(0.0, 0.0, 0.0)
            lengths = changes.norm(dim=1, keepdim=True)
            changes = (changes * (MAX_SHIFT / lengths.clamp(min=MAX_SHIFT))).nan_to_num(0.0)
            shift = changes.double().sum(0) / count + MAX_SHIFT * self._noise(
                deviation, changes.shape[1]
            )
            lost = self._right(old) - self._right(new - shift.float())
            lost = lost.nan_to_num(MAX_LOSS).clamp(-MAX_LOSS, MAX_LOSS)
            mean = float(lost.double().sum() / count + MAX_LOSS * self._noise(deviation, 1))
        return mean, MAX_LOSS * math.sqrt(1 / count + deviation**2)

    def _noise(self, deviation: float, count: int) -> Tensor:
        return deviation * self._gaussian(count).to(self._y.device)

    def _scores(self, vector: Tensor) -> Tensor:
        """Returns the scores before the softmax, [n, C]."""
        scores: Tensor = functional_call(self._model, self._layout.unflatten(vector), self._x)
        return scores

    def _right(self, scores: Tensor) -> Tensor:
        """Returns the probability of each example's right class, [n]."""
        return scores.softmax(1).gather(1, self._y[:, None])[:, 0]
