"""In front of the wire's listener: who may finish a CURVE handshake (ZAP, ZeroMQ RFC 27).

libzmq asks once for each handshake, after the other end has proved that it holds its CURVE key, and
waits with it. No message of a connection that is refused is ever read. Requests are answered as
they are decided, in any order, so one key that must be looked up holds up nobody else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import zmq
import zmq.asyncio
from zmq.utils import z85

log = logging.getLogger(__name__)

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
REQUEST_FRAMES = 9  # with the route and the empty frame of a ROUTER, and the key of CURVE
DECISION_S = 4.0  # below the five seconds after which libzmq ends a handshake
ADMITTED, REFUSED = b"200", b"400"

# Given a CURVE key in Z85 and an IP address, returns why it is refused; "": it is not.
Admit = Callable[[str, str], Awaitable[str]]


async def everybody(_key: str, _host: str) -> str:
    """Returns that any CURVE key may connect: who is behind it, its first message says."""
    return ""


class Admission:
    """Answers libzmq's question whether a CURVE key may connect.

    Args:
        context: whose listeners ask; the only one there that answers.
        admit: decides.
    """

    def __init__(self, context: zmq.asyncio.Context, admit: Admit = everybody) -> None:
        self._admit = admit
        self._asking: set[asyncio.Task[None]] = set()
        self._router = context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(ENDPOINT)

    async def run(self) -> None:
        """Answers until cancelled."""
        try:
            while True:
                frames = await self._router.recv_multipart()
                task = asyncio.create_task(self._answer(frames))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
        finally:
            for task in self._asking:
                task.cancel()

    def close(self) -> None:
        """Ends the answering; whoever asks then is refused."""
        self._router.close()

    async def _answer(self, frames: Sequence[bytes]) -> None:
        """Answers one request; what goes wrong refuses that connection."""
        if len(frames) != REQUEST_FRAMES or frames[2] != VERSION or frames[7] != b"CURVE":
            log.error("not a request of CURVE: %d frames", len(frames))
            return  # libzmq makes none; the handshake ends when its time is over
        route, _, _, number, _, host, _, _, key = frames
        curve_key = z85.encode(key).decode()
        try:
            async with asyncio.timeout(DECISION_S):
                why = await self._admit(curve_key, _host(host))
        except TimeoutError:
            why = "not decided in time"
        status = REFUSED if why else ADMITTED
        user = b"" if why else curve_key.encode()
        answer = [route, b"", VERSION, number, status, b"refused" if why else b"OK", user, b""]
        await self._router.send_multipart(answer)


def _host(told: bytes) -> str:
    """Returns the IP address that libzmq told; an IPv4 address in IPv6 form as IPv4."""
    return told.decode("ascii", "replace").removeprefix("::ffff:")
