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
import socket
from typing import Protocol

from p2pl.errors import PullError
from p2pl.protocol.announce import PeerAddress

CONNECT_S = 5.0  # chosen: two lost SYNs (1 s, 2 s) and a slow path
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
    """Dials a peer by TCP, where its address says."""

    async def open(self, address: PeerAddress, *, deadline_s: float) -> socket.socket:
        """Returns a connection to the IP address and port of a peer.

        Args:
            address: of the peer.
            deadline_s: seconds; `CONNECT_S` at most.

        Raises:
            PullError: the address can be no peer's, or nobody takes the connection.
        """
        try:
            host = address.checked().host
        except ValueError as fault:
            raise PullError(f"address: {fault}") from fault
        return await connect(host, address.port, deadline_s=min(deadline_s, CONNECT_S))


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
