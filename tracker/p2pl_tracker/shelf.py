"""What replicas of a tracker tell each other of private sessions: authors, revocations, proofs.

Each replica decides by its own `Register`; the shelf brings there what another replica was told,
at most `STALE_S` late, and at once where the peer would be refused otherwise. A tracker by itself
has a shelf that is empty and free.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import msgspec

from p2pl.errors import AnnounceError, ProofError
from p2pl.protocol.announce import Announce
from p2pl.protocol.invitation import decode_revocations
from p2pl_tracker.register import MAX_AUTHORS, MAX_LISTS, Register

STALE_S = 1.0  # chosen: how late a replica may hear of what another was told
MAX_ASKED = 10_000  # sessions of which it remembers when it asked
AUTHORS, LISTS = "authors", "lists"


@runtime_checkable
class Shared(Protocol):
    """A store that several replicas have in common keeps this for them as well."""

    async def keep(self, shelf: str, key: bytes, value: bytes, *, number: int, most: int) -> bool:
        """Keeps a value, unless one with a higher number is there; returns whether it does.

        Args:
            shelf: of what kind it is.
            key: to find it by.
            value: to keep.
            number: of the value.
            most: values of this kind; the one kept the longest time ago is forgotten.
        """
        ...

    async def kept(self, key: bytes, *shelves: str) -> list[bytes | None]:
        """Returns what is kept under a key, for each kind."""
        ...

    async def put_proof(
        self, session: bytes, curve_key: str, digest: bytes, proof: bytes, *, until_s: float
    ) -> None:
        """Keeps the proof of a peer for the seconds that are left until `until_s`."""
        ...

    async def drop_proof(self, session: bytes, curve_key: str, digest: bytes) -> None:
        """Forgets the proof of a peer."""
        ...

    async def proofs(self, session: bytes, curve_key: str) -> list[bytes]:
        """Returns the proofs of those who say that a key is theirs."""
        ...


class Shelf:
    """Where a register is all that there is."""

    def __init__(self, register: Register) -> None:
        self.register = register

    async def check(self, announce: Announce) -> None:
        """Takes in that a peer announces itself; see `Register.check`."""
        self.register.check(announce)

    async def learn(self, info: bytes) -> None:
        """Takes in what a session is; see `Register.learn`."""
        self.register.learn(info)

    async def revoke(self, data: bytes) -> None:
        """Takes in a list of revocations; see `Register.revoke`."""
        self.register.revoke(data)

    async def proofs(self, session: bytes, curve_key: str) -> bytes | None:
        """Returns proofs; see `Register.proofs`."""
        return self.register.proofs(session, curve_key)

    async def revocations(self, session: bytes) -> bytes | None:
        """Returns the newest list; see `Register.revocations`."""
        return self.register.revocations(session)

    async def is_private(self, session: bytes) -> bool:
        """Returns whether a session is known to be private."""
        return self.register.knows(session)


class SharedShelf(Shelf):
    """Where other replicas are told things as well.

    Args:
        register: of this replica.
        store: that they have in common.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        register: Register,
        store: Shared,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        super().__init__(register)
        self._store, self._now, self._wall = store, now, wall
        self._asked_s: OrderedDict[bytes, float] = OrderedDict()

    async def check(self, announce: Announce) -> None:
        """Takes in that a peer announces itself; see `Register.check`."""
        session = announce.session
        is_unsure = bool(announce.proof) and not self.register.knows(session)
        await self._bring(session, at_once=is_unsure)
        self.register.check(announce)
        if not self.register.knows(session):
            return
        if announce.event == "stopped":
            await self._store.drop_proof(session, announce.curve_key, announce.digest)
        else:
            until_s = self._wall() + self.register.ttl_s
            await self._store.put_proof(
                session, announce.curve_key, announce.digest, announce.proof, until_s=until_s
            )

    async def learn(self, info: bytes) -> None:
        """Takes in what a session is; see `Register.learn`."""
        session = self.register.learn(info)
        author = self.register.author_of(session)
        if author is not None:
            await self._store.keep(AUTHORS, session, author, number=0, most=MAX_AUTHORS)

    async def revoke(self, data: bytes) -> None:
        """Takes in a list of revocations; see `Register.revoke`.

        Raises:
            AnnounceError: as there, or because another replica has a newer one (409).
        """
        try:
            listed = decode_revocations(data)
        except ProofError as fault:
            raise AnnounceError(str(fault)) from fault
        await self._bring(listed.session, at_once=True)
        self.register.revoke(data)
        kept = await self._store.keep(
            LISTS, listed.session, data, number=listed.number, most=MAX_LISTS
        )
        if not kept:
            raise AnnounceError("revocations: there is a newer list here", status=409)

    async def proofs(self, session: bytes, curve_key: str) -> bytes | None:
        """Returns proofs; see `Register.proofs`."""
        found = await self._store.proofs(session, curve_key)
        return msgspec.msgpack.encode(found) if found else None

    async def revocations(self, session: bytes) -> bytes | None:
        """Returns the newest list; see `Register.revocations`."""
        await self._bring(session, at_once=True)
        return self.register.revocations(session)

    async def is_private(self, session: bytes) -> bool:
        """Returns whether a session is known to be private."""
        await self._bring(session)
        return self.register.knows(session)

    async def _bring(self, session: bytes, *, at_once: bool = False) -> None:
        """Takes over what another replica was told of a session."""
        now_s = self._now()
        asked_s = self._asked_s.get(session)
        if not at_once and asked_s is not None and now_s - asked_s < STALE_S:
            return
        author, listed = await self._store.kept(session, AUTHORS, LISTS)
        self._asked_s[session] = now_s
        self._asked_s.move_to_end(session)
        if len(self._asked_s) > MAX_ASKED:
            self._asked_s.popitem(last=False)
        if author is not None:
            self.register.hear_author(session, author)
        if listed is not None:
            self.register.hear_revocations(listed)
