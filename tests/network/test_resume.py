"""A transfer that broke goes on where it broke; connections are kept for the next pull."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import zmq
from msgspec.structs import replace
from support.wires import CHUNK, HOST, Served, puller_by_hand, served, until

from p2pl.errors import FrameError, PullError
from p2pl.network.pull import Pulled
from p2pl.network.version import Version
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import Chunk, Refused, Resume, VersionOffer

pytestmark = pytest.mark.anyio
CHUNKS = 40
DATA = b"".join(bytes([index]) * CHUNK for index in range(CHUNKS))
OTHER = DATA[::-1]


@dataclass
class Cutter:
    """A loopback line that breaks for good after so many bytes from the far end, each time."""

    port: int = 0
    cuts: list[int] = field(default_factory=list)  # of the connections to come; then it holds
    connections: int = 0
    passed: int = 0
    refuses: bool = False


@asynccontextmanager
async def cutting(port: int, cuts: list[int]) -> AsyncIterator[Cutter]:
    """Yields a line to a port that is cut, and one that can be dialled again at once."""
    line = Cutter(cuts=cuts)
    tasks: set[asyncio.Task[None]] = set()
    ends: list[asyncio.StreamWriter] = []

    async def pump(
        reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter], most: int | None
    ) -> None:
        left = most
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(16_384):
                data = data if left is None else data[:left]
                left = None if left is None else left - len(data)
                line.passed += len(data) if most is not None else 0
                writers[0].write(data)
                await writers[0].drain()
                if left == 0:
                    break
        for writer in writers:
            writer.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line.connections += 1
        if line.refuses:
            writer.transport.abort()
            return
        most = line.cuts.pop(0) if line.cuts else 1 << 40
        there = await asyncio.open_connection(HOST, port)
        ends.extend((writer, there[1]))
        for one in (
            pump(there[0], [writer, there[1]], most),
            pump(reader, [there[1], writer], None),
        ):
            tasks.add(asyncio.create_task(one))

    server = await asyncio.start_server(accept, HOST, 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        await asyncio.sleep(0)


async def pull(me: Served, address: PeerAddress, *, round: int = 0) -> Pulled:
    answer = await me.wire.pull(
        address, have=None, round=round, wait_s=0, deadline_s=30, size=len(DATA)
    )
    assert isinstance(answer, Pulled)
    return answer


async def test_what_broke_is_taken_up_at_the_chunk_where_it_broke() -> None:
    cuts = [10 * CHUNK, 5 * CHUNK, 20 * CHUNK]
    async with served() as alice, served() as bob, cutting(alice.wire.port, cuts) as line:
        await alice.wire.publish(Version(3, 7, DATA, b"notes"))
        pulled = await pull(bob, replace(alice.address, port=line.port))
        assert pulled.payload == DATA
        assert (pulled.round, pulled.notes) == (3, b"notes")
        assert line.connections == 4
        # Less than a chunk and a handshake is lost each time.
        assert bob.wire.traffic.bytes_in < len(DATA) + 10_000
        assert line.passed < len(DATA) + 3 * (CHUNK + 4_096) + 20_000


async def test_blobs_and_checkpoints_are_taken_up_as_well() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish_checkpoint(DATA)
        await alice.wire.put_blob(b"n" * 16, OTHER)
        async with cutting(alice.wire.port, [9 * CHUNK, 1 << 40, 9 * CHUNK]) as line:
            address = replace(alice.address, port=line.port)
            checkpoint = await bob.wire.pull_checkpoint(address, size=len(DATA), deadline_s=30)
            assert checkpoint == DATA
        async with cutting(alice.wire.port, [9 * CHUNK]) as line:
            address = replace(alice.address, port=line.port, curve_key=alice.address.curve_key)
            bob.wire._puller.close()  # else the connection that is kept is used
            blob = await bob.wire.fetch_blob(address, b"n" * 16, size=len(OTHER), deadline_s=30)
            assert blob.payload == OTHER
            assert line.connections == 2


async def test_another_version_is_pulled_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pl.network.pull.REOPEN_PAUSES_S", [0.02] * 500)
    async with served() as alice, served() as bob, cutting(alice.wire.port, [9 * CHUNK]) as line:
        await alice.wire.publish(Version(1, 1, DATA))
        pulling = asyncio.create_task(pull(bob, replace(alice.address, port=line.port)))
        await until(lambda: line.connections)
        line.refuses = True
        await until(lambda: line.connections > 1)
        await alice.wire.publish(Version(2, 1, OTHER))
        line.refuses = False
        pulled = await pulling
        assert pulled.round == 2
        assert pulled.payload == OTHER


async def test_a_peer_that_cannot_resume_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as bob:
        monkeypatch.setattr("p2pl.network.wire.PROPERTY", "X-other")
        async with served() as alice, cutting(alice.wire.port, [10 * CHUNK]) as line:
            await alice.wire.publish(Version(1, 1, DATA))
            address = replace(alice.address, port=line.port)
            with pytest.raises(PullError, match=r"^unreachable: connection lost$"):
                await pull(bob, address)
            assert line.connections == 1
            assert alice.wire.traffic.garbage == 0
            assert (await pull(bob, address)).payload == DATA


async def test_who_brings_no_chunk_more_is_not_asked_for_ever() -> None:
    cuts = [10 * CHUNK, *[8_000] * 50]
    async with served() as alice, served() as bob, cutting(alice.wire.port, cuts) as line:
        await alice.wire.publish(Version(1, 1, DATA))
        with pytest.raises(PullError, match=r"^unreachable: connection lost$"):
            await pull(bob, replace(alice.address, port=line.port))
        assert line.connections == 2


async def test_a_peer_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pl.network.pull.REOPEN_PAUSES_S", (0.0, 0.01))
    async with served() as alice, served() as bob, cutting(alice.wire.port, [10 * CHUNK]) as line:
        await alice.wire.publish(Version(1, 1, DATA))
        pulling = asyncio.create_task(pull(bob, replace(alice.address, port=line.port)))
        await until(lambda: line.connections)
        line.refuses = True
        with pytest.raises(PullError, match=r"^unreachable: connection lost$"):
            await pulling
        assert line.connections == 3


async def test_a_connection_is_kept_for_the_next_pull() -> None:
    async with served() as alice, served() as bob, cutting(alice.wire.port, []) as line:
        address = replace(alice.address, port=line.port)
        for round in range(1, 4):
            await alice.wire.publish(Version(round, 1, DATA))
            assert (await pull(bob, address)).round == round
        assert line.connections == 1
        await asyncio.gather(pull(bob, address), pull(bob, address))
        assert line.connections == 2


async def test_a_kept_connection_that_has_died_is_opened_again() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, DATA))
        async with cutting(alice.wire.port, []) as line:
            await pull(bob, replace(alice.address, port=line.port))
        assert (await pull(bob, alice.address)).payload == DATA


async def test_few_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pl.network.pull.MAX_KEPT", 2)
    async with served() as me, served() as a, served() as b, served() as c:
        for other in (a, b, c, a):
            await other.wire.publish(Version(1, 1, DATA))
            await pull(me, other.address)
        assert set(me.wire._puller._kept) == {c.wire.curve_key, a.wire.curve_key}
        await until(lambda: not len(b.wire.gate))


async def test_a_pull_that_failed_keeps_no_connection() -> None:
    async with served() as alice, served() as bob:
        with pytest.raises(PullError, match="refused"):
            await bob.wire.pull_checkpoint(alice.address, size=9, deadline_s=5)
        await alice.wire.publish(Version(1, 1, b"x"))
        with pytest.raises(FrameError, match="size"):
            await pull(bob, alice.address)
        assert not bob.wire._puller._kept


def resumed(offset: int, pull: object, digest: bytes) -> Resume:
    return Resume(pull, digest, offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", [CHUNK - 1, CHUNK * CHUNKS, 1 << 50])
async def test_an_offset_that_cannot_be_costs_whoever_asks_for_it(offset: int) -> None:
    async with served() as alice, served() as bob, puller_by_hand(alice.address) as mallory:
        digest = await alice.wire.publish(Version(1, 1, DATA))
        await mallory.send(resumed(offset, mallory.pull(), digest))
        first = (await mallory.hear())[0]
        assert isinstance(first, Refused | VersionOffer)
        assert (await pull(bob, alice.address)).payload == DATA


async def test_whoever_resumes_by_hand_gets_the_chunks_from_there_on() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        digest = await alice.wire.publish(Version(1, 1, DATA))
        await mallory.send(resumed(39 * CHUNK, mallory.pull(), digest))
        assert isinstance((await mallory.hear())[0], VersionOffer)
        assert await mallory.hear() == (Chunk(39 * CHUNK), DATA[39 * CHUNK :])
        await mallory.send(resumed(39 * CHUNK, mallory.pull(credit=1), bytes(16)))
        assert isinstance((await mallory.hear())[0], VersionOffer)
        assert await mallory.hear() == (Chunk(0), DATA[:CHUNK])


def test_this_libzmq_can_say_what_a_peer_understands() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.METADATA, b"X-p2pl:2")
