"""Fetching a file that a stranger's session file names, from servers that lie, drip and point."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pl.errors import InputError, NetworkError
from p2pl.network import download as module
from p2pl.network.download import download

pytestmark = pytest.mark.anyio

PAYLOAD = b"weights" * 100


class Mirror:
    """Answers each path as the test says, and remembers who asked for what."""

    def __init__(self, **answers: bytes) -> None:
        self.answers = answers
        self.heads: list[bytes] = []
        self.serving: set[asyncio.Task[None] | None] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        return [head.split(b" ")[1].decode() for head in self.heads]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            name = head.split(b" ")[1].decode().strip("/").split("?")[0]
            answer = self.answers.get(name, status("404 Not Found"))
            writer.write(answer)
            await writer.drain()
            if name == "drip":
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def status(line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {line}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(to: str) -> bytes:
    return status("302 Found", f"location: {to}")


@contextlib.asynccontextmanager
async def mirror(**answers: bytes) -> AsyncIterator[Mirror]:
    made = Mirror(**answers)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await asyncio.gather(*(task for task in made.serving if task))


async def fetch(url: str, authorities: Path | None = None) -> bytes:
    return await download(url, len(PAYLOAD), name="model.bin", authorities=authorities)


async def test_a_file_comes_as_it_is_and_a_folder_holds_it_by_its_name() -> None:
    async with mirror(good=status("200 OK", body=PAYLOAD)) as one:
        assert await fetch(f"{one.url}/good") == PAYLOAD
        one.answers["folder/model.bin"] = status("200 OK", body=PAYLOAD)
        assert await fetch(f"{one.url}/folder/") == PAYLOAD
        assert f"host: 127.0.0.1:{one.port}\r\n".encode() in one.heads[0].lower()
        with pytest.raises(NetworkError, match="404 Not Found"):
            await fetch(f"{one.url}/none")


async def test_no_proxy_of_the_environment_is_used_and_no_certificate_of_it_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080/")
    monkeypatch.setenv("SSL_CERT_FILE", "/gone.pem")
    async with mirror(good=status("200 OK", body=PAYLOAD)) as one:
        assert await fetch(f"{one.url}/good", Path("/gone.pem")) == PAYLOAD
    with pytest.raises(InputError, match=r"--ca.*/gone\.pem"):
        await fetch("https://127.0.0.1:1/good", Path("/gone.pem"))


async def test_what_is_packed_or_longer_than_promised_is_refused_unread() -> None:
    bomb = gzip.compress(gzip.compress(bytes(1 << 20)))
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with mirror(
        bomb=status("200 OK", "content-encoding: gzip, gzip", body=bomb),
        declared=b"HTTP/1.1 200 OK\r\ncontent-length: 701\r\n\r\n",
        endless=chunked + (b"40\r\n" + b"x" * 64 + b"\r\n") * 100,
    ) as one:
        with pytest.raises(NetworkError, match="content-encoding: got 'gzip, gzip'"):
            await fetch(f"{one.url}/bomb")
        for name in ("declared", "endless"):
            with pytest.raises(NetworkError, match="over 700 bytes"):
                await fetch(f"{one.url}/{name}")


async def test_a_body_that_drips_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.3)
    async with mirror(drip=b"HTTP/1.1 200 OK\r\ncontent-length: 700\r\n\r\n") as one:
        with pytest.raises(NetworkError, match="not all there after"):
            await fetch(f"{one.url}/drip")


async def test_a_redirect_may_not_lead_into_a_private_network() -> None:
    async with mirror() as inside, mirror() as one:
        one.answers = {
            "inside": redirect(f"{inside.url}/admin/delete?all=1"),
            "file": redirect("file:///etc/passwd"),
            "name": redirect("http://xn--/"),
            "round": redirect("/round"),
            "once": redirect("/good"),
            "good": status("200 OK", body=PAYLOAD),
        }
        with pytest.raises(NetworkError, match=r"redirect: got .*an address of the internet"):
            await fetch(f"{one.url}/inside")
        assert inside.heads == []
        with pytest.raises(NetworkError, match=r"redirect: .*file:"):
            await fetch(f"{one.url}/file")
        with pytest.raises(NetworkError, match="Malformed A-label"):
            await fetch(f"{one.url}/name")
        assert await fetch(f"{one.url}/once") == PAYLOAD
        before = len(one.heads)
        with pytest.raises(NetworkError, match="redirects: got 'more'"):
            await fetch(f"{one.url}/round")
        assert len(one.heads) == before + 1 + module.MAX_REDIRECTS


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://224.0.0.1/", "http://0.0.0.0/",
     "http://[::ffff:169.254.169.254]/"],
)  # fmt: skip
async def test_an_address_of_no_web_server_is_not_asked(url: str) -> None:
    with pytest.raises(NetworkError, match="allowed one of a web server"):
        await fetch(url)


@pytest.mark.parametrize(
    "url",
    ["http://a.b\u3002c\u2044x/", "http://xn--/", "http://a..b/", f"http://{'a' * 70}.b/",
     "http://h:65536/", "http://[v1.x]/", "http://%/"],
)  # fmt: skip
async def test_a_url_that_is_none_is_a_refusal(url: str) -> None:
    with pytest.raises(NetworkError):
        await fetch(url)
