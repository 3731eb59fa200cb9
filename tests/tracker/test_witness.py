"""A tracker as a witness of update logs: what it cosigns, refuses, and lets others find."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import httpx
import pytest
from support import valkey
from support.announces import NOW_S, SESSION, Clock, Speaker

from p2pl.errors import LogError, RunDirError, TrackerError
from p2pl.network.keys import Identity
from p2pl.protocol.updates.entry import encode
from p2pl.protocol.updates.head import Head, body, cosign
from p2pl.protocol.updates.message import Heard
from p2pl.protocol.updates.witness import Kept, Shown, read_kept
from p2pl.updates.keeper import Keeper, sha256
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.witnessed import Witnessed
from p2pl_tracker.address import network_of
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.bans import Bans
from p2pl_tracker.checkpoints import SharedCheckpoints
from p2pl_tracker.store import connected
from p2pl_tracker.witness import KEEP_S, NEW_AT_ONCE, ROOM_PARTS, Checkpoints, MemoryCheckpoints

pytestmark = pytest.mark.anyio
AUTHOR, ME = Identity.generate(), Identity.generate()
WITNESS = Identity.generate()
HOST = "203.0.113.5"


@dataclass
class Place:
    """A tracker that is a witness, as a peer sees it; it can be started anew on what it kept."""

    checkpoints: Checkpoints
    clock: Clock
    policy: Policy

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        app = create_app(self.policy, now=self.clock, wall=self.clock, checkpoints=self.checkpoints)
        transport = httpx.ASGITransport(app, client=(HOST, 40_000))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://tracker")

    async def announce(self) -> None:
        answer = await self.client.post("/announce", content=Speaker(1).body("started"))
        assert answer.status_code == 200, answer.text

    async def show_checkpoint(self, shown: bytes) -> bytes | None:
        answer = await self.client.post("/checkpoint", content=shown)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise TrackerError(f"{answer.status_code}: {answer.text}")
        return answer.content

    async def checkpoint(self, peer_id: str) -> bytes | None:
        asked = {"session": SESSION, "peer": peer_id}
        answer = await self.client.get("/checkpoint", params=asked)
        return answer.content if answer.status_code == 200 else None


@pytest.fixture(params=["memory", "valkey"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    clock = Clock()
    kept: Checkpoints = MemoryCheckpoints(clock)
    if request.param == "valkey":
        server: valkey.Server = request.getfixturevalue("valkey_server")
        kept = SharedCheckpoints(connected(server.url), prefix=f"{secrets.token_hex(4)}:")
    one = Place(kept, clock, Policy(witness=WITNESS.private_key))
    await one.announce()
    yield one
    await kept.aclose()


def keeper(one: Identity, *payloads: str) -> Keeper:
    log = UpdateLog(SESSION, one.private_key)
    made = Keeper(log, None, one, lambda: float(NOW_S), lambda _: True)
    logged(made, *payloads)
    return made


def logged(one: Keeper, *payloads: str) -> None:
    for payload in payloads:
        number = len(one.log)
        one.log.append(Version("trained", number, sha256(payload.encode())), float(NOW_S))


async def shown(place: Place, one: Keeper) -> list[str]:
    """Shows a log as one peer does that has just begun; returns what its person is told."""
    told: list[str] = []
    await Witnessed(one, place, told.append).show()
    return told


async def kept_size(place: Place) -> int:
    data = await place.checkpoint(AUTHOR.peer_id)
    return 0 if data is None else read_kept(data).head.size


async def test_a_log_that_grows_is_cosigned_each_time_also_once_the_peer_began_anew(
    place: Place,
) -> None:
    author = keeper(AUTHOR, "a")
    told: list[str] = []
    witnessed = Witnessed(author, place, told.append)
    for size in (1, 2, 5):
        logged(author, *(str(number) for number in range(len(author.log), size)))
        await witnessed.show()
        head, cosignature = author.watch.cosigned[WITNESS.peer_id]
        assert (head.size, cosignature.time_s) == (size, NOW_S)
        cosignature.check(body(SESSION, AUTHOR.public_key, size, head.root))
    logged(author, "f", "g")
    assert told == await shown(place, author) == []  # it does not know what the tracker keeps
    assert author.watch.cosigned[WITNESS.peer_id][0].size == await kept_size(place) == 7


async def test_a_log_that_was_put_back_is_not_cosigned_and_its_peer_stops(place: Place) -> None:
    await shown(place, keeper(AUTHOR, "a", "b", "c"))
    place.restart()
    await place.announce()
    older = keeper(AUTHOR, "a", "b")
    (said,) = await shown(place, older)
    assert "a log of 3 entries" in said
    assert not older.watch.cosigned
    assert await kept_size(place) == 3
    with pytest.raises(RunDirError, match="a log of 3 entries in this session"):
        await older.commit(Version("trained", 2, sha256(b"x")))


async def test_of_a_fork_the_two_heads_are_the_proof_wherever_it_is_seen(place: Place) -> None:
    await shown(place, keeper(AUTHOR, "a", "b"))
    fork = keeper(AUTHOR, "a", "x")
    assert "a log of 2 entries" in (await shown(place, fork))[0]
    assert not fork.watch.cosigned
    # Another peer, to whom the fork was shown, has the proof as soon as it asks this tracker.
    other = keeper(ME)
    other.watch.take_others([Heard(AUTHOR.public_key, fork.log.head)], ())
    await Witnessed(other, place, print).look([AUTHOR.peer_id])
    fault = other.watch.faults[AUTHOR.peer_id]
    assert fault.check() == "it has signed two different logs of 2 entries"


async def test_a_fork_that_is_longer_is_refused(place: Place) -> None:
    await shown(place, keeper(AUTHOR, "a", "b"))
    assert await shown(place, keeper(AUTHOR, "a", "x", "c"))
    fork = keeper(AUTHOR, "a", "x", "c")
    head, data = fork.shown(2)
    assert read_kept(await place.show_checkpoint(data) or b"").head != head
    assert await kept_size(place) == 2


@pytest.mark.parametrize("change", ["signature", "long", "other", "nobody", "short", "no", "empty"])
async def test_what_is_no_head_of_a_log_here_is_refused(place: Place, change: str) -> None:
    author = keeper(AUTHOR, "a")
    head, data = author.shown(0)
    one = Shown(bytes.fromhex(SESSION), AUTHOR.public_key, head, 0, ())
    bad, status = {
        "signature": (encode(_with(one, head=Head(2, head.root, head.signature))), 401),
        "long": (data + bytes(4_000), 413),
        "other": (encode(_with(one, author=ME.public_key)), 401),
        "nobody": (keeper_of_other_session(), 404),
        "short": (data[:-1], 400),
        "no": (b"", 400),
        "empty": (encode(_with(one, head=keeper(AUTHOR).log.head)), 400),
    }[change]
    answer = await place.client.post("/checkpoint", content=bad)
    assert answer.status_code == status, answer.text
    assert await kept_size(place) == 0


def _with(one: Shown, **changes: object) -> Shown:
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    return Shown(**{**fields, **changes})


def keeper_of_other_session() -> bytes:
    log = UpdateLog("77" * 32, AUTHOR.private_key)
    other = Keeper(log, None, AUTHOR, lambda: float(NOW_S), lambda _: True)
    logged(other, "a")
    return other.shown(0)[1]


async def test_a_tracker_that_was_not_asked_to_is_no_witness(place: Place) -> None:
    place.policy = replace(place.policy, witness=None)
    place.restart()
    await place.announce()
    told = await shown(place, keeper(AUTHOR, "a"))
    assert told == ["no tracker of this session is a witness of update logs"]


async def test_what_the_store_has_damaged_is_neither_told_nor_written_over(place: Place) -> None:
    log = bytes.fromhex(SESSION + AUTHOR.peer_id)
    await place.checkpoints.put(log, None, b"damaged", HOST)
    asked = {"session": SESSION, "peer": AUTHOR.peer_id}
    for answer in (
        await place.client.get("/checkpoint", params=asked),
        await place.client.post("/checkpoint", content=keeper(AUTHOR, "a").shown(0)[1]),
    ):
        assert answer.status_code == 503
        assert "what this tracker keeps of this log is damaged" in answer.text
    assert await place.checkpoints.get(log) == b"damaged"


async def test_a_person_is_told_once_that_the_tracker_does_not_answer(place: Place) -> None:
    answers: list[str] = ["away", "away", "", "away"]

    class Flaky:
        async def show_checkpoint(self, shown: bytes) -> bytes | None:
            if why := answers.pop(0):
                raise TrackerError(why)
            return await place.show_checkpoint(shown)

        async def checkpoint(self, peer_id: str) -> bytes | None:
            return await place.checkpoint(peer_id)

    told: list[str] = []
    author = keeper(AUTHOR, "a")
    witnessed = Witnessed(author, Flaky(), told.append)
    while answers:
        await witnessed.show()
    assert told == ["the tracker does not cosign this peer's update log now: away"]
    assert author.watch.cosigned


async def test_who_is_banned_is_not_cosigned(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    listed = tmp_path_factory.mktemp("bans") / "bans.txt"
    listed.write_text(f"{AUTHOR.peer_id}\n")
    place.policy = replace(place.policy, bans=Bans(listed))
    place.restart()
    await place.announce()
    answer = await place.client.post("/checkpoint", content=keeper(AUTHOR, "a").shown(0)[1])
    assert answer.status_code == 403


async def test_two_replicas_that_are_shown_two_logs_at_once_cosign_one(place: Place) -> None:
    one, other = keeper(AUTHOR, "a"), keeper(AUTHOR, "x")
    get = place.checkpoints.get

    async def late(log: bytes) -> bytes | None:
        """Reads, and then another replica is faster."""
        found = await get(log)
        place.checkpoints.get = get  # type: ignore[method-assign]
        await shown(place, other)
        return found

    place.checkpoints.get = late  # type: ignore[method-assign]
    assert "a log of 1 entries" in (await shown(place, one))[0]
    assert other.watch.cosigned
    assert not one.watch.cosigned


async def test_a_lying_witness_is_told_and_adds_nothing() -> None:
    author = keeper(AUTHOR, "a", "b")
    head = author.log.head
    forged = cosign(WITNESS.private_key, body(SESSION, AUTHOR.public_key, 2, bytes(32)), NOW_S)
    with pytest.raises(LogError, match="not of its witness"):
        author.take_cosigned(head, encode(Kept(AUTHOR.public_key, head, forged)))
    made_up = Kept(AUTHOR.public_key, Head(9, bytes(32), bytes(64)), forged)
    with pytest.raises(LogError, match="not signed by the author"):
        author.take_cosigned(head, encode(made_up))
    with pytest.raises(LogError, match="another peer than was asked for"):
        author.take_kept(ME.peer_id, encode(made_up))
    assert not author.watch.cosigned
    await author.commit(Version("trained", 2, sha256(b"c")))  # nothing made up stops a peer


async def test_checkpoints_expire_and_none_is_pushed_out() -> None:
    clock = Clock()
    kept = MemoryCheckpoints(clock, most=2)
    logs = [bytes([number]) * 64 for number in range(3)]
    assert [await kept.put(log, None, b"a", log.hex()) for log in logs] == [b"a", b"a", None]
    assert await kept.put(logs[0], b"old", b"b", HOST) == b"a"
    clock.advance(KEEP_S / 2)
    assert await kept.put(logs[0], b"a", b"b", HOST) == b"b"
    clock.advance(KEEP_S / 2)
    assert [await kept.get(log) for log in logs] == [b"b", None, None]
    assert await kept.put(logs[2], None, b"c", HOST) == b"c"


async def test_shared_checkpoints_are_no_more_than_they_may(valkey_server: valkey.Server) -> None:
    client = connected(valkey_server.url)
    kept = SharedCheckpoints(client, prefix=f"{secrets.token_hex(4)}:", most=2)
    logs = [bytes([number]) * 64 for number in range(3)]
    assert [await kept.put(log, None, b"a", log.hex()) for log in logs] == [b"a", b"a", None]
    assert await kept.put(logs[1], b"a", b"b", HOST) == b"b"
    ttl_s = await client.ttl(kept._key(logs[1]))
    assert KEEP_S - 60 < ttl_s <= KEEP_S
    await kept.aclose()


@pytest.mark.parametrize("store", ["memory", "valkey"])
async def test_strangers_of_many_networks_leave_room_for_who_comes_from_elsewhere(
    store: str, request: pytest.FixtureRequest
) -> None:
    clock, most = Clock(), 2 * ROOM_PARTS
    kept: Checkpoints = MemoryCheckpoints(clock, most=most)
    if store == "valkey":
        server: valkey.Server = request.getfixturevalue("valkey_server")
        prefix = f"{secrets.token_hex(4)}:"
        kept = SharedCheckpoints(connected(server.url), prefix=prefix, most=most)

    async def begun(network: str, logs: int) -> int:
        """Returns how many of so many new logs of a network are kept."""
        new = [secrets.token_bytes(64) for _ in range(logs)]
        return sum([await kept.put(log, None, b"a", network) is not None for log in new])

    strangers = [await begun(f"10.0.{number}.0", 3) for number in range(100)]
    assert set(strangers) == {1}  # two thirds of all would be full of them
    mine = secrets.token_bytes(64)
    assert await kept.put(mine, None, b"a", "192.0.2.0") == b"a"
    assert await begun("192.0.2.0", 1) == 0
    for before, after in ((b"a", b"b"), (b"b", b"c")):  # what is kept grows, from wherever
        assert await kept.put(mine, before, after, "10.0.1.0") == after
    assert await begun("192.0.2.0", 1) == 0
    assert await begun("198.51.100.0", 1) == 1
    if store == "memory":
        clock.advance(KEEP_S)
        assert await begun("192.0.2.0", 1) == 1
    await kept.aclose()


def test_a_network_is_an_ipv4_24_or_an_ipv6_48() -> None:
    assert network_of("192.0.2.77") == network_of("192.0.2.1") != network_of("192.0.3.1")
    assert network_of("2001:db8:1:2::3") == network_of("2001:db8:1:ffff::") == "2001:db8:1::"


async def test_one_address_begins_only_so_many_logs() -> None:
    clock = Clock()
    place = Place(
        MemoryCheckpoints(clock), clock, Policy(witness=WITNESS.private_key, address_rate=0)
    )
    await place.announce()
    data = [keeper(Identity.generate(), "a").shown(0)[1] for _ in range(NEW_AT_ONCE + 1)]
    answers = [(await place.client.post("/checkpoint", content=one)).status_code for one in data]
    assert set(answers[:-1]) == {200}
    assert answers[-1] == 429
