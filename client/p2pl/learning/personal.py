"""The personal track: a model of my own distribution, which nobody else ever gets.

The shared model must serve everybody. Who holds two classes of ten and will only ever be asked
about these wants another: one chosen freely, on my own validation examples as they are. It is a
convex combination of what I trained this round (the shared model, fine-tuned on my data), of my
personal model so far, and of what I mixed from others, its weights learned by exponentiated
gradient (Kivinen and Warmuth 1997), as the whole row is in APPLE (Luo and Wu 2022,
arXiv:2110.08394) and the one weight in APFL (Deng et al. 2020, arXiv:2003.13461). It is kept only
where it beats what it is made of. What is learned here changes nothing that others see.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from p2pl.learning.examples import Examples, Source
from p2pl.learning.weights import Layout

RATE = 5.0  # chosen: 0.02 to 0.1 nats between two models then move their odds by a tenth to a half
STEPS = 20
MAX_MOVE = 1.0  # of a number in the first step, ever less after: steep slopes are overshot
EXAMPLES = 1_024  # to learn and to choose by; more only costs time


def choose(
    trained: Tensor, before: Tensor | None, received: Sequence[Tensor], judge: "Judge"
) -> Tensor:
    """Returns my personal model after this round, [P].

    Args:
        trained: [P], what I trained this round.
        before: [P], my personal model of the round before; None in the first.
        received: those of others that I mixed, [P] each.
        judge: my validation examples.
    """
    mine = [trained] if before is None else [trained, before]
    combined = _combined([*mine, *received], judge)
    return min([*mine, combined], key=judge.loss)


class Judge:
    """My validation examples as they are: every example counts the same."""

    def __init__(self, model: nn.Module, validation: Source) -> None:
        """Keeps an evenly spaced part of the examples.

        Args:
            model: what the parameters mean; its own are neither read nor changed.
            validation: at least one example, on the model's device.
        """
        spaced = torch.linspace(0, len(validation) - 1, min(len(validation), EXAMPLES))
        self._model, self._layout = model, Layout.of(model)
        self._part: Examples = validation.take(spaced.long())

    def loss(self, vector: Tensor) -> float:
        """Returns the mean cross-entropy, nats."""
        with torch.no_grad():
            return float(self._loss(vector))

    def gradient(self, vector: Tensor) -> Tensor:
        """Returns the gradient of the loss by the parameters, [P]."""
        at = vector.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._loss(at), at)
        return gradient

    def _loss(self, vector: Tensor) -> Tensor:
        scores = functional_call(self._model, self._layout.unflatten(vector), self._part.x)
        return functional.cross_entropy(scores, self._part.y)


def _combined(vectors: Sequence[Tensor], judge: Judge) -> Tensor:
    """Returns the convex combination that the steps end at, [P]."""
    stacked = torch.stack(list(vectors))
    numbers = torch.zeros(len(vectors)).to(stacked)
    for step in range(STEPS):
        most = 2 * MAX_MOVE / (step + 2)
        mixed = numbers.softmax(0) @ stacked
        slopes = (stacked - mixed) @ judge.gradient(mixed)
        numbers = numbers - (RATE * (slopes - slopes.mean())).clamp(-most, most)
    return numbers.softmax(0) @ stacked
