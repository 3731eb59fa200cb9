"""Several trackers on one store are one tracker; what happens when one of them, or it, is lost."""

import asyncio
import math
import random
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support import valkey
from support.announces import SESSION, Clock, Speaker
from support.callees import greeting, taking_calls
from support.private_sessions import AUTHOR, FILE, FILE_ID, invited
from support.processes import PATIENCE_S, Swarm
from support.relays import relaying
from typer.testing import CliRunner

from p2pl.errors import InputError, TrackerError
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.protocol import announce as messages
from p2pl.protocol.announce import Announce, Answer
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.invitation import encode, revoke
from p2pl.protocol.reach import GREETING
from p2pl.rendezvous.board import Policy as RelayPolicy
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.cli import app
from p2pl_tracker.issuer import Relays
from p2pl_tracker.shelf import STALE_S
from p2pl_tracker.store import SharedStore, check, connected
from p2pl_tracker.swarm import Limits

pytestmark = pytest.mark.anyio
LIMITS = Limits(min_interval_s=0.0)
ALONE = Policy(limits=LIMITS)  # without relays
HOST = "203.0.113.5"


class Replica:
    """One tracker of several, without a socket."""

    def __init__(self, url: str, prefix: str, clock: Clock, policy: Policy = ALONE) -> None:
        self.store = SharedStore(
            connected(url), policy.limits, prefix=prefix, now=clock, rng=random.Random(1)
        )
        tracker = create_app(policy, store=self.store, now=clock, wall=clock)
        transport = httpx.ASGITransport(tracker, client=(HOST, 40_000))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://tracker")

    async def post(self, said: Announce, speaker: Speaker) -> httpx.Response:
        return await self.client.post("/announce", content=messages.encode(said, speaker.key))

    async def answer(self, said: Announce, speaker: Speaker) -> Answer:
        response = await self.post(said, speaker)
        assert response.status_code == 200, response.text
        return messages.decode_answer(response.content)

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.store.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pair(valkey_server: valkey.Server, clock: Clock) -> AsyncIterator[list[Replica]]:
    prefix = secrets.token_hex(8)
    replicas = [Replica(valkey_server.url, prefix, clock) for _ in range(2)]
    yield replicas
    for replica in replicas:
        await replica.aclose()


async def test_peers_of_one_replica_hear_of_those_of_another(pair: list[Replica]) -> None:
    one, two = Speaker(1), Speaker(2)
    first = await pair[0].answer(one.says("started"), one)
    second = await pair[1].answer(two.says("started"), two)
    assert [peer.id for peer in second.peers] == [one.id]
    assert (first.epoch, second.alive) == (second.epoch, 2)
    for replica in pair:
        scrape = (await replica.client.get("/scrape", params={"session": SESSION})).json()
        assert scrape["sessions"][SESSION]["alive"] == 2
        stats = (await replica.client.get("/stats.json")).json()
        assert (stats["peers"], stats["epoch"]) == (2, first.epoch)


async def test_who_took_a_call_of_one_replica_is_told_of_first_by_another_and_by_a_new_one(
    valkey_server: valkey.Server,
) -> None:
    key = Ed25519PrivateKey.generate()
    issued = RelayPolicy(issuers=frozenset({key.public_key().public_bytes_raw()}))
    clock, prefix = Clock(float(int(time.time()))), secrets.token_hex(8)
    async with relaying(issued) as relay, greeting(GREETING) as port:
        policy = Policy(limits=LIMITS, relays=Relays((str(relay.plain),), key))

        def replica() -> Replica:
            return Replica(valkey_server.url, prefix, clock, policy)

        def says(speaker: Speaker, *ways: Endpoint) -> Announce:
            speaker.time_s = int(clock())
            said = speaker.says(numwant=1)
            return msgspec.structs.replace(said, version=2, endpoints=tuple(map(str, ways)))

        here, there, asker, living = replica(), replica(), Speaker(50), Speaker(1)
        for number in range(10, 20):
            await here.answer(says(dead := Speaker(number), relay.plain), dead)
        ticket = (await here.answer(says(living), living)).ticket
        async with taking_calls(living, port, relay.plain, ticket):
            await here.answer(says(living, relay.plain), living)
            in_turn = 0
            async with asyncio.timeout(PATIENCE_S):
                while in_turn < 20:
                    (told,) = (await there.answer(says(asker), asker)).peers
                    in_turn = in_turn + 1 if told.id == living.id else 0
        await there.aclose()
        anew = replica()
        assert (await anew.answer(says(asker), asker)).peers[0].id == living.id
        for one in (here, anew):
            await one.aclose()


async def test_what_one_replica_took_is_no_news_to_another(pair: list[Replica]) -> None:
    one = Speaker(1)
    said = one.says("started")
    await pair[0].answer(said, one)
    assert (await pair[1].post(said, one)).status_code == 409


async def test_replicas_know_of_each_others_private_sessions(
    pair: list[Replica], clock: Clock
) -> None:
    here, there = pair
    one, two = Speaker(1, session=FILE.id), Speaker(2, session=FILE.id)
    assert (await here.post(invited(one), one)).status_code == 428
    assert (await there.client.post("/session", content=FILE.info)).status_code == 200
    said = invited(one)
    await here.answer(said, one)
    asked = {"session": FILE.id, "curve_key": said.curve_key}
    found = await there.client.get("/proof", params=asked)
    assert msgspec.msgpack.decode(found.content) == [said.proof]
    await there.answer(invited(two), two)

    listed = encode(revoke(AUTHOR.private_key, session_id=FILE.id, number=3, peer_ids=[one.id]))
    assert (await there.client.post("/revocations", content=listed)).status_code == 200
    assert (await here.client.get("/revocations", params=asked)).content == listed
    clock.advance(STALE_S)
    assert "taken back" in (await here.post(invited(one), one)).text
    assert (await here.answer(invited(two), two)).revocations == 3
    older = encode(revoke(AUTHOR.private_key, session_id=FILE.id, number=2, peer_ids=[two.id]))
    for replica in pair:
        assert (await replica.client.post("/revocations", content=older)).status_code == 409
    await there.answer(invited(two, event="stopped"), two)
    asked["curve_key"] = two.says().curve_key
    assert (await here.client.get("/proof", params=asked)).status_code == 404


async def test_a_key_has_four_proofs_at_most_and_each_for_as_long_as_it_is_good(
    pair: list[Replica], clock: Clock
) -> None:
    here, there = (replica.store for replica in pair)
    for number in range(6):
        digest, proof = bytes([number]) * 32, b"proof %d" % number
        until_s = clock() + (5 if number == 3 else 100)
        await here.put_proof(FILE_ID, "k" * 40, digest, proof, until_s=until_s)
    assert await there.proofs(FILE_ID, "k" * 40) == [b"proof %d" % at for at in range(2, 6)]
    clock.advance(6)
    assert await there.proofs(FILE_ID, "k" * 40) == [b"proof 2", b"proof 4", b"proof 5"]
    assert await there.proofs(FILE_ID, "l" * 40) == []


async def test_what_is_kept_is_bounded_and_a_number_never_falls(pair: list[Replica]) -> None:
    here, there = (replica.store for replica in pair)
    for number, kept in ((2, True), (1, False), (2, True), (3, True)):
        value = b"list %d" % number
        assert await here.keep("lists", b"s", value, number=number, most=9) is kept
    assert not await here.keep("lists", b"s", b"another 3", number=3, most=9)
    assert await there.kept(b"s", "lists", "authors") == [b"list 3", None]
    for number in range(5):
        await here.keep("some", b"%d" % number, b"x", number=0, most=3)
    found = [await there.kept(b"%d" % number, "some") for number in range(5)]
    assert sum(values == [b"x"] for values in found) == 3


async def test_without_its_store_a_tracker_says_when_to_come_back_and_nothing_else(
    clock: Clock,
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="p2pl-") as folder,
        valkey.running(Path(folder)) as server,
    ):
        replica = Replica(server.url, "p", clock)
        one, two = Speaker(1), Speaker(2)
        before = await replica.answer(one.says("started"), one)
        captured = one.says()
        await replica.answer(captured, one)

        server.kill()
        refused = await replica.post(one.says(), one)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "6")
        assert "store cannot be used now" in refused.json()["reason"]
        for path, status in (
            ("/health", 200),
            ("/metrics", 200),
            ("/ready", 503),
            ("/stats.json", 503),
            (f"/scrape?session={SESSION}", 503),
            (f"/revocations?session={SESSION}", 503),
        ):
            assert (await replica.client.get(path)).status_code == status, path
        assert "p2pl_tracker_store_up 0.0" in (await replica.client.get("/metrics")).text

        server.start()  # with the data that it had
        assert (await replica.post(captured, one)).status_code == 409
        again = await replica.answer(two.says("started"), two)
        assert ([peer.id for peer in again.peers], again.epoch) == ([one.id], before.epoch)
        assert "p2pl_tracker_store_up 1.0" in (await replica.client.get("/metrics")).text

        server.kill()
        for data in (server.folder / "appendonlydir").iterdir():
            data.unlink()
        server.start()  # with none
        one.sequence = 0
        anew = await replica.answer(one.says(), one)
        assert anew.alive == 1
        assert anew.epoch != before.epoch
        await replica.aclose()


@pytest.mark.swarm
async def test_peers_miss_neither_a_replica_nor_the_store(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="p2pl-") as folder,
        valkey.running(Path(folder)) as server,
        Swarm(tmp_path) as swarm,
    ):
        trackers = [swarm.tracker("--store", server.url)]
        urls = [swarm.url]
        swarm.port += 1
        trackers.append(swarm.tracker("--store", server.url, "--log-level", "error"))
        urls.append(swarm.url)
        clock = Clock(time.monotonic())  # of rests; the announces' own is the real one
        peers = [
            TrackerDirectory(
                [urls],
                Announcer(SESSION, Identity.generate(), f"{number:040d}", 9_000 + number),
                now=clock,
                rng=random.Random(number),
            )
            for number in range(3)
        ]

        async def heard() -> list[int]:
            clock.advance(120)  # nobody rests any more
            return [len((await peer.announce(numwant=9)).peers) for peer in peers]

        assert await heard() == [0, 1, 2]
        assert await heard() == [2, 2, 2]
        trackers[0].kill()
        assert await heard() == [2, 2, 2]
        server.kill()
        for peer in peers:
            clock.advance(120)
            with pytest.raises(TrackerError, match="503"):
                await peer.announce(numwant=9)
            assert len(peer.known) == 2  # whom it goes on with
        server.start()
        assert await heard() == [2, 2, 2]
        swarm.port -= 1
        swarm.tracker("--store", server.url)
        trackers[1].kill()
        assert await heard() == [2, 2, 2]
        async with httpx.AsyncClient() as client:
            said = await client.get(f"{urls[0]}/scrape", params={"session": SESSION})
        assert said.json()["sessions"][SESSION]["alive"] == 3
        for peer in peers:
            await peer.leave()
            await peer.__aexit__(None, None, None)


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "redis://127.0.0.1:port", "valkey:/"])
def test_a_store_is_named_by_a_url_that_is_one(url: str) -> None:
    with pytest.raises(InputError, match=r"--store: got .* allowed redis://HOST:PORT/DB"):
        connected(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("unix://{path}?db=99", "DB index is out of range"),
        ("unix://nobody:guess@{path}?db=0", "username-password"),
    ],
)
async def test_a_server_that_says_no_is_refused_at_once(
    valkey_server: valkey.Server, url: str, why: str
) -> None:
    with pytest.raises(InputError, match=why) as caught:
        await check(url.format(path=valkey_server.path), deadline_s=math.inf)
    assert "guess" not in str(caught.value)


async def test_what_is_no_such_server_is_refused_at_once() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        with pytest.raises(InputError, match=r"--store: got .redis://.*Protocol error"):
            await check(f"redis://127.0.0.1:{port}/0", deadline_s=math.inf)


async def test_a_server_that_starts_meanwhile_is_waited_for_and_not_for_ever() -> None:
    with tempfile.TemporaryDirectory(prefix="p2pl-") as folder:
        server = valkey.Server(Path(folder))
        with pytest.raises(InputError, match="No such file or directory"):
            await check(server.url, deadline_s=0.0)
        waiting = asyncio.create_task(check(server.url, deadline_s=math.inf))
        await asyncio.sleep(0)
        await asyncio.to_thread(server.start)
        try:
            await waiting
        finally:
            server.kill()


def test_a_tracker_does_not_start_with_a_store_that_it_cannot_use(
    valkey_server: valkey.Server,
) -> None:
    done = CliRunner().invoke(app, ["serve", "--store", f"unix://{valkey_server.path}?db=99"])
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2
    assert "listening" not in done.output
