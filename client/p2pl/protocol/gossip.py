"""What a gossiping peer tells another: that it has a new model, and a few peers that it knows.

It travels as the payload of a `Tell`. The model itself is pulled by whoever wants it, so a push can
neither force bytes on anybody nor be larger than this.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from p2pl.errors import FrameError
from p2pl.protocol.announce import MAX_PROOF_BYTES, PeerAddress, PeerRow
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


class InvitedPush(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="invited"
):
    """A push in a private session: a hint without its proof would be of no use."""

    age: Count  # of the model, in rounds
    hints: Annotated[tuple[PeerRow, ...], Meta(max_length=MAX_HINTS)]
    proofs: Annotated[  # that they are invited, in the order of the hints
        tuple[Annotated[bytes, Meta(max_length=MAX_PROOF_BYTES)], ...], Meta(max_length=MAX_HINTS)
    ]

    def addresses(self) -> list[PeerAddress]:
        """Returns the hints as addresses with their proofs, which nobody has checked.

        Raises:
            ValueError: one can be no peer's address, or there are more or fewer proofs.
        """
        rows = zip(self.hints, self.proofs, strict=True)
        return [msgspec.structs.replace(row.address(), proof=proof) for row, proof in rows]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Push | InvitedPush] = msgspec.msgpack.Decoder(Push | InvitedPush)


def push(age: int, hints: list[PeerAddress]) -> bytes:
    """Returns the payload that says so.

    Args:
        age: of the model, in rounds.
        hints: peers that the sender knows, at most `MAX_HINTS`; in a private session those with
            a proof are passed on, as many as there is room for.
    """
    proven = [one for one in hints if one.proof]
    while proven:
        proofs = tuple(one.proof for one in proven)
        payload = _ENCODER.encode(InvitedPush(age, _rows(proven), proofs))
        if len(payload) <= MAX_TELL_BYTES:
            return payload
        proven.pop()
    return _ENCODER.encode(Push(age, _rows(hints)))


def _rows(hints: list[PeerAddress]) -> tuple[PeerRow, ...]:
    return tuple(
        PeerRow(id=bytes.fromhex(one.id), host=one.host, port=one.port, curve_key=one.curve_key)
        for one in hints
    )


def read(payload: bytes) -> Push | InvitedPush:
    """Returns what a peer told, or raises FrameError."""
    if len(payload) > MAX_TELL_BYTES:
        raise FrameError(f"push: got {len(payload)} bytes, allowed {MAX_TELL_BYTES}")
    try:
        told = _DECODER.decode(payload)
        told.addresses()
        return told
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise FrameError(f"push: got {payload[:32]!r}…; {fault}") from fault
