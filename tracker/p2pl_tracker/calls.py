"""Calls peers by relays that the operator names, and hears whether a peer answers.

These relays take the tracker's tickets, so the tracker writes one for itself. As where it dials a
peer, nothing is sent to the peer, and of what comes only the first bytes are looked at. That a
relay is away, hangs, or refuses for a reason of its own (it is full, it knows no such ticket),
tells nothing of the peer.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.exceptions import WebSocketException

from p2pl.errors import ProtocolError, PullError
from p2pl.protocol import relay, ticket
from p2pl.protocol.endpoint import Endpoint, joined, parse
from p2pl.protocol.reach import GREETING, is_greeting
from p2pl.rendezvous.service import Pipe
from p2pl.rendezvous.websocket import SETTINGS, Straight, WebSocketPipe
from p2pl_tracker.address import AddressLimit
from p2pl_tracker.issuer import Relays
from p2pl_tracker.reach import CONNECT_S, DIALS_AT_ONCE, DIALS_PER_S, GREETING_S
from p2pl_tracker.swarm import Entry, Pool

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 32  # at one relay; the others wait for their turn
ANSWER_S = 5.0  # for a peer to take a call; chosen: as long as for a connection
RELAY_S = 5.0  # for a relay to say by itself that somebody is not there; chosen: likewise
MAX_HOSTS = 4  # of a relay's name, that are tried
TICKET_S = 60  # for which the tracker's own ticket is good
SAY_EVERY_S = 60.0  # that one relay is of no use
OWN = ""  # the relay in this process, among the hosts of the others


class OwnRelay(Protocol):
    """A relay in the tracker's own process, which is asked without a connection."""

    def listens(self, session: bytes, digest: bytes) -> bool:
        """Returns whether a peer takes calls there."""
        ...

    async def call(self, session: bytes, digest: bytes) -> Pipe:
        """Returns a connection to a peer that takes calls there; it is the caller's to close.

        Raises:
            PullError: the peer is not there, or does not take the call.
        """
        ...


class Caller:
    """Calls peers by relays.

    Args:
        relays: that may be called, and the key of their tickets; None: there are none.
        own: the one in this process; None: there is none.
        trust: whom TLS trusts; None: the authorities of this machine.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970.

    Attributes:
        endpoints: of those relays.
    """

    def __init__(
        self,
        relays: Relays | None,
        own: OwnRelay | None = None,
        *,
        trust: ssl.SSLContext | None = None,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._relays, self._own, self._trust = relays, own, trust
        self._now, self._wall = now, wall
        self.endpoints = frozenset(relays.endpoints if relays else ())
        # Endpoints of one host are ways to one relay; where there is one, it is that in here.
        self._is_own_alone = (
            own is not None and len({parse(one).host for one in self.endpoints}) == 1
        )
        self._limit = AddressLimit(DIALS_PER_S, DIALS_AT_ONCE, now=now)
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(CALLS_AT_ONCE)
        )
        self._said_s: dict[str, float] = {}  # by host, when it was said last that it is of no use

    async def call(self, entry: Entry) -> Pool:
        """Returns what is found of a peer by the relays that it names; `UNKNOWN`: nothing.

        Args:
            entry: what the peer said; its relays are among `endpoints`.

        Raises:
            AnnounceError: too many peers of its address are called (429).
        """
        self._limit.check(entry.listing.host)
        found: dict[str, Pool] = {}  # by host
        if self._own is not None:
            found[OWN] = await self._here(self._own, entry)
            if self._is_own_alone or found[OWN] is Pool.ANSWERS:
                return found[OWN]
        for way in map(parse, entry.relays):
            if found.get(way.host, Pool.UNKNOWN) is Pool.UNKNOWN:
                async with self._turns[way.host]:
                    found[way.host] = await self._there(way, entry)
            if found[way.host] is Pool.ANSWERS:
                break
        return min(found.values())

    async def _here(self, own: OwnRelay, entry: Entry) -> Pool:
        """Returns what is found by the relay in this process."""
        if not own.listens(entry.session, entry.digest):
            return Pool.SILENT
        async with self._turns[OWN]:
            try:
                async with asyncio.timeout(ANSWER_S):
                    pipe = await own.call(entry.session, entry.digest)
            except TimeoutError:
                return Pool.SILENT
            except PullError:
                return Pool.UNKNOWN
            try:
                return await _heard(pipe.receive)
            finally:
                pipe.shut()
                pipe.close()

    async def _there(self, way: Endpoint, entry: Entry) -> Pool:
        """Returns what is found by a relay that is elsewhere."""
        try:
            try:
                return await self._called(way, entry.session, entry.digest)
            except _NoAnswer:  # of the peer, which does not take the call; or the relay hangs
                nobody = secrets.token_bytes(len(entry.digest))
                return await self._called(way, entry.session, nobody, RELAY_S)
        except (OSError, ValueError, ProtocolError, WebSocketException, _Refusal) as fault:
            self._say(way, str(fault) or type(fault).__name__)
            return Pool.UNKNOWN

    async def _called(
        self, way: Endpoint, session: bytes, digest: bytes, deadline_s: float | None = None
    ) -> Pool:
        """Returns what is found of a peer over a new connection to a relay.

        Args:
            way: to the relay.
            session: the session's id.
            digest: the peer's; random: of nobody, whom a relay that works knows to be absent.
            deadline_s: for the answer; None: `ANSWER_S`.

        Raises:
            _NoAnswer: nothing came in time.
        """
        async with self._reached(way) as line:
            return await self._told(line, self._call_of(session, digest), deadline_s or ANSWER_S)

    async def _told(self, line: "_Line", call: relay.Call, deadline_s: float) -> Pool:
        """Returns what is found over a connection to a relay; raises as `_called` does."""
        try:
            async with asyncio.timeout(deadline_s):
                await line.send(relay.PREFACE + relay.encode(call))
                head = await _exactly(line.receive, relay.LENGTH_BYTES)
                body = await _exactly(line.receive, relay.length_of(head))
        except TimeoutError as late:
            raise _NoAnswer("it takes connections and answers nothing") from late
        told = relay.decode_told(body)
        if isinstance(told, relay.Refused):
            if told.reason == relay.ABSENT:
                return Pool.SILENT
            raise _Refusal(f"it refuses: {told.reason}")
        if not isinstance(told, relay.Joined):
            raise ProtocolError(f"it is no relay: it answers {type(told).__name__}")
        return await _heard(line.receive)

    def _call_of(self, session: bytes, target: bytes) -> relay.Call:
        """Returns a call by somebody new, for a relay counts what one caller asks."""
        assert self._relays is not None  # else there is no endpoint to call by
        key, now_s = Ed25519PrivateKey.generate(), self._wall()
        caller = hashlib.sha256(key.public_key().public_bytes_raw()).digest()
        until_s = int(now_s) + TICKET_S
        own = ticket.issue(self._relays.key, session=session, peer=caller, not_after_s=until_s)
        return relay.call(key, session=session, target=target, time_s=now_s, ticket=own)

    @contextlib.asynccontextmanager
    async def _reached(self, way: Endpoint) -> AsyncIterator["_Line"]:
        """Yields a connection to a relay.

        Raises:
            OSError, WebSocketException: there is none, or not in time.
        """
        async with contextlib.AsyncExitStack() as stack:
            if way.kind == "relays":
                self._trust = self._trust or ssl.create_default_context()
                url = f"wss://{joined(way.host, way.port)}/"
                opening = Straight(url, ssl=self._trust, proxy=None, open_timeout=None, **SETTINGS)
                async with asyncio.timeout(CONNECT_S):
                    line: _Line = WebSocketPipe(await stack.enter_async_context(opening))
            else:
                reader, writer = await _connected(way)
                stack.callback(writer.transport.abort)
                line = _Stream(reader, writer)
            yield line

    def _say(self, way: Endpoint, why: str) -> None:
        """Logs, now and then, that a relay is of no use."""
        now_s = self._now()
        if now_s - self._said_s.get(way.host, -SAY_EVERY_S) >= SAY_EVERY_S:
            self._said_s[way.host] = now_s
            log.warning("peers cannot be checked by %s: %s", way, why)


async def _connected(way: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Returns a connection to the first address of a relay that takes it.

    Raises:
        OSError: none does.
    """
    loop, fault = asyncio.get_running_loop(), OSError("its name has no address")
    async with asyncio.timeout(CONNECT_S):
        found = await loop.getaddrinfo(way.host, way.port, type=socket.SOCK_STREAM)
    for *_, address in found[:MAX_HOSTS]:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(str(address[0]), way.port)
        except OSError as refused:  # a TimeoutError is one
            fault = refused
    raise fault


class _Refusal(Exception):
    """A relay does not do what was asked, for a reason of its own."""


class _NoAnswer(_Refusal):
    """Nothing came in time."""


class _Line(Protocol):
    """A connection to a relay: as much of a `Pipe` as is needed here."""

    async def receive(self, most: int) -> bytes | memoryview: ...

    async def send(self, data: bytes | memoryview) -> None: ...


class _Stream:
    """A connection by TCP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def receive(self, most: int) -> bytes:
        return await self._reader.read(most)

    async def send(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()


_Receive = Callable[[int], Awaitable[bytes | memoryview]]


async def _exactly(receive: _Receive, count: int) -> bytes:
    """Returns the next `count` bytes.

    Raises:
        OSError: the connection ended before.
    """
    data = b""
    while len(data) < count:
        piece = await receive(count - len(data))
        if not piece:
            raise ConnectionResetError("it hangs up")
        data += piece
    return data


async def _heard(receive: _Receive) -> Pool:
    """Returns whether whoever took a call greets as a peer does."""
    try:
        async with asyncio.timeout(GREETING_S):
            greets = is_greeting(await _exactly(receive, len(GREETING)))
    except OSError:  # a TimeoutError is one
        return Pool.SILENT
    return Pool.ANSWERS if greets else Pool.SILENT
