"""A model's parameters as one vector, and that vector as a safetensors file.

The payload of a model is a header that depends on the layout alone, followed by the vector's own
bytes: encoding is one copy and decoding is none.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from p2pl.errors import FrameError, wrong
from p2pl.learning.parts import Layout, flatten, is_finite, load_into

__all__ = [
    "Dtype",
    "Layout",
    "Payload",
    "decode",
    "encode",
    "flatten",
    "load_into",
    "payload_bytes",
]

Dtype: TypeAlias = Literal["float32", "float16"]
Payload: TypeAlias = bytes | bytearray | memoryview

_LENGTH_BYTES = 8  # the header's length, little endian; the header is padded to a multiple of it
_TAG = {"float32": "F32", "float16": "F16"}
_TORCH = {"float32": torch.float32, "float16": torch.float16}
_MAX_FLOAT16 = torch.finfo(torch.float16).max
_MAX_FOREIGN_HEADER_BYTES = 1 << 20  # parsed only to word an error
ROLES = "p2pl.roles"  # metadata of whole modules: what each tensor is; see whole.py


@lru_cache(maxsize=16)
def _header(layout: Layout, dtype: Dtype) -> bytes:
    """Returns what safetensors writes before the numbers (its format, version 0.4 and later)."""
    return header_of(_entries(layout, dtype))


def _entries(layout: Layout, dtype: Dtype) -> dict[str, object]:
    width, tag = _TORCH[dtype].itemsize, _TAG[dtype]
    return entries_of((name, tag, shape, width * size) for name, shape, size in layout.tensors())


def entries_of(parts: Iterable[tuple[str, str, tuple[int, ...], int]]) -> dict[str, object]:
    """Returns what a header says of tensors that stand one behind the other.

    Args:
        parts: of each tensor its name, the tag of its type, its shape, and its bytes.
    """
    entries: dict[str, object] = {}
    begin = 0
    for name, tag, shape, size in parts:
        span = [begin, begin + size]
        entries[name] = {"dtype": tag, "shape": list(shape), "data_offsets": span}
        begin += size
    return entries


def header_of(entries: Mapping[str, object]) -> bytes:
    """Returns the header that says this, with its length."""
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
    payload = bytearray(payload_bytes(layout, dtype))
    encode_into(memoryview(payload), vector, layout, dtype)
    return memoryview(payload).toreadonly()


def encode_into(payload: memoryview, vector: Tensor, layout: Layout, dtype: Dtype) -> None:
    """Writes what `encode` returns into writable memory of that size."""
    header = _header(layout, dtype)
    payload[: len(header)] = header
    numbers = torch.frombuffer(payload, dtype=_TORCH[dtype], offset=len(header))
    if dtype == "float16":
        vector = vector.clamp(-_MAX_FLOAT16, _MAX_FLOAT16)
    numbers.copy_(vector)


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
        raise FrameError(difference(payload, _entries(layout, dtype)))
    if len(payload) != payload_bytes(layout, dtype):
        raise FrameError(
            wrong(
                "payload",
                got=f"{len(payload)} bytes",
                allowed=f"{payload_bytes(layout, dtype)} bytes",
            )
        )
    vector = numbers(payload, len(header), _TORCH[dtype]).to(torch.float32)
    check_finite(vector)
    check_variances(vector, layout)
    return vector


def check_finite(vector: Tensor) -> None:
    """Raises FrameError where a number is NaN or infinity."""
    if not is_finite(vector):
        raise FrameError("payload: got NaN or infinity among the numbers, allowed finite numbers")


def check_variances(vector: Tensor, layout: Layout) -> None:
    """Raises FrameError where a running variance in the vector, [P], is below 0."""
    for name, where in layout.variances():
        if bool((vector[where] < 0).any()):
            raise FrameError(
                wrong(f"tensor {name!r}", got="a variance below 0", allowed="0 or more")
            )


def in_place(payload: Payload, layout: Layout) -> Tensor:
    """Returns the vector in a float32 payload of `encode`, [P]: a view that must not be changed."""
    made = payload.obj if isinstance(payload, memoryview) else payload
    return torch.frombuffer(made, dtype=torch.float32, offset=len(_header(layout, "float32")))


def numbers(payload: Payload, offset: int, dtype: torch.dtype) -> Tensor:
    """Returns the numbers from an offset on: a view, where the payload may be written to."""
    view = memoryview(payload).cast("B")
    if not view.readonly:
        return torch.frombuffer(view, dtype=dtype, offset=offset)
    return torch.frombuffer(bytearray(view[offset:]), dtype=dtype)  # torch wants it writable


def difference(
    payload: Payload, entries: Mapping[str, object], roles: Mapping[str, str] | None = None
) -> str:
    """Returns a message that names the first tensor in which a foreign header is another one.

    Args:
        payload: with the foreign header.
        entries: of the own header, by tensor.
        roles: by tensor, where it is no plain parameter: what it is here.
    """
    foreign = _foreign_header(payload)
    if foreign is None:
        return "payload: got something else, allowed a safetensors file of the session's model"
    theirs = _roles(foreign.pop("__metadata__", None))
    for name, own in entries.items():
        entry = foreign.get(name)
        if not isinstance(entry, dict):
            return wrong(
                "payload", got=f"no tensor {name!r}", allowed="the session's model: is it another?"
            )
        assert isinstance(own, dict)
        got, wanted = (entry.get("dtype"), entry.get("shape")), (own["dtype"], own["shape"])
        if got != wanted:
            return wrong(f"tensor {name!r}", got=got, allowed=str(wanted))
    if unknown := sorted(set(foreign) - set(entries)):
        return wrong("payload: unknown tensor", got=unknown[0], allowed="the session's model")
    for name in sorted({*theirs, *(roles or {})}):
        role, own = theirs.get(name, "trained"), (roles or {}).get(name, "trained")
        if role != own:
            return wrong(f"parameter {name!r}", got=role, allowed=f"{own}, as in the module here")
    return "payload: the header is not laid out as safetensors lays it out; allowed: its own form"


def _roles(metadata: object) -> dict[str, str]:
    """Returns what the metadata of a foreign header say of its tensors; {} where it is nonsense."""
    try:
        told = json.loads(metadata[ROLES]) if isinstance(metadata, dict) else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _foreign_header(payload: Payload) -> dict[str, Any] | None:
    """Returns the parsed header of some safetensors file; None where it cannot be read."""
    size = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    if size > min(len(payload) - _LENGTH_BYTES, _MAX_FOREIGN_HEADER_BYTES):
        return None
    try:
        header = json.loads(bytes(payload[_LENGTH_BYTES : _LENGTH_BYTES + size]))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
