"""What a peer has to give: one version of its model, named by a digest.

CURVE already authenticates every byte to the key of the peer that sent it. What is left for the
digest is to name a version (`not modified`), and to catch a sender whose buffer changed under its
feet, so every byte is hashed on the pulling side. Both cores of a small machine are busy with CURVE
meanwhile (2.8 s of processor time a GiB, both ends together), and the hash competes with it.
Measured on such a machine, in seconds a GiB: XXH3-128 0.1, BLAKE3 0.4, SHA-256 0.8, BLAKE2b 2.4;
only with the first does a pull keep nine tenths of the speed of bare CURVE (`scripts/bench wire`).

XXH3 does not resist someone who looks for collisions, and need not: a peer that makes two versions
with one digest has sent both under its own key, and deceives nobody but those who ask it. Whoever
wants to hold a peer to a version, or to compare what it gave to two others, must not go by this
digest. In a session with update logs that is wanted: there SHA-256 takes the place of XXH3, its
first half is the name, and all of it is what the peer's log commits to. The initial checkpoint is
verified elsewhere, against its SHA-256 merkle root.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from xxhash import xxh3_128

from p2pl.protocol.frame import DIGEST_BYTES, MAX_NOTES_BYTES

Payload: TypeAlias = bytes | bytearray | memoryview
INLINE_BYTES = 1 << 18  # chosen: hashing this takes 0.03 ms, less than a trip to a thread


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model as it travels. Whoever publishes it must not change it any more."""

    round: int
    samples: int  # that it was trained on
    payload: Payload
    notes: bytes = b""  # at most MAX_NOTES_BYTES, opaque to the wire
    commits: "Commits | None" = None  # in a session with update logs


class Hash(Protocol):
    """What takes bytes in, in order, and gives their digest."""

    def update(self, data: Payload, /) -> object:
        """Takes bytes in."""
        ...

    def digest(self) -> bytes:
        """Returns the digest of all that was taken in."""
        ...


@dataclass(frozen=True, slots=True)
class Commits:
    """What commits a peer to a version: its entry is on disk already.

    Attributes:
        digest: SHA-256 of the version that is committed to, 32 bytes: of the payload as it travels,
            or of what is locked in it.
        hashed: SHA-256 of the payload, where that is known already; b"" = not known.
        answer: given who asks and what came with the question, returns what goes with the offer.
            It raises FrameError where that is not what it should be.
    """

    digest: bytes
    hashed: bytes
    answer: Callable[[str, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Published:
    """A version ready to be sent in slices."""

    round: int
    samples: int
    notes: bytes
    view: memoryview  # of single bytes; slices of it keep the payload alive
    digest: bytes
    commits: Commits | None = None


def hashing(committed: bool) -> Hash:
    """Returns the hash that versions are named by.

    Args:
        committed: whether peers of the session keep update logs.
    """
    return hashlib.sha256() if committed else xxh3_128()


async def sha256_of(payload: Payload) -> bytes:
    """Returns the SHA-256 of a payload, 32 bytes; a large one is hashed outside the event loop."""
    return await _hashed(memoryview(payload).cast("B"), True)


async def prepare(version: Version, *, committed: bool = False) -> Published:
    """Returns `version` with its digest; a large payload is hashed outside the event loop.

    Args:
        version: must not change any more.
        committed: whether peers of the session keep update logs.

    Raises:
        ValueError: the payload is empty or not contiguous, or the notes are too long.
    """
    if len(version.notes) > MAX_NOTES_BYTES:
        raise ValueError(f"notes: got {len(version.notes)} bytes, allowed {MAX_NOTES_BYTES}")
    view = memoryview(version.payload)
    if not view.c_contiguous or not view.nbytes:
        raise ValueError("payload: allowed are contiguous bytes, at least one")
    view = view.cast("B").toreadonly()
    commits = version.commits
    digest = (commits.hashed if commits else b"") or await _hashed(view, committed)
    name = digest[:DIGEST_BYTES]
    return Published(version.round, version.samples, version.notes, view, name, commits)


async def _hashed(view: memoryview, committed: bool) -> bytes:
    def digest() -> bytes:
        made = hashing(committed)
        made.update(view)
        return made.digest()

    return digest() if len(view) <= INLINE_BYTES else await asyncio.to_thread(digest)
