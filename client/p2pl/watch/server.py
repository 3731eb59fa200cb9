"""The page's server: where it listens, which address a person opens, and how it ends."""

import secrets
import socket
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from p2pl.errors import InputError, wrong
from p2pl.watch.app import make_app
from p2pl.watch.hub import Hub

TOKEN_BYTES = 24  # 192 bits: nobody guesses it
GRACE_S = 1  # for browsers that are being sent something when the server ends
BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where the page is served, and how it is called.

    Attributes:
        listening: the socket.
        url: to open, with the token where there is one.
        hosts: HOST:PORT that a browser may call it by.
        token: that must be shown; "": none, for only this machine can ask.
    """

    listening: socket.socket
    url: str
    hosts: frozenset[str]
    token: str


def listen(host: str, port: int) -> Place:
    """Returns where the page will be served; nobody is answered yet, and nobody is turned away.

    Args:
        host: an address of this machine, or its name.
        port: 0..65535; 0: any free one.

    Raises:
        InputError: nothing can listen there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as fault:
        raise InputError(
            wrong(
                "--host, --port",
                got=f"{host}, {port}",
                allowed=f"an address of this machine, and a port that is free ({fault})",
            )
        ) from fault
    return placed(listening, host)


def placed(listening: socket.socket, host: str = "") -> Place:
    """Returns how a socket that listens is called; one that others can reach gets a token.

    Args:
        listening: the socket.
        host: as the person called it; "": its address.
    """
    address, port = listening.getsockname()[:2]
    name = host or address
    shown = f"[{name}]" if ":" in name else name
    if ip_address(address.partition("%")[0]).is_loopback:
        own = {f"{one}:{port}" for one in (shown.lower(), "localhost", "127.0.0.1", "[::1]")}
        return Place(listening, f"http://{shown}:{port}/", frozenset(own), "")
    if ip_address(address.partition("%")[0]).is_unspecified:
        shown = socket.gethostname()
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return Place(listening, f"http://{shown}:{port}/?token={token}", frozenset(), token)


def serve(paths: Sequence[Path], place: Place, stopping: threading.Event | None = None) -> None:
    """Shows runs until Ctrl-C, or until it is told to stop.

    Args:
        paths: run directories, or folders of them; they need not be there yet.
        place: where.
        stopping: set by who wants the end; None: Ctrl-C or SIGTERM alone.
    """
    hub = Hub(paths)
    server = _Server(
        uvicorn.Config(
            make_app(hub, place.hosts, place.token),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=GRACE_S,
        ),
        hub,
    )
    with closing(place.listening):
        hub.start()
        if stopping is not None:
            threading.Thread(target=server.stop_after, args=(stopping,), daemon=True).start()
        try:
            server.run(sockets=[place.listening])
        except KeyboardInterrupt:  # raised again by uvicorn once all is closed
            pass
        finally:
            hub.stop()


class _Server(uvicorn.Server):
    """A server whose streams of events end when it is to end, as they never would by themselves."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    def stop_after(self, stopping: threading.Event) -> None:
        """Ends the server once the event is set."""
        stopping.wait()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends all streams, then the server."""
        self._hub.end()
        await super().shutdown(sockets)
