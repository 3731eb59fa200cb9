"""In front of this peer's own ZeroMQ listener, where what comes to it is copied here anyway.

libzmq ends a connection on which a message comes before it has answered the INITIATE, so whoever
dials it waits for that answer: a way there and back. Whoever is called by a relay or at a meeting
copies the stream to its own listener, and can keep what comes too early until then. The greeting
says so to the caller, in a byte that means nothing to ZMTP.
"""

import asyncio
import socket

from p2pl.network.zmtp import (
    GREETING,
    HANDSHAKE_S,
    LARGE,
    LARGE_HEAD_BYTES,
    PATIENT,
    PATIENT_AT,
    SMALL_HEAD_BYTES,
    WELCOME_BYTES,
)
from p2pl.rendezvous.service import SocketPipe

HANDSHAKE_FRAMES = 2  # of the caller's: HELLO and INITIATE
ANSWER_AT = len(GREETING) + SMALL_HEAD_BYTES + WELCOME_BYTES  # where the listener's READY begins


class Doorstep(SocketPipe):
    """A connection to this peer's own listener, over which a caller may speak too early."""

    def __init__(self, there: socket.socket, host: str = "") -> None:
        super().__init__(there, host)
        self._handshake = Handshake()
        self._told = 0  # bytes that the listener has said
        self._answered = asyncio.Event()

    async def receive(self, most: int) -> memoryview:
        """Returns what the listener says; in its greeting stands that its caller may go on."""
        data = await super().receive(most)
        if not self._answered.is_set():
            at = PATIENT_AT - self._told
            if 0 <= at < len(data):
                data[at] = PATIENT
            self._told += len(data)
            if self._told > ANSWER_AT or not data:
                self._answered.set()
        return data

    async def send(self, data: bytes | memoryview) -> None:
        """Writes all of it; what comes behind an INITIATE, once that is answered.

        Raises:
            OSError: the connection is lost, or the listener does not answer.
        """
        if not self._answered.is_set():
            size = self._handshake.take(data)
            await super().send(data[:size])
            data = data[size:]
            if not data:
                return
            async with asyncio.timeout(HANDSHAKE_S):  # a TimeoutError is an OSError
                await self._answered.wait()
        await super().send(data)


class Handshake:
    """Finds where a caller's part of a handshake ends; what is none, the listener judges."""

    def __init__(self) -> None:
        self._left = len(GREETING)  # bytes of what has begun
        self._head = b""
        self._frames = 0

    def take(self, data: bytes | memoryview) -> int:
        """Returns how many of these bytes, which come next, belong to it."""
        at = 0
        while at < len(data) and (self._left or self._frames < HANDSHAKE_FRAMES):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._head += bytes(data[at : at + 1])
            at += 1
            size = LARGE_HEAD_BYTES if self._head[0] & LARGE else SMALL_HEAD_BYTES
            if len(self._head) == size:
                self._left, self._head = int.from_bytes(self._head[1:]), b""
                self._frames += 1
        return at
