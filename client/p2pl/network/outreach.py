"""Everything by which a peer is reached and reaches others, put together for one run.

It is made before the wire, which dials through it, and opened once there are a wire and a
directory. From then on it keeps the endpoints that the directory announces up to date.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable

from p2pl.errors import TrackerError
from p2pl.network import own
from p2pl.network.dial import Direct
from p2pl.network.directory import TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.network.own import ANY
from p2pl.network.relay import MEET, Meeting, Pumps, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.ways import Places, Reception, RelayMode, Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import MAX_ENDPOINTS, Endpoint, joined
from p2pl.protocol.reach import Reached

log = logging.getLogger(__name__)

POLL_S = 0.5
ONLY_CALLS = (
    "it can call others, and those that it calls can call it back; for more, forward the port and "
    "say --announce HOST:PORT, or ask whoever runs the tracker for a relay"
)
READY_S = 15.0  # for a tracker to dial back in vain, and for a relay to answer
SOON_S = 0.05
WIDE = "192.0.2.1"  # for a peer that listens at all its addresses: some of them is no loopback
ASK_AGAIN_S = 5.0  # for relays, where no tracker has named one


class Outreach:
    """The ways to others, and theirs to this peer.

    Args:
        identity: of this peer.
        session_id: 64 hex digits.
        mode: `always` takes calls at relays and is dialled by nobody; `never` uses none.
        trust: whom TLS trusts, for relays by WebSocket; None: the authorities of this machine.
        announced: what the person says that others can dial, the best first.
        said: tells the person.

    Attributes:
        ways: what the wire dials by.
        reached: what came of dialling back; None: no tracker has done it.
    """

    def __init__(
        self,
        identity: Identity,
        session_id: str,
        *,
        mode: RelayMode = "auto",
        trust: ssl.SSLContext | None = None,
        announced: tuple[Endpoint, ...] = (),
        said: Callable[[str], None] = log.info,
    ) -> None:
        session = bytes.fromhex(session_id)
        self.reached: Reached | None = None
        self._announced, self._said = announced, said
        self._mode = mode
        self._ready = asyncio.Event()
        self._directory: TrackerDirectory | None = None
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
        wire.takes_relayed(self._pumps.ports)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._pumps.close)
            if self.ways.meeting is not None:
                await self._meet(self.ways.meeting, wire.host, stack)
            telling = asyncio.create_task(self._tell(wire, directory))
            stack.push_async_callback(_ended, telling)
            if self._asks_first(wire):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(READY_S):
                        await self._ready.wait()
            self._ready.set()
            yield

    def _asks_first(self, wire: CurveWire) -> bool:
        """Returns whether it may be that nobody can dial this peer, but a relay can be.

        Then that is settled before anybody hears of the peer: who tries in vain lets it rest.
        """
        return (
            self._mode == "always"
            or reach_of(WIDE if wire.host in ANY else wire.host) != Reach.MACHINE
        )

    async def _meet(self, meeting: Meeting, host: str, stack: contextlib.AsyncExitStack) -> None:
        """Lets others wait here; a peer that cannot offer it does without."""
        try:
            await stack.enter_async_context(meeting.open(host))
        except OSError as fault:
            log.info("nobody can wait here to be called: %s", fault.strerror)

    async def _tell(self, wire: CurveWire, directory: TrackerDirectory) -> None:
        """Keeps the announced endpoints right; a change is announced at once."""
        if self._asks_first(wire):
            directory.endpoints = ()
            with contextlib.suppress(TrackerError):  # tells who it is without taking part yet
                await directory.announce("stopped", numwant=0)
        async with contextlib.AsyncExitStack() as stack:
            if self._mode != "always":
                await self._ask_whether_dialled(wire, directory)
            reception = None
            if self._mode != "never":
                reception = await self._receive(wire, directory, stack)
            await self._keep_telling(wire, directory, reception)

    async def _keep_telling(
        self, wire: CurveWire, directory: TrackerDirectory, reception: Reception | None
    ) -> None:
        loop = asyncio.get_running_loop()
        asked_s, told = loop.time(), ""
        while True:
            found = self._endpoints(wire, directory, reception)
            relays = reception.endpoints if reception else ()
            is_changed = found != directory.endpoints
            directory.endpoints = found
            is_lost = not (self.is_dialled or relays) and loop.time() - asked_s > ASK_AGAIN_S
            if self._ready.is_set() and (is_changed or is_lost):
                asked_s = loop.time()
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            words = "" if self.is_dialled else _in_words(relays, directory, reception)
            if words not in ("", told):
                told = words
                self._said(words)
            if self.is_dialled or relays or not directory.relays:
                self._ready.set()
            await asyncio.sleep(POLL_S if self._ready.is_set() else SOON_S)

    @property
    def undialled(self) -> str:
        """Why nobody can dial this peer; "": somebody can, or nobody has tried."""
        return "" if self.is_dialled or self.reached is None else self.reached.reason

    @property
    def is_dialled(self) -> bool:
        """Whether others can dial this peer, as far as anybody has said."""
        if self._mode == "always":
            return False
        return self.reached is None or self.reached.is_reachable or bool(self._announced)

    async def _ask_whether_dialled(self, wire: CurveWire, directory: TrackerDirectory) -> None:
        """Learns it from a tracker, once, and tells the person."""
        while not directory.external_host:  # noqa: ASYNC110  # a tracker says it when it will
            await asyncio.sleep(POLL_S)
        self.reached = reached = await directory.ask_reach(wire.port)
        if reached is None:
            return
        where = joined(reached.host, reached.port)
        if reached.is_reachable:
            if reach_of(dialled(reached.host)) != Reach.MACHINE:
                self._said(f"others can dial this peer at {where}")
        elif not self._announced:
            relays = self._directory.relays if self._directory else ()
            instead = "" if self._mode == "auto" and relays else f"; {ONLY_CALLS}"
            self._said(f"nobody can dial this peer at {where}: {reached.reason}{instead}")

    def _others(self) -> list[PeerAddress]:
        """Returns the peers at whose meetings this one waits: all, where it cannot be dialled."""
        if self.is_dialled or self._directory is None:
            return []
        return self._directory.known.addresses()

    async def _receive(
        self, wire: CurveWire, directory: TrackerDirectory, stack: contextlib.AsyncExitStack
    ) -> Reception:
        """Takes calls at relays and at the meetings of others, until the stack is closed.

        A peer that can be dialled does so too, for those whose network lets out too little.
        """
        here = ("127.0.0.1" if wire.host in ANY else wire.host, wire.port)
        places = Places(lambda: directory.relays, self._others)
        reception = Reception(self._speaker, here, self._pumps, random.Random())
        return await stack.enter_async_context(reception.open(places))

    def _endpoints(
        self, wire: CurveWire, directory: TrackerDirectory, reception: Reception | None
    ) -> tuple[Endpoint, ...]:
        """Returns the ways to this peer, the best first."""
        relays = reception.endpoints if reception else ()
        if self._mode == "always":
            return relays
        seen = dialled(directory.external_host)
        listen = (wire.host, wire.port)
        plain = own.endpoints(
            listen,
            seen,
            announced=self._announced,
            here=own.sources(),
            is_reachable=self.reached.is_reachable if self.reached else None,
        )
        meeting = self.ways.meeting
        met = (
            (Endpoint(MEET, seen, meeting.port),)
            if meeting and meeting.port and self.is_dialled
            else ()
        )
        most = MAX_ENDPOINTS - len(relays) - len(met)
        return (*plain[:most], *met, *relays)

    def _ticket(self) -> bytes:
        return self._directory.ticket if self._directory else b""


def _in_words(
    relays: tuple[Endpoint, ...], directory: TrackerDirectory, reception: Reception | None
) -> str:
    """Returns how a peer is reached that cannot be dialled; "": nothing is known yet."""
    if relays:
        return f"others reach this peer by {' '.join(map(str, relays))}"
    why = "; ".join(reception.reasons) if reception and directory.relays else ""
    return f"others cannot reach this peer by a relay: {why}" if why else ""


async def _ended(task: asyncio.Task[None]) -> None:
    """Ends a task, and waits until it has put away what it had."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
