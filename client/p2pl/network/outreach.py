"""Everything by which a peer is reached and reaches others, put together for one run.

It is made before the wire, which dials through it, and opened once there are a wire and a
directory. From then on it keeps the endpoints that the directory announces up to date.
"""

import asyncio
import contextlib
import logging
import math
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable

from p2pl.errors import TrackerError
from p2pl.network import own
from p2pl.network.dial import Direct
from p2pl.network.directory import TrackerDirectory
from p2pl.network.keys import Identity
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
ASK_AGAIN_S = 5.0  # for relays, where no tracker has named one


class Outreach:
    """The ways to others, and theirs to this peer.

    Args:
        identity: of this peer.
        session_id: 64 hex digits.
        mode: `always` takes calls at relays and is dialled by nobody; `never` uses none.
        trust: whom TLS trusts, for relays by WebSocket; None: the authorities of this machine.
        announced: what the person says that others can dial, the best first.

    Attributes:
        ways: what the wire dials by.
        reached: what came of being dialled back; None: no tracker has tried.
    """

    def __init__(
        self,
        identity: Identity,
        session_id: str,
        *,
        mode: RelayMode = "auto",
        trust: ssl.SSLContext | None = None,
        announced: tuple[Endpoint, ...] = (),
    ) -> None:
        session = bytes.fromhex(session_id)
        self.reached: Reached | None = None
        self._announced = announced
        self._mode = mode
        self._directory: TrackerDirectory | None = None
        self._pumps = Pumps(Traffic())
        self._speaker = Speaker(identity, session, self._ticket, trust)
        meeting = None if mode == "always" else Meeting(session)
        self.ways = Ways(
            Direct(), self._speaker, self._pumps, meeting=meeting, uses_relays=mode != "never"
        )

    @contextlib.asynccontextmanager
    async def open(
        self,
        wire: CurveWire,
        directory: TrackerDirectory,
        said: Callable[[str], None] = log.info,
    ) -> AsyncIterator[None]:
        """Is reached, and reaches others, within the context.

        Args:
            wire: open.
            directory: announces the endpoints.
            said: is told in words how this peer is reached, where that is not plain.
        """
        self._directory, self._pumps.traffic = directory, wire.traffic
        wire.takes_relayed(self._pumps.ports)
        host, meeting = wire.host, self.ways.meeting
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._pumps.close)
            if not self.is_dialled:
                directory.endpoints = ()
            if meeting is not None:
                await self._meet(meeting, host, stack)
            reception = None
            if self._mode != "never":
                here = ("127.0.0.1" if host in ("0.0.0.0", "::") else host, wire.port)
                places = Places(lambda: directory.relays, self._others)
                reception = Reception(self._speaker, here, self._pumps, random.Random())
                await stack.enter_async_context(reception.open(places))
            telling = asyncio.create_task(self._tell(wire, directory, reception, said))
            stack.push_async_callback(_ended, telling)
            yield

    @property
    def is_dialled(self) -> bool:
        """Whether others can dial this peer, as far as is known."""
        got_through = self.reached is None or self.reached.is_reached
        return self._mode != "always" and (got_through or bool(self._announced))

    @property
    def undialled(self) -> str:
        """Why nobody can dial this peer; "": somebody can, or nobody has tried."""
        return "" if self.is_dialled or self.reached is None else self.reached.reason

    async def _meet(self, meeting: Meeting, host: str, stack: contextlib.AsyncExitStack) -> None:
        """Lets others wait here; a peer that cannot offer it does without."""
        try:
            at = "::" if host == "0.0.0.0" and socket.has_dualstack_ipv6() else host
            await stack.enter_async_context(meeting.open(at))
        except OSError as fault:
            log.info("nobody can wait here to be called: %s", fault.strerror)

    def _others(self) -> list[PeerAddress]:
        """Returns the peers at whose meetings this one waits: all, where it cannot be dialled."""
        if self.is_dialled or self._directory is None:
            return []
        return self._directory.known.addresses()

    async def _tell(
        self,
        wire: CurveWire,
        directory: TrackerDirectory,
        reception: Reception | None,
        said: Callable[[str], None],
    ) -> None:
        """Keeps the announced endpoints right; a change is announced at once."""
        loop, asked_s, told = asyncio.get_running_loop(), -math.inf, ""
        while not directory.external_host:  # noqa: ASYNC110  # a tracker says it when it will
            await asyncio.sleep(POLL_S)
        if self._mode != "always":
            self.reached = await directory.ask_reach(wire.port)
        while True:
            relays = reception.endpoints if reception else ()
            found = self._plain(wire, directory, relays) + relays
            if found != directory.endpoints:
                directory.endpoints = found
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            elif not self.is_dialled and not relays and loop.time() - asked_s > ASK_AGAIN_S:
                asked_s = loop.time()
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            words = self._in_words(relays, directory, reception)
            if words not in ("", told):
                told = words
                said(words)
            await asyncio.sleep(POLL_S)

    def _plain(
        self, wire: CurveWire, directory: TrackerDirectory, relays: tuple[Endpoint, ...]
    ) -> tuple[Endpoint, ...]:
        """Returns by which addresses this peer is dialled, and where others can wait for it."""
        if self._mode == "always":
            return ()
        seen, meeting = dialled(directory.external_host), self.ways.meeting
        meets = self.is_dialled and meeting is not None and meeting.port
        met = (Endpoint(MEET, seen, meeting.port),) if meeting and meets else ()
        plain = own.endpoints(
            (wire.host, wire.port),
            seen,
            announced=self._announced,
            here=own.sources(),
            is_reachable=self.reached.is_reached if self.reached else None,
        )
        return plain[: MAX_ENDPOINTS - len(met) - len(relays)] + met

    def _in_words(
        self,
        relays: tuple[Endpoint, ...],
        directory: TrackerDirectory,
        reception: Reception | None,
    ) -> str:
        """Returns how this peer is reached, where that is not plain."""
        reached = self.reached
        if self.is_dialled:
            if reached is None or not reached.is_reached:
                return ""
            is_near = reach_of(dialled(reached.host)) == Reach.MACHINE
            return "" if is_near else f"others can dial this peer at {_at(reached)}"
        why = f"nobody can dial this peer at {_at(reached)}: {reached.reason}; " if reached else ""
        if relays:
            return f"{why}others reach it by {' '.join(map(str, relays))}"
        if not directory.relays:
            return why + (ONLY_CALLS if reached else "others cannot reach it: no relay is named")
        failed = "; ".join(reception.reasons) if reception else "--relay never"
        return f"{why}others cannot reach it by a relay: {failed}" if failed else ""

    def _ticket(self) -> bytes:
        return self._directory.ticket if self._directory else b""


def _at(reached: Reached) -> str:
    return joined(reached.host, reached.port)


async def _ended(task: asyncio.Task[None]) -> None:
    """Ends a task, and waits until it has put away what it had."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
