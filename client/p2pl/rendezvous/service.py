"""A board with its sockets: reads what connections say, does what the board wants, and copies.

One task attends to one connection. Each direction of two joined connections has one buffer and
nothing else: who reads slowly slows down who writes.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from typing import Protocol

from p2pl.errors import ProtocolError, PullError, wrong
from p2pl.protocol.relay import (
    LENGTH_BYTES,
    MAX_EARLY_BYTES,
    PREFACE,
    Call,
    Joined,
    Refused,
    Said,
    Told,
    decode_said,
    encode,
    length_of,
)
from p2pl.rendezvous.board import LINGER_S, Board, Command, End, Finish, Join, Line, Send

log = logging.getLogger(__name__)

BUFFER_BYTES = 256 << 10  # of each direction; chosen: a larger one copies no faster
TALK_BYTES = 2_048  # read at once before a connection is joined: more than any message
SWEEP_S = 0.5
OUT_OF_FILES_S = 0.2
BACKLOG = 1_024
STUCK_MS = 30_000  # the kernel closes a connection whose other end takes nothing for so long


class Pipe(Protocol):
    """One connection.

    Attributes:
        host: the IP address at its other end; "": unknown.
    """

    host: str

    async def receive(self, most: int) -> bytes | memoryview:
        """Returns what came, at least a byte; nothing where the other end has ended.

        What it returns is good until the next call.

        Args:
            most: bytes that are wanted at most.

        Raises:
            OSError: the connection is lost.
        """
        ...

    async def send(self, data: bytes | memoryview) -> None:
        """Writes all of it, however long the other end takes to read.

        Raises:
            OSError: the connection is lost.
        """
        ...

    def post(self, data: bytes) -> None:
        """Writes a short message without waiting; where there is no room for it, the pipe ends."""
        ...

    def finish(self) -> None:
        """Tells the other end that nothing more comes."""
        ...

    def shut(self) -> None:
        """Ends both directions, so that whoever waits for one of them goes on."""
        ...

    def close(self) -> None:
        """Gives the connection back to the system."""
        ...


class SocketPipe:
    """A connected TCP socket."""

    def __init__(self, there: socket.socket, host: str = "") -> None:
        there.setblocking(False)
        self.host = host
        self.socket = there
        self._loop = asyncio.get_running_loop()
        self._memory = memoryview(bytearray(TALK_BYTES))

    async def receive(self, most: int) -> memoryview:
        """Returns what came."""
        if most > len(self._memory):
            self._memory = memoryview(bytearray(most))
        count = await self._loop.sock_recv_into(self.socket, self._memory[:most])
        return self._memory[:count]

    async def send(self, data: bytes | memoryview) -> None:
        """Writes all of it."""
        await self._loop.sock_sendall(self.socket, data)

    def post(self, data: bytes) -> None:
        """Writes a short message at once."""
        try:
            sent = self.socket.send(data)
        except OSError:  # a BlockingIOError is one
            sent = 0
        if sent < len(data):
            self.shut()

    def finish(self) -> None:
        """Ends what this side writes."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def shut(self) -> None:
        """Ends both directions."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()


async def splice(one: Pipe, other: Pipe, count: Callable[[bool, int], None]) -> None:
    """Copies between two connections until both have ended, or one of them is lost.

    Both are closed at the end.

    Args:
        one: the first.
        other: the second.
        count: is told of each piece: whether it came over `one`, and its bytes.
    """

    async def copy(source: Pipe, sink: Pipe) -> None:
        with contextlib.suppress(OSError):
            while data := await source.receive(BUFFER_BYTES):
                await sink.send(data)
                count(source is one, len(data))
            sink.finish()
            return
        source.shut()
        sink.shut()

    copying = [asyncio.create_task(copy(one, other)), asyncio.create_task(copy(other, one))]
    try:
        await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(copying, timeout=LINGER_S)
    finally:
        for task in copying:
            task.cancel()
        try:  # whoever is cancelled here closes both all the same
            await asyncio.gather(*copying, return_exceptions=True)
        finally:
            for pipe in (one, other):
                pipe.shut()
                pipe.close()


class Messages:
    """Takes bytes as they come, and returns the messages in them.

    Behind a `Call` there are none: what comes then is for the peer that is called.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greeted = self._called = False

    @property
    def rest(self) -> int:
        """How many bytes are no message yet."""
        return len(self._buffer)

    def take_early(self) -> bytes:
        """Returns what came behind a `Call`, and forgets it."""
        early = bytes(self._buffer) if self._called else b""
        self._buffer.clear()
        return early

    def feed(self, data: bytes | memoryview) -> list[Said]:
        """Returns the messages that are whole with these bytes.

        Raises:
            ProtocolError: they are none.
        """
        self._buffer += data
        if not self._greeted:
            begun = bytes(self._buffer[: len(PREFACE)])
            if not PREFACE.startswith(begun):
                raise ProtocolError(wrong("preface", got=begun, allowed=f"{PREFACE!r}"))
            if len(begun) < len(PREFACE):
                return []
            del self._buffer[: len(PREFACE)]
            self._greeted = True
        found: list[Said] = []
        while not self._called and len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + length_of(bytes(self._buffer[:LENGTH_BYTES]))
            if len(self._buffer) < end:
                break
            found.append(decode_said(bytes(self._buffer[LENGTH_BYTES:end])))
            self._called = isinstance(found[-1], Call)
            del self._buffer[:end]
        if self._called and len(self._buffer) > MAX_EARLY_BYTES:
            got = f"over {MAX_EARLY_BYTES} bytes"
            raise ProtocolError(
                wrong("early bytes", got=got, allowed=f"{MAX_EARLY_BYTES} behind a call")
            )
        return found


class Service:
    """Attends to the connections of one board.

    Args:
        board: its state.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._pipes: dict[Line, Pipe] = {}
        self._over: dict[Line, asyncio.Event] = {}
        self._other: dict[Line, Pipe] = {}
        self._messages: dict[Line, Messages] = {}
        self._calls: dict[Line, asyncio.Future[Pipe]] = {}  # of this process itself
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        """Attends to whoever connects, until cancelled; then all connections end.

        Args:
            listener: bound, listening and not blocking; its owner closes it.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    there, address = await loop.sock_accept(listener)
                except OSError as fault:
                    log.warning("cannot accept a connection: %s", fault.strerror)
                    await asyncio.sleep(OUT_OF_FILES_S)
                    continue
                keep_alive(there)
                task = asyncio.create_task(self.attend(SocketPipe(there, address[0])))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def sweep(self) -> None:
        """Ends what takes too long, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._do(self.board.sweep())

    async def drain(self, drain_s: float) -> None:
        """Returns when all that is joined has ended, or after so many seconds; no call is taken.

        Args:
            drain_s: seconds.
        """
        self._do(self.board.drain())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.board.joints:  # noqa: ASYNC110  # no event tells of the last one
                    await asyncio.sleep(0.05)

    async def call(self, session: bytes, target: bytes) -> Pipe:
        """Returns a connection to a peer that listens here; it is the caller's to close.

        Args:
            session: the session's id, 32 bytes.
            target: the peer's id, 32 bytes.

        Raises:
            PullError: the peer is not here, or does not answer.
        """
        line, commands = self.board.opened("")
        answer: asyncio.Future[Pipe] = asyncio.get_running_loop().create_future()
        self._calls[line] = answer
        try:
            self._do([*commands, *self.board.call_from_here(line, session, target)])
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()  # it came as nobody waited any more
            raise
        finally:
            del self._calls[line]
            self._do(self.board.lost(line))

    async def attend(self, pipe: Pipe) -> None:
        """Reads a connection to its end, and closes it."""
        line, commands = self.board.opened(pipe.host)
        self._pipes[line], self._over[line] = pipe, asyncio.Event()
        try:
            self._do(commands)
            with contextlib.suppress(OSError):
                await self._read(line, pipe)
                if line in self._pipes:
                    self._do(self.board.ended(line))
                    await self._over[line].wait()
        finally:
            self._do(self.board.lost(line))
            self._other.pop(line, None)
            self._messages.pop(line, None)
            del self._over[line]
            if self._pipes.pop(line, None) is not None:
                pipe.close()

    async def _read(self, line: Line, pipe: Pipe) -> None:
        """Returns when the other end of a connection has ended, or it is another's by now."""
        messages = self._messages[line] = Messages()
        while line in self._pipes:
            other = self._other.get(line)
            data = await pipe.receive(BUFFER_BYTES if other else TALK_BYTES)
            if not data:
                return
            other = self._other.get(line)
            if other is None:
                self._hear(line, messages, data)
                continue
            rest_s = self.board.copied(line, len(data))
            await other.send(data)
            if rest_s:
                await asyncio.sleep(rest_s)

    def _hear(self, line: Line, messages: Messages, data: bytes | memoryview) -> None:
        try:
            for message in messages.feed(data):
                if line in self._other:
                    raise ProtocolError("said more before the answer came")
                self._do(self.board.heard(line, message))
            if messages.rest and line in self._other:
                raise ProtocolError("said more before the answer came")
        except ProtocolError as fault:
            self._do(self.board.broke(line, str(fault)))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self._send(command.line, command.message)
            elif isinstance(command, Join):
                self._join(command.caller, command.callee)
            elif isinstance(command, Finish):
                if pipe := self._pipes.get(command.line):
                    pipe.finish()
            elif isinstance(command, End):
                self._end(command.line)

    def _send(self, line: Line, message: Told) -> None:
        if pipe := self._pipes.get(line):
            pipe.post(encode(message))
        elif (answer := self._calls.get(line)) and not answer.done():
            if isinstance(message, Refused):
                answer.set_exception(PullError(f"unreachable: {message.reason}"))
            else:
                assert isinstance(message, Joined)

    def _join(self, caller: Line, callee: Line) -> None:
        if answer := self._calls.get(caller):
            pipe = self._pipes[callee]
            if not answer.done():
                del self._pipes[callee]  # it is the caller's from here on
                answer.set_result(pipe)
            return
        self._other[caller], self._other[callee] = self._pipes[callee], self._pipes[caller]
        messages = self._messages.get(caller)
        if messages is not None and (early := messages.take_early()):
            self.board.copied(caller, len(early))
            self._pipes[callee].post(early)  # nothing was written there but that it is joined

    def _end(self, line: Line) -> None:
        if pipe := self._pipes.get(line):
            pipe.shut()
            self._over[line].set()


def keep_alive(there: socket.socket) -> None:
    """Has the kernel notice when the other end of a connection is gone, and send at once."""
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in (
            (socket.TCP_KEEPIDLE, 30),
            (socket.TCP_KEEPINTVL, 10),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, STUCK_MS),
        ):
            there.setsockopt(socket.IPPROTO_TCP, option, value)
