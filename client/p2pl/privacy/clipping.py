"""The sum of per-example gradients, each clipped: all that private training reads of the data.

An example adds a vector of at most the clipping norm to the sum, whatever it holds. One that makes
a gradient which is not a number, as a malicious start could arrange, adds nothing.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional

from p2pl.data.examples import Examples
from p2pl.errors import ModelError, wrong
from p2pl.learning.weights import Layout, load_into

# Per-example gradients take a vector of the model's size for each example. Chosen: a batch is
# worked off in parts of at most so many numbers (256 MiB), whatever the model.
MAX_GRADIENT_NUMBERS = 1 << 26
# Examples whose convolutions are worked off together, by kind of device. Measured: on the CPU 32 to
# 64 stay in its cache, and take two thirds of the time of 256.
CONVOLVED = {"cpu": 64, "cuda": 1024}
_OF_ONE_NUMBER = (nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
SMALL = 1e-6  # added to a norm before dividing by it, as Opacus does


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """What came of one batch."""

    gradient: Tensor  # [P], the sum of the clipped gradients
    loss: Tensor  # the sum of the losses, nats; private: it is never published


Clipped: TypeAlias = Callable[[Tensor, Examples, float], ClippedSum]


@contextlib.contextmanager
def clipped_gradients(model: nn.Module, *, closed_form: bool = True) -> Iterator[Clipped]:
    """Yields a function from (vector [P], batch of n, clipping norm above 0) to the clipped sum.

    n may be 0. The model is working space until the end of the context.

    Args:
        model: what the parameters mean; P numbers, on the device of vector and batch.
        closed_form: False: Opacus computes the sum of any model, to compare with.

    Raises:
        ModelError: a gradient of this model belongs to a batch, not to an example.
    """
    if closed_form and has_closed_form(model):
        yield partial(_in_closed_form, model, Layout.of(model))
        return
    with _through_opacus(model) as clipped:
        yield clipped


def has_closed_form(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Returns whether the model is convolutions, if any, a flattening, and linear layers.

    All have biases and are trained, and each is used once. Between them there may be functions of
    one number, and between convolutions pooling. Logistic regression is the smallest such model.
    """
    layers = list(model) if type(model) is nn.Sequential else []
    flat = next((at for at, layer in enumerate(layers) if _flattens(layer)), len(layers))
    images, vectors = layers[:flat], layers[flat + 1 :]
    if not vectors or type(vectors[0]) is not nn.Linear:
        return False
    if not all(_of_one_number(layer) or _convolves(layer) for layer in images):
        return False
    if not all(_of_one_number(layer) or type(layer) is nn.Linear for layer in vectors):
        return False
    weighted = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    trained = [one for one in model.parameters() if one.requires_grad]
    return len(trained) == 2 * len(weighted)  # fewer: frozen, shared, or without a bias


def _flattens(layer: nn.Module) -> bool:
    """Returns whether the layer makes a vector of each example."""
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


def _of_one_number(layer: nn.Module) -> bool:
    """Returns whether the layer is a function of each number by itself."""
    return type(layer) in _OF_ONE_NUMBER and not getattr(layer, "inplace", False)


def _convolves(layer: nn.Module) -> bool:
    """Returns whether the layer is a plain convolution of images, or pools them."""
    if type(layer) is nn.Conv2d:
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return type(layer) in _POOLS and not getattr(layer, "return_indices", False)


def _in_closed_form(
    model: nn.Sequential, layout: Layout, vector: Tensor, batch: Examples, clip: float
) -> ClippedSum:
    """Returns the clipped sum of such a model, with few numbers for an example.

    What autograd has to find are the errors at the layers' outputs. In a linear layer the gradient
    of one example is its error times (1, its input), so its norm is the product of two norms
    (Goodfellow 2015, arXiv:1510.01799), and the clipped sum is one matrix product of the errors,
    each scaled, with the inputs. Only convolutions, which have few parameters, take a gradient for
    each example.
    """
    size = max(1, len(batch))
    if any(type(layer) is nn.Conv2d for layer in model):
        most = MAX_GRADIENT_NUMBERS // layout.total
        size = max(1, min(CONVOLVED.get(vector.device.type, 64), most))
    parameters = layout.unflatten(vector)
    parts = [_clipped_part(model, parameters, part, clip) for part in batch.batches(size)]
    gradients = [torch.cat([sums[name] for name in layout.names]) for sums, _ in parts]
    return ClippedSum(torch.stack(gradients).sum(0), torch.stack([loss for _, loss in parts]).sum())


def _clipped_part(
    model: nn.Sequential, parameters: Mapping[str, Tensor], batch: Examples, clip: float
) -> tuple[Mapping[str, Tensor], Tensor]:
    """Returns the clipped sum by name of parameter, flat, and the sum of the losses."""
    at, inputs, outputs = batch.x, {}, {}
    with torch.enable_grad():
        for name, layer in model.named_children():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                at = layer(at)
                continue
            inputs[name] = at.detach()
            own = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            if isinstance(layer, nn.Linear):
                at = functional.linear(at, *own)
            else:
                at = functional.conv2d(at, *own, layer.stride, layer.padding, layer.dilation)
            outputs[name] = at = at if at.requires_grad else at.requires_grad_()
        loss = functional.cross_entropy(at, batch.y, reduction="sum")
        errors = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
    convolved = {  # by name: [n, numbers], the gradients of each example
        name: _gradients(layer, inputs[name], errors[name])
        for name, layer in model.named_children()
        if isinstance(layer, nn.Conv2d)
    }
    squares = [
        torch.cat(convolved[name], 1).square().sum(1)
        if name in convolved
        else errors[name].square().sum(1) * (vector_norm(inputs[name], dim=1).square() + 1)
        for name in outputs
    ]
    norms = torch.stack(squares).sum(0).sqrt()
    scale = (clip / (norms + SMALL)).clamp(max=1).nan_to_num(0.0)
    sums: dict[str, Tensor] = {}
    for name, error in errors.items():
        if name in convolved:
            weight, bias = (scale @ one.nan_to_num(0.0, 0.0, 0.0) for one in convolved[name])
        else:
            scaled = (error * scale[:, None]).nan_to_num(0.0, 0.0, 0.0)
            weight, bias = scaled.T @ inputs[name].nan_to_num(0.0, 0.0, 0.0), scaled.sum(0)
        sums |= {f"{name}.weight": weight.flatten(), f"{name}.bias": bias}
    return sums, loss.detach()


def _gradients(layer: nn.Conv2d, inputs: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each example's gradient of a convolution's weight and bias, [n, numbers] each.

    Args:
        layer: only its shape is read.
        inputs: [n, C, H, W].
        errors: [n, O, H', W'], at its outputs.
    """
    flat = errors.flatten(2)
    window = layer.weight[0].numel()
    size = max(1, MAX_GRADIENT_NUMBERS // (window * flat.shape[2]))
    weights = [
        torch.bmm(error, _windows(layer, some).transpose(1, 2)).flatten(1)
        for some, error in zip(torch.split(inputs, size), torch.split(flat, size), strict=True)
    ]
    return torch.cat(weights), flat.sum(2)


def _windows(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Returns what each output of a convolution sees, [n, C * kernel, H' * W']."""
    sizes: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return functional.unfold(inputs, *sizes)


@contextlib.contextmanager
def _through_opacus(model: nn.Module) -> Iterator[Clipped]:
    """Yields the clipped sums of any model that Opacus accepts: its hooks, and its clipping."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    layout = Layout.of(model)
    check_layers(model)
    hooked = GradSampleModule(model, loss_reduction="sum")
    there: Mapping[str, Any] = trained_parameters(model)  # with Opacus' own attributes
    ordered = [there[name] for name in layout.names if name in there]
    # Of the optimizer, only the clipping is used: noise and step are made on the one vector.
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
            part_loss = _backward(hooked, part)
            for parameter in ordered:
                parameter.grad_sample.nan_to_num_(0.0, 0.0, 0.0)
            clipping.clip_and_accumulate()
            for parameter in ordered:
                parameter.grad_sample = None
            loss += part_loss
        gradient = torch.zeros_like(vector)
        for name, place in layout.unflatten(gradient).items():
            summed = there[name].summed_grad if name in there else None
            if summed is not None:
                place.copy_(summed)
        return ClippedSum(gradient, loss)

    try:
        yield clipped
    finally:
        hooked.to_standard_module()
        for parameter in ordered:
            parameter.grad = None
            parameter.__dict__.pop("summed_grad", None)


def _backward(hooked: nn.Module, part: Examples) -> Tensor:
    """Returns the sum of the losses; the gradient of each example is then in the parameters."""
    x = part.x.detach()
    if x.is_floating_point():
        x.requires_grad_()
    with torch.enable_grad(), warnings.catch_warnings():
        # Of layers whose input has no gradient: whole numbers, or what a frozen layer made.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss = functional.cross_entropy(hooked(x), part.y, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are not frozen, by name."""
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def trained_numbers(model: nn.Module) -> Tensor | None:
    """Returns 1 for each number of the model's vector that is trained and 0 for others, [P] bool.

    None where all are.
    """
    layout, there = Layout.of(model), trained_parameters(model)
    if set(layout.names) <= set(there):
        return None
    mask = torch.zeros(layout.total, dtype=torch.bool, device=next(model.parameters()).device)
    for name, place in layout.unflatten(mask).items():
        place.fill_(name in there)
    return mask


def check_layers(model: nn.Module) -> None:
    """Checks that no layer is one of those that Opacus knows to mix the examples of a batch.

    Args:
        model: any; it is in training mode afterwards.

    Raises:
        ModelError: a layer mixes them.
    """
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
