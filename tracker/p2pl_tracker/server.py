"""The tracker on a socket: uvicorn with limits on what a stranger may send and how slowly.

A body is bounded by the application; at most uvicorn's 64 KiB of it can wait in a buffer before the
application asks. What the rest bounds is said at `Patience` and at `MAX_HEAD_BYTES`.
"""

import asyncio
import functools
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from p2pl.errors import InputError, wrong

log = logging.getLogger(__name__)

# The request line and all headers; the parser has no limit of its own. nginx and Apache allow as
# much for one line.
MAX_HEAD_BYTES = 8_192
BACKLOG = 2_048
TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stranger may hold a connection, and how many there may be."""

    request_deadline_s: float = 10.0  # to send a request, from connecting or its first byte on
    keep_alive_s: int = 20  # idle; longer than a peer's 10, so that the peer closes first
    drain_s: int = 5  # for answers under way after SIGTERM
    max_connections: int = 4_096  # those beyond get 503


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a deadline for a request and a limit on its head.

    Args:
        request_deadline_s: for all of a request, from connecting or its first byte on; seconds.
        options: of uvicorn's protocol.
    """

    def __init__(self, *, request_deadline_s: float, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)  # uvicorn chooses them
        self._request_deadline_s = request_deadline_s
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of a head that has not ended yet
        self._is_whole = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins the deadline of the first request."""
        super().connection_made(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        """Takes in bytes of a request, and ends a connection whose head is too large."""
        if self._deadline is None:
            self._set_deadline()
        self._is_whole = False
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_whole:
            self._clear_deadline()
        elif self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Takes in that a request has begun."""
        super().on_message_begin()
        self._is_whole = False

    def on_headers_complete(self) -> None:
        """Takes in that a head has ended."""
        super().on_headers_complete()
        self._head_bytes = -(1 << 62)  # a body is bounded elsewhere

    def on_message_complete(self) -> None:
        """Takes in that a request has ended."""
        super().on_message_complete()
        self._is_whole = True
        self._head_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Drops the deadline."""
        self._clear_deadline()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection that was idle for too long."""
        self.transport.abort()  # close() would wait for a client that does not read its answer

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self._request_deadline_s, self._give_up)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def listen(host: str, port: int) -> socket.socket:
    """Returns a bound socket; port 0 takes a free one.

    Args:
        host: an IPv4 or IPv6 address of this machine.
        port: 0..65535; 0 takes a free one.

    Raises:
        InputError: the address is not of this machine, or another process has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as fault:
        raise InputError(
            wrong(
                "listening address",
                got=f"{host}:{port} ({getattr(fault, 'strerror', None) or fault})",
                allowed="an address of this machine and a free port",
                hint="choose another --port, or end the process that has it",
            )
        ) from fault


def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    on_ready: Callable[[str], None],
    patience: Patience | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is under way and returns.

    Args:
        app: from `create_app`.
        listener: from `listen`.
        on_ready: called with the URL once requests are answered.
        patience: limits on slow clients.

    Raises:
        KeyboardInterrupt: it was SIGINT.
    """
    patience = patience or Patience()
    protocol = functools.partial(BoundedProtocol, request_deadline_s=patience.request_deadline_s)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        cast("Any", app),
        http=cast("Any", protocol),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,  # the application reads them, from proxies the operator named
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        limit_concurrency=patience.max_connections,
        timeout_keep_alive=patience.keep_alive_s,
        timeout_graceful_shutdown=patience.drain_s,
    )
    # uvicorn raises the signal again when it is done; this says that ending was what was wanted.
    before = signal.signal(signal.SIGTERM, lambda *_: log.info("stopped by SIGTERM"))
    try:
        _Server(config, lambda: on_ready(url)).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
