"""A few examples, and how good parameters are on them as they are: each counts the same."""

import torch
from torch import Tensor

from p2pl.data.examples import Source
from p2pl.learning.objective import Objective


class Sample:
    """Evenly spaced examples of a source."""

    def __init__(self, objective: Objective, source: Source, most: int) -> None:
        """Keeps so many of the examples, or all if there are no more.

        Args:
            objective: the model and its task.
            source: at least one example, on the model's device.
            most: how many to keep, at least 1.
        """
        spaced = torch.linspace(0, len(source) - 1, min(len(source), most))
        self._objective = objective
        self._examples = source.take(spaced.long())

    def loss(self, vector: Tensor) -> float:
        """Returns the mean loss of the parameters [P]; of classes, the cross-entropy in nats."""
        self._objective.model.eval()
        with torch.no_grad():
            return float(self._objective.loss(vector, self._examples))

    def gradient(self, vector: Tensor) -> Tensor:
        """Returns its gradient by the vector, [P]; 0 for buffers."""
        self._objective.model.eval()
        gradient = self._objective.gradient(vector, self._examples)[1]
        return torch.cat([gradient, gradient.new_zeros(len(vector) - len(gradient))])
