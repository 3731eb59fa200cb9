"""The tracker on a socket: uvicorn with limits on what a stranger may send and how slowly.

A body is bounded by the application; at most uvicorn's 64 KiB of it can wait in a buffer before the
application asks. What the rest bounds is said at `Patience` and at `MAX_HEAD_BYTES` and below it.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import resource
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from p2pl.errors import InputError, wrong
from p2pl_tracker.address import Network, address_group, observed

log = logging.getLogger(__name__)

# The request line and all headers; the parser has no limit of its own. nginx and Apache allow as
# much for one line.
MAX_HEAD_BYTES = 8_192
# What follows the head: an announce in the smallest chunks there are, or the `info` of a session.
MAX_REST_BYTES = 65_536
MAX_PIPELINED = 16  # requests that wait on one connection; a peer of p2pl sends one at a time
SPARE_FILES = 64  # descriptors that are not for connections
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
    max_connections: int = 4_096  # those beyond get 503; twice as many are not even kept
    # Of an IPv4 address or an IPv6 /64, unless it is a proxy: as many as it may have peers.
    max_per_address: int = 1_024


class Doorkeeper:
    """Counts connections by address, for all protocols of one server."""

    def __init__(self, patience: Patience, proxies: Sequence[Network] = ()) -> None:
        self.patience = patience
        self._proxies = proxies
        self._held: Counter[str] = Counter()

    def group_of(self, client: tuple[str, int] | None) -> str:
        """Returns what a connection counts under; "" where that is not known, or a proxy."""
        try:
            host = observed(client[0] if client else "", "", ())
        except ValueError:
            return ""
        address = ipaddress.ip_address(host)
        is_proxy = any(address in network for network in self._proxies)
        return "" if is_proxy else address_group(host)

    def enter(self, group: str, connections: int) -> bool:
        """Returns whether there is room for one more connection, and counts it."""
        self._held[group] += 1
        is_many = bool(group) and self._held[group] > self.patience.max_per_address
        return not is_many and connections <= 2 * self.patience.max_connections

    def leave(self, group: str) -> None:
        """Takes in that a connection has ended."""
        self._held[group] -= 1
        if self._held[group] <= 0:
            del self._held[group]


class TooManyRequests(Exception):
    """Raised into the parser: more requests wait on a connection than may."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with deadlines for request and answer, and limits on what is sent.

    Args:
        doorkeeper: of the server.
        options: of uvicorn's protocol.
    """

    def __init__(self, *, doorkeeper: Doorkeeper, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)  # uvicorn chooses them
        self._doorkeeper = doorkeeper
        self._group = ""
        self._deadline: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None  # until the client must have read
        self._bytes = 0  # of a message that has not ended yet
        self._most_bytes = MAX_HEAD_BYTES
        self._is_whole = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins the deadline of the first request."""
        super().connection_made(transport)
        self._group = self._doorkeeper.group_of(self.client)
        self._set_deadline()
        if not self._doorkeeper.enter(self._group, len(self.connections)):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Takes in bytes of a request, and ends a connection whose head is too large."""
        self._is_whole = False
        self._bytes += len(data)
        super().data_received(data)
        if self._is_whole and not self.transport.is_closing():
            self._clear_deadline()
            return
        if self._deadline is None:  # it ends what is left of a connection that is closing, too
            self._set_deadline()
        if self.transport.is_closing():
            return
        if self._bytes > self._most_bytes:
            if self._most_bytes == MAX_HEAD_BYTES:
                self.transport.write(TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Takes in that a request has begun, and refuses one too many."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise TooManyRequests
        super().on_message_begin()
        self._is_whole = False

    def on_headers_complete(self) -> None:
        """Takes in that a head has ended."""
        super().on_headers_complete()
        self._bytes, self._most_bytes = 0, MAX_REST_BYTES

    def on_message_complete(self) -> None:
        """Takes in that a request has ended."""
        super().on_message_complete()
        self._is_whole = True
        self._bytes, self._most_bytes = 0, MAX_HEAD_BYTES

    def connection_lost(self, exc: Exception | None) -> None:
        """Drops the deadline."""
        self._clear_deadline()
        self.resume_writing()
        self._doorkeeper.leave(self._group)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins the deadline until which the client must have read."""
        super().pause_writing()
        if self._writing is None:
            deadline_s = self._doorkeeper.patience.request_deadline_s
            self._writing = self.loop.call_later(deadline_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Drops that deadline."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection that was idle for too long."""
        self.transport.abort()  # close() would wait for a client that does not read its answer

    def _set_deadline(self) -> None:
        deadline_s = self._doorkeeper.patience.request_deadline_s
        self._deadline = self.loop.call_later(deadline_s, self._give_up)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it listens, and reads its files anew on SIGHUP."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        certificate: "Certificate | None",
        on_hangup: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready, self._certificate = on_ready, certificate
        self._on_hangup = on_hangup

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
            self._on_ready()

    def _hang_up(self) -> None:
        self._on_hangup()
        self._renew()

    def _renew(self) -> None:
        """Shows the certificate that is in the files now, on connections from now on."""
        certificate, context = self._certificate, self.config.ssl
        if certificate is None or context is None:
            return
        try:
            certificate.check()  # by itself first: a half-written pair must not replace a good one
            context.load_cert_chain(certificate.chain, certificate.key, password="")
        except (InputError, OSError) as fault:
            log.error("the certificate stays as it was: %s", fault)  # noqa: TRY400  # no traceback
        else:
            log.info("read the certificate anew")


def listen(host: str, port: int) -> socket.socket:
    """Returns a bound socket; port 0 takes a free one. `::` is all addresses, IPv4 included.

    Args:
        host: an IPv4 or IPv6 address of this machine.
        port: 0..65535; 0 takes a free one.

    Raises:
        InputError: the address is not of this machine, or another process has the port.
    """
    is_all = host == "::" and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_all
        )
    except (OSError, OverflowError) as fault:
        raise InputError(
            wrong(
                "listening address",
                got=f"{host}:{port} ({getattr(fault, 'strerror', None) or fault})",
                allowed="an address of this machine and a free port",
                hint="choose another --port, or end the process that has it",
            )
        ) from fault


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server shows of itself over HTTPS: files in PEM form."""

    chain: Path
    key: Path

    def check(self) -> None:
        """Raises InputError unless the two belong together and can be read."""
        self.context()

    def context(self) -> ssl.SSLContext:
        """Returns what a server of TLS needs.

        Raises:
            InputError: the two do not belong together, or cannot be read.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.chain, self.key, password="")
        except OSError as fault:  # an ssl.SSLError is one
            raise InputError(
                wrong(
                    "--tls-cert and --tls-key",
                    got=f"{self.chain} and {self.key} ({fault.strerror or fault})",
                    allowed="a certificate and its private key, without a password, in PEM form",
                )
            ) from fault
        return context


def serve(  # noqa: PLR0913  # keywords, each of them a different thing
    app: Starlette,
    listener: socket.socket,
    *,
    on_ready: Callable[[str], None],
    patience: Patience | None = None,
    proxies: Sequence[Network] = (),
    certificate: Certificate | None = None,
    on_hangup: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is under way and returns.

    Args:
        app: from `create_app`.
        listener: from `listen`.
        on_ready: called with the URL once requests are answered.
        patience: limits on slow clients.
        proxies: networks of the operator's own, which hold connections for many.
        certificate: to serve HTTPS with; None: HTTP.
        on_hangup: called on SIGHUP, before the certificate is read anew.

    Raises:
        KeyboardInterrupt: it was SIGINT.
    """
    patience = patience or Patience()
    raise_file_limit(2 * patience.max_connections + SPARE_FILES)
    protocol = functools.partial(BoundedProtocol, doorkeeper=Doorkeeper(patience, proxies))
    host, port = listener.getsockname()[:2]
    scheme = "https" if certificate else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
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
        ssl_certfile=certificate.chain if certificate else None,
        ssl_keyfile=certificate.key if certificate else None,
    )
    # uvicorn raises the signal again when it is done; this says that ending was what was wanted.
    before = signal.signal(signal.SIGTERM, lambda *_: log.info("stopped by SIGTERM"))
    try:
        _Server(config, lambda: on_ready(url), certificate, on_hangup).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_file_limit(wanted: int) -> None:
    """Lets this process hold so many connections, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
