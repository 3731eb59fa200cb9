"""A blob is had by whoever knows its name, whole, and by nobody once it is dropped."""

import os

import pytest
from support.wires import CHUNK, SESSION, late, served

from p2pl.errors import FrameError, PullError
from p2pl.network.serve import ServeLimits
from p2pl.protocol.frame import BLOB_NAME_BYTES

pytestmark = pytest.mark.anyio
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


async def test_strangers_to_the_session_get_no_blob() -> None:
    async with served() as alice, served(session_id=SESSION[::-1]) as bob:
        await alice.wire.put_blob(NAME, b"payload")
        with pytest.raises(PullError, match="protocol error"):
            await bob.wire.fetch_blob(alice.address, NAME, size=7, deadline_s=5)
