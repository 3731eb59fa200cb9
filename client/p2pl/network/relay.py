"""A peer's half of the ways that are no plain connection: relays, and meetings.

A peer that cannot be dialled keeps a control connection to a relay (or to the meeting of a peer
that can be dialled) and answers each call by a second connection, out of its own network, which is
joined to the caller's; here it is copied to the peer's own listener. So both have dialled out, and
what they say to each other is ZMTP with CURVE, end to end, as ever.

A meeting is a relay for one: a peer that can be dialled takes control connections of those that
cannot, and alone calls them.
"""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from p2pl.errors import NetworkError, ProtocolError, PullError, wrong
from p2pl.network import dial
from p2pl.network.doorstep import Doorstep
from p2pl.network.keys import Identity
from p2pl.network.traffic import Traffic
from p2pl.pace import NO_REST, BackOff
from p2pl.protocol import relay as messages
from p2pl.protocol.address import dialled
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.relay import (
    LENGTH_BYTES,
    PREFACE,
    Accept,
    Joined,
    Listening,
    Ping,
    Refused,
    Ring,
    Said,
    Told,
)
from p2pl.rendezvous.board import MISSED, Board, Peer, Policy
from p2pl.rendezvous.service import Pipe, Service, SocketPipe, splice

log = logging.getLogger(__name__)

MEET = "meet"
PLAIN = ("relay", MEET)  # kinds that are reached by TCP as it is
BACK_OFF = BackOff(first_s=0.5, max_s=15.0)  # a relay that was restarted is found within a round
STEADY_S = 30.0  # after so long a connection was good, and the next failure is the first
ANSWER_S = 15.0  # for a relay to answer
CONNECT_S = 5.0  # to one of its addresses
CLOSE_S = 2.0  # chosen: two round trips of a slow line
MAX_HOSTS = 4  # of a relay's name, that are tried
MIN_KEEPALIVE_S, MAX_KEEPALIVE_S = 1.0, 120.0  # whatever a relay says
NO_MESSAGE = "message"  # how an older relay refuses, which takes nothing behind a call
MAX_ANSWERS = 64  # calls at the same time; as many as a relay joins for one peer
MEETING_LINES = 256  # chosen: as many peers as the largest cohort

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks to relays.

    Attributes:
        identity: signs.
        session: the id of its session, 32 bytes.
        ticket: returns the newest one to a relay that the peer was given; b"": none.
        trust: whom TLS trusts, for `relays://`; None: the authorities of this machine.
        wall: seconds since 1970.
    """

    identity: Identity
    session: bytes
    ticket: Callable[[Endpoint], bytes] = lambda _: b""
    trust: ssl.SSLContext | None = None
    wall: Callable[[], float] = time.time


class CountedSocket(socket.socket):
    """A socket whose bytes are counted as relayed."""

    traffic: Traffic

    def recv_into(self, *arguments: Any, **named: Any) -> int:  # noqa: ANN401  # as of sockets
        """Counts what came."""
        return self._came(super().recv_into(*arguments, **named))

    def recvmsg_into(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Counts what came."""
        found = super().recvmsg_into(*arguments, **named)
        self._came(found[0])
        return found

    def recv(self, *arguments: Any, **named: Any) -> bytes:  # noqa: ANN401
        """Counts what came."""
        data = super().recv(*arguments, **named)
        self._came(len(data))
        return data

    def send(self, *arguments: Any, **named: Any) -> int:  # noqa: ANN401
        """Counts what went."""
        count = super().send(*arguments, **named)
        self.traffic.relayed_out += count
        return count

    def _came(self, count: int) -> int:
        self.traffic.relayed_in += count
        return count


class Pumps:
    """Copies between connections in the background, until it is closed.

    Attributes:
        traffic: counts what relays carried.
        ports: from which calls that were taken come to the peer's own listener.
    """

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.ports: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, there: Pipe, here: Pipe) -> None:
        """Copies between a connection to a relay and one of this machine, and closes both."""
        task = self.run(splice(there, here, self.count))
        # A task that is cancelled before it begins closes nothing itself.
        task.add_done_callback(lambda _: there.close())
        task.add_done_callback(lambda _: here.close())

    def count(self, is_from_there: bool, size: int) -> None:
        """Counts bytes that a relay carried."""
        if is_from_there:
            self.traffic.relayed_in += size
        else:
            self.traffic.relayed_out += size

    def run(self, working: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine meanwhile, and returns its task."""
        task = asyncio.create_task(working)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_to_its_end(self, closing: Coroutine[Any, Any, None]) -> None:
        """Runs what closes something; it may go on for `CLOSE_S` when all else is ended."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.sleep(0)  # for transports that were given up


async def dial_through(
    relay: Endpoint,
    target: str,
    speaker: Speaker,
    *,
    pumps: Pumps,
    deadline_s: float,
    hello: bytes = b"",
) -> socket.socket:
    """Returns a connected, non-blocking stream socket to the listener of a peer, by a relay.

    Nothing has been written to it but `hello`, and nothing read from it. It takes two round trips:
    one to the relay, and then one to the relay with what the called peer needs for its own
    connection.

    Args:
        relay: where the peer listens.
        target: the id of the peer, 64 hex digits.
        speaker: who calls.
        pumps: copy where the way to the relay is no plain TCP.
        deadline_s: seconds for all of it.
        hello: what is said to the peer first, at most `MAX_EARLY_BYTES`; it goes with the call.

    Raises:
        PullError: the relay cannot be reached, or does not join the two.
    """
    with _told_by(relay):
        async with asyncio.timeout(deadline_s):
            try:
                pipe = await _joined(relay, target, speaker, pumps, (hello, b""))
            except _Refusal as no:
                if not hello or not str(no).startswith(NO_MESSAGE):
                    raise
                pipe = await _joined(relay, target, speaker, pumps, (b"", hello))
    return _as_socket(pipe, pumps)


async def _joined(
    relay: Endpoint, target: str, speaker: Speaker, pumps: Pumps, said: tuple[bytes, bytes]
) -> Pipe:
    """Returns a connection that a relay has joined to a peer.

    Over it was said what is in `said`: before the relay has answered, and after it.
    """
    pipe = await _reach(relay, speaker, pumps)
    with contextlib.ExitStack() as undo:
        undo.callback(pipe.close)
        undo.callback(pipe.shut)
        call = messages.call(
            speaker.identity.private_key,
            session=speaker.session,
            target=bytes.fromhex(target),
            time_s=speaker.wall(),
            ticket=speaker.ticket(relay),
        )
        await _say(pipe, call, said[0])
        _expect(await _hear(pipe), Joined)
        if said[1]:
            await pipe.send(said[1])
        undo.pop_all()
    return pipe


def _as_socket(pipe: Pipe, pumps: Pumps) -> socket.socket:
    """Returns a socket for a connection that was joined; it is the caller's to close."""
    if isinstance(pipe, SocketPipe):
        counted = CountedSocket(fileno=pipe.socket.detach())
        counted.traffic = pumps.traffic
        counted.setblocking(False)
        return counted
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    pumps.start(pipe, SocketPipe(theirs))
    return ours


class RelayListener:
    """Takes calls at one relay, or at one meeting, for a peer that cannot be dialled.

    Args:
        relays: where; several are ways to the same relay, of which the first that works is used.
        speaker: who listens.
        here: IP address and port of its own listener.
        pumps: copy between the relay and that.
        rng: jitters the waits.

    Attributes:
        is_listening: whether calls are taken now.
        reason: why not, where that is known.
    """

    def __init__(
        self,
        relays: Sequence[Endpoint],
        speaker: Speaker,
        here: tuple[str, int],
        *,
        pumps: Pumps,
        rng: random.Random,
    ) -> None:
        self._relays = deque(relays)  # the one that worked last, or is tried next, first
        self.is_listening = False
        self.reason = ""
        self._speaker, self._here, self._pumps, self._rng = speaker, here, pumps, rng
        self._answers = self._failures = 0

    @property
    def has_failed(self) -> bool:
        """Whether every way to the relay was tried in vain by now."""
        return self._failures >= len(self._relays)

    @property
    def relay(self) -> Endpoint:
        """The way to the relay that is used now."""
        return self._relays[0]

    async def run(self) -> None:
        """Listens until cancelled; a connection that is lost is made again, later each time."""
        loop, rest = asyncio.get_running_loop(), NO_REST
        while True:
            begun_s = loop.time()
            try:
                with _told_by(self.relay):
                    await self._listen()
            except PullError as fault:
                self.reason = str(fault)
                log.info("no calls by %s: %s", self.relay, fault)
                self._relays.rotate(-1)
                self._failures += 1
                if self._failures % len(self._relays):
                    continue  # there is another way to the same relay
            if loop.time() - begun_s > STEADY_S:
                rest = NO_REST
            rest = BACK_OFF.after_failure(rest, loop.time(), self._rng)
            await asyncio.sleep(max(0.0, rest.until_s - loop.time()))

    async def _listen(self) -> None:
        """Takes calls until the connection is lost, which raises."""
        speaker = self._speaker
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(ANSWER_S):
                pipe = await _reach(self.relay, speaker, self._pumps)
                stack.callback(pipe.close)
                stack.callback(pipe.shut)
                said = messages.listen(
                    speaker.identity.private_key,
                    session=speaker.session,
                    time_s=speaker.wall(),
                    ticket=speaker.ticket(self.relay),
                )
                await _say(pipe, said)
                answer = _expect(await _hear(pipe), Listening)
            keepalive_s = min(max(answer.keepalive_s, MIN_KEEPALIVE_S), MAX_KEEPALIVE_S)
            pinging = asyncio.create_task(_ping(pipe, keepalive_s))
            stack.callback(pinging.cancel)
            self.is_listening, self.reason, self._failures = True, "", 0
            log.info("calls by %s", self.relay)
            try:
                while True:
                    async with asyncio.timeout(MISSED * keepalive_s):
                        told = await _hear(pipe)
                    if isinstance(told, Ring):
                        self._answer(told)
                    else:
                        _expect(told, Ping)
            finally:
                self.is_listening = False

    def _answer(self, ring: Ring) -> None:
        if self._answers < MAX_ANSWERS:
            self._answers += 1
            self._pumps.run(self._take(ring))

    async def _take(self, ring: Ring) -> None:
        """Joins a caller to this peer's own listener, and copies until either ends."""
        try:
            with _told_by(self.relay):
                async with asyncio.timeout(ANSWER_S):
                    there = await _reach(self.relay, self._speaker, self._pumps)
                    with contextlib.ExitStack() as undo:
                        undo.callback(there.close)
                        undo.callback(there.shut)
                        await _say(there, Accept(ring.call))
                        host, port = self._here
                        own = await dial.connect(host, port, deadline_s=ANSWER_S)
                        undo.callback(own.close)
                        mine = own.getsockname()[1]
                        self._pumps.ports.add(mine)
                        _expect(await _hear(there), Joined)
                        undo.pop_all()
            count = self._pumps.count if self.relay.kind != MEET else _not_counted
            try:
                await splice(there, Doorstep(own), count)
            finally:
                self._pumps.ports.discard(mine)
        except PullError as fault:
            log.info("a call by %s came to nothing: %s", self.relay, fault)
        finally:
            self._answers -= 1


def _not_counted(_: bool, __: int) -> None:
    """Counts nothing: at a meeting, both ends are the peers themselves."""


class Meeting:
    """Takes control connections of peers that cannot be dialled, for a peer that can.

    Args:
        session: the session's id, 32 bytes.
        author: of a private session, whose invitations let peers wait here; b"": it is open.

    Attributes:
        port: where it listens, once it is open.
        revoked: returns the ids of peers whose invitations count no longer.
    """

    def __init__(self, session: bytes, author: bytes = b"") -> None:
        self.port = 0
        self.revoked: Callable[[], Collection[str]] = tuple
        self._session = session
        policy = Policy(
            is_open=not author,
            authors=frozenset({author} if author else ()),
            sessions=frozenset({session}),
            takes_calls=False,
            max_lines=MEETING_LINES,
            max_per_session=MEETING_LINES,
        )
        self._board = Board(policy, now=time.monotonic, wall=time.time, bars=self._bars)
        self._service = Service(self._board)

    @contextlib.asynccontextmanager
    async def open(self, host: str, port: int = 0) -> AsyncIterator["Meeting"]:
        """Yields the meeting, listening; ZeroMQ listens beside it, on another port.

        Args:
            host: an IP address of this machine; `::` is all, IPv4 included.
            port: 0 takes a free one.

        Raises:
            OSError: it cannot listen there.
        """
        is_all = host == "::" and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, dualstack_ipv6=is_all) as listener:
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            tasks = [asyncio.create_task(self._service.accept(listener))]
            tasks.append(asyncio.create_task(self._service.sweep()))
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _bars(self, peer: Peer) -> str:
        return "its invitation was taken back" if peer[1].hex() in self.revoked() else ""

    def holds(self, peer_id: str) -> bool:
        """Returns whether a peer waits here to be called."""
        return self._board.listens((self._session, bytes.fromhex(peer_id)))

    async def call(self, peer_id: str, *, deadline_s: float, hello: bytes = b"") -> socket.socket:
        """Returns a connected, non-blocking stream socket to the listener of a peer.

        Args:
            peer_id: of the peer, 64 hex digits.
            deadline_s: seconds.
            hello: what is said first.

        Raises:
            PullError: the peer does not wait here, or does not answer in time.
        """
        try:
            async with asyncio.timeout(deadline_s):
                pipe = await self._service.call(self._session, bytes.fromhex(peer_id))
                assert isinstance(pipe, SocketPipe)
                return await dial.said_first(pipe.socket, hello)
        except TimeoutError as fault:
            raise PullError("unreachable: called back, and no answer in time") from fault


@contextlib.contextmanager
def _told_by(relay: Endpoint) -> Iterator[None]:
    """Makes whatever goes wrong with a relay a PullError that names it."""
    try:
        yield
    except TimeoutError as fault:
        raise Unreached(f"unreachable: {relay} does not answer") from fault
    except OSError as fault:
        raise Unreached(f"unreachable: {relay}: {fault.strerror or 'connection lost'}") from fault
    except ProtocolError as fault:
        raise PullError(f"unreachable: {relay} is no relay: {fault}") from fault
    except _Refusal as fault:
        raise PullError(f"unreachable: {relay} refuses: {fault}") from fault


class Unreached(PullError):
    """There is no way to a relay, whomever it is called for."""


class _Refusal(NetworkError):
    """A relay does not do what was asked."""


async def _reach(relay: Endpoint, speaker: Speaker, pumps: Pumps) -> Pipe:
    """Returns a connection to a relay; the preface is not said yet."""
    if relay.kind == "relays":
        from p2pl.network.web_socket import open_web_socket  # most peers never need it

        return await open_web_socket(relay, speaker.trust, pumps.run_to_its_end)
    if relay.kind not in PLAIN:
        raise ProtocolError(wrong("endpoint", got=str(relay), allowed="relay:// or relays://"))
    return SocketPipe(await _connect(relay))


async def _connect(relay: Endpoint) -> socket.socket:
    """Returns a TCP connection to a relay, at the first of its addresses that takes it."""
    fault: Exception = PullError("unreachable: no address")
    for host in await _hosts(relay):
        try:
            return await dial.connect(host, relay.port, deadline_s=CONNECT_S)
        except PullError as refused:
            fault = refused
    raise ConnectionRefusedError(0, "no connection") from fault


async def _hosts(relay: Endpoint) -> list[str]:
    """Returns the IP addresses of a relay that may be dialled."""
    if not relay.is_name:
        return [relay.host]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(relay.host, relay.port, type=socket.SOCK_STREAM)
    hosts: dict[str, None] = {}
    for *_, address in found:
        with contextlib.suppress(ValueError):
            hosts[dialled(str(address[0]))] = None
    return list(hosts)[:MAX_HOSTS]


async def _say(pipe: Pipe, message: Said, behind: bytes = b"") -> None:
    await pipe.send(PREFACE + messages.encode(message) + behind)


async def _ping(pipe: Pipe, every_s: float) -> None:
    with contextlib.suppress(OSError):  # whoever reads finds out as well
        while True:
            await asyncio.sleep(every_s)
            await pipe.send(messages.encode(Ping()))


async def _hear(pipe: Pipe) -> Told:
    """Returns the relay's next message; not a byte beyond it is read."""
    head = await _exactly(pipe, LENGTH_BYTES)
    return messages.decode_told(await _exactly(pipe, messages.length_of(head)))


async def _exactly(pipe: Pipe, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await pipe.receive(count - len(data))
        if not piece:
            raise ConnectionResetError("connection lost")
        data += piece
    return data


def _expect(told: Told, kind: type[T]) -> T:
    """Returns what a relay told, where it is what is due."""
    if isinstance(told, Refused):
        raise _Refusal(told.reason)
    if not isinstance(told, kind):
        raise ProtocolError(wrong("answer", got=type(told).__name__, allowed=kind.__name__))
    return told
