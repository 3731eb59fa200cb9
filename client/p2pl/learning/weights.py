"""A model's parameters as one vector, and that vector as a safetensors file.

The vector holds the parameters in the order of their names, which is also the order in which
safetensors lays out tensors of one type. So the payload of a model is a header that depends on the
layout alone, followed by the vector's own bytes: encoding is one copy and decoding is none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from p2pl.errors import FrameError, ModelError, wrong

Dtype: TypeAlias = Literal["float32", "float16"]
Payload: TypeAlias = bytes | bytearray | memoryview

_LENGTH_BYTES = 8  # the header's length, little endian; the header is padded to a multiple of it
_TAG = {"float32": "F32", "float16": "F16"}
_TORCH = {"float32": torch.float32, "float16": torch.float16}
_MAX_FLOAT16 = torch.finfo(torch.float16).max
_MAX_FOREIGN_HEADER_BYTES = 1 << 20  # parsed only to word an error


@dataclass(frozen=True, slots=True)
class Layout:
    """Which parameters a model has: their names, sorted, and shapes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """Returns the layout of `model`.

        Raises:
            ModelError: it holds numbers that are not float32 parameters, and so cannot be mixed.
        """
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                raise ModelError(
                    f"model: the buffer {name!r} holds running statistics, which peers do not "
                    "share and cannot mix; allowed: parameters only; use nn.GroupNorm in the place "
                    "of nn.BatchNorm"
                )
        parameters = dict(sorted(model.named_parameters()))
        if not parameters:
            raise ModelError("model: it has no parameters; there is nothing to learn or to share")
        for name, parameter in parameters.items():
            if parameter.dtype != torch.float32:
                raise ModelError(
                    wrong(f"model parameter {name}", got=str(parameter.dtype), allowed="float32")
                )
        return cls(tuple(parameters), tuple(tuple(p.shape) for p in parameters.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers in each parameter."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def total(self) -> int:
        """Numbers in all parameters together: P."""
        return sum(self.sizes)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Returns each parameter as a view into `vector`, by name.

        Args:
            vector: [P].
        """
        parts = torch.split(vector, list(self.sizes))
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }


def flatten(model: nn.Module) -> Tensor:
    """Returns a copy of all parameters of `model`, [P] float32, on the model's device."""
    with torch.no_grad():
        return torch.cat([p.reshape(-1) for _, p in sorted(model.named_parameters())])


def load_into(model: nn.Module, vector: Tensor) -> None:
    """Copies `vector` into the parameters of `model`, in place.

    Args:
        model: of the layout that `vector` was made with.
        vector: [P].
    """
    parameters = [parameter for _, parameter in sorted(model.named_parameters())]
    with torch.no_grad():
        for parameter, part in zip(
            parameters, torch.split(vector, [p.numel() for p in parameters]), strict=True
        ):
            parameter.copy_(part.view_as(parameter))


@lru_cache(maxsize=16)
def _header(layout: Layout, dtype: Dtype) -> bytes:
    """Returns what safetensors writes before the numbers (its format, version 0.4 and later)."""
    width = _TORCH[dtype].itemsize
    offsets = [0]
    for size in layout.sizes:
        offsets.append(offsets[-1] + size * width)
    entries = {
        name: {"dtype": _TAG[dtype], "shape": list(shape), "data_offsets": list(span)}
        for name, shape, span in zip(layout.names, layout.shapes, pairwise(offsets), strict=True)
    }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def payload_bytes(layout: Layout, dtype: Dtype) -> int:
    """Returns the exact size of every payload of this layout.

    Args:
        layout: names and shapes of the parameters.
        dtype: that they travel as.
    """
    return len(_header(layout, dtype)) + layout.total * _TORCH[dtype].itemsize


def encode(vector: Tensor, layout: Layout, dtype: Dtype) -> memoryview:
    """Returns `vector` as a safetensors file, read-only.

    What float16 cannot hold becomes the largest number that it can.

    Args:
        vector: [P] float32, finite.
        layout: of the model.
        dtype: of the numbers in the payload.
    """
    header = _header(layout, dtype)
    payload = bytearray(payload_bytes(layout, dtype))
    payload[: len(header)] = header
    numbers = torch.frombuffer(payload, dtype=_TORCH[dtype], offset=len(header))
    if dtype == "float16":
        vector = vector.clamp(-_MAX_FLOAT16, _MAX_FLOAT16)
    numbers.copy_(vector)
    return memoryview(payload).toreadonly()


def decode(payload: Payload, layout: Layout, dtype: Dtype) -> Tensor:
    """Returns the vector in `payload`, [P] float32, on the CPU.

    Float32 in a writable buffer is not copied: the vector is a view into it.

    Args:
        payload: bytes from a stranger.
        layout: names and shapes that it must have.
        dtype: that it must be of.

    Raises:
        FrameError: the payload is not of this layout and type, or holds NaN or infinity.
    """
    header = _header(layout, dtype)
    if bytes(payload[: len(header)]) != header:
        raise FrameError(_difference(payload, layout, dtype))
    if len(payload) != payload_bytes(layout, dtype):
        raise FrameError(
            wrong(
                "payload",
                got=f"{len(payload)} bytes",
                allowed=f"{payload_bytes(layout, dtype)} bytes",
            )
        )
    numbers = _numbers(payload, len(header), _TORCH[dtype])
    vector = numbers.to(torch.float32)
    # A sum is finite only if every term is; it may overflow although all are, hence the second
    # look.
    if not vector.sum().isfinite() and not vector.isfinite().all():
        raise FrameError("payload: got NaN or infinity among the numbers, allowed finite numbers")
    return vector


def _numbers(payload: Payload, offset: int, dtype: torch.dtype) -> Tensor:
    view = memoryview(payload).cast("B")
    if not view.readonly:
        return torch.frombuffer(view, dtype=dtype, offset=offset)
    return torch.frombuffer(bytearray(view[offset:]), dtype=dtype)  # torch wants it writable


def _difference(payload: Payload, layout: Layout, dtype: Dtype) -> str:
    """Returns a message that names the first tensor in which a foreign header is another one."""
    foreign = _foreign_header(payload)
    if foreign is None:
        return "payload: got something else, allowed a safetensors file of the session's model"
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        entry = foreign.get(name)
        if not isinstance(entry, dict):
            return wrong(
                "payload", got=f"no tensor {name!r}", allowed="the session's model: is it another?"
            )
        got = (entry.get("dtype"), entry.get("shape"))
        if got != (_TAG[dtype], list(shape)):
            return wrong(f"tensor {name!r}", got=got, allowed=f"{(_TAG[dtype], list(shape))}")
    if unknown := sorted(set(foreign) - set(layout.names)):
        return wrong("payload: unknown tensor", got=unknown[0], allowed="the session's model")
    return "payload: the header is not laid out as safetensors lays it out; allowed: its own form"


def _foreign_header(payload: Payload) -> Mapping[str, Any] | None:
    """Returns the parsed header of some safetensors file; None where it cannot be read."""
    size = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    if size > min(len(payload) - _LENGTH_BYTES, _MAX_FOREIGN_HEADER_BYTES):
        return None
    try:
        header = json.loads(bytes(payload[_LENGTH_BYTES : _LENGTH_BYTES + size]))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
