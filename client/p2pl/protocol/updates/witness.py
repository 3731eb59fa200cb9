"""What a peer shows a tracker of its update log, and what the tracker keeps: one head a log.

A tracker that is a witness keeps the newest head that it was shown of each log and session, with
its cosignature, and takes another one only with the proof that the log has grown from the one that
it keeps. Its answer is always what it keeps now. Where that is not what it was shown, the two heads
are the evidence: both are signed by the author of the log.
"""

import msgspec

from p2pl.protocol.frame import Count, Session
from p2pl.protocol.updates.entry import PublicKey, decode
from p2pl.protocol.updates.head import Cosignature, Head
from p2pl.protocol.updates.message import Path

MAX_SHOWN_BYTES = 2_048  # of a log of 2**53 entries
MAX_KEPT_BYTES = 512


class Shown(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The head of a peer's own log."""

    session: Session
    author: PublicKey
    head: Head
    before: Count  # the size that the tracker keeps, as far as the peer knows; 0: none
    consistency: Path  # proves that the log of that size has grown to this head


class Kept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a tracker keeps of a log."""

    author: PublicKey
    head: Head
    cosignature: Cosignature  # of the tracker


def read_shown(data: bytes) -> Shown:
    """Returns what a peer shows, of anybody; nothing in it is checked. Raises LogError."""
    return decode(Shown, data, MAX_SHOWN_BYTES)


def read_kept(data: bytes) -> Kept:
    """Returns what a tracker keeps, of anybody; nothing in it is checked. Raises LogError."""
    return decode(Kept, data, MAX_KEPT_BYTES)
