"""What a gossiping peer tells another: that it has a new model, and a few peers that it knows.

It travels as the payload of a `Tell`. The model itself is pulled by whoever wants it, so a push can
neither force bytes on anybody nor be larger than this.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from p2pl.errors import FrameError
from p2pl.protocol.announce import PeerAddress, PeerRow
from p2pl.protocol.frame import MAX_TELL_BYTES, Count

MAX_HINTS = 4  # chosen: a rumour of four spreads faster than peers come and go, in half a kilobyte


class Push(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="push"):
    """Says that there is a new model to pull."""

    age: Count  # of the model, in rounds
    hints: Annotated[
        tuple[PeerRow, ...], Meta(max_length=MAX_HINTS)
    ] = ()  # peers that its sender knows

    def addresses(self) -> list[PeerAddress]:
        """Returns the hints as addresses; whoever is met there must still prove its id.

        Raises:
            ValueError: one can be no peer's address.
        """
        return [row.address() for row in self.hints]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Push] = msgspec.msgpack.Decoder(Push)


def push(age: int, hints: list[PeerAddress]) -> bytes:
    """Returns the payload that says so.

    Args:
        age: of the model, in rounds.
        hints: peers that the sender knows, at most `MAX_HINTS`.
    """
    rows = tuple(
        PeerRow(id=bytes.fromhex(one.id), host=one.host, port=one.port, curve_key=one.curve_key)
        for one in hints
    )
    return _ENCODER.encode(Push(age, rows))


def read(payload: bytes) -> Push:
    """Returns what a peer told, or raises FrameError."""
    if len(payload) > MAX_TELL_BYTES:
        raise FrameError(f"push: got {len(payload)} bytes, allowed {MAX_TELL_BYTES}")
    try:
        told = _DECODER.decode(payload)
        told.addresses()
        return told
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise FrameError(f"push: got {payload[:32]!r}…; {fault}") from fault
