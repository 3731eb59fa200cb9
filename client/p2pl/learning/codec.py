"""The door `Codec`: which numbers of a model travel, and as what bytes."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from p2pl.learning import weights
from p2pl.learning.weights import Dtype, Layout, Payload


class Codec(Protocol):
    """How parameters become bytes for other peers, and bytes become parameters again.

    A class that names `Codec` as its base inherits what is written out here.
    """

    @property
    def keeps_privacy(self) -> bool:
        """Whether it may be used with private training: payloads are made of parameters alone.

        What is made of parameters that may be told says nothing more of the examples behind them.
        A codec is refused until it says so.
        """
        return False

    @property
    def payload_bytes(self) -> int:
        """The exact size of every payload of the session, bytes."""
        ...

    def beginning(self, vector: Tensor) -> "Codec":
        """Returns the codec of a session that begins with these parameters, known to all its peers.

        Args:
            vector: [P] float32, of the initial checkpoint.
        """
        del vector
        return self

    def encode(self, vector: Tensor) -> memoryview:
        """Returns the payload to serve, read-only.

        Args:
            vector: [P] float32, finite, on any device.
        """
        ...

    def fill(self, room: memoryview, vector: Tensor) -> None:
        """Writes what `encode` returns to where it is kept.

        Args:
            room: writable, of `payload_bytes` bytes.
            vector: [P] float32, finite, on any device.
        """
        room[:] = self.encode(vector)

    def served(self, payload: Payload, vector: Tensor) -> Tensor:
        """Returns the parameters [P] that a payload was made of, in its memory where that is equal.

        Args:
            payload: as `encode` returned it.
            vector: [P], that it was made of.
        """
        del payload
        return vector

    def arrived(self, vector: Tensor) -> Tensor:
        """Returns what others get of parameters once they travelled: decoded from their payload.

        Args:
            vector: [P] float32, on any device.

        Raises:
            FrameError: it holds NaN or infinity.
        """
        return self.decode(self.encode(vector))

    def decode(self, payload: Payload) -> Tensor:
        """Returns the parameters in a peer's payload, [P] float32, on the peer's device.

        Raises:
            FrameError: it is not a payload of this session, or holds NaN or infinity.
        """
        ...


@dataclass(frozen=True, slots=True)
class WholeModel(Codec):
    """All that travels of the model, as a safetensors file of one number type.

    Attributes:
        layout: of what travels: the whole vector [P], or the beginning of it.
        dtype: of the numbers in a payload.
        device: where decoded parameters are put.
    """

    layout: Layout
    dtype: Dtype
    device: torch.device

    @property
    def keeps_privacy(self) -> bool:
        """True: a payload is the parameters, and nothing else."""
        return True

    @property
    def payload_bytes(self) -> int:
        """The exact size of every payload, bytes."""
        return weights.payload_bytes(self.layout, self.dtype)

    def encode(self, vector: Tensor) -> memoryview:
        """Returns the payload to serve, read-only; float16 is cut to its largest number."""
        return weights.encode(vector[: self.layout.total].cpu(), self.layout, self.dtype)

    def fill(self, room: memoryview, vector: Tensor) -> None:
        """Writes the payload to where it is kept."""
        weights.encode_into(room, vector[: self.layout.total].cpu(), self.layout, self.dtype)

    def served(self, payload: Payload, vector: Tensor) -> Tensor:
        """Returns the vector, in the payload's memory where all of it stands there as it is."""
        exact = self.dtype == "float32" and self.layout.total == len(vector)
        if not exact or vector.device.type != "cpu":
            return vector
        return weights.in_place(payload, self.layout)

    def arrived(self, vector: Tensor) -> Tensor:
        """Returns what others get; where that is equal to the last bit, the vector itself."""
        if self.dtype != "float32" or self.layout.total != len(vector):
            return self.decode(self.encode(vector))
        weights.check_finite(vector)
        weights.check_variances(vector, self.layout)
        return vector

    def decode(self, payload: Payload) -> Tensor:
        """Returns what travelled, [P] float32 or the beginning of it; raises FrameError."""
        return weights.decode(payload, self.layout, self.dtype).to(self.device)
