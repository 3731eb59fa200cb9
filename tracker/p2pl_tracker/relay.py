"""The relay as a program: joins two connections of peers that cannot be dialled, and copies bytes.

What is copied is CURVE between the two peers: the relay has no key to it. Who may do what, and how
much, is decided by `p2pl.rendezvous.board`.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from websockets.asyncio.server import ServerConnection, serve

from p2pl.errors import InputError, wrong
from p2pl.rendezvous.board import Board, Policy
from p2pl.rendezvous.doorman import GuardedListener
from p2pl.rendezvous.service import Pipe, Service
from p2pl.rendezvous.websocket import SETTINGS, WebSocketPipe

log = logging.getLogger(__name__)

HELLO_S = 10.0  # for the handshakes of TLS and WebSocket


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a relay listens.

    Attributes:
        plain: bound; for `relay://`.
        secure: bound; for `relays://`, WebSocket over TLS. None: there is no such door.
        context: of TLS.
    """

    plain: socket.socket
    secure: socket.socket | None = None
    context: ssl.SSLContext | None = None

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as endpoints."""
        doors = [("relay", self.plain)] + ([("relays", self.secure)] if self.secure else [])
        return [f"{kind}://{_where(door)}" for kind, door in doors]


class Relay:
    """One relay.

    Args:
        policy: what its operator allows.
        doors: where it listens.
        drain_s: for what is joined, after the end was asked for.
    """

    def __init__(self, policy: Policy, doors: Doors, *, drain_s: float) -> None:
        self.board = Board(policy, now=time.monotonic, wall=time.time)
        self.doors = doors
        self._drain_s = drain_s
        self._service = Service(self.board)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Relays within the context; at its end, what is joined is waited for."""
        async with contextlib.AsyncExitStack() as stack:
            self.doors.plain.setblocking(False)
            _beside(stack, self._service.accept(self.doors.plain))
            _beside(stack, self._service.sweep())
            if self.doors.secure is not None:
                guarded = GuardedListener(self.doors.secure.dup(), self._refused)

                async def attend(there: ServerConnection) -> None:
                    guarded.done(there.transport.get_extra_info("socket").fileno())
                    await self._attend(there)

                await stack.enter_async_context(
                    serve(
                        attend,
                        sock=guarded,
                        ssl=self.doors.context,
                        ssl_handshake_timeout=HELLO_S,
                        open_timeout=HELLO_S,
                        server_header=None,
                        **SETTINGS,
                    )
                )
            log.info("relaying %s", " ".join(self.doors.addresses))
            yield
            log.info("draining joined=%d drain_s=%g", self.board.joints, self._drain_s)
            await self._service.drain(self._drain_s)

    def listens(self, session: bytes, digest: bytes) -> bool:
        """Returns whether a peer takes calls here.

        Args:
            session: the session's id, 32 bytes.
            digest: the peer's id, 32 bytes.
        """
        return self.board.listens((session, digest))

    async def call(self, session: bytes, digest: bytes) -> Pipe:
        """Returns a connection to a peer that takes calls here; it is the caller's to close.

        Args:
            session: the session's id, 32 bytes.
            digest: the peer's id, 32 bytes.

        Raises:
            PullError: the peer is not here, or does not take the call.
        """
        return await self._service.call(session, digest)

    def _refused(self) -> None:
        self.board.counts.refused["handshake"] += 1

    async def _attend(self, there: ServerConnection) -> None:
        await self._service.attend(WebSocketPipe(there, str(there.remote_address[0])))


def _beside(stack: contextlib.AsyncExitStack, working: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine until the stack is closed."""
    task = asyncio.create_task(working)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


async def run(relay: Relay, on_ready: Callable[[], None]) -> bool:
    """Relays until SIGTERM or SIGINT; returns whether it was SIGINT. A second signal kills.

    Args:
        relay: which.
        on_ready: called once calls are taken.
    """
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[bool] = loop.create_future()

    def stop(is_interrupt: bool) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
        asked.set_result(is_interrupt)

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop, name == signal.SIGINT)
    async with relay.running():
        on_ready()
        is_interrupt = await asked
    return is_interrupt


class _Collector(Collector):
    """Reads a board's plain numbers when they are asked for."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        board, counts = self._board, self._board.counts
        for name, text, value in (
            ("connections", "Connections accepted.", counts.connections),
            ("listens", "Peers that began to take calls.", counts.listens),
            ("calls", "Calls.", counts.calls),
            ("joins", "Calls that were accepted.", counts.joins),
            ("bytes", "Bytes copied, both directions.", counts.bytes),
        ):
            yield CounterMetricFamily(f"p2pl_relay_{name}", text, value)
        refused = CounterMetricFamily(
            "p2pl_relay_refusals", "Connections refused or ended, by reason.", labels=["reason"]
        )
        for reason, count in list(counts.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        for name, text, value in (
            ("open_connections", "Connections now.", board.lines),
            ("listeners", "Peers that take calls now.", board.listeners),
            ("joined", "Pairs of connections joined now.", board.joints),
        ):
            yield GaugeMetricFamily(f"p2pl_relay_{name}", text, value)


def registry_of(relay: Relay) -> CollectorRegistry:
    """Returns what Prometheus asks a relay for: few series, never one by peer or address."""
    registry = CollectorRegistry()
    registry.register(_Collector(relay.board))
    return registry


@contextlib.contextmanager
def shown(relay: Relay, where: str) -> Iterator[str]:
    """Serves a relay's metrics over HTTP meanwhile, from a thread; yields the URL.

    Args:
        relay: whose.
        where: HOST:PORT, or PORT of this machine alone.

    Raises:
        InputError: it is no address to listen on.
    """
    host, port = parse_listen("--metrics", where)
    try:
        server, thread = start_http_server(port, host, registry_of(relay))
    except OSError as fault:
        got = f"{where} ({fault.strerror})"
        raise InputError(
            wrong("--metrics", got=got, allowed="an address of this machine and a free port")
        ) from fault
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def parse_listen(option: str, text: str) -> tuple[str, int]:
    """Returns the host and the port in `[HOST:]PORT`; without a host, this machine alone.

    Args:
        option: for the message.
        text: as the person gave it.

    Raises:
        InputError: it is written otherwise.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise InputError(wrong(option, got=text, allowed="PORT, HOST:PORT or [IPV6]:PORT"))
    return host, int(port)


def _where(door: socket.socket) -> str:
    host, port = door.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
