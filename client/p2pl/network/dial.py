"""The door to other peers: how a byte stream to a peer comes to be.

Whoever opens one gets a connected socket at whose other end the peer's ZeroMQ listens; what is said
over it is said by `p2pl.network.zmtp`. A way that is no plain TCP connection (a relay, a WebSocket)
gives one end of a socket pair, and copies between the other end and its own.
"""

import asyncio
import contextlib
import errno
import ipaddress
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias, TypeVar

from p2pl.errors import PullError
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import Endpoint

Where: TypeAlias = tuple[str, int]  # IP address, port
K = TypeVar("K")
V = TypeVar("V")
CONNECT_S = 5.0  # chosen: two lost SYNs (1 s, 2 s) and a slow path
STAGGER_S = 0.25  # RFC 8305
MAX_TRIES = 3  # under way
MAX_HOSTS = 4  # of one name, that are tried
REST_S = 60.0  # for so long, an endpoint that failed comes after the others
MAX_REMEMBERED = 1_024  # peers, and endpoints
NO_CONNECTION = "unreachable: no connection"
NO_WAY = "unreachable: it names no address that can be dialled from here"
KEEPALIVE_IDLE_S, KEEPALIVE_EVERY_S, KEEPALIVE_TRIES = 60, 10, 3
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # not the peer's fault


class Dialler(Protocol):
    """Opens byte streams to other peers."""

    async def open(self, address: PeerAddress, *, deadline_s: float) -> socket.socket:
        """Returns a connected, non-blocking stream socket to the listener of a peer.

        Nothing has been written to it, and nothing read from it: what comes first is the greeting
        of ZMTP. It belongs to the caller, who closes it.

        Args:
            address: whose listener; that it is this peer is proved by what is said afterwards.
            deadline_s: seconds for all of it, at most.

        Raises:
            PullError: the address can be no peer's, or there is no way to it.
        """
        ...


class Direct:
    """Dials a peer by TCP, at the plain endpoints that it names.

    They are tried in the peer's order, each a moment after the one before or as soon as that has
    failed, a few at a time, and the first connection counts (RFC 8305). What worked for a peer the
    last time comes first the next time, and what failed a moment ago comes last.

    Args:
        now: a clock that never steps back, in seconds.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._worked: dict[str, Where] = {}  # by peer id, the longest unused first
        self._failed_s: dict[Where, float] = {}  # when; the longest ago first

    async def open(self, address: PeerAddress, *, deadline_s: float) -> socket.socket:
        """Returns a connection to one of the plain endpoints of a peer.

        Args:
            address: of the peer.
            deadline_s: seconds; `CONNECT_S` at most for one endpoint.

        Raises:
            PullError: the address can be no peer's, or nobody takes the connection.
        """
        try:
            ways = address.checked().ways
        except ValueError as fault:
            raise PullError(f"address: {fault}") from fault
        try:
            async with asyncio.timeout(deadline_s):
                places = await _places(ways, reach_of(address.host))
                where, stream = await self._first(self._sorted(address.id, places))
        except TimeoutError as fault:
            raise PullError(NO_CONNECTION) from fault
        _keep(self._worked, address.id, where)
        return stream

    def _sorted(self, peer_id: str, places: list[Where]) -> list[Where]:
        last, now_s = self._worked.get(peer_id), self._now()

        def rank(where: Where) -> int:
            if where == last:
                return 0
            return 2 if now_s - self._failed_s.get(where, -math.inf) < REST_S else 1

        return sorted(places, key=rank)  # it is stable: else the peer's order counts

    async def _first(self, places: list[Where]) -> tuple[Where, socket.socket]:
        """Returns the first connection, and where it leads to; all others are closed."""
        waiting, fault = deque(places), PullError(NO_WAY)
        trying: dict[asyncio.Task[socket.socket], Where] = {}
        try:
            while waiting or trying:
                if waiting and len(trying) < MAX_TRIES:
                    where = waiting.popleft()
                    trying[asyncio.create_task(connect(*where, deadline_s=CONNECT_S))] = where
                may_begin = bool(waiting) and len(trying) < MAX_TRIES
                done, _ = await asyncio.wait(
                    trying,
                    timeout=STAGGER_S if may_begin else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    where = trying.pop(task)
                    if (failure := task.exception()) is None:
                        return where, _others_closed(task, done)
                    if not isinstance(failure, PullError):
                        raise failure
                    fault = failure
                    _keep(self._failed_s, where, self._now())
            raise fault
        finally:
            await _abandon(trying)


def _others_closed(
    chosen: asyncio.Task[socket.socket], done: set[asyncio.Task[socket.socket]]
) -> socket.socket:
    """Returns the chosen connection; those that came at the same moment are closed."""
    for task in done - {chosen}:
        if task.exception() is None:
            task.result().close()
    return chosen.result()


async def _abandon(trying: Iterable[asyncio.Task[socket.socket]]) -> None:
    """Ends connections that are no longer wanted."""
    tasks = list(trying)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, socket.socket):
            ended.close()


async def _places(ways: Iterable[Endpoint], nearest: Reach) -> list[Where]:
    """Returns the IP addresses and ports of plain endpoints, each once, the best first."""
    found: dict[Where, None] = {}
    for way in ways:
        if way.kind == "tcp":
            hosts = await resolved(way.host, nearest) if way.is_name else (way.host,)
            found.update(dict.fromkeys((host, way.port) for host in hosts))
    return list(found)


async def resolved(name: str, nearest: Reach) -> tuple[str, ...]:
    """Returns the IP addresses of a host name that may be dialled; none where there are none.

    Whoever owns a name says what it means, so it is held to the same rules as an address; and the
    name of a peer elsewhere never leads to this machine or into its own network.

    Args:
        name: in DNS.
        nearest: from how far away an address must mean the same machine, at least.
    """
    try:
        told = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    hosts: dict[str, None] = {}
    for *_, where in told:
        with contextlib.suppress(ValueError):
            host = dialled(str(where[0]))
            if reach_of(host) >= nearest:
                hosts[host] = None
    return tuple(hosts)[:MAX_HOSTS]


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Remembers something, and forgets the oldest beyond `MAX_REMEMBERED`."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > MAX_REMEMBERED:
        del kept[next(iter(kept))]


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
            raise PullError(NO_CONNECTION) from fault
        except OSError as fault:
            ours = f"unreachable: {os.strerror(fault.errno)}" if fault.errno in _OURS else ""
            raise PullError(ours or NO_CONNECTION) from fault
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
