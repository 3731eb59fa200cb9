"""Keeps a peer's own update log, and watches those of others: all of update logs that a node needs.

What it gives out is on disk first. It is used by one event loop; what waits for the disk runs in a
thread, one at a time.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from p2pl.errors import FrameError, LogError, RunDirError
from p2pl.network.keys import Identity
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.entry import SignedEntry, encode
from p2pl.protocol.updates.fault import Fault
from p2pl.protocol.updates.head import Head
from p2pl.protocol.updates.message import (
    Commitment,
    Heard,
    Question,
    read_commitment,
    read_question,
)
from p2pl.protocol.updates.witness import Kept, Shown, read_kept
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.watch import OwnLogElsewhere, Watch, proof_file, put_own_head

Answer: TypeAlias = Callable[[str, bytes], bytes]
# Between two times that what was seen of others is written. Chosen: a peer that is killed forgets
# a second of it at most, and sees it again; a file each round is a fifth of what logs cost.
SAVE_S = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What was said to a peer with a question, until its answer comes."""

    question: Question
    data: bytes


class Keeper:
    """The update log of one node, and what it knows of those of others.

    Args:
        log: the peer's own.
        folder: the run directory; None: nothing is kept on disk.
        identity: of the peer.
        now: the time, in seconds since 1970.
        knows: whether a peer is known to be of the session.

    Attributes:
        log: the peer's own.
        watch: what it knows of those of others.
        digests: SHA-256 of the newest version that was taken from each peer, by id.
    """

    def __init__(
        self,
        log: UpdateLog,
        folder: Path | None,
        identity: Identity,
        now: Callable[[], float],
        knows: Callable[[str], bool],
    ) -> None:
        self.log, self.digests = log, {identity.peer_id: bytes(32)}
        self._folder, self._now = folder, now
        self.watch = Watch(log.session_id, identity.private_key, self._own_root, now, knows)
        self._writing = asyncio.Lock()
        self._elsewhere = ""
        self._saved_s, self._saved_faults = -math.inf, 0
        if folder is not None:
            self.watch.load(folder)

    async def commit(self, version: Version) -> Answer:
        """Returns what is said to whoever asks for a version; its entry is on disk by then.

        Args:
            version: that is to be served.

        Raises:
            RunDirError: the log cannot be written, or this key has another log of the session.
        """
        if self._elsewhere:
            raise RunDirError(
                f"update log: {self._elsewhere}; others would take a second log for a lie: go on "
                "in the run directory that has it, or use another --identity"
            )
        async with self._writing:
            signed = await asyncio.to_thread(self.log.append, version, self._now())
        self.digests[self.log.peer_id] = version.digest
        return self.answer_for(signed)

    def answer_for(self, signed: SignedEntry) -> Answer:
        """Returns what is said to whoever asks for the version of an entry.

        Given the id of who asks and what came with the question, it returns what goes with the
        version, or raises FrameError where that is no such question, or something in it is false.
        """
        return partial(self._answer, signed)

    def question(self, peer_id: str) -> Asked:
        """Returns what goes with a question for a peer's version."""
        question = self.watch.question(peer_id)
        return Asked(question, encode(question))

    def take(self, peer_id: str, asked: Asked, commitment: bytes, digest: bytes) -> None:
        """Takes in what came with a peer's version.

        Args:
            peer_id: whose version it is.
            asked: what was said with the question.
            commitment: what came with the version.
            digest: SHA-256 of the version's bytes.

        Raises:
            FrameError: nothing may be made of the version; the message says why.
        """
        try:
            came = read_commitment(commitment)
            self.watch.answered(peer_id, asked.question, came, digest)
        except OwnLogElsewhere as fault:
            self._elsewhere = str(fault)
        except LogError as fault:
            raise FrameError(f"update log: {fault}") from fault
        self.digests[peer_id] = digest

    def take_proof(self, proof: bytes) -> None:
        """Keeps the proof that a known peer has two histories; raises FrameError if it is none."""
        try:
            self.watch.take_others((), (proof,))
        except LogError as fault:
            raise FrameError(f"update log: {fault}") from fault

    def shown(self, before: int) -> tuple[Head, bytes]:
        """Returns the newest head of the peer's own log, and what shows it to a tracker.

        Args:
            before: entries that the tracker keeps a head of, as far as is known; 0: none.
        """
        log, head = self.log, self.log.head
        grown = log.tree.consistency(before, head.size) if 0 < before <= head.size else ()
        session = bytes.fromhex(log.session_id)
        return head, encode(Shown(session, log.public_key, head, before, grown))

    def take_cosigned(self, head: Head, data: bytes) -> int:
        """Returns how many entries of the peer's own log a tracker keeps a head of.

        Args:
            head: that the tracker was shown.
            data: its answer.

        Raises:
            LogError: it is no head of this log, or the cosignature is not its witness's.
            OwnLogElsewhere: this key has another log in this session.
        """
        kept = self._kept(self.log.peer_id, data)
        if (kept.head.size, kept.head.root) == (head.size, head.root):
            self.watch.take_cosignature(head.size, kept.cosignature)
        return kept.head.size

    def take_kept(self, peer_id: str, data: bytes) -> None:
        """Takes in the head that a tracker keeps of another peer's log.

        Raises:
            LogError: it is no head of that log.
        """
        self._kept(peer_id, data)

    def _kept(self, peer_id: str, data: bytes) -> Kept:
        kept = read_kept(data)
        if peer_id_of(kept.author) != peer_id:
            raise LogError("checkpoint: of another peer than was asked for")
        try:
            self.watch.take_others((Heard(kept.author, kept.head),), ())
        except OwnLogElsewhere as fault:
            self._elsewhere = str(fault)
            raise
        return kept

    async def mixed(
        self,
        round: int,
        row: Mapping[str, float],
        digests: Mapping[str, bytes],
        why: Mapping[str, str],
    ) -> None:
        """Keeps what the peer's parameters were made of at the end of a round.

        It is written without waiting for the disk, for which the next entry waits.

        Args:
            round: that it ended.
            row: each peer's share, by id, its own included.
            digests: SHA-256 of what came, by peer id; of others, the newest that was taken counts.
            why: who has no share, and why.
        """
        async with self._writing:
            self.log.mixed(round, row, {**self.digests, **digests}, why)

    def news(self) -> list[Fault]:
        """Returns the proofs of two histories that were found since the last call."""
        found, self.watch.news = self.watch.news, []
        return found

    def turned_down(self, peer_id: str) -> str | None:
        """Returns why nothing is taken from a peer; None where something is."""
        return self.watch.turned_down(peer_id)

    def save(self) -> None:
        """Writes what is known of others' logs."""
        if self._folder is not None:
            self._saved_s, self._saved_faults = self._now(), len(self.watch.faults)
            self.watch.save(self._folder, self.log.head if len(self.log) else None)

    def save_sometimes(self) -> None:
        """Writes it where that is `SAVE_S` ago, or a peer was found to have two histories."""
        passed_s = self._now() - self._saved_s  # below 0: the clock was put back
        if not 0 <= passed_s < SAVE_S or len(self.watch.faults) > self._saved_faults:
            self.save()

    def close(self) -> None:
        """Closes the log."""
        self.log.close()

    def _answer(self, signed: SignedEntry, peer_id: str, said: bytes) -> bytes:
        """Returns what goes with a version; `said` is what came with the question.

        Raises:
            FrameError: it is no question, or something in it does not hold.
        """
        try:
            question = read_question(said)
            self.watch.asked(peer_id, question)
        except OwnLogElsewhere as fault:
            self._elsewhere = str(fault)
        except LogError as fault:
            raise FrameError(f"update log: {fault}") from fault
        log, size = self.log, len(self.log)
        shown = tuple(
            log.tree.consistency(one, size) if 0 < one <= size else () for one in question.known
        )
        commitment = Commitment(
            author=log.public_key,
            signed=signed,
            head=log.head,
            inclusion=log.tree.inclusion(signed.entry.index, size),
            consistency=shown,
            heard=self.watch.heard_for(peer_id),
            faults=self.watch.faults_for(peer_id),
        )
        self.watch.told(peer_id, commitment)
        return encode(commitment)

    def _own_root(self, size: int) -> bytes | None:
        return self.log.tree.root(size) if 0 < size <= len(self.log) else None


def told(fault: Fault) -> str:
    """Returns what a person is told of a proof of two histories."""
    return (
        f"{fault.peer_id[:8]} is not trusted any more: {fault.check()}; the proof is in "
        f"{proof_file(fault.peer_id)}"
    )


def finish(
    folder: Path, session_id: str, identity: Identity, version: Version, time_s: float
) -> None:
    """Adds the final model to a log on which nobody works any more.

    Args:
        folder: the run directory.
        session_id: of the session, 64 hex digits.
        identity: of the peer.
        version: of stage `final`.
        time_s: seconds since 1970.

    Raises:
        RunDirError: the log is damaged, or cannot be written.
    """
    log = UpdateLog.open(folder, session_id, identity.private_key)
    try:
        log.append(version, time_s)
        put_own_head(folder, log.head)
    finally:
        log.close()


def sha256(data: bytes | memoryview) -> bytes:
    """Returns the SHA-256 of the bytes of a version, 32 bytes."""
    return hashlib.sha256(data).digest()
