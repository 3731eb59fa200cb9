"""A peer's own update log: a file that only grows, and the hash tree over it.

An entry is on disk before `append` returns, and nobody sees it before. So whatever has been seen is
there after a crash. A crash in the middle of writing leaves a torn record at the end, of which
nobody has seen anything: it is cut off when the file is opened again.

    record: kind (1 byte: E entry, M mix) | length (4) | CRC-32 of the body (4) | CRC-32 of those
            nine bytes (4) | body, in MessagePack

A mix stands before the entry that has its hash, and the last of several counts.
"""

import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl import regular
from p2pl.errors import LogError, RunDirError, visible
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.entry import (
    FIRST,
    MAX_ENTRY_BYTES,
    MAX_MIX_BYTES,
    MAX_PARTS,
    MAX_REASON_CHARS,
    PPM,
    Entry,
    Mix,
    Part,
    Place,
    Rejected,
    SignedEntry,
    Stage,
    decode,
    encode,
    signed,
    statement_of,
)
from p2pl.protocol.updates.head import Head, sign_head
from p2pl.protocol.updates.tree import Tree, leaf_hash

LOG_FILE = "updates.log"
_HEADER_BYTES = 13
_CHECKED = 9  # of them, under the header's own checksum
_LIMITS = {b"E": MAX_ENTRY_BYTES, b"M": MAX_MIX_BYTES}
_LOST = (
    "whoever has met this peer may hold entries that are not in it, and would take new ones for a "
    "second history"
)


@dataclass(frozen=True, slots=True)
class Record:
    """An entry, with what its version was made of where the file says so."""

    signed: SignedEntry
    mix: Mix | None


class Medium(Protocol):
    """Where records go; what a test puts in the place of a file."""

    def write(self, data: memoryview, /) -> int:
        """Returns how many bytes were written."""
        ...

    def fileno(self) -> int:
        """Returns the descriptor to sync."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


@dataclass(frozen=True, slots=True)
class Version:
    """What one entry is to say of a version."""

    stage: Stage
    round: int
    digest: bytes  # SHA-256 of its bytes
    term: int = 0  # of raft
    epsilon: float | None = None


class UpdateLog:
    """The log of one peer in one session; one process writes it.

    Args:
        session_id: of the session, 64 hex digits.
        key: the peer's own.
        records: those that are there already, checked.
        medium: takes what is added; None: it is kept in memory alone.
        pending: a mix that no entry has named yet.
    """

    def __init__(
        self,
        session_id: str,
        key: Ed25519PrivateKey,
        records: list[Record] | None = None,
        medium: Medium | None = None,
        pending: Mix | None = None,
    ) -> None:
        self.session_id = session_id
        self.public_key = key.public_key().public_bytes_raw()
        self.peer_id = peer_id_of(self.public_key)
        self.tree = Tree()
        self.entries: list[SignedEntry] = []
        self._key, self._medium, self._pending = key, medium, pending
        self._places: dict[Place, int] = {}
        for record in records or ():
            self._take(record.signed)

    @classmethod
    def open(
        cls, folder: Path, session_id: str, key: Ed25519PrivateKey, *, least: int = 0
    ) -> "UpdateLog":
        """Returns the log in a run directory, ready to go on; a new one where there is none.

        Args:
            folder: the run directory, locked by this process.
            session_id: of the session, 64 hex digits.
            key: the peer's own.
            least: how many entries the saved state knows of.

        Raises:
            RunDirError: the log is damaged, of another peer or session, or has lost entries.
        """
        path = folder / LOG_FILE
        public_key = key.public_key().public_bytes_raw()
        found, pending, end = read(path, session_id, public_key, own=True)
        if len(found) < least:
            raise RunDirError(
                f"{path}: got {len(found)} entries, allowed at least the {least} that the saved "
                f"state knows of; {_LOST}: put the file back, or use another --run-dir and key"
            )
        try:
            file = path.open("ab", buffering=0)
            file.truncate(end)
            _settle(path.parent)
        except OSError as fault:
            raise RunDirError(f"{path}: cannot be written: {fault.strerror}") from fault
        return cls(session_id, key, found, file, pending)

    def __len__(self) -> int:
        return len(self.entries)

    def close(self) -> None:
        """Closes the file."""
        if self._medium is not None:
            self._medium.close()

    @property
    def head(self) -> Head:
        """The signed size and root of the log as it is now."""
        return sign_head(self._key, self.session_id, len(self), self.tree.root())

    def append(self, version: Version, time_s: float) -> SignedEntry:
        """Returns the entry for a version, which is on disk.

        It is the one that is there already, if that says the same. A version of a place at which
        the log has another one is said to be made anew.

        Args:
            version: that is to be served.
            time_s: seconds since 1970.

        Raises:
            RunDirError: the file cannot be written; nothing may be served then.
        """
        again = self.entries[-1].entry.again if self.entries else 0
        place = (again, version.term, version.round, version.stage)
        if (at := self._places.get(place)) is not None:
            there = self.entries[at]
            if there.entry.digest == version.digest:
                return there
            again += 1
        mix = self._pending
        mix_hash = None if mix is None else _mix_hash(mix)
        entry = Entry(
            index=len(self),
            previous=self.tree.leaf(len(self) - 1) if len(self) else FIRST,
            # Who has lost its run directory and begins with the same key signs the same first entry
            # again, and is told by others that it has a log before it signs another one.
            time_s=int(time_s) if len(self) else 0,
            again=again,
            term=version.term,
            round=version.round,
            stage=version.stage,
            digest=version.digest,
            epsilon=version.epsilon,
            mix=mix_hash,
        )
        made = signed(entry, self.session_id, self._key)
        self._write(_record(b"E", encode(made)), sync=True)
        self._take(made)
        self._pending = None
        return made

    def mixed(
        self,
        round: int,
        row: Mapping[str, float],
        digests: Mapping[str, bytes],
        rejected: Mapping[str, str],
    ) -> None:
        """Keeps what the peer made its parameters of; the next entry names it.

        Args:
            round: that the mix ended.
            row: each peer's share, by id, the peer's own included; those of 0 are left out.
            digests: SHA-256 of their versions, by peer id.
            rejected: who has no share, and why.

        Raises:
            RunDirError: the file cannot be written.
        """
        unknown = bytes(32)
        parts = [
            Part(bytes.fromhex(who), digests.get(who, unknown), min(PPM, round_ppm(share)))
            for who, share in sorted(row.items())
            if round_ppm(share) > 0
        ]
        others = [
            Rejected(bytes.fromhex(who), visible(why)[:MAX_REASON_CHARS])
            for who, why in sorted(rejected.items())
        ]
        salt = secrets.token_bytes(16)
        mix = Mix(round, tuple(parts[:MAX_PARTS]), tuple(others[:MAX_PARTS]), salt)
        self._write(_record(b"M", encode(mix)), sync=False)
        self._pending = mix

    def _take(self, made: SignedEntry) -> None:
        """Takes an entry in; whoever reads meanwhile sees the log without it or with all of it."""
        statement = statement_of(made.entry, self.session_id, self.public_key)
        self.tree.append(leaf_hash(statement))
        self._places[made.entry.place] = made.entry.index
        self.entries.append(made)

    def _write(self, data: bytes, *, sync: bool) -> None:
        if self._medium is None:
            return
        try:
            left = memoryview(data)
            while left:
                left = left[self._medium.write(left) :]
            if sync:
                os.fsync(self._medium.fileno())
        except OSError as fault:
            self._medium.close()  # nothing may be written behind what was torn off
            raise RunDirError(f"{LOG_FILE}: cannot be written: {fault.strerror}") from fault


def round_ppm(share: float) -> int:
    """Returns a share of 0..1 in millionths."""
    return round(max(0.0, share) * PPM)


def read(
    path: Path, session_id: str, public_key: bytes, *, own: bool = False
) -> tuple[list[Record], Mix | None, int]:
    """Returns the records of a log file, a mix that no entry names, and where the last one ends.

    Hashes, signatures and the chain are checked; a torn record at the end is left out.

    Args:
        path: of the file; where there is none, the log is empty.
        session_id: of the session, 64 hex digits.
        public_key: of the peer, 32 bytes.
        own: whether this very peer wrote it: then the last signature stands for all, for each entry
            has the hash of the one before.

    Raises:
        RunDirError: it is damaged, or of another peer or session.
    """
    try:
        data = regular.read(path)
    except FileNotFoundError:
        return [], None, 0
    except OSError as fault:
        raise RunDirError(f"{path}: cannot be read: {fault.strerror}") from fault
    records: list[Record] = []
    pending: Mix | None = None
    end, previous = 0, FIRST
    for kind, body, after in _records(data):
        try:
            if kind == b"M":
                pending = decode(Mix, body, MAX_MIX_BYTES)
            else:
                made = decode(SignedEntry, body, MAX_ENTRY_BYTES)
                entry = made.entry
                leaf = leaf_hash(statement_of(entry, session_id, public_key))
                if not own:
                    made.check(session_id, public_key)
                if (entry.index, entry.previous) != (len(records), previous):
                    raise LogError(f"entry {entry.index}: it does not follow the one before")
                of = pending if pending is not None and entry.mix == _mix_hash(pending) else None
                records.append(Record(made, of))
                previous, pending = leaf, None
        except LogError as fault:
            raise RunDirError(
                f"{path}: not the log of this peer in this session, or damaged ({fault}); {_LOST}: "
                "put the file back as it was, or use another --run-dir and key"
            ) from fault
        end = after
    if own and records:
        _check_last(path, records[-1].signed, session_id, public_key)
    return records, pending, end


def _check_last(path: Path, last: SignedEntry, session_id: str, public_key: bytes) -> None:
    try:
        last.check(session_id, public_key)
    except LogError as fault:
        raise RunDirError(f"{path}: of another key or session ({fault}); {_LOST}") from fault


def _records(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Yields kind, body and end of each whole record, up to one that was torn at the end.

    Raises:
        RunDirError: bytes that are no record, with others behind them.
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
            raise _damaged(at)
        if len(body) < length:
            return
        if zlib.crc32(body).to_bytes(4, "big") != header[5:_CHECKED]:
            raise _damaged(at)
        at = begin + length
        yield kind, body, at


def _damaged(at: int) -> RunDirError:
    return RunDirError(f"{LOG_FILE}: damaged at byte {at}; {_LOST}: put the file back as it was")


def _header(kind: bytes, length: int, checksum: bytes) -> bytes:
    begin = kind + length.to_bytes(4, "big") + checksum
    return begin + zlib.crc32(begin).to_bytes(4, "big")


def _record(kind: bytes, body: bytes) -> bytes:
    return _header(kind, len(body), zlib.crc32(body).to_bytes(4, "big")) + body


def _mix_hash(mix: Mix) -> bytes:
    return hashlib.sha256(encode(mix)).digest()


def _settle(folder: Path) -> None:
    """Returns when the names in a folder are on disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
