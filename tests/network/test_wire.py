"""Two wires and more: versions travel whole, once, and as soon as they are there."""

import asyncio
import hashlib
import math
import os
import random
import time

import pytest
from support.wires import CHUNK, HOST, SESSION, Served, late, served, until
from xxhash import xxh3_128

from p2pl.errors import InputError, P2PLError, PullError
from p2pl.network.keys import Identity
from p2pl.network.pull import Pulled, Unchanged
from p2pl.network.serve import ServeLimits
from p2pl.network.version import Commits, Version
from p2pl.network.wire import CurveWire
from p2pl.network.zmtp import INSIDE_BYTES
from p2pl.protocol.announce import PeerAddress

pytestmark = pytest.mark.anyio
MIB = 1 << 20


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(min(size, MIB)) * (size // MIB) or bytes(size)


async def pull(
    me: Served,
    other: PeerAddress,
    *,
    size: int,
    have: bytes | None = None,
    round: int = 0,
    wait_s: float = 0.0,
    deadline_s: float = 10.0,
) -> Pulled | Unchanged:
    return await me.wire.pull(
        other, have=have, round=round, wait_s=wait_s, deadline_s=deadline_s, size=size
    )


async def pull_whole(me: Served, other: PeerAddress, *, size: int) -> Pulled:
    answer = await pull(me, other, size=size)
    assert isinstance(answer, Pulled)
    return answer


@pytest.mark.parametrize("size", [1, 1000, CHUNK, CHUNK + 1, 40 * MIB])
async def test_a_version_arrives_as_it_was_published(size: int) -> None:
    data = some_bytes(size)
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(3, 48_000, data, b"notes"))
        pulled = await pull_whole(bob, alice.address, size=size)
    assert pulled.payload == data
    assert (pulled.peer_id, pulled.round, pulled.samples) == (alice.identity.peer_id, 3, 48_000)
    assert (pulled.notes, pulled.digest) == (b"notes", xxh3_128(data).digest())


@pytest.mark.parametrize("size", [1, CHUNK + 1, 40 * MIB])
async def test_with_update_logs_all_is_hashed_by_sha_256_while_it_comes(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []

    class Recorded:
        def __init__(self) -> None:
            self._made, self._end = hashlib.sha256(), 0

        def update(self, data: memoryview) -> None:
            self._made.update(data)
            self._end += len(data)
            ends.append(self._end)

        def digest(self) -> bytes:
            return self._made.digest()

    data = some_bytes(size)
    hashed = hashlib.sha256(data).digest()
    commits = Commits(hashed, hashed, lambda _, said: b"entry for " + said)
    async with served(committed=True) as alice, served(committed=True) as bob:
        await alice.wire.publish(Version(3, 48_000, data, commits=commits))
        monkeypatch.setattr("p2pl.network.pull.hashing", lambda _: Recorded())
        pulled = await bob.wire.pull(
            alice.address, have=None, round=0, wait_s=0, deadline_s=10, size=size, said=b"bob"
        )
    assert isinstance(pulled, Pulled)
    assert pulled.payload == data
    assert (pulled.hash, pulled.digest) == (hashed, hashed[:16])
    assert pulled.commitment == b"entry for bob"
    # To decrypt a chunk, the end of the one before it is lent: a thread must not read it yet.
    assert all(0 < end % CHUNK <= CHUNK - INSIDE_BYTES for end in ends[:-1])
    assert ends[-1] == size


async def test_a_version_can_be_received_in_memory_that_the_caller_keeps() -> None:
    data = some_bytes(2 * MIB)
    memory = bytearray(len(data))
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, data))
        for _ in range(2):
            pulled = await bob.wire.pull(
                alice.address,
                have=None,
                round=0,
                wait_s=0,
                deadline_s=10,
                size=len(data),
                into=memoryview(memory),
            )
            assert isinstance(pulled, Pulled)
            assert pulled.payload == memory == data
            memory[:] = bytes(len(data))


@pytest.mark.parametrize("into", [memoryview(bytearray(9)), memoryview(bytes(10))])
async def test_memory_of_another_size_or_read_only_is_a_mistake_of_the_caller(
    into: memoryview,
) -> None:
    async with served() as alice, served() as bob:
        with pytest.raises(ValueError, match="into: allowed are 10 writable bytes"):
            await bob.wire.pull(
                alice.address, have=None, round=0, wait_s=0, deadline_s=1, size=10, into=into
            )


async def test_a_version_already_held_costs_few_bytes() -> None:
    data = some_bytes(MIB)
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, data))
        first = await pull_whole(bob, alice.address, size=MIB)
        before = alice.wire.traffic.bytes_out
        answer = await pull(bob, alice.address, size=MIB, have=first.digest)
        assert answer == Unchanged(alice.identity.peer_id, 1)
        assert alice.wire.traffic.bytes_out - before < 200


async def test_a_pull_for_a_later_round_is_answered_when_that_round_is_published() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, b"old"))
        waiting = asyncio.create_task(pull(bob, alice.address, size=3, round=2, wait_s=30))
        await until(lambda: alice.wire.seen)
        assert not waiting.done()
        await alice.wire.publish(Version(2, 1, b"new"))
        answer = await waiting
    assert isinstance(answer, Pulled)
    assert (answer.round, bytes(answer.payload)) == (2, b"new")


async def test_a_pull_for_a_later_round_gets_the_newest_when_it_has_waited_enough() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, b"old"))
        began_s = time.monotonic()
        answer = await pull(bob, alice.address, size=3, round=9, wait_s=0.2)
        assert time.monotonic() - began_s > 0.19
    assert isinstance(answer, Pulled)
    assert answer.round == 1


async def test_a_pull_before_anything_is_published_waits_for_it() -> None:
    async with served() as alice, served() as bob:
        waiting = asyncio.create_task(pull(bob, alice.address, size=3, wait_s=10))
        await until(lambda: alice.wire.seen)
        await alice.wire.publish(Version(0, 1, b"new"))
        assert isinstance(await waiting, Pulled)


async def test_a_pull_asks_again_until_there_is_something_or_its_deadline_has_come() -> None:
    async with served() as alice, served() as bob:
        await late(
            lambda deadline_s: pull(bob, alice.address, size=3, deadline_s=deadline_s), "busy"
        )
        waiting = asyncio.create_task(pull(bob, alice.address, size=3))
        await alice.wire.publish(Version(0, 1, b"new"))
        assert isinstance(await waiting, Pulled)


async def test_the_initial_checkpoint_is_served_beside_the_model() -> None:
    async with served() as alice, served() as bob:
        with pytest.raises(PullError, match="refused: 'this peer does not hand out"):
            await bob.wire.pull_checkpoint(alice.address, size=5, deadline_s=5)
        await alice.wire.publish_checkpoint(b"begin")
        await alice.wire.publish(Version(1, 1, b"later"))
        checkpoint = await bob.wire.pull_checkpoint(alice.address, size=5, deadline_s=5)
    assert bytes(checkpoint) == b"begin"


async def test_publishing_during_a_transfer_does_not_touch_it() -> None:
    old, new = some_bytes(8 * MIB), some_bytes(4 * MIB) * 2
    async with served() as alice, served() as bob, served() as carol:
        await alice.wire.publish(Version(1, 1, old))
        first = asyncio.create_task(pull_whole(bob, alice.address, size=len(old)))
        await until(lambda: alice.wire.traffic.bytes_out)
        assert alice.wire.traffic.transfers_out == 0
        await alice.wire.publish(Version(2, 1, new))
        second = await pull_whole(carol, alice.address, size=len(new))
        assert (await first).payload == old
        assert second.payload == new


async def test_many_peers_pull_from_each_other_at_once() -> None:
    size = 3 * MIB
    async with served() as a, served() as b, served() as c, served() as d, served() as e:
        peers = [a, b, c, d, e]
        data = {each.identity.peer_id: os.urandom(size) for each in peers}
        for each in peers:
            await each.wire.publish(Version(1, 1, data[each.identity.peer_id]))
        pulls = [
            pull_whole(me, other.address, size=size)
            for me in peers
            for other in peers
            if me is not other
        ]
        for pulled in await asyncio.gather(*pulls):
            assert pulled.payload == data[pulled.peer_id]


async def test_a_full_peer_lets_others_wait_for_their_turn() -> None:
    data = some_bytes(4 * MIB)
    limits = ServeLimits(transfers=1, retry_in_s=0.01)
    async with served(limits=limits) as alice, served() as b, served() as c, served() as d:
        await alice.wire.publish(Version(1, 1, data))
        pulls = [pull_whole(each, alice.address, size=len(data)) for each in (b, c, d)]
        for pulled in await asyncio.gather(*pulls):
            assert pulled.payload == data


async def test_both_ends_count_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else a pull that takes a second sends credit, which may still be under way when it is over.
    monkeypatch.setattr("p2pl.network.credit.CREDIT_S", math.inf)
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, some_bytes(MIB)))
        await pull_whole(bob, alice.address, size=MIB)
        gave, took = alice.wire.traffic, bob.wire.traffic
        assert gave.bytes_out == took.bytes_in > MIB
        assert gave.bytes_in == took.bytes_out
        assert gave.bytes_out_by_peer == {bob.identity.peer_id: gave.bytes_out}
        assert (gave.transfers_out, took.transfers_in, gave.garbage) == (1, 1, 0)


async def test_whoever_asks_becomes_known_with_the_address_that_it_serves_at() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, b"x"))
        await pull_whole(bob, alice.address, size=1)
        assert dict(alice.wire.seen) == {bob.identity.peer_id: bob.address}
        await bob.wire.publish(Version(1, 1, b"y"))
        back = await pull_whole(alice, alice.wire.seen[bob.identity.peer_id], size=1)
        assert bytes(back.payload) == b"y"


@pytest.mark.parametrize(
    ("listen", "host"), [("[::]:0", "::1"), ("[::]:0", HOST), ("localhost:0", HOST)]
)
async def test_peers_talk_over_ipv6_and_ipv4(listen: str, host: str) -> None:
    async with served(listen=listen, host=host) as alice, served(listen=listen) as bob:
        await alice.wire.publish(Version(1, 1, b"x"))
        pulled = await pull_whole(bob, alice.address, size=1)
        assert bytes(pulled.payload) == b"x"
        assert alice.wire.seen[bob.identity.peer_id].host == host


async def test_a_port_in_use_is_named_with_what_to_do() -> None:
    async with served() as alice:
        listen = f"{HOST}:{alice.wire.port}"
        with pytest.raises(InputError, match=f"port {alice.wire.port}, which another program"):
            async with served(listen=listen):
                pass


@pytest.mark.parametrize(
    "listen", ["", "8000", "host", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80", "[127.0.0.1:1"]
)
async def test_a_place_to_listen_that_cannot_be_read_is_refused(listen: str) -> None:
    with pytest.raises(InputError, match=r"--listen: got .*allowed HOST:PORT"):
        async with served(listen=listen):
            pass


@pytest.mark.parametrize("listen", ["203.0.113.1:0", "no-such-host.invalid:0"])
async def test_a_place_that_is_not_on_this_machine_is_refused(listen: str) -> None:
    with pytest.raises(InputError, match="of this machine"):
        async with served(listen=listen):
            pass


async def test_without_curve_there_is_no_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmq.has", lambda feature: False)
    with pytest.raises(P2PLError, match="never talks in plaintext"):
        CurveWire(Identity.generate(), session_id=SESSION)


async def test_the_version_before_is_kept_for_those_who_ask_for_its_round() -> None:
    async with served() as alice, served() as bob:
        for number in (1, 2, 3):
            await alice.wire.publish(Version(number, 1, b"%d" % number), keep_last=True)
        answers = [await pull(bob, alice.address, size=1, round=asked) for asked in (0, 1, 2, 3)]
        assert [answer.round for answer in answers] == [3, 3, 2, 3]
        same = await pull(bob, alice.address, size=1, round=2, have=xxh3_128(b"2").digest())
        assert same == Unchanged(alice.identity.peer_id, 2)
        # A final model counts as of the last round too; in step, its trained version is asked for.
        await alice.wire.publish(Version(3, 1, b"f"), keep_last=True)
        last = await pull(bob, alice.address, size=1, round=3)
        assert isinstance(last, Pulled)
        assert bytes(last.payload) == b"3"


async def test_without_being_told_to_no_version_but_the_newest_is_kept() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, b"1"))
        await alice.wire.publish(Version(2, 1, b"2"))
        assert (await pull(bob, alice.address, size=1, round=1)).round == 2


@pytest.mark.parametrize(
    "version",
    [
        Version(1, 1, b""),
        Version(1, 1, memoryview(b"abcd")[::2]),
        Version(1, 1, b"x", bytes(1025)),
    ],
)
async def test_what_cannot_travel_cannot_be_published(version: Version) -> None:
    async with served() as alice:
        with pytest.raises(ValueError, match=r"payload|notes"):
            await alice.wire.publish(version)


async def test_peers_of_another_session_get_nothing() -> None:
    async with served() as alice, served(session_id="cd" * 32) as bob:
        await alice.wire.publish(Version(1, 1, b"x"))
        with pytest.raises(PullError, match="refused: 'protocol error'"):
            await pull(bob, alice.address, size=1)
        assert alice.wire.traffic.garbage == 1
        assert not alice.wire.seen


async def test_closing_a_wire_ends_its_pulls_and_its_transfers_at_once() -> None:
    data = some_bytes(64 * MIB)
    async with served() as alice:
        await alice.wire.publish(Version(1, 1, data))
        async with served() as bob, served() as carol:
            waiting = asyncio.create_task(
                pull(carol, alice.address, size=len(data), round=5, wait_s=60, deadline_s=60)
            )
            await until(lambda: alice.wire.seen)
            running = asyncio.create_task(pull(bob, alice.address, size=len(data), deadline_s=60))
            await until(lambda: bob.wire.traffic.bytes_in)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 30
        for task in (running, waiting):
            with pytest.raises(PullError, match="the wire was closed"):
                await task


async def test_a_pull_that_is_cancelled_is_over() -> None:
    async with served() as alice, served() as bob:
        task = asyncio.create_task(pull(bob, alice.address, size=1, wait_s=60, deadline_s=60))
        await until(lambda: alice.wire.seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_sender_that_closes_in_mid_transfer_is_noticed_before_the_deadline() -> None:
    data = some_bytes(64 * MIB)
    async with served() as bob:
        async with served() as alice:
            await alice.wire.publish(Version(1, 1, data))
            task = asyncio.create_task(pull(bob, alice.address, size=len(data), deadline_s=60))
            await until(lambda: bob.wire.traffic.bytes_in)
        began_s = time.monotonic()
        with pytest.raises(PullError, match=r"unreachable: connection lost"):
            await task
        assert time.monotonic() - began_s < 30
