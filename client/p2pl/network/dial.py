"""The door to other peers: how a byte stream to a peer comes to be.

Whoever opens one gets a connected socket at whose other end the peer's ZeroMQ listens; what is said
over it is said by `p2pl.network.zmtp`. A way that is no plain TCP connection (a relay, a WebSocket)
gives one end of a socket pair, and copies between the other end and its own.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import random
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from p2pl.errors import PullError, visible
from p2pl.pace import NO_REST, BackOff, Rest
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import Endpoint

TCP = "tcp"
CONNECT_S = 5.0  # chosen: two lost SYNs (1 s, 2 s) and a slow path
RESOLVE_S = 5.0
STAGGER_S = 0.25  # RFC 8305, section 8
AT_ONCE = 3
MAX_HOSTS = 4  # of a name, that are tried
MAX_REMEMBERED = 4_096
BACK_OFF = BackOff(first_s=5.0, max_s=300.0)  # chosen: an endpoint that fails comes last meanwhile
KEEPALIVE_IDLE_S, KEEPALIVE_EVERY_S, KEEPALIVE_TRIES = 60, 10, 3
STUCK_MS = 8_000  # what nobody has acknowledged for so long: the other end is gone
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # not the peer's fault


Connect: TypeAlias = Callable[..., Awaitable[socket.socket]]
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]


class Dialler(Protocol):
    """Opens byte streams to other peers."""

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        """Returns a connected, non-blocking stream socket to the listener of a peer.

        Nothing has been written to it but `hello`, and nothing read from it: what comes first is
        the greeting of ZMTP. It belongs to the caller, who closes it.

        Args:
            address: whose listener; that it is this peer is proved by what is said afterwards.
            deadline_s: seconds for all of it, at most.
            hello: what is said first, at most `MAX_EARLY_BYTES`; a way that takes several trips
                takes it along.

        Raises:
            PullError: the address can be no peer's, or there is no way to it.
        """
        ...


class Direct:
    """Dials a peer by TCP, where its endpoints say, a little like RFC 8305 (happy eyeballs).

    They are tried in their order, what worked last before all others and what failed a moment ago
    after them; while one does not answer, the next is tried beside it, and the first to connect
    wins.

    Args:
        connect: returns a connection to an IP address and a port; None: by TCP.
        resolve: returns the addresses of a name; None: the system is asked.
        now: a clock that never steps back, in seconds.
        rng: jitters how long an endpoint rests.
        stagger_s: after which the next one is tried, while the one before does not answer.
    """

    def __init__(
        self,
        *,
        connect: Connect | None = None,
        resolve: Resolve | None = None,
        now: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        stagger_s: float = STAGGER_S,
    ) -> None:
        self._connect, self._resolve = connect or _connect, resolve or _resolve
        self._now, self._rng, self._stagger_s = now, rng or random.Random(), stagger_s
        self._worked: OrderedDict[str, Endpoint] = OrderedDict()  # by peer id
        self._rests: OrderedDict[Endpoint, Rest] = OrderedDict()  # of those that failed

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        """Returns a connection to the listener of a peer.

        Args:
            address: of the peer.
            deadline_s: seconds for all of it; one endpoint has `CONNECT_S` at most.
            hello: what is said first.

        Raises:
            PullError: the address can be no peer's, or nobody takes the connection.
        """
        try:
            address = address.checked()
        except ValueError as fault:
            raise PullError(f"address: {fault}") from fault
        ways = self._in_order(address)
        if not ways:
            raise PullError("unreachable: nobody can dial it; it calls others itself")
        try:
            async with asyncio.timeout(deadline_s):
                stream = await self._race([partial(self._try, way, address) for way in ways])
                return await said_first(stream, hello)
        except TimeoutError as fault:
            raise PullError("unreachable: no connection") from fault

    def _in_order(self, address: PeerAddress) -> list[Endpoint]:
        ways = [way for way in address.ways if way.kind == TCP]
        last, now_s = self._worked.get(address.id), self._now()

        def place(way: Endpoint) -> int:
            if way == last:
                return 0
            return 2 if self._rests.get(way, NO_REST).until_s > now_s else 1

        return sorted(ways, key=place)  # the sort is stable

    async def _try(self, way: Endpoint, address: PeerAddress) -> socket.socket:
        try:
            if way.is_name:
                stream = await self._by_name(way, reach_of(address.host))
            else:
                stream = await self._connect(way.host, way.port, deadline_s=CONNECT_S)
        except PullError:
            rest = self._rests.pop(way, NO_REST)
            self._rests[way] = BACK_OFF.after_failure(rest, self._now(), self._rng)
            if self._worked.get(address.id) == way:
                del self._worked[address.id]
            _bound(self._rests)
            raise
        self._rests.pop(way, None)
        self._worked.pop(address.id, None)
        self._worked[address.id] = way
        _bound(self._worked)
        return stream

    async def _by_name(self, way: Endpoint, nearest: Reach) -> socket.socket:
        """Returns a connection to what a name means.

        A peer that a tracker sees far away may have no name for something near this peer.
        """
        try:
            async with asyncio.timeout(RESOLVE_S):
                found = await self._resolve(way.host, way.port)
        except (OSError, TimeoutError) as fault:
            raise PullError(f"unreachable: there is no {visible(way.host)}") from fault
        hosts = [host for host in map(_dialled, found) if host and reach_of(host) >= nearest]
        if not hosts:
            raise PullError(f"unreachable: {visible(way.host)} is no address that a peer may have")
        dials = (partial(self._connect, h, way.port, deadline_s=CONNECT_S) for h in hosts)
        return await self._race(list(dials)[:MAX_HOSTS])

    async def _race(self, dials: Sequence[Callable[[], Awaitable[socket.socket]]]) -> socket.socket:
        """Returns the first connection of several, and closes the others.

        Raises:
            PullError: none came to be; it says why of each.
        """
        waiting, tried = deque(dials), set[asyncio.Task[socket.socket]]()
        running = set[asyncio.Task[socket.socket]]()
        reasons: dict[str, None] = {}
        won: asyncio.Task[socket.socket] | None = None
        try:
            while waiting or running:
                if waiting and len(running) < AT_ONCE:
                    running.add(asyncio.ensure_future(waiting.popleft()()))
                    tried |= running
                may_start = waiting and len(running) < AT_ONCE
                patience_s = self._stagger_s if may_start else None
                done, running = await asyncio.wait(
                    running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if isinstance(fault := task.exception(), PullError):
                        reasons[str(fault)] = None
                    else:
                        won = task
                        return task.result()
            raise PullError("; ".join(reasons))
        finally:
            left = [task for task in tried if task is not won]
            for task in left:
                task.cancel()
                task.add_done_callback(_close_what_it_made)
            try:
                await asyncio.gather(*left, return_exceptions=True)
            except asyncio.CancelledError:
                if won is not None:
                    won.result().close()  # nobody is left to have it
                raise


async def said_first(stream: socket.socket, hello: bytes) -> socket.socket:
    """Returns a stream over which `hello` was said, or closes it.

    Args:
        stream: connected, not blocking.
        hello: a few bytes; b"": none.
    """
    try:
        # Who is gone may have said something before; reading tells both.
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(stream, hello)
    except BaseException:
        stream.close()
        raise
    return stream


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    if len(remembered) > MAX_REMEMBERED:
        remembered.popitem(last=False)


def _close_what_it_made(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _dialled(text: str) -> str:
    """Returns a host in its one form; "" where it is none that a peer may have."""
    try:
        return dialled(text)
    except ValueError:
        return ""


async def _resolve(name: str, port: int) -> list[str]:
    """Returns the addresses of a name, in the system's order (RFC 6724)."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


async def _connect(host: str, port: int, *, deadline_s: float) -> socket.socket:
    return await connect(host, port, deadline_s=deadline_s)


async def connect(host: str, port: int, *, deadline_s: float) -> socket.socket:
    """Returns a TCP connection that keeps itself alive and does not wait for more to send.

    Args:
        host: an IP address; a name is never looked up.
        port: 1..65535.
        deadline_s: seconds.

    Raises:
        PullError: there is no connection, or no socket for it.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    with contextlib.ExitStack() as undo:
        try:
            stream = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            prepare(stream)
            async with asyncio.timeout(deadline_s):
                await asyncio.get_running_loop().sock_connect(stream, (host, port))
        except TimeoutError as fault:
            raise PullError("unreachable: no connection") from fault
        except OSError as fault:
            ours = os.strerror(fault.errno) if fault.errno in _OURS else "no connection"
            raise PullError(f"unreachable: {ours}") from fault
        undo.pop_all()
    return stream


def prepare(stream: socket.socket) -> None:
    """Makes a TCP socket non-blocking, without delays, and one that notices a dead other end."""
    stream.setblocking(False)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY_S)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_TRIES)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_MS)
