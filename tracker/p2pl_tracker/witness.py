"""Cosigns peers' update logs: one checkpoint a log and session is kept, and never a parameter.

A head is taken only with its author's signature and the proof that the log has grown from the head
that is kept. So nobody can show this tracker a log that is shorter than before, or another one,
and have it cosigned; what is answered then is what is kept, which is signed by the same author.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import AnnounceError, LogError
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.entry import encode
from p2pl.protocol.updates.head import body, cosign
from p2pl.protocol.updates.tree import is_consistent
from p2pl.protocol.updates.witness import Kept, Shown, read_kept, read_shown
from p2pl_tracker.address import AddressLimit, network_of

log = logging.getLogger(__name__)

KEEP_S = 86_400.0  # chosen: a peer that comes back from a backup does so within a day
MOST = 100_000  # checkpoints, some 50 MB; further logs are refused, so that none is pushed out
# A network begins no further log while it has this part of the room that is left: the fuller, the
# fewer, down to one. After Choudhury and Hahne, Dynamic queue length thresholds for shared-memory
# packet switches, 1998. Chosen: 100 networks take 61 % of all, and a further one has room for 609.
ROOM_PARTS = 64
# Logs that an address may begin: as many at once as it may have peers, and then one a minute.
NEW_PER_S, NEW_AT_ONCE = 1 / 60, 1_000
FULL_RETRY_S = 600.0


class Checkpoints(Protocol):
    """Where checkpoints are kept, each for `KEEP_S` after it has come."""

    async def get(self, log: bytes) -> bytes | None:
        """Returns what is kept of a log: of session and peer id, 64 bytes; None: nothing."""
        ...

    async def put(
        self, log: bytes, before: bytes | None, value: bytes, network: str
    ) -> bytes | None:
        """Returns what is kept from now on.

        Args:
            log: session and peer id, 64 bytes.
            before: what is to be kept now. Where it is something else, that stays, and is returned.
            value: to keep.
            network: that it comes from; a log counts for the one that it came from first.

        Returns:
            None where `MOST` others are kept, or as many of that network as it may have now.
        """
        ...

    async def aclose(self) -> None:
        """Ends what holds them."""
        ...


class MemoryCheckpoints:
    """Checkpoints in this process, which are gone with it.

    Args:
        now: a clock that never steps back, in seconds.
        most: of them.
    """

    def __init__(self, now: Callable[[], float], *, most: int = MOST) -> None:
        self._now, self._most = now, most
        self._kept: OrderedDict[bytes, tuple[float, bytes, str]] = OrderedDict()  # by age
        self._of: Counter[str] = Counter()  # how many, by network

    async def get(self, log: bytes) -> bytes | None:
        """Returns what is kept of a log. See `Checkpoints`."""
        until_s, value, _ = self._kept.get(log, (0.0, None, ""))
        return value if until_s > self._now() else None

    async def put(
        self, log: bytes, before: bytes | None, value: bytes, network: str
    ) -> bytes | None:
        """Returns what is kept from now on. See `Checkpoints`."""
        now_s = self._now()
        until_s, held, _ = self._kept.get(log, (0.0, None, ""))
        there = held if until_s > now_s else None
        if there != before:
            return there
        while self._kept and next(iter(self._kept.values()))[0] <= now_s:
            _, (*_, whose) = self._kept.popitem(last=False)
            self._of[whose] -= 1
            if not self._of[whose]:
                del self._of[whose]
        if there is None:
            room = self._most - len(self._kept)
            if room <= 0 or self._of[network] >= max(1, room // ROOM_PARTS):
                return None
            self._of[network] += 1
        else:
            *_, network = self._kept[log]
        self._kept[log] = now_s + KEEP_S, value, network
        self._kept.move_to_end(log)
        return value

    async def aclose(self) -> None:
        """Does nothing: they are in this process."""


class Witness:
    """Takes heads of update logs, and cosigns those that have only grown.

    Args:
        key: cosigns.
        checkpoints: where heads are kept.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        checkpoints: Checkpoints,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._key, self._checkpoints, self._wall = key, checkpoints, wall
        self._new = AddressLimit(NEW_PER_S, NEW_AT_ONCE, now=now)

    def read(self, data: bytes) -> tuple[Shown, bytes]:
        """Returns what a peer shows, signed by the author of the log, and that peer's id.

        Raises:
            AnnounceError: it is no such thing (400), or not signed by the author (401).
        """
        try:
            shown = read_shown(data)
        except LogError as fault:
            raise AnnounceError(f"checkpoint: {fault}") from fault
        try:
            shown.head.check(shown.session.hex(), shown.author)
        except LogError as fault:
            raise AnnounceError(f"checkpoint: {fault}", status=401) from fault
        if not shown.head.size:  # no longer log could be shown to have grown from it
            raise AnnounceError("checkpoint: size: got 0, allowed >= 1")
        return shown, bytes.fromhex(peer_id_of(shown.author))

    async def take(self, shown: Shown, host: str) -> bytes:
        """Returns what is kept of a log: the head that was shown, where that has only grown.

        Args:
            shown: checked by `read`.
            host: the address that it comes from.

        Raises:
            AnnounceError: too many new logs come from there (429), or are kept (503).
        """
        session, head = shown.session.hex(), shown.head
        digest = bytes.fromhex(peer_id_of(shown.author))
        there = await self.kept(shown.session, digest)
        if there is None:
            self._new.check(host)
        elif not has_grown(read_kept(there), shown):
            return there
        text = body(session, shown.author, head.size, head.root)
        kept = Kept(shown.author, head, cosign(self._key, text, int(self._wall())))
        now = await self._checkpoints.put(
            shown.session + digest, there, encode(kept), network_of(host)
        )
        if now is None:
            why = "checkpoint: this tracker keeps as many others as it may, or of this network"
            raise AnnounceError(why, status=503, retry_in_s=FULL_RETRY_S)
        return now

    async def kept(self, session: bytes, digest: bytes) -> bytes | None:
        """Returns what is kept of a peer's log in a session; None: nothing.

        Raises:
            AnnounceError: what the store has is damaged, or it is away (503).
        """
        there = await self._checkpoints.get(session + digest)
        try:
            if there is not None:
                read_kept(there)
        except LogError as fault:
            whose = f"{digest.hex()} in session {session.hex()}"
            log.warning("what the store keeps of the log of %s is damaged: %s", whose, fault)
            why = "checkpoint: what this tracker keeps of this log is damaged"
            raise AnnounceError(why, status=503, retry_in_s=FULL_RETRY_S) from fault
        return there


def has_grown(kept: Kept, shown: Shown) -> bool:
    """Returns whether the log that is kept has grown to the head that is shown."""
    before, head = kept.head, shown.head
    return shown.before == before.size and is_consistent(
        before.size, head.size, shown.consistency, before.root, head.root
    )
