"""A WebSocket as one connection to a relay: for networks that let out nothing but HTTPS.

Each binary message is a piece of the byte stream; where one ends means nothing.
"""

import asyncio
import contextlib
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed

MESSAGE_BYTES = 256 << 10  # of one message, at most; as much as is copied at once
PING_S = 20.0  # so that what stands between takes no connection for dead
SETTINGS: dict[str, Any] = {  # of both ends
    "compression": None,  # it is ciphertext
    "max_size": MESSAGE_BYTES,
    "max_queue": 2,  # messages; who reads slowly slows down who writes
    "write_limit": MESSAGE_BYTES,
    "ping_interval": PING_S,
    "ping_timeout": None,  # a slow line is no dead one; what is idle ends by other rules
    "close_timeout": 5.0,
}


class Straight(connect):
    """Opens a WebSocket where it was asked to, and nowhere else: no redirect is followed."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Returns what is raised in the place of following a redirect."""
        return exc


class WebSocketPipe:
    """A WebSocket that is open.

    Args:
        there: the connection.
        host: the IP address at its other end.
    """

    def __init__(self, there: Connection, host: str = "") -> None:
        self.host = host
        self._there = there
        self._rest = memoryview(b"")
        self._tasks: set[asyncio.Task[None]] = set()

    async def receive(self, most: int) -> bytes | memoryview:
        """Returns what came; nothing where the other end has ended.

        Args:
            most: bytes that are wanted at most.
        """
        while not self._rest:
            try:
                data = await self._there.recv(decode=False)
            except ConnectionClosed:
                return b""
            assert isinstance(data, bytes)
            self._rest = memoryview(data)
        found, self._rest = self._rest[:most], self._rest[most:]
        return found

    async def send(self, data: bytes | memoryview) -> None:
        """Writes all of it as one message.

        Raises:
            OSError: the connection is closed.
        """
        while self._tasks:  # what was posted goes first
            await asyncio.wait(self._tasks)
        try:
            await self._there.send(bytes(data))
        except ConnectionClosed as fault:
            raise ConnectionResetError("the WebSocket is closed") from fault

    def post(self, data: bytes) -> None:
        """Writes a short message without waiting."""
        self._later(self._there.send(data))

    def finish(self) -> None:
        """Ends both directions, as a WebSocket knows no other end."""
        self._later(self._there.close())

    def shut(self) -> None:
        """Ends both directions."""
        self._later(self._there.close())

    def close(self) -> None:
        """Nothing: the connection closes when whoever opened it is done."""

    def _later(self, working: Any) -> None:  # noqa: ANN401  # a coroutine of the library's
        async def work() -> None:
            with contextlib.suppress(ConnectionClosed, OSError):
                await working

        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
