"""The sum of per-example gradients, each clipped: all that private training reads of the data.

An example adds a vector of at most the clipping norm to the sum, whatever it holds. One that makes
a gradient which is not a number, as a malicious start could arrange, adds nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.errors import ModelError, wrong
from p2pl.learning.examples import Examples
from p2pl.learning.weights import Layout, load_into

# Per-example gradients take a vector of the model's size for each example. Chosen: a batch is
# worked off in parts of at most so many numbers (256 MiB), whatever the model.
MAX_GRADIENT_NUMBERS = 1 << 26
_OF_ONE_NUMBER = (nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh)
SMALL = 1e-6  # added to a norm before dividing by it, as Opacus does


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """What came of one batch."""

    gradient: Tensor  # [P], the sum of the clipped gradients
    loss: Tensor  # the sum of the losses, nats; private: it is never published


Clipped: TypeAlias = Callable[[Tensor, Examples, float], ClippedSum]


@contextlib.contextmanager
def clipped_gradients(model: nn.Module, *, closed_form: bool = True) -> Iterator[Clipped]:
    """Yields what returns, of (vector, batch, clipping norm), the batch's clipped sum.

    A batch may be empty. The model is working space until the end of the context.

    Args:
        model: what the parameters mean.
        closed_form: False: Opacus does it, though it could be had for less.

    Raises:
        ModelError: a gradient of this model belongs to a batch, not to an example.
    """
    if closed_form and is_perceptron(model):
        yield partial(_of_perceptron, model, Layout.of(model))
        return
    with _through_opacus(model) as clipped:
        yield clipped


def is_perceptron(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Returns whether the model flattens its input, and then has linear layers with biases alone.

    Between them may be functions of one number. Logistic regression is the smallest such model.
    """
    layers = list(model) if isinstance(model, nn.Sequential) else []
    if len(layers) < 2 or type(layers[0]) is not nn.Flatten or type(layers[1]) is not nn.Linear:
        return False
    if (layers[0].start_dim, layers[0].end_dim) != (1, -1):
        return False
    return all(
        layer.bias is not None if type(layer) is nn.Linear else type(layer) in _OF_ONE_NUMBER
        for layer in layers[1:]
    )


def _of_perceptron(
    model: nn.Sequential, layout: Layout, vector: Tensor, batch: Examples, clip: float
) -> ClippedSum:
    """Returns the clipped sum of a perceptron, with nothing of the model's size for an example.

    In a linear layer the gradient of one example is its error times (1, its input), so its norm is
    the product of two norms (Goodfellow 2015, arXiv:1510.01799), and the clipped sum is one matrix
    product of the errors, each scaled, with the inputs.
    """
    parameters, at = layout.unflatten(vector), batch.x
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    with torch.enable_grad():
        for name, layer in model.named_children():
            if type(layer) is nn.Linear:
                inputs[name] = at.detach()
                at = functional.linear(at, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
                outputs[name] = at = at if at.requires_grad else at.requires_grad_()
            else:
                at = layer(at)
        loss = functional.cross_entropy(at, batch.y, reduction="sum")
        errors = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
    squares = [
        errors[name].square().sum(1) * (inputs[name].square().sum(1) + 1) for name in outputs
    ]
    norms = torch.stack(squares).sum(0).sqrt()
    scale = (clip / (norms + SMALL)).clamp(max=1)[:, None]
    sums: dict[str, Tensor] = {}
    for name, error in errors.items():
        scaled = (error * scale).nan_to_num(0.0, 0.0, 0.0)
        sums[f"{name}.bias"] = scaled.sum(0)
        sums[f"{name}.weight"] = (scaled.T @ inputs[name].nan_to_num(0.0, 0.0, 0.0)).flatten()
    return ClippedSum(torch.cat([sums[name] for name in layout.names]), loss.detach())


@contextlib.contextmanager
def _through_opacus(model: nn.Module) -> Iterator[Clipped]:
    """Yields the clipped sums of any model that Opacus accepts: its hooks, and its clipping."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    layout = Layout.of(model)
    check_layers(model)
    hooked = GradSampleModule(model, loss_reduction="sum")
    parameters = dict(model.named_parameters())
    ordered: list[Any] = [parameters[name] for name in layout.names]  # with Opacus' own attributes
    # Of the optimizer, only the clipping is used: noise and step are ours, on the one vector.
    clipping = DPOptimizer(
        torch.optim.SGD(ordered, lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    size = max(1, MAX_GRADIENT_NUMBERS // layout.total)

    def clipped(vector: Tensor, batch: Examples, clip: float) -> ClippedSum:
        load_into(model, vector)
        clipping.max_grad_norm = clip
        clipping.zero_grad()
        loss = torch.zeros((), device=vector.device)
        for part in batch.batches(size) if len(batch) else ():
            x = part.x.detach().requires_grad_()  # else torch warns of every hook
            with torch.enable_grad():
                part_loss = functional.cross_entropy(hooked(x), part.y, reduction="sum")
                part_loss.backward()  # type: ignore[no-untyped-call]
            for parameter in ordered:
                parameter.grad_sample.nan_to_num_(0.0, 0.0, 0.0)
            clipping.clip_and_accumulate()
            for parameter in ordered:
                parameter.grad_sample = None
            loss += part_loss.detach()
        sums = [torch.zeros_like(p) if p.summed_grad is None else p.summed_grad for p in ordered]
        return ClippedSum(torch.cat([one.detach().flatten() for one in sums]), loss)

    try:
        yield clipped
    finally:
        hooked.to_standard_module()
        for parameter in ordered:
            parameter.grad = None
            del parameter.summed_grad


def check_layers(model: nn.Module) -> None:
    """Raises ModelError where Opacus knows a layer to mix the examples of a batch."""
    from opacus.validators import ModuleValidator

    model.train()  # the validator asks for it
    faults = ModuleValidator.validate(model, strict=False)
    if faults:
        raise ModelError(
            wrong(
                "model, for private training",
                got="; ".join(str(fault) for fault in faults),
                allowed="layers that treat each example by itself",
                hint="use nn.GroupNorm in the place of nn.BatchNorm",
            )
        )
