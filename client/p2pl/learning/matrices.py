"""What codecs of few bits share: matrices are made small, and all else travels as it is.

What is no matrix (biases, normalisation layers, running statistics) is a small part of a model,
and spoilt by rounding.

    header, 32 bytes | float32 of what travels as it is | what a codec makes of the matrices
"""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Self

import torch
from torch import Tensor

from p2pl.errors import FrameError, wrong
from p2pl.learning import weights
from p2pl.learning.codec import Codec
from p2pl.learning.weights import Layout, Payload

HEADER_BYTES: Final = 32
_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Parts:
    """Which numbers of a vector are of matrices, and which are not.

    Attributes:
        coded: of each matrix, where it begins in the vector, and how many numbers it has.
        plain: of all else, where it stands in the vector.
    """

    coded: tuple[tuple[int, int], ...]
    plain: tuple[slice, ...]

    @property
    def numbers(self) -> int:
        """How many numbers the matrices have together."""
        return sum(size for _, size in self.coded)

    @property
    def end(self) -> int:
        """Where what travels as it is ends in a payload, bytes."""
        return HEADER_BYTES + 4 * sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """How many numbers travel as they are, by tensor."""
        return [where.stop - where.start for where in self.plain]


@lru_cache(maxsize=16)
def parts_of(layout: Layout) -> Parts:
    """Returns which numbers of a layout are of matrices."""
    coded, plain, begin = [], [], 0
    matrices = len(layout.names) - layout.buffers
    for number, (_, shape, size) in enumerate(layout.tensors()):
        if number < matrices and len(shape) > 1 and size:
            coded.append((begin, size))
        else:
            plain.append(slice(begin, begin + size))
        begin += size
    return Parts(tuple(coded), tuple(plain))


@lru_cache(maxsize=16)
def header(layout: Layout, name: str) -> bytes:
    """Returns the codec's name, and a digest of the names and shapes that it is for."""
    said = repr(list(layout.tensors())).encode()
    digest = hashlib.sha256(said).digest()[: HEADER_BYTES - _NAME_BYTES]
    return f"p2pl {name} 1".encode().ljust(_NAME_BYTES, b"\0") + digest


def put(room: memoryview, vector: Tensor, layout: Layout, name: str) -> None:
    """Writes the header, and what travels as it is.

    Args:
        room: of a payload, writable.
        vector: [P] float32, on the CPU.
        layout: of what travels.
        name: of the codec.
    """
    parts = parts_of(layout)
    room[:HEADER_BYTES] = header(layout, name)
    if parts.end > HEADER_BYTES:
        plain = torch.cat([vector[where] for where in parts.plain])
        room[HEADER_BYTES : parts.end] = plain.numpy().data.cast("B")


def take(payload: Payload, into: Tensor, layout: Layout) -> None:
    """Reads what travels as it is into a vector, [P]; raises FrameError."""
    parts = parts_of(layout)
    if parts.end == HEADER_BYTES:
        return
    plain = weights.numbers(memoryview(payload).cast("B")[: parts.end], HEADER_BYTES, torch.float32)
    weights.check_finite(plain)
    for where, part in zip(parts.plain, torch.split(plain, parts.sizes), strict=True):
        into[where] = part
    weights.check_variances(into, layout)


def check(payload: Payload, layout: Layout, name: str, size: int) -> None:
    """Raises FrameError for what is no payload of this codec, layout and size in bytes."""
    if bytes(payload[:HEADER_BYTES]) != header(layout, name):
        allowed = f"one of the session's model, as {name}"
        raise FrameError(f"payload: got something else, allowed {allowed}")
    if len(payload) != size:
        raise FrameError(wrong("payload", got=f"{len(payload)} bytes", allowed=f"{size} bytes"))


@dataclass(frozen=True, slots=True)
class FromReference(Codec):
    """What such codecs have in common: a payload says how far each matrix is from a reference.

    Attributes:
        layout: of what travels: the whole vector [P], or the beginning of it.
        name: which one, by the session's `wire.compression`.
        device: where decoded parameters are put.
        reference: what all peers begin with, [P] or more, on the CPU; None: not known yet.
    """

    layout: Layout
    name: str
    device: torch.device
    reference: Tensor | None = None

    @property
    def keeps_privacy(self) -> bool:
        """True: a payload is made of parameters that may be told, and of nothing else."""
        return True

    def beginning(self, vector: Tensor) -> Self:
        """Returns the codec of a session that begins with these parameters, [P]."""
        return replace(self, reference=vector.detach().cpu())

    def begun(self) -> Tensor:
        """Returns the reference; raises ValueError where `beginning` was not called."""
        if self.reference is None:
            raise ValueError("codec: the initial checkpoint is not known yet; call `beginning`")
        return self.reference

    def encode(self, vector: Tensor) -> memoryview:
        """Returns the payload to serve, read-only."""
        payload = bytearray(self.payload_bytes)
        self.fill(memoryview(payload), vector)
        return memoryview(payload).toreadonly()
