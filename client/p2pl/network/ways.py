"""All ways between this peer and others: plain connections, meetings, and relays.

To a peer, the ways are tried in this order: directly, where its endpoints say; the other way round,
where it waits at this peer's meeting; by a relay. What worked last is tried first the next time.

A peer that cannot be dialled takes calls at relays that its tracker names, and at the meetings of
others that it has heard of; those relays are the endpoints that it announces.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2pl.errors import PullError
from p2pl.network.dial import Dialler
from p2pl.network.relay import (
    MEET,
    Meeting,
    Pumps,
    RelayListener,
    Speaker,
    Unreached,
    dial_through,
)
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import Endpoint

RelayMode: TypeAlias = Literal["auto", "always", "never"]
Place: TypeAlias = tuple[Endpoint, ...]  # a relay by all ways to it, or a meeting
RELAYS = ("relay", "relays")
NO_RELAY = "unreachable: a relay leads to it, and this peer uses none (--relay never)"
MAX_RELAYS = 2  # that a peer takes calls at; chosen: one may be down
MAX_MEETINGS = 32  # that it waits at; each is one quiet connection
MAX_REMEMBERED = 1_024  # peers, and what worked
LOOK_S = 0.5  # how often it is looked whether relays or meetings are new
REST_S = 60.0  # for which a way to a relay that led nowhere is tried last
SHARE = 0.5  # of the time left, that one way has while there are others


class Ways:
    """The door to other peers, by whatever way there is.

    Args:
        direct: dials plain endpoints.
        speaker: who speaks to relays.
        pumps: copy in the background.
        meeting: where others wait for this peer; None: it has none.
        uses_relays: whether a relay may be used at all.
    """

    def __init__(
        self,
        direct: Dialler,
        speaker: Speaker,
        pumps: Pumps,
        *,
        meeting: Meeting | None = None,
        uses_relays: bool = True,
    ) -> None:
        self.meeting = meeting
        self._direct, self._speaker, self._pumps = direct, speaker, pumps
        self._uses_relays = uses_relays
        self._worked: dict[str, str] = {}  # by peer id
        self._rests: dict[str, float] = {}  # ways to relays that led nowhere, and until when

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        """Returns a connected, non-blocking stream socket to the listener of a peer.

        Args:
            address: of the peer.
            deadline_s: seconds for all of it.
            hello: what is said first.

        Raises:
            PullError: no way led to it; it says why of each.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s
        ways = self._ways(address)
        reasons = []
        for index, way in enumerate(ways):
            left_s = until_s - loop.time()
            share_s = left_s if index + 1 == len(ways) else SHARE * left_s
            try:
                stream = await self._try(way, address, share_s, hello)
            except PullError as fault:
                reasons.append(str(fault))
                continue
            self._remember(address.id, str(way))
            return stream
        if not self._uses_relays and any(way.kind in RELAYS for way in address.ways):
            reasons.append(NO_RELAY)
        why = "; ".join(reasons) or "unreachable: it names no way that this peer knows"
        raise PullError(why)

    def _ways(self, address: PeerAddress) -> list[Endpoint | str]:
        found: list[Endpoint | str] = []
        if any(way.kind == "tcp" for way in address.ways):
            found.append("direct")
        if self.meeting is not None and self.meeting.holds(address.id):
            found.append(MEET)
        if self._uses_relays:
            found += [way for way in address.ways if way.kind in RELAYS]
        last, now_s = self._worked.get(address.id), asyncio.get_running_loop().time()

        def rank(way: Endpoint | str) -> int:
            if self._rests.get(str(way), 0.0) > now_s:
                return 2
            return int(str(way) != last)

        return sorted(found, key=rank)  # the sort is stable

    async def _try(
        self, way: Endpoint | str, address: PeerAddress, deadline_s: float, hello: bytes
    ) -> socket.socket:
        if isinstance(way, Endpoint):
            try:
                return await dial_through(
                    way,
                    address.id,
                    self._speaker,
                    pumps=self._pumps,
                    deadline_s=deadline_s,
                    hello=hello,
                )
            except Unreached:
                self._rest(str(way))
                raise
        if way == MEET:
            assert self.meeting is not None
            return await self.meeting.call(address.id, deadline_s=deadline_s, hello=hello)
        return await self._direct.open(address, deadline_s=deadline_s, hello=hello)

    def _rest(self, way: str) -> None:
        self._rests.pop(way, None)
        self._rests[way] = asyncio.get_running_loop().time() + REST_S
        if len(self._rests) > MAX_REMEMBERED:
            del self._rests[next(iter(self._rests))]

    def _remember(self, peer_id: str, way: str) -> None:
        self._worked.pop(peer_id, None)
        self._worked[peer_id] = way
        if len(self._worked) > MAX_REMEMBERED:
            del self._worked[next(iter(self._worked))]


@dataclass(frozen=True, slots=True)
class Places:
    """Where calls can be taken, as far as is known by now.

    Attributes:
        relays: returns those that the tracker names, best first.
        peers: returns the peers that this one has heard of, the latest last.
    """

    relays: Callable[[], Sequence[Endpoint]]
    peers: Callable[[], Iterable[PeerAddress]]


def by_host(relays: Iterable[Endpoint]) -> list[Place]:
    """Returns relays, each with all ways to it: those of one host are ways to one relay."""
    places: dict[str, list[Endpoint]] = {}
    for relay in relays:
        places.setdefault(relay.host, []).append(relay)
    return [tuple(ways) for ways in places.values()]


class Reception:
    """Takes calls at relays and meetings, for a peer that cannot be dialled.

    Args:
        speaker: who it is.
        here: IP address and port of its own listener.
        pumps: copy in the background.
        rng: jitters the waits.
    """

    def __init__(
        self, speaker: Speaker, here: tuple[str, int], pumps: Pumps, rng: random.Random
    ) -> None:
        self._speaker, self._here, self._pumps, self._rng = speaker, here, pumps, rng
        self._listening: dict[Place, tuple[RelayListener, asyncio.Task[None]]] = {}

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The ways to the relays at which calls are taken now."""
        return tuple(
            way
            for place, (listener, _) in self._listening.items()
            if listener.is_listening
            for way in place
            if way.kind in RELAYS
        )

    @property
    def is_settled(self) -> bool:
        """Whether calls are taken at a relay now, or every relay was tried in vain."""
        listeners = [one for one, _ in self._listening.values() if one.relay.kind in RELAYS]
        failed = bool(listeners) and all(one.has_failed for one in listeners)
        return failed or bool(self.endpoints)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no calls are taken at relays where they should be."""
        listeners = [one for one, _ in self._listening.values() if one.relay.kind in RELAYS]
        return tuple(one.reason for one in listeners if one.reason)

    @contextlib.asynccontextmanager
    async def open(self, places: Places) -> AsyncIterator["Reception"]:
        """Takes calls within the context.

        Args:
            places: where.
        """
        looking = asyncio.create_task(self._look(places))
        try:
            yield self
        finally:
            looking.cancel()
            tasks = [looking, *(task for _, task in self._listening.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._listening.clear()

    async def _look(self, places: Places) -> None:
        while True:
            self._go_to(places)
            await asyncio.sleep(LOOK_S)

    def _go_to(self, places: Places) -> None:
        """Begins to take calls where that is new, and ends it where nobody is any more."""
        relays = by_host(one for one in places.relays() if one.kind in RELAYS)[:MAX_RELAYS]
        meetings = {
            (way,): None
            for peer in places.peers()
            for way in peer.ways
            # Where a tracker saw the peer itself: nobody sends others to a third machine.
            if way.kind == MEET and way.host == peer.host
        }
        wanted: list[Place] = [*relays, *list(meetings)[-MAX_MEETINGS:]]
        for where in set(self._listening) - set(wanted):
            _, task = self._listening.pop(where)
            task.cancel()
        for where in wanted:
            if where not in self._listening:
                listener = RelayListener(
                    where, self._speaker, self._here, pumps=self._pumps, rng=self._rng
                )
                self._listening[where] = (listener, asyncio.create_task(listener.run()))
