"""Reaches a relay by WebSocket over TLS: what only needs a way out to port 443.

Where the environment names a proxy for HTTPS, it goes through that, as trackers are asked: many a
network that lets out nothing else lets out HTTPS by a proxy alone.
"""

import contextlib
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import (
    InvalidHandshake,
    InvalidProxy,
    InvalidURI,
    ProxyError,
    WebSocketException,
)

from p2pl.errors import ProtocolError
from p2pl.network import web
from p2pl.protocol.endpoint import Endpoint, joined
from p2pl.rendezvous.websocket import SETTINGS, Straight, WebSocketPipe

OPEN_S = 15.0  # for TCP, TLS and the WebSocket
Runs: TypeAlias = Callable[[Coroutine[Any, Any, None]], object]


class _Pipe(WebSocketPipe):
    """The client's end, which closes the connection itself."""

    def __init__(self, there: ClientConnection, host: str, run: Runs) -> None:
        super().__init__(there, host)
        self._client, self._run = there, run

    def close(self) -> None:
        """Closes the connection in the background, once what was sent is on its way."""
        self._run(self._closed())

    async def _closed(self) -> None:
        try:
            with contextlib.suppress(WebSocketException, OSError):
                await self._client.close()
        finally:
            self._client.transport.abort()


async def open_web_socket(
    relay: Endpoint, trust: ssl.SSLContext | None, run: Runs
) -> WebSocketPipe:
    """Returns a connection to a relay.

    Args:
        relay: of the kind `relays`.
        trust: whom TLS trusts; None: the authorities of this machine.
        run: runs a coroutine in the background, to its end or until the run of the peer ends.

    Raises:
        OSError: it cannot be reached, is not trusted, or the proxy of the environment is of no use.
        ProtocolError: there is no relay.
    """
    proxy = web.proxy_for(relay.host, relay.port)
    named = f"the proxy {web.without_password(proxy or '')} (HTTPS_PROXY, ALL_PROXY)"
    try:
        there = await Straight(
            f"wss://{joined(relay.host, relay.port)}/",
            ssl=trust or web.trust(None),
            proxy=proxy,
            open_timeout=OPEN_S,
            user_agent_header="p2pl",
            **SETTINGS,
        )
    except ssl.SSLError as fault:
        raise OSError(fault.errno, f"{fault.reason or fault}{web.advice(fault)}") from fault
    except ImportError as fault:
        hint = "pip install 'python-socks[asyncio]' brings SOCKS; or unset the variable"
        raise OSError(0, f"{named} cannot be used: {hint}") from fault
    except (ProxyError, InvalidProxy) as fault:
        raise OSError(0, f"{named} does not lead there: {_words(fault)}") from fault
    except (InvalidHandshake, InvalidURI) as fault:
        raise ProtocolError(f"no WebSocket ({fault})") from fault
    return _Pipe(there, relay.host, run)


def _words(fault: WebSocketException) -> str:
    """Returns what is wrong with a proxy, without its password."""
    return f"{fault.msg}; or unset the variable" if isinstance(fault, InvalidProxy) else str(fault)
