"""A model and its task as a function of the parameters: the loss, and the loss's gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from p2pl.data.examples import Examples
from p2pl.learning.task import Task
from p2pl.learning.weights import Layout


@dataclass(frozen=True, slots=True)
class Objective:
    """What parameters are to make small.

    Attributes:
        model: what the parameters mean; its own are neither read nor changed.
        task: says how wrong an output is.
        layout: of the model; P is its total.
    """

    model: nn.Module
    task: Task
    layout: Layout

    @classmethod
    def of(cls, model: nn.Module, task: Task) -> "Objective":
        """Returns the objective of a model for a task.

        Raises:
            ModelError: the model holds numbers that cannot be mixed.
        """
        return cls(model, task, Layout.of(model))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def outputs(self, vector: Tensor, x: Tensor) -> Tensor:
        """Returns what the model makes of inputs, [n, ...].

        Args:
            vector: [P].
            x: [n, *input].
        """
        made: Tensor = functional_call(self.model, self.layout.unflatten(vector), x)
        return made

    def losses(self, vector: Tensor, batch: Examples) -> Tensor:
        """Returns the loss of each example at the parameters [P], [n].

        Args:
            vector: [P] float32.
            batch: n examples.
        """
        return self.task.losses(self.outputs(vector, batch.x), batch.y)

    def loss(self, vector: Tensor, batch: Examples) -> Tensor:
        """Returns the mean loss over a batch at the parameters [P], a single number.

        Args:
            vector: [P] float32.
            batch: n examples, at least 1.
        """
        return self.task.loss(self.outputs(vector, batch.x), batch.y, "mean")

    def gradient(self, vector: Tensor, batch: Examples) -> tuple[Tensor, Tensor]:
        """Returns the mean loss over a batch, and its gradient by the parameters, [P].

        Args:
            vector: [P] float32.
            batch: n examples, at least 1.
        """
        at = vector.detach().requires_grad_()
        loss = self.loss(at, batch)
        (gradient,) = torch.autograd.grad(loss, at)
        return loss.detach(), gradient
