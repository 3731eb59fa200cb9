"""What a peer has to give: one version of its model, named by a digest.

The digest is BLAKE3. CURVE already authenticates every byte to the key of the peer that sent it;
what is left for the digest is to name a version (`not modified`), to be something a peer can be
held to later, and to catch a sender whose buffer changed under its feet. The last two need every
byte hashed on the pulling side, with a collision-resistant hash. Both cores of a small machine are
busy with CURVE meanwhile (2.8 s of processor time a GiB, both ends together), so the hash competes
with it. Measured on such a machine, in seconds a GiB: BLAKE3 0.4, SHA-256 0.8, BLAKE2b 2.4.
"""

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

from blake3 import blake3

from p2pl.protocol.frame import MAX_NOTES_BYTES

Payload: TypeAlias = bytes | bytearray | memoryview
INLINE_BYTES = 1 << 18  # chosen: hashing this takes 0.1 ms, less than a trip to a thread


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model as it travels. Whoever publishes it must not change it any more."""

    round: int
    samples: int  # that it was trained on
    payload: Payload
    notes: bytes = b""  # at most MAX_NOTES_BYTES, opaque to the wire


@dataclass(frozen=True, slots=True)
class Published:
    """A version ready to be sent in slices."""

    round: int
    samples: int
    notes: bytes
    view: memoryview  # of single bytes; slices of it keep the payload alive
    digest: bytes


async def prepare(version: Version) -> Published:
    """Returns `version` with its digest; a large payload is hashed outside the event loop.

    Raises:
        ValueError: the payload is empty or not contiguous, or the notes are too long.
    """
    if len(version.notes) > MAX_NOTES_BYTES:
        raise ValueError(f"notes: got {len(version.notes)} bytes, allowed {MAX_NOTES_BYTES}")
    view = memoryview(version.payload)
    if not view.c_contiguous or not view.nbytes:
        raise ValueError("payload: allowed are contiguous bytes, at least one")
    view = view.cast("B").toreadonly()
    digest = _digest(view) if len(view) <= INLINE_BYTES else await asyncio.to_thread(_digest, view)
    return Published(version.round, version.samples, version.notes, view, digest)


def _digest(view: memoryview) -> bytes:
    return blake3(view).digest()
