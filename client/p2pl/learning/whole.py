"""A whole module as a safetensors file: its vector, and behind it what is frozen.

That is what an initial checkpoint and a saved model are. Where all that the module has is trained,
the file is the vector's own. Else its header also says what is frozen, tied or a buffer, so that
peers whose modules differ in that find it out before the first round.
"""

import json
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from p2pl.errors import FrameError, ModelError, wrong
from p2pl.learning import weights
from p2pl.learning.parts import Layout, frozen_parameters
from p2pl.learning.weights import Payload

_TAGS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def size_of(model: nn.Module, layout: Layout) -> int:
    """Returns the exact size of the file, bytes."""
    if layout.is_plain:
        return weights.payload_bytes(layout, "float32")
    frozen = frozen_parameters(model)
    return (
        len(_header(layout, frozen)) + 4 * layout.total + sum(one.nbytes for one in frozen.values())
    )


def encode(model: nn.Module, layout: Layout, vector: Tensor) -> memoryview:
    """Returns the module as a file, read-only.

    Args:
        model: whose frozen parameters are taken.
        layout: of the module.
        vector: [P] float32, on any device: the rest.
    """
    if layout.is_plain:
        return weights.encode(vector.cpu(), layout, "float32")
    frozen = frozen_parameters(model)
    header = _header(layout, frozen)
    payload = bytearray(size_of(model, layout))
    payload[: len(header)] = header
    at = len(header)
    for one in (vector, *frozen.values()):
        _bytes_at(payload, at, one.nbytes).copy_(_bytes_of(one))
        at += one.nbytes
    return memoryview(payload).toreadonly()


def decode(payload: Payload, model: nn.Module, layout: Layout) -> Tensor:
    """Returns the vector in a file, [P] float32 on the CPU; what is frozen goes into the module.

    Raises:
        FrameError: the file is not of this module, or holds NaN or infinity.
    """
    if layout.is_plain:
        return weights.decode(payload, layout, "float32")
    frozen = frozen_parameters(model)
    header = _header(layout, frozen)
    if bytes(payload[: len(header)]) != header:
        raise FrameError(weights.difference(payload, _entries(layout, frozen), layout.roles))
    if len(payload) != size_of(model, layout):
        allowed = f"{size_of(model, layout)} bytes"
        raise FrameError(wrong("payload", got=f"{len(payload)} bytes", allowed=allowed))
    view = memoryview(payload).cast("B")
    at = len(header) + 4 * layout.total
    vector = weights.numbers(view[len(header) : at], 0, torch.float32)
    weights.check_finite(vector)
    for name, one in frozen.items():
        values = weights.numbers(view[at : at + one.nbytes], 0, torch.uint8)
        at += one.nbytes
        taken = values.view(one.dtype).view(one.shape)
        if one.is_floating_point() and not taken.isfinite().all():
            got = "NaN or infinity"
            raise FrameError(wrong(f"frozen parameter {name}", got=got, allowed="finite numbers"))
        one.copy_(taken)
    return vector


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _bytes_at(payload: bytearray, begin: int, count: int) -> Tensor:
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(payload, dtype=torch.uint8, offset=begin, count=count)


def _header(layout: Layout, frozen: Mapping[str, Tensor]) -> bytes:
    roles = json.dumps(layout.roles, separators=(",", ":"), ensure_ascii=False)
    return weights.header_of({"__metadata__": {weights.ROLES: roles}, **_entries(layout, frozen)})


def _entries(layout: Layout, frozen: Mapping[str, Tensor]) -> dict[str, object]:
    """Returns what the header says of each tensor."""
    parts = chain(
        ((name, "F32", shape, 4 * size) for name, shape, size in layout.tensors()),
        ((name, _tag(name, one), tuple(one.shape), one.nbytes) for name, one in frozen.items()),
    )
    return weights.entries_of(parts)


def _tag(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _TAGS:
        allowed = ", ".join(str(one) for one in _TAGS)
        raise ModelError(wrong(f"model parameter {name}", got=str(tensor.dtype), allowed=allowed))
    return _TAGS[tensor.dtype]
