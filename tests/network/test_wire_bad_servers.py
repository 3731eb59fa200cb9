"""A server that lies, stalls, dies or babbles costs its puller one deadline at most."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from support.wires import CHUNK, HOST, Server, late, served, server_by_hand
from xxhash import xxh3_128

from p2pl.errors import FrameError, PullError
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.pull import Pulled, Unchanged
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    Busy,
    Chunk,
    Credit,
    Header,
    NotModified,
    Refused,
    VersionOffer,
    encode,
)

pytestmark = pytest.mark.anyio
CHUNKS = 60  # more than a wire takes in before the rest of its loop has had some turns
DATA = bytes(range(256)) * (CHUNKS * CHUNK // 256)
AT_ONCE_S = 30.0  # a stalled machine included; see `patient`


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no time limit but the deadline end a pull within a minute."""
    for name in ("dial.CONNECT_S", "zmtp.HANDSHAKE_S", "wire.HANDSHAKE_S"):
        monkeypatch.setattr(f"p2pl.network.{name}", 60.0)


def offer(server: Server, **changes: object) -> VersionOffer:
    honest = VersionOffer(server.credential(), 1, 1, len(DATA), xxh3_128(DATA).digest())
    return msgspec.structs.replace(honest, **changes)


async def send_chunks(server: Server, route: bytes, count: int) -> None:
    for index in range(count):
        at = index * CHUNK
        await server.send(route, Chunk(at), DATA[at : at + CHUNK])


async def outcome(
    script: Callable[[Server, bytes], Awaitable[None]],
    *,
    deadline_s: float = 5.0,
    have: bytes | None = None,
) -> Pulled | Unchanged:
    """Returns what a wire makes of a server that follows `script`, or raises what it raises."""
    async with served() as me, server_by_hand() as server:

        async def serve() -> None:
            route, _ = await server.next_pull()
            await script(server, route)

        serving = asyncio.create_task(serve())
        try:
            return await me.wire.pull(
                server.address,
                have=have,
                round=0,
                wait_s=0,
                deadline_s=deadline_s,
                size=len(DATA),
            )
        finally:
            serving.cancel()
            results = await asyncio.gather(serving, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError | None) for each in results)


async def test_a_server_that_keeps_to_the_protocol_is_understood() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await send_chunks(server, route, CHUNKS)

    answer = await outcome(script)
    assert isinstance(answer, Pulled)
    assert answer.payload == DATA


@pytest.mark.parametrize("size", [1, len(DATA) - 1, len(DATA) + 1, 1 << 50])
async def test_another_size_than_the_sessions_is_refused_at_once(size: int) -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server, size=size))

    with pytest.raises(FrameError, match=rf"offer\.size: got {size}, allowed {len(DATA)}, by the"):
        await outcome(script)


async def test_bytes_that_do_not_match_the_digest_are_refused() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server, digest=bytes(16)))
        await send_chunks(server, route, CHUNKS)

    with pytest.raises(
        FrameError, match=f"digest: got '{xxh3_128(DATA).hexdigest()}', allowed '?00"
    ):
        await outcome(script)


@pytest.mark.parametrize(
    ("header", "payload", "message"),
    [
        (
            Chunk(CHUNK),
            DATA[:CHUNK],
            f"chunk: got '{CHUNK} bytes at {CHUNK}', allowed {CHUNK} at 0",
        ),
        (Chunk(0), DATA[: CHUNK - 1], f"chunk: got '{CHUNK - 1} bytes at 0'"),
        (Chunk(0), b"", "chunk: got '0 bytes at 0'"),
        (Refused("changed my mind"), None, "refused: 'changed my mind' after 0 of"),
        (Busy(0), None, "answer: got 'Busy', allowed Chunk"),
        (Chunk(0), None, "message: got '1 frames', allowed 2 for a chunk"),
        (Refused("x"), b"x", "message: got '2 frames'"),
        (b"\xff" * 40, None, "header: got"),
        (encode(Credit(1)), None, "header: got"),
    ],
)
async def test_anything_but_the_next_chunk_ends_the_transfer(
    header: Header | bytes, payload: bytes | None, message: str
) -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await server.send(route, header, *([] if payload is None else [payload]))

    with pytest.raises((FrameError, PullError), match=message):
        await outcome(script)


async def test_chunks_out_of_order_are_refused() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await send_chunks(server, route, 2)
        await server.send(route, Chunk(0), DATA[:CHUNK])

    with pytest.raises(FrameError, match=f"chunk: got '{CHUNK} bytes at 0', allowed {CHUNK} at"):
        await outcome(script)


async def test_a_message_larger_than_a_chunk_loses_the_connection() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await server.send(route, Chunk(0), DATA)

    with pytest.raises(PullError, match="unreachable: connection lost"):
        await outcome(script)


async def test_more_than_was_offered_is_never_read() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await send_chunks(server, route, CHUNKS)
        await server.send(route, Chunk(len(DATA)), DATA[:CHUNK])

    answer = await outcome(script)
    assert isinstance(answer, Pulled)
    assert answer.payload == DATA


@pytest.mark.parametrize("chunks", [0, 3])
async def test_a_server_that_stops_in_mid_transfer_costs_the_deadline_and_no_more(
    chunks: int,
) -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await send_chunks(server, route, chunks)
        await asyncio.Event().wait()

    await late(
        lambda deadline_s: outcome(script, deadline_s=deadline_s),
        f"{chunks * CHUNK} of {len(DATA)} bytes",
    )


async def test_a_server_that_never_answers_costs_the_deadline() -> None:
    async def script(server: Server, route: bytes) -> None:
        await asyncio.Event().wait()

    with pytest.raises(PullError, match=r"late: no answer after 0\.3 s"):
        await outcome(script, deadline_s=0.3)


async def test_a_server_that_is_always_busy_costs_the_deadline_and_is_not_pestered() -> None:
    asked = 0

    async def script(server: Server, route: bytes) -> None:
        nonlocal asked
        while True:
            asked += 1
            await server.send(route, Busy(0))
            route, _ = await server.next_pull()

    async def ask(deadline_s: float) -> None:
        nonlocal asked
        asked = 0
        await outcome(script, deadline_s=deadline_s)

    deadline_s = await late(ask, "busy")
    assert 1 <= asked <= 1 + deadline_s / 0.05


async def test_not_modified_is_no_answer_to_someone_who_has_nothing() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, NotModified(server.credential(), 1))

    with pytest.raises(FrameError, match="holds no version"):
        await outcome(script)
    assert isinstance(await outcome(script, have=bytes(16)), Unchanged)


async def test_a_chunk_without_an_offer_is_refused() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, Chunk(0), DATA[:CHUNK])

    with pytest.raises(FrameError, match="answer: got 'a chunk', allowed an offer before it"):
        await outcome(script)


async def test_a_server_that_sends_everything_and_is_gone_has_done_its_part() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server))
        await send_chunks(server, route, CHUNKS)
        server.socket.close(linger=5_000)
        time.sleep(0.3)  # noqa: ASYNC251  # chunks and the end of the connection come in together

    answer = await outcome(script)
    assert isinstance(answer, Pulled)
    assert answer.payload == DATA


async def test_a_header_larger_than_a_header_is_refused() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, bytes(3_000))

    with pytest.raises(FrameError, match="header: got '3000 bytes', allowed at most 2048"):
        await outcome(script)


async def test_a_card_of_another_session_is_refused() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, offer(server, credential=server.credential(session_id="cd" * 32)))

    with pytest.raises(FrameError, match=r"credential\.session"):
        await outcome(script)


async def test_a_card_taken_from_another_connection_is_refused() -> None:
    victim, keys = Identity.generate(), CurveKeys.generate()

    async def script(server: Server, route: bytes) -> None:
        stolen = server.credential(identity=victim, curve_key=keys.public)
        await server.send(route, offer(server, credential=stolen))

    with pytest.raises(FrameError, match=r"credential\.curve_key"):
        await outcome(script)


async def test_an_unsigned_card_is_refused_even_with_nothing_to_send() -> None:
    async def script(server: Server, route: bytes) -> None:
        forged = msgspec.structs.replace(server.credential(), port=9)
        await server.send(route, NotModified(forged, 1))

    with pytest.raises(FrameError, match=r"credential\.signature"):
        await outcome(script, have=bytes(16))


async def test_a_tracker_that_gives_my_key_another_id_cannot_make_me_someone_else() -> None:
    async with served() as me, server_by_hand() as server:
        victim = Identity.generate().peer_id
        address = msgspec.structs.replace(server.address, id=victim)
        pull = asyncio.create_task(
            me.wire.pull(address, have=None, round=0, wait_s=0, deadline_s=5, size=len(DATA))
        )
        route, _ = await server.next_pull()
        await server.send(route, offer(server))
        with pytest.raises(FrameError, match=f"peer id: got '{server.identity.peer_id}'"):
            await pull
        assert me.wire.traffic.garbage == 1
        assert not me.wire.traffic.garbage_by_peer, "nobody has proved to be anybody"


async def test_a_broken_frame_is_held_against_the_peer_that_sent_it() -> None:
    async with served() as me, server_by_hand() as server:
        pull = asyncio.create_task(
            me.wire.pull(server.address, have=None, round=0, wait_s=0, deadline_s=5, size=len(DATA))
        )
        route, _ = await server.next_pull()
        await server.send(route, offer(server))
        await server.send(route, b"babble")
        with pytest.raises(FrameError, match="header"):
            await pull
        assert me.wire.traffic.garbage_by_peer == {server.identity.peer_id: 1}


async def pull_from(host: str, port: int, *, deadline_s: float, match: str) -> float:
    """Returns the seconds that it took to give up on something that is not a peer."""
    keys = CurveKeys.generate()
    address = PeerAddress(
        id=Identity.generate().peer_id, host=host, port=port, curve_key=keys.public
    )
    async with served() as me:
        began_s = time.monotonic()
        with pytest.raises(PullError, match=match):
            await me.wire.pull(address, have=None, round=0, wait_s=0, deadline_s=deadline_s, size=1)
        return time.monotonic() - began_s


@pytest.mark.usefixtures("patient")
async def test_a_peer_that_is_gone_is_noticed_at_once() -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    assert await pull_from(HOST, port, deadline_s=60, match="unreachable") < AT_ONCE_S


@pytest.mark.usefixtures("patient")
async def test_a_peer_with_another_curve_key_than_told_is_noticed_at_once() -> None:
    async with served() as other:
        port = other.address.port
        assert await pull_from(HOST, port, deadline_s=60, match="unreachable") < AT_ONCE_S


async def test_something_that_accepts_and_never_answers_costs_the_deadline() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        await pull_from(HOST, port, deadline_s=0.4, match=r"late: no answer after 0\.4 s")


@pytest.mark.usefixtures("patient")
async def test_something_that_answers_in_another_protocol_is_noticed_at_once() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
        with contextlib.suppress(ConnectionError):
            await reader.read(10_000)
        writer.close()

    listener = await asyncio.start_server(babble, HOST, 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        assert await pull_from(HOST, port, deadline_s=60, match="unreachable") < AT_ONCE_S


async def test_a_name_is_never_looked_up() -> None:
    await pull_from(
        "tracker.example", 80, deadline_s=10, match="address: host: got 'tracker.example'"
    )


@pytest.mark.parametrize("key", ["#" * 40, "0" * 40, "%nSc0" * 8, "%nSc1" * 8])
@pytest.mark.parametrize("host", [HOST, "0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "fe80::1"])
async def test_whatever_address_is_dialled_it_costs_that_address(host: str, key: str) -> None:
    address = PeerAddress(id="cd" * 32, host=host, port=9, curve_key=key)
    async with served() as me:
        with pytest.raises((PullError, FrameError)):
            await me.wire.pull(address, have=None, round=0, wait_s=0, deadline_s=1, size=9)
        with pytest.raises((PullError, FrameError)):
            await me.wire.ping(address, deadline_s=1)


async def test_a_dial_without_a_descriptor_left_costs_that_dial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served() as me, server_by_hand() as server:

        class Full(socket.socket):
            def __init__(self, *_: object) -> None:
                raise OSError(errno.EMFILE, "too many")

        monkeypatch.setattr("p2pl.network.dial.socket.socket", Full)
        with pytest.raises(PullError, match="Too many open files"):
            await me.wire.pull(server.address, have=None, round=0, wait_s=0, deadline_s=1, size=9)
        with pytest.raises(PullError, match="Too many open files"):
            await me.wire.tell(server.address, b"x", deadline_s=1)


async def test_a_reason_with_an_escape_in_it_moves_no_cursor() -> None:
    async def script(server: Server, route: bytes) -> None:
        await server.send(route, Refused("\x1b[2J\x1b]0;owned\x07 \u202eno"))

    with pytest.raises(PullError) as caught:
        await outcome(script)
    assert str(caught.value).isprintable()
