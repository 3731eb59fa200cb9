"""What peers tell each other about the models of others: a few bytes behind every version.

A peer knows a model's harm on its own examples alone, and holds only some classes. So it tells its
cohort what it measured, and each combines what it hears: DeGroot's trust, about trust. Only what a
peer measured itself is told, never what it heard, so nothing comes round twice. Nobody is heard
about itself, and of what several say the median counts, so fewer than half of them cannot turn it.
A voice weighs as often as its owner was met: ids cost nothing, and meetings do, so who takes a new
id every round has as much to say in all as if it had kept its first.

The notes are MessagePack: [1, first 8 bytes of the SHA-256 of each peer id, a signed byte each].
Whoever finds another id with the same 8 bytes (2^64 tries) shares its reputation, and no more.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from p2pl.errors import FrameError, wrong

MAX_OPINIONS = 100  # of one peer: with 9 bytes each, and some for the frame, notes hold 1 KiB
STEP = 0.002  # of harm; chosen: a sixth of what matters
NAME_BYTES = 8
MIN_VOICES = 3  # the median of fewer is one voice's word

Name = bytes  # of a peer, as notes give it


class _Notes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    names: Annotated[bytes, Meta(max_length=MAX_OPINIONS * NAME_BYTES)]
    harms: Annotated[bytes, Meta(max_length=MAX_OPINIONS)]  # a signed byte each, in steps


_DECODER = msgspec.msgpack.Decoder(_Notes)


def name_of(peer_id: str) -> Name:
    """Returns how notes name a peer."""
    return hashlib.sha256(peer_id.encode()).digest()[:NAME_BYTES]


def encode(harms: Mapping[str, float]) -> bytes:
    """Returns the notes that say these harms, b"" where there are none.

    Args:
        harms: by peer id; what is beyond +-0.25 is said as that. Only the first `MAX_OPINIONS`.
    """
    told = list(harms.items())[:MAX_OPINIONS]
    if not told:
        return b""
    names = b"".join(name_of(peer_id) for peer_id, _ in told)
    steps = (min(127, max(-127, round(harm / STEP))) for _, harm in told)
    return msgspec.msgpack.encode(_Notes(1, names, bytes(step & 0xFF for step in steps)))


def decode(notes: bytes) -> dict[Name, float]:
    """Returns the harms that notes say, by name; nothing where they are empty.

    Raises:
        FrameError: they are not what `encode` makes.
    """
    if not notes:
        return {}
    try:
        read = _DECODER.decode(notes)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise FrameError(f"notes: got {notes[:16]!r}…; {fault}") from fault
    if len(read.names) != NAME_BYTES * len(read.harms):
        raise FrameError(
            wrong(
                "notes",
                got=f"{len(read.names)} bytes of names for {len(read.harms)} opinions",
                allowed=f"{NAME_BYTES} bytes each",
            )
        )
    names = (read.names[at : at + NAME_BYTES] for at in range(0, len(read.names), NAME_BYTES))
    return {
        name: STEP * (step - 256 if step > 127 else step)
        for name, step in zip(names, read.harms, strict=True)
    }


class Voice(NamedTuple):
    """What somebody else holds of a peer."""

    harm: float
    met: int  # rounds in which its owner was met, at least 1


def pooled(mine: float, sure: bool, others: Sequence[Voice]) -> float:
    """Returns what is held of a peer, all opinions taken together.

    The peer's own is one voice among the others, as heavy as the heaviest. Where they are too few
    for a median, its own counts alone if it is sure of it; if it is not, a single other one counts
    as far as its own agrees.

    Args:
        mine: the harm that the peer measured; 0 where it measured nothing.
        sure: whether it is beyond the noise, or the noise is too small to hide any that matters.
        others: those of others, none of them the peer itself.
    """
    if len(others) + 1 >= MIN_VOICES:
        return _median([Voice(mine, max(one.met for one in others)), *others])
    if sure:
        return mine
    return max(0.0, min(mine, *(one.harm for one in others))) if others else 0.0


def _median(voices: Sequence[Voice]) -> float:
    """Returns the harm that half of the weight is below and half above."""
    left = sum(one.met for one in voices) / 2
    ordered = sorted(voices)
    for one, following in zip(ordered, [*ordered[1:], ordered[-1]], strict=True):
        left -= one.met
        if left <= 0:
            return one.harm if left < 0 else (one.harm + following.harm) / 2
    raise ValueError("no voices")
