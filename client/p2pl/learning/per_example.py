"""The sum of per-example gradients, each clipped: all that private training reads of the data.

An example adds a vector of at most the clipping norm to the sum, whatever it holds. One that makes
a gradient which is not a number, as a malicious start could arrange, adds nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.errors import ModelError, wrong
from p2pl.learning.examples import Examples
from p2pl.learning.weights import Layout, load_into

# Per-example gradients take a vector of the model's size for each example. Chosen: a batch is
# worked off in parts of at most so many numbers (256 MiB), whatever the model.
MAX_GRADIENT_NUMBERS = 1 << 26
SMALL = 1e-6  # added to a norm before dividing by it, as Opacus does


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """What came of one batch."""

    gradient: Tensor  # [P], the sum of the clipped gradients
    loss: Tensor  # the sum of the losses, nats; private: it is never published


Clipped: TypeAlias = Callable[[Tensor, Examples, float], ClippedSum]


@contextlib.contextmanager
def clipped_gradients(model: nn.Module) -> Iterator[Clipped]:
    """Yields what returns, of (vector, batch, clipping norm), the batch's clipped sum.

    A batch may be empty. The model is working space until the end of the context.

    Raises:
        ModelError: a gradient of this model belongs to a batch, not to an example.
    """
    linear = linear_layer(model)
    if linear is not None:
        yield closed_form
        return
    with _through_opacus(model) as clipped:
        yield clipped


def linear_layer(model: nn.Module) -> nn.Linear | None:
    """Returns the only layer of a linear model with a bias; None if it is any other model."""
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    *before, last = layers or [model]
    if type(last) is nn.Linear and last.bias is not None:
        return last if all(type(layer) is nn.Flatten for layer in before) else None
    return None


def closed_form(vector: Tensor, batch: Examples, clip: float) -> ClippedSum:
    """Returns the clipped sum of multinomial logistic regression.

    The gradient of one example is (p - y) times (1, x): its norm is the product of two norms, so
    nothing of the model's size is made for an example.

    Args:
        vector: [C + C * D], the biases before the weights, as in `Layout`.
        batch: D numbers an example.
        clip: the largest norm that an example may add.
    """
    x = batch.x.flatten(1)
    classes = vector.numel() // (x.shape[1] + 1)
    bias, weight = vector[:classes], vector[classes:].view(classes, -1)
    logits = torch.addmm(bias, x, weight.T)
    errors = torch.softmax(logits, 1)
    errors[torch.arange(len(x), device=x.device), batch.y] -= 1
    norms = errors.norm(dim=1) * (x.square().sum(1) + 1).sqrt()
    errors = (errors * (clip / (norms + SMALL)).clamp(max=1)[:, None]).nan_to_num(0.0, 0.0, 0.0)
    total = torch.cat([errors.sum(0), (errors.T @ x.nan_to_num(0.0, 0.0, 0.0)).flatten()])
    return ClippedSum(total, functional.cross_entropy(logits, batch.y, reduction="sum"))


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
