"""Everything by which a peer is reached and reaches others, put together for one run.

It is made before the wire, which dials through it, and opened once there are a wire and a
directory. From then on it keeps the endpoints that the directory announces up to date.
"""

import asyncio
import contextlib
import logging
import math
import random
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from p2pl.errors import TrackerError
from p2pl.network import interfaces
from p2pl.network.dial import Direct
from p2pl.network.directory import TrackerDirectory
from p2pl.network.interfaces import Listener
from p2pl.network.keys import Identity
from p2pl.network.relay import MEET, Meeting, Pumps, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.ways import Places, Reception, RelayMode, Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.endpoint import MAX_ENDPOINTS, Endpoint, joined

log = logging.getLogger(__name__)

POLL_S = 0.5
ASK_AGAIN_S = 5.0  # for relays, where no tracker has named one; whether the peer can be dialled
MAX_ASKED = 5  # times in a row, whether it can be dialled


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether others can dial this peer, as a tracker has found.

    Attributes:
        where: `HOST:PORT` that was dialled.
        reach: from how far away that is the same machine; never this machine alone.
        reason: why it could not be dialled; "": it could.
        relays: by which it is reached, where it cannot be dialled.
        announced: where it can be, as the person says.
    """

    where: str
    reach: Reach
    reason: str = ""
    relays: tuple[str, ...] = ()
    announced: tuple[str, ...] = ()

    @property
    def is_dialled(self) -> bool:
        """Whether it could be dialled."""
        return not self.reason

    @property
    def said(self) -> str:
        """What a person is told: one line."""
        if self.is_dialled:
            return f"{_WHO[self.reach]} can dial this peer at {self.where}{_UNKNOWN[self.reach]}"
        told = f"nobody can dial this peer at {self.where}: {self.reason}; "
        if self.announced:
            told += f"others are told {', '.join(self.announced)}, as you say; "
        if self.relays:
            return f"{told}it goes by relay, {', '.join(self.relays)}"
        return f"{told}it can only call others ({ADVICE})"


ADVICE = (
    "open that port in the firewall or forward it at the router and say --announce HOST:PORT, or "
    "have the tracker name a relay"
)
_WHO = {
    Reach.SITE: "peers in this network",
    Reach.WORLD: "others",
}
_UNKNOWN = {
    Reach.SITE: "; whether others can is not known, for the tracker is in this network as well",
    Reach.WORLD: "",
}


class Outreach:
    """The ways to others, and theirs to this peer.

    Args:
        identity: of this peer.
        session_id: 64 hex digits.
        mode: `always` takes calls at relays and is dialled by nobody; `never` uses none.
        trust: whom TLS trusts, for relays by WebSocket; None: the authorities of this machine.
        announced: where others can dial this peer, as the person says.
        found: is told whether they can, as soon as a tracker has tried.

    Attributes:
        ways: what the wire dials by.
    """

    def __init__(
        self,
        identity: Identity,
        session_id: str,
        *,
        mode: RelayMode = "auto",
        trust: ssl.SSLContext | None = None,
        announced: tuple[Endpoint, ...] = (),
        found: Callable[[Verdict], None] = lambda _: None,
    ) -> None:
        session = bytes.fromhex(session_id)
        self._mode, self._announced, self._found = mode, announced, found
        self._directory: TrackerDirectory | None = None
        self._reception: Reception | None = None
        self._is_reached: bool | None = None
        self._stack = contextlib.AsyncExitStack()
        self._pumps = Pumps(Traffic())
        self._speaker = Speaker(identity, session, self._ticket, trust)
        meeting = None if mode == "always" else Meeting(session)
        self.ways = Ways(
            Direct(), self._speaker, self._pumps, meeting=meeting, uses_relays=mode != "never"
        )

    @contextlib.asynccontextmanager
    async def open(self, wire: CurveWire, directory: TrackerDirectory) -> AsyncIterator[None]:
        """Is reached, and reaches others, within the context.

        Args:
            wire: open.
            directory: announces the endpoints.
        """
        self._directory, self._pumps.traffic = directory, wire.traffic
        listener = Listener(wire.host, wire.port, interfaces.addresses(), self._announced)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._pumps.close)
            self._stack = stack
            if self._mode == "always":
                directory.endpoints = ()
                await self._receive(wire, directory)
            else:
                directory.endpoints = listener.endpoints()
                if self.ways.meeting is not None:
                    await self._meet(self.ways.meeting, wire.host, stack)
            telling = asyncio.create_task(self._tell(wire, directory, listener))
            try:
                yield
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)

    async def _receive(self, wire: CurveWire, directory: TrackerDirectory) -> None:
        """Takes calls at relays and at the meetings of others, from now on."""
        wire.takes_relayed()
        here = ("127.0.0.1" if wire.host in interfaces.ANY else wire.host, wire.port)
        places = Places(lambda: directory.relays, directory.known.addresses)
        reception = Reception(self._speaker, here, self._pumps, random.Random())
        self._reception = await self._stack.enter_async_context(reception.open(places))

    async def _meet(self, meeting: Meeting, host: str, stack: contextlib.AsyncExitStack) -> None:
        """Lets others wait here; a peer that cannot offer it does without."""
        try:
            await stack.enter_async_context(meeting.open(host))
        except OSError as fault:
            log.info("nobody can wait here to be called: %s", fault.strerror)

    async def _tell(self, wire: CurveWire, directory: TrackerDirectory, listener: Listener) -> None:
        """Keeps the announced endpoints right; a change is announced at once."""
        loop, asked_s, tries, asked_for = asyncio.get_running_loop(), -math.inf, 0, ""
        while True:
            seen, is_early = directory.external_host, loop.time() - asked_s < ASK_AGAIN_S
            if self._mode != "always" and seen != asked_for and not is_early:
                asked_s, tries = loop.time(), tries + 1
                if await self._ask(wire, directory, listener) or tries >= MAX_ASKED:
                    asked_for, tries, asked_s = seen, 0, -math.inf
            found = self._endpoints(listener, seen if seen == asked_for else "")
            if found != directory.endpoints:
                directory.endpoints = found
                log.info("reached by %s", " ".join(map(str, found)) or "nothing")
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            elif self._reception and not directory.relays and not is_early:
                asked_s = loop.time()
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            await asyncio.sleep(POLL_S)

    async def _ask(self, wire: CurveWire, directory: TrackerDirectory, listener: Listener) -> bool:
        """Learns whether this peer can be dialled; returns whether there is nothing left to ask."""
        self._is_reached, seen = None, directory.external_host
        if reach_of(seen) is Reach.MACHINE or not listener.may_be_at(seen):
            return True  # what a tracker could find out there tells nothing of others
        try:
            reached = await directory.reach()
            where = joined(dialled(reached.host), wire.port) if reached else ""
        except (TrackerError, ValueError) as fault:
            log.info("whether others can dial this peer is not known yet: %s", fault)
            return False
        self._is_reached = reached.is_reached if reached else None
        if reached is None:
            return True
        reason = "" if reached.is_reached else reached.reason or "it could not be dialled"
        if reason and self._mode == "auto" and self._reception is None:
            await self._receive(wire, directory)
        relays = directory.relays if self._reception else ()
        self._found(
            Verdict(
                where,
                reach_of(seen),
                reason,
                tuple(map(str, relays)),
                tuple(str(way) for way in self._announced),
            )
        )
        return True

    def _endpoints(self, listener: Listener, seen: str) -> tuple[Endpoint, ...]:
        """Returns all ways to this peer, as far as they are known by now."""
        if self._mode == "always":
            return self._reception.endpoints if self._reception else ()
        own = listener.endpoints(seen, self._is_reached)
        if self._reception:
            relays = self._reception.endpoints
            return (*own[: MAX_ENDPOINTS - len(relays)], *relays)
        meeting = self.ways.meeting
        is_far = bool(seen) and reach_of(seen) is not Reach.MACHINE  # nobody has to wait else
        if meeting and meeting.port and is_far and any(way.host == seen for way in own):
            return (*own, Endpoint(MEET, seen, meeting.port))
        return own

    def _ticket(self) -> bytes:
        return self._directory.ticket if self._directory else b""
