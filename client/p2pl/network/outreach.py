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
from dataclasses import dataclass

from p2pl.errors import TrackerError
from p2pl.network import interfaces
from p2pl.network.dial import Direct
from p2pl.network.directory import TrackerDirectory
from p2pl.network.interfaces import Listener
from p2pl.network.keys import Identity
from p2pl.network.relay import MEET, Meeting, Pumps, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.ways import MAX_RELAYS, Places, Reception, RelayMode, Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import MAX_ENDPOINTS, Endpoint, joined
from p2pl.protocol.reach import Reached

log = logging.getLogger(__name__)

POLL_S, SOON_S = 0.5, 0.05
READY_S = 15.0  # for a tracker to dial back in vain, and for a relay to answer
ASK_AGAIN_S = 5.0  # for relays, where no tracker has named one; whether it can be dialled
MAX_ASKED = 5  # times in a row, whether it can be dialled


@dataclass(frozen=True, slots=True)
class FromFile:
    """What a session's author says of relays.

    Attributes:
        relays: that the session file names, best first.
        author: of a private session, by public key; b"": it is open.
        invitation: of this peer, which is a ticket to the relays, and to meetings; b"": as above.
    """

    relays: tuple[Endpoint, ...] = ()
    author: bytes = b""
    invitation: bytes = b""


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
        from_file: relays that the session file names; None: it names none.
        announced: what the person says that others can dial, the best first.
        found: is told whether they can, as soon as a tracker has tried.

    Attributes:
        ways: what the wire dials by.
        reached: what came of being dialled back; None: no tracker has tried.
    """

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        identity: Identity,
        session_id: str,
        *,
        mode: RelayMode = "auto",
        trust: ssl.SSLContext | None = None,
        from_file: FromFile | None = None,
        announced: tuple[Endpoint, ...] = (),
        found: Callable[[Verdict], None] = lambda _: None,
    ) -> None:
        session = bytes.fromhex(session_id)
        self.reached: Reached | None = None
        self._announced, self._found = announced, found
        self._listener = Listener("127.0.0.1", 1)
        self._reception: Reception | None = None
        self._asked_for = ""  # where it was seen, when it was asked whether it can be dialled
        self._mode = mode
        self._from_file = from_file or FromFile()
        self._directory: TrackerDirectory | None = None
        self._pumps = Pumps(Traffic())
        self._speaker = Speaker(identity, session, self._ticket, trust)
        meeting = None if mode == "always" else Meeting(session, self._from_file.author)
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
            machine = interfaces.addresses()
            self._listener = Listener(host, wire.port, machine, self._announced)
            directory.endpoints = self._plain("")
            if meeting is not None:
                meeting.revoked = lambda: wire.revoked
                await self._meet(meeting, host, stack)
            if self._mode != "never":
                here = ("127.0.0.1" if host in interfaces.ANY else host, wire.port)
                places = Places(lambda: self._relays, self._others)
                reception = Reception(self._speaker, here, self._pumps, random.Random())
                self._reception = await stack.enter_async_context(reception.open(places))
            if self._mode == "always" or self._listener.is_for_others:
                with contextlib.suppress(TimeoutError, TrackerError):
                    async with asyncio.timeout(READY_S):
                        await self._settle(directory)
            telling = asyncio.create_task(self._tell(directory, said))
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
        if self.is_dialled or self.reached is None:
            return ""
        return self.reached.reason or "it could not be dialled"

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

    async def _settle(self, directory: TrackerDirectory) -> None:
        """Learns by which ways this peer is reached, before anybody hears of it.

        Whoever tries in vain lets a peer rest; so its first announce is to say what is so.
        """
        await directory.announce("stopped", numwant=0)  # it is not there yet
        seen = directory.external_host
        if self._mode != "always" and seen and await self._ask(directory, seen):
            self._asked_for = seen
        # Also where it can be dialled: others' networks may let out too little for that.
        if self._reception and self._relays:
            while not self._reception.is_settled:  # noqa: ASYNC110
                await asyncio.sleep(SOON_S)  # a relay answers when it will
        directory.endpoints = self._endpoints()

    def _endpoints(self) -> tuple[Endpoint, ...]:
        """Returns all ways to this peer, as far as they are known by now."""
        relays = self._reception.endpoints if self._reception else ()
        return self._plain(self._asked_for)[: MAX_ENDPOINTS - len(relays)] + relays

    async def _tell(self, directory: TrackerDirectory, said: Callable[[str], None]) -> None:
        """Keeps the announced endpoints right; a change is announced at once."""
        loop, asked_s, tries, told = asyncio.get_running_loop(), -math.inf, 0, ""
        while True:
            seen, is_early = directory.external_host, loop.time() - asked_s < ASK_AGAIN_S
            if self._mode != "always" and seen != self._asked_for and not is_early:
                asked_s, tries = loop.time(), tries + 1
                if await self._ask(directory, seen) or tries >= MAX_ASKED:
                    self._asked_for, tries, asked_s = seen, 0, -math.inf
                    is_early = False
            relays, found = self._reception.endpoints if self._reception else (), self._endpoints()
            if found != directory.endpoints:
                directory.endpoints = found
                log.info("reached by %s", " ".join(map(str, found)) or "nothing")
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            elif not self.is_dialled and not relays and not is_early:
                asked_s = loop.time()
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            words = self._in_words(relays, directory)
            if words not in ("", told):
                told = words
                said(words)
            await asyncio.sleep(POLL_S)

    async def _ask(self, directory: TrackerDirectory, seen: str) -> bool:
        """Learns whether this peer can be dialled; returns whether there is nothing left to ask."""
        self.reached, listener = None, self._listener
        if reach_of(seen) is Reach.MACHINE or not listener.may_be_at(seen):
            return True  # what a tracker could find out there tells nothing of others
        try:
            reached = await directory.ask_reach(listener.port)
            where = joined(dialled(reached.host), listener.port) if reached else ""
        except (TrackerError, ValueError) as fault:
            log.info("whether others can dial this peer is not known yet: %s", fault)
            return False
        self.reached = reached
        if reached is not None:
            reason = "" if reached.is_reached else reached.reason or "it could not be dialled"
            relays = tuple(map(str, self._relays[:MAX_RELAYS])) if self._reception else ()
            announced = tuple(map(str, self._announced))
            self._found(Verdict(where, reach_of(seen), reason, relays, announced))
        return True

    def _plain(self, seen: str) -> tuple[Endpoint, ...]:
        """Returns by which addresses this peer is dialled, and where others can wait for it."""
        if self._mode == "always":
            return ()
        got_through = self.reached.is_reached if self.reached else None
        found, meeting = self._listener.endpoints(seen, got_through), self.ways.meeting
        is_far = bool(seen) and reach_of(seen) is not Reach.MACHINE  # nobody has to wait else
        can_meet = is_far and got_through is not False
        if meeting and meeting.port and can_meet and any(way.host == seen for way in found):
            return (*found, Endpoint(MEET, seen, meeting.port))
        return found

    def _in_words(self, relays: tuple[Endpoint, ...], directory: TrackerDirectory) -> str:
        """Returns how this peer is reached, where that is not plain and was not said yet."""
        if self.is_dialled or not directory.external_host:
            return ""
        if relays:
            return "" if self.reached else f"others reach this peer by {' '.join(map(str, relays))}"
        if not self._relays:
            return "" if self.reached else "others cannot reach this peer: no relay is named"
        failed = "; ".join(self._reception.reasons) if self._reception else "--relay never"
        return f"others cannot reach this peer by a relay: {failed}" if failed else ""

    @property
    def _relays(self) -> tuple[Endpoint, ...]:
        """The relays that this peer may use: the author's, and those that a tracker names."""
        named = self._directory.relays if self._directory else ()
        return tuple(dict.fromkeys((*self._from_file.relays, *named)))

    def _ticket(self, relay: Endpoint) -> bytes:
        """Returns what lets this peer in at a relay: the tracker's ticket where it names that one.

        Else the invitation, where there is one: it is the author's relay, or that of somebody else
        who knows the author.
        """
        ticket = self._directory.ticket if self._directory else b""
        named = self._directory.relays if self._directory else ()
        return (
            ticket
            if relay in named or not self._from_file.invitation
            else self._from_file.invitation
        )


async def _ended(task: asyncio.Task[None]) -> None:
    """Ends a task, and waits until it has put away what it had."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
