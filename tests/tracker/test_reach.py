"""The tracker dials back: once, where the question comes from, and says no more than yes or no."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest
from support.announces import NOW_S, Clock, Speaker

from p2pl.errors import AnnounceError, ProtocolError
from p2pl.protocol import reach
from p2pl.protocol.reach import GREETING, AskReach, Reached
from p2pl_tracker import reach as back
from p2pl_tracker.app import create_app
from p2pl_tracker.reach import DIALS_AT_ONCE, Dialler

pytestmark = pytest.mark.anyio
HOST = "127.0.0.1"
ONE = Speaker(1)


def asks(port: int, **changes: object) -> bytes:
    question = AskReach(public_key=ONE.public_key, port=port, time_s=NOW_S)
    return reach.encode(msgspec.structs.replace(question, **changes), ONE.key)


async def post(app: object, body: bytes, host: str = HOST) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(host, 40_000))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
        return await client.post("/reach", content=body)


def tracker() -> object:
    clock = Clock()
    return create_app(now=clock, wall=clock)


@contextlib.asynccontextmanager
async def saying(data: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Yields the port of a program that says `data` to whoever connects, and what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        with contextlib.suppress(OSError):
            heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


async def reached(data: bytes) -> tuple[Reached, list[bytes]]:
    async with saying(data) as (port, heard):
        answer = reach.decode_answer((await post(tracker(), asks(port))).content)
        assert (answer.host, answer.port) == (HOST, port)
    return answer, heard


@pytest.mark.parametrize("length", [0, 1])
async def test_a_listener_that_greets_as_peers_do_is_reached_and_nothing_is_said_to_it(
    length: int,
) -> None:
    greeting = GREETING[:8] + bytes([length]) + GREETING[9:]  # older ones count what follows
    answer, heard = await reached(greeting + b"and more")
    assert (answer.is_reached, answer.reason) == (True, "")
    assert b"".join(heard) == b""


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail.example ESMTP\r\n", b"\xff" * 10]
)
async def test_another_program_is_no_peer_and_what_it_says_is_not_passed_on(data: bytes) -> None:
    answer, _ = await reached(data)
    assert (answer.is_reached, answer.reason) == (False, back.OTHER)


async def test_a_program_that_says_nothing_or_hangs_up_is_no_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(back, "GREETING_S", 0.05)
    assert (await reached(b""))[0].reason == back.OTHER
    assert (await reached(GREETING[:9]))[0].reason == back.OTHER


async def test_a_port_where_nobody_listens_is_not_reached() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    answer = reach.decode_answer((await post(tracker(), asks(port))).content)
    assert (answer.is_reached, answer.reason) == (False, back.REFUSED)


async def test_nobody_names_another_machine_to_dial() -> None:
    fields = json.loads(asks(9_000))
    body = json.dumps({**fields, "host": "198.51.100.7"}, separators=(",", ":")).encode()
    assert (await post(tracker(), body)).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (asks(9_000).replace(b"9000", b"9001"), 401),
        (asks(9_000, time_s=NOW_S - 301), 403),
        (asks(9_000, time_s=NOW_S + 301), 403),
        (asks(9_000) + b" ", 400),
        (asks(9_000).replace(b"9000", b"0"), 422),
        (b"", 400),
        (b"[" * 400, 422),
        (b"x" * 600, 413),
        (b"x" * 4_000, 413),
    ],
)
async def test_a_question_that_is_none_is_refused_and_nobody_is_dialled(
    body: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(back, "_dial")
    assert (await post(tracker(), body)).status_code == status


async def test_who_asks_from_where_nobody_could_be_dialled_is_told_so() -> None:
    assert (await post(tracker(), asks(9_000), "169.254.1.1")).status_code == 403


async def test_an_address_is_dialled_so_often_and_then_has_to_wait() -> None:
    clock = Clock()
    dialler = Dialler(now=clock)
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    for _ in range(DIALS_AT_ONCE):
        await dialler.dial(HOST, port)
    with pytest.raises(AnnounceError, match="too many requests from this address") as caught:
        await dialler.dial(HOST, port)
    assert caught.value.status == 429
    clock.advance(caught.value.retry_in_s or 0.0)
    await dialler.dial(HOST, port)


async def test_so_many_are_dialled_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def silent(host: str, port: int) -> str:
        await gate.wait()
        return back.SILENT

    monkeypatch.setattr(back, "_dial", silent)
    dialler = Dialler(now=Clock())
    hosts = [f"192.0.2.{number}" for number in range(back.MAX_DIALS)]
    dialling = [asyncio.create_task(dialler.dial(host, 1)) for host in hosts]
    await asyncio.sleep(0)
    with pytest.raises(AnnounceError) as caught:
        await dialler.dial("198.51.100.7", 1)
    assert caught.value.status == 503
    gate.set()
    await asyncio.gather(*dialling)
    await dialler.dial("198.51.100.7", 1)


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 1_000, b"x" * 3_000, b'{"host":1}'])
async def test_an_answer_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="reach"):
        reach.decode_answer(body)
