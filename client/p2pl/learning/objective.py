"""A model and its task as a function of the parameters: the loss, and the loss's gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from p2pl.data.examples import Examples, Inputs, Source
from p2pl.errors import InputError, ModelError, wrong
from p2pl.learning import faults
from p2pl.learning.parts import LARGE, Layout, lend, whole_buffers
from p2pl.learning.task import Task

LOOKED_AT = 256  # examples at once, to find what is not finite
COUNT = "count."  # in front of a buffer's name in the state that a peer keeps between rounds


def arguments_of(x: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Returns the arguments by place, and those by name, with which a model takes such inputs."""
    if isinstance(x, Tensor):
        return (x,), {}
    return (x, {}) if isinstance(x, tuple) else ((), dict(x))


def tensor_of(made: object) -> Tensor:
    """Returns the tensor that a model gives, by itself or in a dictionary as `logits` or `out`.

    Raises:
        ModelError: there is none.
    """
    if isinstance(made, Mapping):
        made = next((made[name] for name in faults.OUTPUT_NAMES if name in made), made)
    if isinstance(made, Tensor):
        return made
    allowed = "a tensor, or a dictionary with `logits` or `out`"
    raise ModelError(f"outputs of the model: got {faults.described(made)}, allowed {allowed}")


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
        try:
            made = functional_call(self.model, dict(parameters), args, named)
        except Exception as fault:
            raise self._faulty(x, fault) from fault
        return tensor_of(made)

    def here(self, x: Inputs) -> Tensor:
        """Returns what the model makes of inputs with the parameters that are loaded in it."""
        args, named = arguments_of(x)
        try:
            made = self.model(*args, **named)
        except Exception as fault:
            raise self._faulty(x, fault) from fault
        return tensor_of(made)

    def _faulty(self, x: Inputs, fault: Exception) -> ModelError:
        return ModelError(faults.explained(self.model, *arguments_of(x), fault))

    def check(self, batch: Examples) -> None:
        """Checks, with a few examples, that the model makes of them what the task asks for.

        Args:
            batch: at least one example.

        Raises:
            ModelError: it raises an error, or its outputs are of another shape or not finite.
        """
        self.model.eval()
        with torch.no_grad():
            outputs = self.checked(self.here(batch.x), batch.y)
            mean = self._mean(outputs, batch.y)
            if not outputs.isfinite().all():
                found = faults.first_not_finite(self.model, *arguments_of(batch.x))
                name = type(self.model).__name__
                raise ModelError(
                    found or f"outputs of {name}: got NaN or infinity, allowed finite numbers"
                )
            self._check_losses(mean, self.task.losses(outputs, batch.y), len(batch.y))

    def _check_losses(self, mean: object, losses: object, count: int) -> None:
        """Raises InputError where what a task gives are no losses of so many examples."""
        name = f"task {type(self.task).__name__}"
        for what, got, shape in (("loss", mean, ()), ("losses", losses, (count,))):
            if (
                not isinstance(got, Tensor)
                or not got.is_floating_point()
                or tuple(got.shape) != shape
            ):
                allowed = f"{list(shape)} of fractions, a number for each example"
                if not shape:
                    allowed = "a tensor of one fraction"
                raise InputError(
                    wrong(f"{name}: its {what}", got=faults.described(got), allowed=allowed)
                )
            if not got.isfinite().all():
                raise InputError(
                    wrong(
                        f"{name}: its {what}",
                        got="NaN or infinity",
                        allowed="finite numbers, where outputs and targets are finite",
                    )
                )

    def where_not_finite(self, vector: Tensor, examples: Source) -> str | None:
        """Returns which layer makes NaN or infinity of which inputs; None where none does.

        Args:
            vector: [P].
            examples: at least one.
        """
        lend(self.model, vector, self.layout)
        self.model.eval()
        for batch in examples.batches(LOOKED_AT):
            found = faults.first_not_finite(self.model, *arguments_of(batch.x))
            if found:
                return found
        return None

    def _mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss; raises ModelError where there is none of such outputs."""
        try:
            return self.task.loss(outputs, targets, "mean")
        except (IndexError, RuntimeError, TypeError, ValueError) as fault:
            raise ModelError(
                f"outputs of {type(self.model).__name__}: got {faults.described(outputs)}, allowed "
                f"what the task {type(self.task).__name__} compares with targets "
                f"{faults.described(targets)}: {faults.summary(fault)}"
            ) from fault

    def _slopes(self, loss: Tensor, at: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the gradients of a loss, 0 by what it does not depend on.

        Raises:
            ModelError: the loss has no gradient.
        """
        try:
            return torch.autograd.grad(loss, at, materialize_grads=True)
        except RuntimeError as fault:
            raise self._without_gradient(fault) from fault

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
        return self._mean(outputs, batch.y)

    def gradient(self, vector: Tensor, batch: Examples) -> tuple[Tensor, Tensor]:
        """Returns the mean loss over a batch, and its gradient by what is trained, [T].

        Of a model in training mode, the buffers in the vector are then those after the batch.

        Args:
            vector: [P]; the first T numbers are trained, the others are buffers.
            batch: at least one example.
        """
        layout = self.layout
        if layout.trained > LARGE:
            return self._gathered(vector, batch)
        if not layout.buffers:
            # Each by itself: through views of one vector, a step of the `cnn` took 2 to 4 % longer.
            parts = layout.unflatten(vector.detach())
            leaves = {name: part.detach().requires_grad_() for name, part in parts.items()}
            outputs = self.checked(self.call(leaves, batch.x), batch.y)
            loss = self._mean(outputs, batch.y)
            slopes = self._slopes(loss, tuple(leaves.values()))
            return loss.detach(), torch.cat([one.reshape(-1) for one in slopes])
        at = vector.detach()[: layout.trained].requires_grad_()
        # A copy, because the model writes to them while the parameters are still needed.
        buffers = vector.detach()[layout.trained :].clone()
        outputs = self.checked(self.call(layout.unflatten_parts([at, buffers]), batch.x), batch.y)
        loss = self._mean(outputs, batch.y)
        (gradient,) = self._slopes(loss, (at,))
        vector[layout.trained :] = buffers
        return loss.detach(), gradient

    def _gathered(self, vector: Tensor, batch: Examples) -> tuple[Tensor, Tensor]:
        """Returns what `gradient` does, layer by layer into one vector.

        Of a large model that takes the memory of one vector and one layer, and not of three
        vectors; of a small one it takes longer.
        """
        layout = self.layout
        gradient = torch.zeros_like(vector[: layout.trained])
        buffers = vector.detach()[layout.trained :].clone()
        parts = layout.unflatten_parts([vector.detach()[: layout.trained], buffers])
        slopes = layout.unflatten_parts([gradient, buffers])
        leaves = [parts[name] for name in layout.names[: len(parts) - layout.buffers]]
        for name, leaf in zip(layout.names, leaves, strict=False):
            leaf.requires_grad_()
            leaf.grad = slopes[name]  # to which its gradient is added
        loss = self._mean(self.checked(self.call(parts, batch.x), batch.y), batch.y)
        try:
            torch.autograd.backward(loss, inputs=leaves)
        except RuntimeError as fault:
            raise self._without_gradient(fault) from fault
        vector[layout.trained :] = buffers
        return loss.detach(), gradient

    def _without_gradient(self, fault: RuntimeError) -> ModelError:
        name = type(self.model).__name__
        return ModelError(f"model {name}: its gradient cannot be computed: {faults.summary(fault)}")

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
