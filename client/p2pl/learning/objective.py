"""A model and its task as a function of the parameters: the loss, and the loss's gradient."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from p2pl.data.examples import Examples, Inputs
from p2pl.errors import ModelError, wrong
from p2pl.learning.parts import Layout, whole_buffers
from p2pl.learning.task import Task

COUNT = "count."  # in front of a buffer's name in the state that a peer keeps between rounds


def arguments_of(x: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Returns the arguments by place, and those by name, with which a model takes such inputs."""
    if isinstance(x, Tensor):
        return (x,), {}
    return (x, {}) if isinstance(x, tuple) else ((), dict(x))


@dataclass(frozen=True, slots=True)
class Objective:
    """What parameters are to make small.

    Attributes:
        model: what the parameters mean; what of it is in the vector is neither read nor changed.
        task: says how wrong an output is.
        layout: of the model; P is its total.
        counts: the buffers of whole numbers as they were at the beginning, by name.
    """

    model: nn.Module
    task: Task
    layout: Layout
    counts: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, task: Task) -> "Objective":
        """Returns the objective of a model for a task.

        Raises:
            ModelError: the model holds numbers that cannot be mixed.
        """
        counts = {name: one.clone() for name, one in whole_buffers(model).items()}
        return cls(model, task, Layout.of(model), counts)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def outputs(self, vector: Tensor, x: Inputs) -> Tensor:
        """Returns what the model makes of inputs, [n, ...].

        Args:
            vector: [P].
            x: [n, *input], or several such.
        """
        return self.call(self.layout.unflatten(vector), x)

    def call(self, parameters: Mapping[str, Tensor], x: Inputs) -> Tensor:
        """Returns what the model makes of inputs with these parameters, by name."""
        args, named = arguments_of(x)
        made: Tensor = functional_call(self.model, dict(parameters), args, named)
        return made

    def checked(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the outputs, [n, ...], once their shape is seen to be the task's.

        Args:
            outputs: of the model.
            targets: [n, ...].

        Raises:
            ModelError: the model gives something else.
        """
        wanted = self.task.shape_of(targets)
        if wanted is not None and tuple(outputs.shape) != wanted:
            name = type(self.model).__name__
            got, kind = list(outputs.shape), type(self.task).__name__
            raise ModelError(
                wrong(f"outputs of {name}", got=got, allowed=f"{list(wanted)}, the task {kind}'s")
            )
        return outputs

    def losses(self, vector: Tensor, batch: Examples) -> Tensor:
        """Returns the loss of each example at the parameters [P], [n].

        Args:
            vector: [P] float32.
            batch: n examples.
        """
        outputs = self.checked(self.outputs(vector, batch.x), batch.y)
        return self.task.losses(outputs, batch.y)

    def loss(self, vector: Tensor, batch: Examples) -> Tensor:
        """Returns the mean loss over a batch at the parameters [P], a single number.

        Args:
            vector: [P] float32.
            batch: n examples, at least 1.
        """
        outputs = self.checked(self.outputs(vector, batch.x), batch.y)
        return self.task.loss(outputs, batch.y, "mean")

    def gradient(self, vector: Tensor, batch: Examples) -> tuple[Tensor, Tensor]:
        """Returns the mean loss over a batch, and its gradient by what is trained, [T].

        Of a model in training mode, the buffers in the vector are then those after the batch.

        Args:
            vector: [P]; the first T numbers are trained, the others are buffers.
            batch: at least one example.
        """
        layout = self.layout
        if not layout.buffers:
            at = vector.detach().requires_grad_()
            loss = self.loss(at, batch)
            (gradient,) = torch.autograd.grad(loss, at)
            return loss.detach(), gradient
        at = vector.detach()[: layout.trained].requires_grad_()
        # A copy, because the model writes to them while the parameters are still needed.
        parts = [at, vector.detach()[layout.trained :].clone()]
        outputs = self.checked(self.call(layout.unflatten_parts(parts), batch.x), batch.y)
        loss = self.task.loss(outputs, batch.y, "mean")
        (gradient,) = torch.autograd.grad(loss, at)
        vector[layout.trained :] = parts[1]
        return loss.detach(), gradient

    def take_counts(self, state: Mapping[str, Tensor]) -> None:
        """Gives the model the buffers of whole numbers that a peer has kept in its state."""
        if not self.counts:
            return
        there = whole_buffers(self.model)
        for name, first in self.counts.items():
            there[name].copy_(state.get(COUNT + name, first))

    def with_counts(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns the state with the model's buffers of whole numbers, for a peer to keep."""
        if not self.counts:
            return state
        now = whole_buffers(self.model)
        return {**state, **{COUNT + name: now[name].clone() for name in self.counts}}
