"""The file of an update log: records that follow each other, checked when they are read.

    record: kind (1 byte) | length (4) | CRC-32 of the body (4) | CRC-32 of those nine bytes (4)
            | body, in MessagePack

The first record (H) says whose log it is. Then come entries (E) and mixes (M); a mix stands before
the entry that has its hash, and the last of several counts. A crash in the middle of writing leaves
a torn record at the end, of which nobody has seen anything. All else that does not fit is damage.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2pl import regular
from p2pl.errors import LogError, RunDirError
from p2pl.protocol.frame import Session
from p2pl.protocol.updates.entry import (
    FIRST,
    MAX_ENTRY_BYTES,
    MAX_MIX_BYTES,
    Mix,
    PublicKey,
    SignedEntry,
    decode,
    encode,
    statement_of,
)
from p2pl.protocol.updates.tree import leaf_hash

LOG_FILE = "updates.log"
MAX_OWNER_BYTES = 128
LOST = (
    "whoever has met this peer may hold entries that are not in it, and would take new ones for a "
    "second history"
)
_HEADER_BYTES = 13
_CHECKED = 9  # of them, under the header's own checksum
_LIMITS = {b"H": MAX_OWNER_BYTES, b"E": MAX_ENTRY_BYTES, b"M": MAX_MIX_BYTES}


class Owner(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Whose log it is."""

    session: Session
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class Record:
    """An entry, with what its version was made of where the file says so."""

    signed: SignedEntry
    mix: Mix | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What stands in a file."""

    owner: Owner
    records: tuple[Record, ...]
    pending: Mix | None  # that no entry has named yet
    end: int  # of the last whole record, bytes

    @property
    def session_id(self) -> str:
        """Of the session, 64 hex digits."""
        return self.owner.session.hex()


def read(path: Path, *, every: bool = False) -> Kept | None:
    """Returns what stands in a log file, checked; None where it was not begun.

    Args:
        path: of the file.
        every: whether each signature is checked; else the last one stands for all, for each entry
            has the hash of the one before.

    Raises:
        RunDirError: it cannot be read, or is damaged.
    """
    try:
        data = regular.read(path)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise RunDirError(f"{path}: cannot be read: {fault.strerror}") from fault
    try:
        return _kept(data, every)
    except LogError as fault:
        raise RunDirError(
            f"{path}: damaged ({fault}); {LOST}: put the file back as it was"
        ) from fault


def _kept(data: bytes, every: bool) -> Kept | None:
    owner: Owner | None = None
    records: list[Record] = []
    pending: Mix | None = None
    end, previous = 0, FIRST
    for kind, body, after in _records(data):
        if (owner is None) != (kind == b"H"):
            raise LogError("whose log it is must stand at its beginning, and nowhere else")
        if kind == b"M":
            pending = decode(Mix, body, MAX_MIX_BYTES)
        elif owner is None:
            owner = decode(Owner, body, MAX_OWNER_BYTES)
        else:
            made = decode(SignedEntry, body, MAX_ENTRY_BYTES)
            entry, session_id = made.entry, owner.session.hex()
            if (entry.index, entry.previous) != (len(records), previous):
                raise LogError(f"entry {entry.index}: it does not follow the one before")
            if every:
                made.check(session_id, owner.public_key)
            previous = leaf_hash(statement_of(entry, session_id, owner.public_key))
            of = pending if pending is not None and entry.mix == mix_hash(pending) else None
            records.append(Record(made, of))
            pending = None
        end = after
    if owner is None:
        return None
    if records:
        records[-1].signed.check(owner.session.hex(), owner.public_key)
    return Kept(owner, tuple(records), pending, end)


def record(kind: bytes, value: msgspec.Struct) -> bytes:
    """Returns the bytes of one record.

    Args:
        kind: H, E or M.
        value: its body.
    """
    body = encode(value)
    return _header(kind, len(body), zlib.crc32(body).to_bytes(4, "big")) + body


def mix_hash(mix: Mix) -> bytes:
    """Returns what an entry says of the mix that it was made of."""
    return hashlib.sha256(encode(mix)).digest()


def _records(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Yields kind, body and end of each whole record, up to one that was torn at the end.

    Raises:
        LogError: bytes that are no record.
    """
    at = 0
    while len(data) - at >= _HEADER_BYTES:
        header, begin = data[at : at + _HEADER_BYTES], at + _HEADER_BYTES
        kind, length = header[:1], int.from_bytes(header[1:5], "big")
        body = data[begin : begin + length]
        known = header == _header(kind, length, header[5:_CHECKED]) and kind in _LIMITS
        if not known or length > _LIMITS[kind]:
            if not any(data[at:]):
                return  # a file system that has made room, and lost its power before it was filled
            raise LogError(f"at byte {at}")
        if len(body) < length:
            return
        if zlib.crc32(body).to_bytes(4, "big") != header[5:_CHECKED]:
            raise LogError(f"at byte {at}")
        at = begin + length
        yield kind, body, at


def _header(kind: bytes, length: int, checksum: bytes) -> bytes:
    begin = kind + length.to_bytes(4, "big") + checksum
    return begin + zlib.crc32(begin).to_bytes(4, "big")
