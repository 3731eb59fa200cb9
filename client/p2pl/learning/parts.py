"""Which numbers of a module are what: those that are trained, running statistics, and frozen ones.

A peer's vector [P] holds what may differ between peers: the parameters that are trained, then the
buffers, such as BatchNorm's running mean. What is frozen is the same for all; it comes with the
initial checkpoint and never travels again. A tensor that two layers share stands there once, under
its first name. Buffers of whole numbers, such as BatchNorm's count of batches, are not in the
vector either: each peer keeps its own.

The order is: parameters by name; those of normalisation layers with running statistics, by name;
buffers, by name. So what stays at home under `training.buffers = "local"` is the end of the vector.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from p2pl.errors import ModelError, wrong

LARGE = 1 << 22  # numbers; chosen: 16 MiB, beyond a processor's cache
VARIANCE = "running_var"  # what PyTorch calls it in every normalisation layer


@dataclass(frozen=True, slots=True)
class Layout:
    """What a vector [P] holds: names and shapes, in its order.

    Attributes:
        names: of the tensors.
        shapes: of the tensors.
        local: how many of the last ones stay at home under `training.buffers = "local"`.
        buffers: how many of the last ones are buffers, which no gradient changes.
        frozen: names of parameters that are not in the vector, because they are not trained.
        tied: names of tensors that stand in the vector under another name.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    local: int = 0
    buffers: int = 0
    frozen: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """Returns the layout of `model`.

        Raises:
            ModelError: nothing in it is trained, or something that is cannot be mixed.
        """
        _check_made(model)
        named = dict(sorted(model.named_parameters()))
        normal = {id(one) for layer in _normalisations(model) for one in layer.parameters()}
        trained = {name: one for name, one in named.items() if one.requires_grad}
        first = {name: one for name, one in trained.items() if id(one) not in normal}
        last = {name: one for name, one in trained.items() if id(one) in normal}
        if not trained:
            got = f"{len(named)} parameters, all of them frozen" if named else "no parameters"
            raise ModelError(
                wrong("model", got=got, allowed="at least one parameter with requires_grad")
            )
        for name, one in trained.items():
            if one.dtype != torch.float32:
                raise ModelError(
                    wrong(f"model parameter {name}", got=str(one.dtype), allowed="float32")
                )
        buffers = floating_buffers(model)
        parts = {**first, **last, **buffers}
        return cls(
            tuple(parts),
            tuple(tuple(one.shape) for one in parts.values()),
            local=len(last) + len(buffers),
            buffers=len(buffers),
            frozen=tuple(name for name in named if name not in trained),
            tied=_tied(model),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers in each tensor."""
        return _sizes(self.shapes)

    @property
    def total(self) -> int:
        """Numbers in all tensors together: P."""
        return _total(self.shapes)

    @property
    def trained(self) -> int:
        """How many of the numbers a gradient changes: the first ones."""
        return sum(self.sizes[: len(self.names) - self.buffers])

    @property
    def travelling(self) -> "Layout":
        """The part that travels under `training.buffers = "local"`: the beginning."""
        count = len(self.names) - self.local
        if not self.local:
            return self
        return Layout(self.names[:count], self.shapes[:count])

    @property
    def is_plain(self) -> bool:
        """Whether the vector holds parameters alone, and all that the module has."""
        return not (self.buffers or self.frozen)

    @property
    def roles(self) -> dict[str, str]:
        """What a name is, where it is no parameter that is trained and travels as it is."""
        count = len(self.names)
        return {
            **dict.fromkeys(self.names[count - self.local : count - self.buffers], "normalisation"),
            **dict.fromkeys(self.names[count - self.buffers :], "buffer"),
            **dict.fromkeys(self.frozen, "frozen"),
        }

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Returns each tensor as a view into `vector`, by name.

        Args:
            vector: [P].
        """
        parts = torch.split(vector, list(self.sizes))
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def unflatten_parts(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns each tensor as a view, by name.

        Args:
            parts: the vector in two: what is trained, and the buffers.
        """
        count = len(self.names) - self.buffers
        sizes = self.sizes
        split = (
            *torch.split(parts[0], list(sizes[:count])),
            *torch.split(parts[1], list(sizes[count:])),
        )
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, split, self.shapes, strict=True)
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Yields each tensor's name, shape, and how many numbers it has."""
        yield from zip(self.names, self.shapes, self.sizes, strict=True)

    def variances(self) -> tuple[tuple[str, slice], ...]:
        """Returns the running variances: name, and where in the vector they stand."""
        return _variances(self.names, self.shapes)


# A simulation asks for these some times a peer and round.


@lru_cache(maxsize=64)
def _sizes(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(map(math.prod, shapes))


@lru_cache(maxsize=64)
def _total(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(_sizes(shapes))


@lru_cache(maxsize=64)
def _variances(
    names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> tuple[tuple[str, slice], ...]:
    ends = list(accumulate(_sizes(shapes), initial=0))
    places = zip(names, map(slice, ends, ends[1:]), strict=True)
    return tuple((name, at) for name, at in places if name.rpartition(".")[2] == VARIANCE)


def flatten(model: nn.Module, layout: Layout | None = None) -> Tensor:
    """Returns a copy of the module's vector, [P] float32, on the module's device."""
    with torch.no_grad():
        return torch.cat([one.reshape(-1).float() for one in _tensors(model, layout)])


def load_into(model: nn.Module, vector: Tensor, layout: Layout | None = None) -> None:
    """Copies `vector` into the module; a large one into memory of the module's own.

    Args:
        model: of the layout that `vector` was made with.
        vector: [P].
        layout: of the module, where it is known already.
    """
    tensors = _tensors(model, layout)
    with torch.no_grad():
        parts = torch.split(vector, [one.numel() for one in tensors])
        for one, part in zip(tensors, parts, strict=True):
            if len(vector) > LARGE:  # it may be a view into a vector, see `lend`
                one.data = torch.empty_like(one)
            one.copy_(part.view_as(one))


def lend(model: nn.Module, vector: Tensor, layout: Layout) -> None:
    """Loads `vector` into the module; of a large one, the parameters become views into it.

    That saves the memory of another model. Whoever trains the module in place calls `load_into`
    before.

    Args:
        model: whose parameters are only read until the next call of this or of `load_into`.
        vector: [P].
        layout: of the module.
    """
    if len(vector) <= LARGE:
        load_into(model, vector, layout)
        return
    there, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    with torch.no_grad():
        for name, part in layout.unflatten(vector.detach()).items():
            if name in there:
                there[name].data = part
            else:
                buffers[name].copy_(part)


def _tensors(model: nn.Module, layout: Layout | None) -> list[Tensor]:
    there: dict[str, Tensor] = dict(model.named_parameters())
    if layout is None:
        layout = Layout.of(model)
    if layout.buffers:
        there |= dict(model.named_buffers())
    return [there[name] for name in layout.names]


def is_finite(vector: Tensor) -> bool:
    """Returns whether all numbers are finite, most often without memory for a look at each."""
    # A sum is finite only if every term is; it may overflow although all are.
    return math.isfinite(vector.sum()) or bool(vector.isfinite().all())


def frozen_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that are not trained, by name, sorted."""
    named = sorted(model.named_parameters())
    return {name: one.detach() for name, one in named if not one.requires_grad}


def floating_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that belong to what is saved and are no whole numbers, sorted by name."""
    return {name: one for name, one in _saved_buffers(model) if one.is_floating_point()}


def whole_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers of whole numbers that belong to what is saved, sorted by name."""
    return {name: one for name, one in _saved_buffers(model) if not one.is_floating_point()}


def _saved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    named = sorted(model.named_buffers())
    saved: Mapping[str, object] = model.state_dict(keep_vars=True) if named else {}
    return [(name, one) for name, one in named if name in saved]


def has_normalisation(model: nn.Module) -> bool:
    """Returns whether a layer keeps running statistics of the batches that it sees."""
    return bool(_normalisations(model))


def _normalisations(model: nn.Module) -> list[nn.Module]:
    """Returns BatchNorm's layers, and others that keep running statistics."""
    layers = [layer for layer in model.modules() if isinstance(layer, _NormBase)]
    return [layer for layer in layers if layer.running_mean is not None]


def _tied(model: nn.Module) -> tuple[str, ...]:
    once = {name for name, _ in model.named_parameters()}
    again = model.named_parameters(remove_duplicate=False)
    return tuple(sorted(name for name, _ in again if name not in once))


def _check_made(model: nn.Module) -> None:
    """Raises ModelError for a layer whose shapes are not known before its first use."""
    for name, one in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(one, UninitializedParameter | UninitializedBuffer):
            raise ModelError(
                wrong(
                    f"model: {name}",
                    got=f"{type(one).__name__}, whose shape is not known yet",
                    allowed="a module that knows its shapes",
                    hint="use it once before you pass it on",
                )
            )
