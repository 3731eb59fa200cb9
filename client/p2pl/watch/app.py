"""What a browser is answered: the page, its files, and the events of the runs.

Nothing is asked of anybody else: the policy in each answer's head forbids the page to load anything
from elsewhere. A request must name this machine as its host, or show the token: else a web site
that has its name lead to 127.0.0.1 could read along (DNS rebinding).
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from importlib import resources, util
from pathlib import Path
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pl import __version__
from p2pl.watch.hub import Hub

POLL_S = 0.05  # between two looks at whether there is something new to send
BEAT_S = 15.0  # of silence after which something is sent, so that a lost browser is noticed
MAX_SENT_BYTES = 256 << 10  # at once
MAX_BROWSERS = 16  # that are sent events at the same time
COOKIE = "p2pl-watch"
SCRIPT = "text/javascript; charset=utf-8"
FILES: Mapping[str, str] = {
    "": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": SCRIPT,
    "runs.js": SCRIPT,
    "draw.js": SCRIPT,
    "figures.js": SCRIPT,
    "icon.svg": "image/svg+xml",
}
# Plotly gives what it draws inline styles; scripts come from here alone, and are files.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(hub: Hub, hosts: frozenset[str], token: str = "") -> ASGIApp:
    """Returns the application that shows the runs of a hub.

    Args:
        hub: of the runs.
        hosts: HOST:PORT by which a browser may call it, in small letters.
        token: that each request must show, whatever its host; "": the host is enough.

    Raises:
        ModuleNotFoundError: Plotly is not installed.
    """
    browsers = asyncio.Semaphore(MAX_BROWSERS)
    plotly = plotly_file()

    async def events(request: Request) -> Response:
        if browsers.locked():
            return PlainTextResponse("Too many browsers look at this page.\n", 503)
        kept = {"Cache-Control": "no-store"}
        return StreamingResponse(
            _stream(hub, browsers), media_type="text/event-stream", headers=kept
        )

    async def script(request: Request) -> Response:
        kept = {"Cache-Control": "max-age=3600"}
        return FileResponse(plotly, media_type=SCRIPT, headers=kept)

    return Guard(
        Starlette(
            routes=[
                Route("/events", events),
                Route("/plotly.js", script),
                *(Route(f"/{name}", _file(name, kind)) for name, kind in FILES.items()),
            ]
        ),
        hosts,
        token,
    )


async def _stream(hub: Hub, browsers: asyncio.Semaphore) -> AsyncIterator[bytes]:
    """Yields all events so far, in parts, and then each as it comes, until the hub is stopped."""
    async with browsers:
        hello = msgspec.json.encode({"version": __version__})
        yield b"retry: 1000\nevent: hello\ndata: %s\n\n" % hello
        sent, silent_s = 0, 0.0
        while not hub.is_stopped:
            part, size = [], 0
            while sent < len(hub.events) and size < MAX_SENT_BYTES:
                part.append(hub.events[sent])
                size += len(part[-1])
                sent += 1
            if part:
                silent_s = 0.0
                yield b"".join(part)
                continue
            await asyncio.sleep(POLL_S)
            silent_s += POLL_S
            if silent_s >= BEAT_S:
                silent_s = 0.0
                yield b": still here\n\n"


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns what answers with a file of the page, which is read once."""
    text = resources.files("p2pl.watch").joinpath("page", name or "index.html").read_bytes()

    async def answer(request: Request) -> Response:
        return Response(text, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer


class Guard:
    """Lets requests through to an application that come from a page of its own."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str], token: str) -> None:
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        """Returns the answer to who may not look, or is to call again; None: let it through."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}":
            return PlainTextResponse("This page is asked by itself alone.\n", 403)
        if not self._token:
            if host in self._hosts:
                return None
            return PlainTextResponse("Unknown host: open the address that p2pl printed.\n", 403)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self._token.encode()):
            cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            # The token leaves the address, so that no screenshot or history has it.
            return Response(status_code=303, headers={"Location": "./", "Set-Cookie": cookie})
        kept = _cookie(headers.get("cookie", ""))
        if hmac.compare_digest(kept.encode(), self._token.encode()):
            return None
        return PlainTextResponse("Open the address that p2pl printed, with its token.\n", 403)


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def plotly_file() -> Path:
    """Returns where Plotly's JavaScript is; the package is looked up, and not imported.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    found = util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
    return Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
