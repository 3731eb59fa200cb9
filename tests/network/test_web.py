"""Proxies: those of the environment, as users of httpx expect, and never for this machine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from p2pl.errors import InputError
from p2pl.network import web

pytestmark = pytest.mark.anyio
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yields the URL of a proxy that answers by itself, and the first lines of requests."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.splitlines()[0])
        writer.write(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def test_a_tracker_elsewhere_is_asked_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "http://tracker.example:8000/announce"
    async with proxy() as (where, asked):
        monkeypatch.setenv("http_proxy", where)
        async with web.client(web.trust(None), [url], deadline_s=20.0) as client:
            assert (await client.get(url)).status_code == 204
        assert asked == [f"GET {url} HTTP/1.1".encode()]
    assert web.is_proxied(httpx.URL(url))


async def test_what_is_on_this_machine_or_in_no_proxy_is_asked_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy() as (there, asked):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "tracker.example")
        urls = [there, "http://tracker.example"]
        async with web.client(web.trust(None), urls, deadline_s=20.0) as client:
            assert (await client.get(f"{there}/announce")).status_code == 204
        assert asked == [b"GET /announce HTTP/1.1"]
    assert not web.is_proxied(httpx.URL(there))
    assert not web.is_proxied(httpx.URL("http://tracker.example/announce"))
    assert web.is_proxied(httpx.URL("http://another.example/announce"))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("socks5://me:secret@127.0.0.1:1080", r"pip install 'httpx\[socks\]'"),
        ("ftp://127.0.0.1:1080", "http://HOST:PORT"),
    ],
)
async def test_a_proxy_that_cannot_be_used_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, named: str, words: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", named)
    with pytest.raises(InputError, match=words) as caught:
        web.client(web.trust(None), ["http://tracker.example"], deadline_s=1.0)
    assert "secret" not in str(caught.value)
    assert "unset the variable" in str(caught.value)
    async with web.client(web.trust(None), ["http://127.0.0.1:8000"], deadline_s=1.0):
        pass  # on this machine alone, nobody asks a proxy
