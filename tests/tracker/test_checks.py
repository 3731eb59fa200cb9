"""The tracker dials its peers, and tells of those that answer first."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from support.announces import Clock, Speaker
from support.processes import PATIENCE_S

from p2pl.protocol import announce as messages
from p2pl.protocol.reach import GREETING
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.reach import DIALS_AT_ONCE
from p2pl_tracker.swarm import Limits, MemoryStore, Pool

pytestmark = pytest.mark.anyio
HOST = "127.0.0.1"


class At(Speaker):
    """A peer that says that it listens at a port."""

    at = 0

    @property
    def port(self) -> int:
        return self.at


def peer(number: int, port: int) -> At:
    one = At(number)
    one.at = port
    return one


@contextlib.asynccontextmanager
async def listening(says: bytes) -> AsyncIterator[int]:
    """Yields the port of a program that greets whoever connects."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


class Tracker:
    def __init__(self, *, checks: bool = True) -> None:
        clock, limits = Clock(), Limits(min_interval_s=0.0)
        self.store = MemoryStore(limits, now=clock)
        policy = Policy(limits=limits, checks=checks)
        self.app = create_app(policy, store=self.store, now=clock, wall=clock)

    async def post(self, speaker: Speaker) -> messages.Answer:
        transport = httpx.ASGITransport(self.app, client=(HOST, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
            answer = await client.post("/announce", content=speaker.body(numwant=1))
        return messages.decode_answer(answer.content)

    def pools(self) -> list[int]:
        """Returns how many peers are in each pool."""
        (swarm,) = self.store._swarms.values()
        return [sum(len(place.peers) for place in swarm.places[pool]) for pool in Pool]

    async def until(self, pools: list[int]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.pools() != pools:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.01)


async def test_those_who_answer_are_told_of_first() -> None:
    tracker = Tracker()
    async with listening(GREETING) as port, listening(b"HTTP/1.1 400\r\n") as another:
        for number in range(5):
            await tracker.post(peer(number, another))
        await tracker.post(peer(5, 1))  # where nobody listens
        living = peer(6, port)
        await tracker.post(living)
        await tracker.until([1, 0, 6])
        asker = peer(7, port)
        for _ in range(10):
            (told,) = (await tracker.post(asker)).peers
            assert told.id == living.id


async def test_an_operator_may_leave_it() -> None:
    tracker = Tracker(checks=False)
    async with listening(GREETING) as port:
        await tracker.post(peer(1, port))
        await asyncio.sleep(0)
        assert tracker.pools() == [0, 1, 0]


async def test_an_address_makes_the_tracker_dial_only_so_often() -> None:
    tracker = Tracker()
    for number in range(DIALS_AT_ONCE + 10):
        await tracker.post(peer(number, 1))
    await tracker.until([0, 10, DIALS_AT_ONCE])
