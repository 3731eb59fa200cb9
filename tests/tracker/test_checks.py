"""The tracker dials or calls its peers, and tells of those that answer first."""

import asyncio
import random
import time

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.announces import Clock, Speaker
from support.callees import HOST, greeting, taking_calls
from support.processes import PATIENCE_S
from support.relays import relaying

from p2pl.protocol import announce as messages
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.reach import GREETING
from p2pl.rendezvous.board import Policy as RelayPolicy
from p2pl_tracker import checks, reach
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.issuer import Relays
from p2pl_tracker.reach import DIALS_AT_ONCE
from p2pl_tracker.swarm import MOST_UNKNOWN, MOST_UNKNOWN_BESIDE_RELAYS, Limits, MemoryStore, Pool

pytestmark = pytest.mark.anyio
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
ISSUED = RelayPolicy(issuers=frozenset({KEY.public_key().public_bytes_raw()}))


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


class Tracker:
    def __init__(self, *, checks: bool = True, relay: Endpoint | None = None) -> None:
        clock, most = Clock(float(int(time.time()))), MOST_UNKNOWN_BESIDE_RELAYS
        self.time_s = int(clock())
        limits = Limits(min_interval_s=0.0, most_unknown=most if relay else MOST_UNKNOWN)
        self.store = MemoryStore(limits, now=clock, rng=random.Random(1))
        relays = Relays((str(relay),), KEY) if relay else None
        policy = Policy(limits=limits, checks=checks, relays=relays)
        self.app = create_app(policy, store=self.store, now=clock, wall=clock)

    async def post(
        self, speaker: Speaker, *ways: Endpoint, hidden: bool = False
    ) -> messages.Answer:
        """Returns the answer to a peer; one that says ways, or is hidden, cannot be dialled."""
        speaker.time_s = self.time_s
        said = speaker.says(numwant=1)
        if ways or hidden:
            said = msgspec.structs.replace(said, version=2, endpoints=tuple(map(str, ways)))
        async with self.client() as client:
            answer = await client.post("/announce", content=messages.encode(said, speaker.key))
        return messages.decode_answer(answer.content)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=(HOST, 40_000))
        return httpx.AsyncClient(transport=transport, base_url="http://tracker")

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
    async with greeting(GREETING) as port, greeting(b"HTTP/1.1 400\r\n") as another:
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
    async with greeting(GREETING) as port:
        await tracker.post(peer(1, port))
        await asyncio.sleep(0)
        assert tracker.pools() == [0, 1, 0]


async def test_an_address_makes_the_tracker_dial_only_so_often() -> None:
    tracker = Tracker()
    for number in range(DIALS_AT_ONCE + 10):
        await tracker.post(peer(number, 1))
    await tracker.until([0, 10, DIALS_AT_ONCE])


async def test_those_who_take_calls_are_told_of_before_those_who_only_say_so() -> None:
    async with relaying(ISSUED) as relay, greeting(GREETING) as port:
        tracker, living = Tracker(relay=relay.plain), peer(6, port)
        for number in range(5):
            await tracker.post(peer(number, 1), relay.plain)
        ticket = (await tracker.post(living, hidden=True)).ticket
        async with taking_calls(living, port, relay.plain, ticket):
            await tracker.post(living, relay.plain)
            await tracker.until([1, 0, 5])
            async with tracker.client() as client:
                counted = (await client.get("/metrics")).text
            for found, count in (("answers", 1), ("silent", 5), ("unknown", 0)):
                assert f'p2pl_tracker_checks_total{{found="{found}"}} {count}.0' in counted
            for number in range(50):  # nobody can say whether they are there
                await tracker.post(peer(100 + number, 1), hidden=True)
            asker = peer(7, port)
            told = [(await tracker.post(asker)).peers[0].id for _ in range(100)]
        # One of 20 may be of those who cannot be checked; 21 of 100 are once in 10 million times.
        assert told.count(living.id) > 79


async def test_who_cannot_be_dialled_after_all_is_called() -> None:
    async with relaying(ISSUED) as relay, greeting(GREETING) as port:
        tracker, shut = Tracker(relay=relay.plain), peer(1, 1)
        ticket = (await tracker.post(shut, hidden=True)).ticket
        async with taking_calls(shut, port, relay.plain, ticket):
            await tracker.post(shut, Endpoint("tcp", HOST, 1), relay.plain)
            await tracker.until([1, 0, 0])


async def test_a_peer_that_nothing_was_found_of_stays_as_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = Endpoint("relay", HOST, 1)
    tracker = Tracker(relay=away)
    await tracker.post(peer(1, 1), away)
    async with asyncio.timeout(PATIENCE_S):
        while not caplog.messages:  # noqa: ASYNC110  # that the relay is away
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert tracker.pools() == [0, 1, 0]


async def test_so_many_wait_to_be_checked_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def silent(host: str, port: int) -> str:
        await gate.wait()
        return reach.SILENT

    monkeypatch.setattr(reach, "_dial", silent)
    monkeypatch.setattr(checks, "MAX_WAITING", 3)
    tracker = Tracker()
    for number in range(5):
        await tracker.post(peer(number, 1))
    gate.set()
    await tracker.until([0, 2, 3])
