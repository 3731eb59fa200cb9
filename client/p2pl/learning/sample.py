"""A few examples, and how good parameters are on them as they are: each counts the same."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from p2pl.data.examples import Examples, Source
from p2pl.learning.weights import Layout


class Sample:
    """Evenly spaced examples of a source."""

    def __init__(self, model: nn.Module, source: Source, most: int) -> None:
        """Keeps so many of the examples, or all if there are no more.

        Args:
            model: what the parameters mean; its own are neither read nor changed.
            source: at least one example, on the model's device.
            most: how many to keep, at least 1.
        """
        spaced = torch.linspace(0, len(source) - 1, min(len(source), most))
        self._model, self._layout = model, Layout.of(model)
        self._examples: Examples = source.take(spaced.long())

    def loss(self, vector: Tensor) -> float:
        """Returns the mean cross-entropy of the parameters [P], nats."""
        with torch.no_grad():
            return float(self._loss(vector))

    def gradient(self, vector: Tensor) -> Tensor:
        """Returns its gradient by the parameters, [P]."""
        at = vector.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._loss(at), at)
        return gradient

    def _loss(self, vector: Tensor) -> Tensor:
        scores = functional_call(self._model, self._layout.unflatten(vector), self._examples.x)
        return functional.cross_entropy(scores, self._examples.y)
