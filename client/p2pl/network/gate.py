"""In front of ZeroMQ: bounds on connections that it does not have itself.

ZeroMQ keeps the parts of a message until its last one, however many come, and accepts as many
connections as there are descriptors. Inside CURVE nobody but ZeroMQ can tell a part from a
message, but the kernel knows how many bytes have come over each connection, and this peer knows
how many of them it was given as messages. What is missing between the two is what ZeroMQ holds.
A connection that has too much of that is shut down, and its memory is free again.

One address may open only so many connections a second; more are shut down as they are accepted.
That saves what would follow; of the handshake (0.2 ms of computing) ZeroMQ has done most by then.

Bytes are looked at every `LOOK_S`, so for a moment more can be there: what a link brings in that
time. Linux alone tells the bytes of a connection; elsewhere only their number is bounded.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from p2pl.pace import Rate, RateLimiter

log = logging.getLogger(__name__)

LOOK_S = 0.1
MAX_OPEN = 512  # chosen: twice the largest cohort, half of the descriptors that a process has
# Of connections from one address; chosen: hundreds of peers behind one address that pull from this
# one each second.
OPENED_PER_S, OPENED_AT_ONCE = 200.0, 1_000
MAX_HOSTS = 4_096  # whose rate is remembered
MAX_HELD_BYTES = 4 << 20  # of one connection; chosen: a second of messages takes 80 KB
MAX_HELD_IN_ALL = 64 << 20
FRAME_BYTES = 256  # at most, that CURVE and TCP add to a message, handshake included
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_RECEIVED_AT = 128  # of `tcpi_bytes_received` in Linux's `struct tcp_info`
_TCP_INFO_BYTES = _RECEIVED_AT + 8


@dataclass(slots=True)
class _Open:
    """One accepted connection."""

    there: tuple[object, ...]  # its other end, which tells it from a later one of this number
    given: int = 4 * FRAME_BYTES  # bytes that the peer was given as messages, and the handshake
    received: int = 0

    @property
    def held(self) -> int:
        return max(0, self.received - self.given)


class Gate:
    """Watches the connections of one bound socket, and shuts down those that take too much.

    Args:
        port: that the socket listens on.
        max_open: connections at the same time.
        max_held: bytes of one that ZeroMQ may hold.
        max_held_in_all: bytes of all of them together.
        opened: how often one address may connect; None: `OPENED_PER_S`.
        now: a clock that never steps back, in seconds.

    Attributes:
        shut: connections that were shut down so far.
    """

    def __init__(
        self,
        port: int,
        *,
        max_open: int = MAX_OPEN,
        max_held: int = MAX_HELD_BYTES,
        max_held_in_all: int = MAX_HELD_IN_ALL,
        opened: Rate | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shut = 0
        self._port = port
        self._max_open, self._max_held, self._in_all = max_open, max_held, max_held_in_all
        rate = opened or Rate.per_second(OPENED_PER_S, OPENED_AT_ONCE)
        self._opened_by: RateLimiter[object] = RateLimiter(rate, now=now, max_keys=MAX_HOSTS)
        self._open: dict[int, _Open] = {}  # by descriptor, the longest open first

    def __len__(self) -> int:
        return len(self._open)

    def gave(self, frames: list[zmq.Frame]) -> None:
        """Counts a message that has come."""
        one = self._open.get(int(frames[0].get(zmq.SRCFD)))
        if one is not None:
            one.given += sum(map(len, frames)) + FRAME_BYTES * len(frames)

    async def run(self, monitor: zmq.asyncio.Socket) -> None:
        """Takes in what opens and closes, and looks at what is open, until cancelled."""
        looking = asyncio.create_task(self._look_for_ever())
        try:
            while True:
                event = await recv_monitor_message(monitor)
                if event["event"] == zmq.EVENT_ACCEPTED:
                    self._opened(int(event["value"]))
                else:
                    self._open.pop(int(event["value"]), None)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _opened(self, fd: int) -> None:
        self._open.pop(fd, None)
        with contextlib.suppress(OSError), _borrowed(fd) as there:
            self._open[fd] = _Open(there.getpeername())
        one = self._open.get(fd)
        if one is not None and self._opened_by.take(one.there[0]):
            self._shut(fd, "this address opens connections too fast")
        if len(self._open) > self._max_open:
            self._make_room()

    def _make_room(self) -> None:
        """Shuts down the longest open connection of the address that has the most of them."""
        hosts = Counter(one.there[0] for one in self._open.values())
        most = max(hosts.values())
        fd = next(fd for fd, one in self._open.items() if hosts[one.there[0]] == most)
        self._shut(fd, f"{len(self._open)} connections, allowed {self._max_open}")

    async def _look_for_ever(self) -> None:
        while sys.platform == "linux":
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Shuts down whatever holds too much by now."""
        for fd, one in list(self._open.items()):
            with contextlib.suppress(OSError), self._same(fd, one) as there:
                told = there.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                if len(told) == _TCP_INFO_BYTES:
                    (one.received,) = struct.unpack_from("=Q", told, _RECEIVED_AT)
            if one.held > self._max_held:
                self._shut(fd, f"{one.held} bytes of no message yet, allowed {self._max_held}")
        while self._open and sum(one.held for one in self._open.values()) > self._in_all:
            fd = max(self._open, key=lambda fd: self._open[fd].held)
            self._shut(fd, f"more than {self._in_all} bytes of no message yet, in all")

    def _shut(self, fd: int, why: str) -> None:
        one = self._open.pop(fd)
        with contextlib.suppress(OSError), self._same(fd, one) as there:
            there.shutdown(socket.SHUT_RDWR)  # ZeroMQ sees it, and closes it
            self.shut += 1
            log.info("shut down a connection from=%s reason=%s", one.there[0], why)

    @contextlib.contextmanager
    def _same(self, fd: int, one: _Open) -> Iterator[socket.socket]:
        """Yields a connection; raises OSError where its descriptor is another's by now."""
        with _borrowed(fd) as there:
            if there.getpeername() != one.there or there.getsockname()[1] != self._port:
                raise OSError("gone")
            yield there


def peer_port(fd: int) -> int | None:
    """Returns the port at the other end of a connection of ZeroMQ's; None where it is gone."""
    try:
        with _borrowed(fd) as there:
            return int(there.getpeername()[1])
    except OSError:
        return None


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Yields the socket of a descriptor that stays ZeroMQ's."""
    there = socket.socket(fileno=fd)
    try:
        yield there
    finally:
        there.detach()
