"""A peer's own update log: a file that only grows, and the hash tree over it.

An entry is on disk before `append` returns, and nobody sees it before. So whatever has been seen is
there after a crash. A torn record, which a crash leaves, is cut off when the file is opened again.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import RunDirError, visible
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.entry import (
    FIRST,
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
    signed,
    statement_of,
)
from p2pl.protocol.updates.head import Head, sign_head
from p2pl.protocol.updates.tree import Tree, leaf_hash
from p2pl.run.files import settle
from p2pl.updates.file import LOG_FILE, LOST, Owner, Record, mix_hash, read, record


class Medium(Protocol):
    """Where records go; what a test puts in the place of a file."""

    def write(self, data: memoryview, /) -> int:
        """Returns how many bytes were written."""
        ...

    def sync(self) -> None:
        """Returns when what was written is on disk."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


class _File:
    """A file that only grows."""

    def __init__(self, path: Path, end: int) -> None:
        self._file = path.open("ab", buffering=0)
        self._file.truncate(end)  # what a crash has torn is cut off

    def write(self, data: memoryview, /) -> int:
        return self._file.write(data) or 0

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


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
        records: Sequence[Record] = (),
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
        self._head: Head | None = None
        for one in records:
            self._take(one.signed)

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
        found = read(path)
        if found and (found.session_id, found.owner.public_key) != (session_id, public_key):
            raise RunDirError(
                f"{path}: the log of another peer or session; allowed: another --run-dir, or the "
                "key file that this one was written with"
            )
        records = found.records if found else ()
        if len(records) < least:
            raise RunDirError(
                f"{path}: got {len(records)} entries, allowed at least the {least} that the saved "
                f"state knows of; {LOST}: put the file back, or use another --run-dir and key"
            )
        try:
            file = _File(path, found.end if found else 0)
            settle(path.parent)
        except OSError as fault:
            raise RunDirError(f"{path}: cannot be written: {fault.strerror}") from fault
        log = cls(session_id, key, records, file, found.pending if found else None)
        if found is None:
            owner = Owner(bytes.fromhex(session_id), public_key)
            log._write(record(b"H", owner), sync=True)
        return log

    def __len__(self) -> int:
        return len(self.entries)

    def close(self) -> None:
        """Closes the file."""
        if self._medium is not None:
            self._medium.close()

    @property
    def head(self) -> Head:
        """The signed size and root of the log as it is now."""
        size = len(self)
        if self._head is None or self._head.size != size:
            self._head = sign_head(self._key, self.session_id, size, self.tree.root(size))
        return self._head

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
        made_of = None if mix is None else mix_hash(mix)
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
            mix=made_of,
        )
        made = signed(entry, self.session_id, self._key)
        self._write(record(b"E", made), sync=True)
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
        self._write(record(b"M", mix), sync=False)
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
                self._medium.sync()
        except OSError as fault:
            self._medium.close()  # nothing may be written behind what was torn off
            raise RunDirError(f"{LOG_FILE}: cannot be written: {fault.strerror}") from fault


def round_ppm(share: float) -> int:
    """Returns a share of 0..1 in millionths."""
    return round(max(0.0, share) * PPM)
