"""A blob is had by whoever knows its name, whole, and by nobody once it is dropped."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from support.wires import CHUNK, HOST, SESSION, late, served, until

from p2pl.errors import FrameError, PullError
from p2pl.network.serve import ServeLimits
from p2pl.protocol.frame import BLOB_NAME_BYTES

pytestmark = pytest.mark.anyio
MIB = 1 << 20
NAME = bytes(range(BLOB_NAME_BYTES))


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK + 5])
async def test_a_blob_comes_whole(size: int) -> None:
    payload = os.urandom(size)
    async with served() as alice, served() as bob:
        await alice.wire.put_blob(NAME, payload)
        got = await bob.wire.fetch_blob(alice.address, NAME, size=size, deadline_s=5)
        assert bytes(got.payload) == payload
        assert alice.wire.traffic.transfers_out == 1


async def test_another_name_gets_nothing_and_a_dropped_blob_is_gone() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.put_blob(NAME, b"payload")
        with pytest.raises(PullError, match="no such parcel"):
            await bob.wire.fetch_blob(alice.address, NAME[::-1], size=7, deadline_s=5)
        alice.wire.drop_blob(NAME)
        with pytest.raises(PullError, match="no such parcel"):
            await bob.wire.fetch_blob(alice.address, NAME, size=7, deadline_s=5)


async def test_a_blob_of_another_size_is_refused_before_it_comes() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.put_blob(NAME, bytes(10 * CHUNK))
        with pytest.raises(FrameError, match=r"offer\.size"):
            await bob.wire.fetch_blob(alice.address, NAME, size=7, deadline_s=5)
        assert bob.wire.traffic.bytes_in < 10 * CHUNK


async def test_blobs_share_the_places_of_all_transfers() -> None:
    async with served(limits=ServeLimits(transfers=0)) as alice, served() as bob:
        await alice.wire.put_blob(NAME, b"payload")
        await late(
            lambda deadline_s: bob.wire.fetch_blob(
                alice.address, NAME, size=7, deadline_s=deadline_s
            ),
            "busy",
        )


@contextlib.asynccontextmanager
async def line_to(port: int, moving: asyncio.Event) -> AsyncIterator[int]:
    """Yields the port of a line to another port, on which nothing moves unless it may."""
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await moving.wait()
            writer.write(data)
            await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        there = await asyncio.open_connection(HOST, port)
        writers.append(there[1])
        both = (copy(reader, there[1]), copy(there[0], writer))
        tasks.extend(map(asyncio.create_task, both))

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_who_gives_a_blob_sees_it_move_and_stand_still_though_all_credit_is_given() -> None:
    chunks, moving = 48, asyncio.Event()
    moving.set()
    async with (
        served(chunk_bytes=MIB) as alice,
        served(chunk_bytes=MIB) as bob,
        line_to(alice.address.port, moving) as port,
    ):
        await alice.wire.put_blob(NAME, bytes(chunks * MIB))
        there, moves = replace(alice.address, port=port), alice.wire.traffic.moves_by_peer
        fetching = bob.wire.fetch_blob(there, NAME, size=chunks * MIB, deadline_s=60)
        coming = asyncio.create_task(fetching)
        await until(lambda: moves.get(bob.identity.peer_id))
        moving.clear()
        seen = -1
        while seen != moves[bob.identity.peer_id]:  # until all that lies between them is full
            seen = moves[bob.identity.peer_id]
            await asyncio.sleep(0.2)
        assert seen < chunks
        moving.set()
        await coming
        await until(lambda: moves[bob.identity.peer_id] == chunks)


async def test_strangers_to_the_session_get_no_blob() -> None:
    async with served() as alice, served(session_id=SESSION[::-1]) as bob:
        await alice.wire.put_blob(NAME, b"payload")
        with pytest.raises(PullError, match="protocol error"):
            await bob.wire.fetch_blob(alice.address, NAME, size=7, deadline_s=5)
