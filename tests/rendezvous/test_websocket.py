"""A WebSocket is one stream of bytes: what was posted comes before what is sent afterwards."""

import asyncio
import http
from pathlib import Path

import pytest
from support.relays import HOST, certificate
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

from p2pl.rendezvous.websocket import SETTINGS, Straight, WebSocketPipe

PIECES = [b"1", b"23", b"4" * 5_000]


def test_bytes_come_in_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    paper = certificate(tmp_path)

    async def attend(there: ServerConnection) -> None:
        pipe = WebSocketPipe(there)
        pipe.post(PIECES[0])
        pipe.post(PIECES[1])
        await pipe.send(memoryview(PIECES[2]))

    async def scenario() -> bytes:
        heard = b""
        async with serve(attend, HOST, 0, ssl=paper.server, **SETTINGS) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            url = f"wss://{HOST}:{port}/"
            async with connect(url, ssl=paper.client, proxy=None, **SETTINGS) as there:
                pipe = WebSocketPipe(there)
                async with asyncio.timeout(20):
                    while data := await pipe.receive(1_000):
                        assert len(data) <= 1_000
                        heard += data
        return heard

    assert asyncio.run(scenario()) == b"".join(PIECES)


@pytest.mark.parametrize("place", ["/elsewhere", "wss://[::1/", "wss://a..b/"])
def test_a_redirect_is_not_followed(tmp_path: Path, place: str) -> None:
    paper, asked = certificate(tmp_path), list[str]()

    def redirect(there: ServerConnection, request: Request) -> Response:
        asked.append(request.path)
        answer = there.respond(http.HTTPStatus.FOUND, "elsewhere")
        answer.headers["Location"] = place
        return answer

    async def attend(_: ServerConnection) -> None:
        pytest.fail("nobody is let in")

    async def scenario() -> None:
        async with serve(attend, HOST, 0, ssl=paper.server, process_request=redirect) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            await Straight(f"wss://{HOST}:{port}/", ssl=paper.client, proxy=None, **SETTINGS)

    with pytest.raises(InvalidStatus, match="302"):
        asyncio.run(scenario())
    assert asked == ["/"]
