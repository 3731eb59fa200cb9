"""A puller that lies, stalls or babbles costs itself; everybody else is served."""

import asyncio
import contextlib
import os
import socket
import time

import msgspec
import pytest
import zmq
import zmq.asyncio
from support.wires import (
    CHUNK,
    DEADLINE_S,
    HOST,
    Puller,
    Served,
    puller_by_hand,
    served,
    until,
)

from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.pull import Pulled
from p2pl.network.serve import ServeLimits
from p2pl.network.version import Version
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
DATA = bytes(range(256)) * 1024 * 8  # 32 chunks


async def still_serves(alice: Served) -> None:
    """Fails unless an honest peer gets what `alice` has published."""
    async with served() as bob:
        answer = await bob.wire.pull(
            alice.address, have=None, round=0, wait_s=0, deadline_s=DEADLINE_S, size=len(DATA)
        )
    assert isinstance(answer, Pulled)
    assert answer.payload == DATA


async def begin(puller: Puller, *, credit: int = 4) -> None:
    """Starts a transfer, asking until there is a place, and takes in what it has credit for."""
    header: Header = Busy(0)
    async with asyncio.timeout(DEADLINE_S):
        while isinstance(header, Busy):  # libzmq lets go of a chunk a moment after it has arrived
            await puller.send(puller.pull(credit=credit))
            header, _ = await puller.hear()
    assert isinstance(header, VersionOffer)
    for index in range(credit):
        header, payload = await puller.hear()
        assert header == Chunk(index * CHUNK)
        assert payload == DATA[index * CHUNK : (index + 1) * CHUNK]


async def test_chunks_come_only_under_credit() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(mallory, credit=2)
        with pytest.raises(TimeoutError):
            await mallory.hear(0.1)
        await mallory.send(Credit(1))
        assert (await mallory.hear())[0] == Chunk(2 * CHUNK)
        with pytest.raises(TimeoutError):
            await mallory.hear(0.1)


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xff" * 100],
        [os.urandom(2048)],
        [bytes(2100)],
        [encode(Credit(1)), b"more"],
        [b"x"] * 100,
        [encode(Busy(1))],
    ],
)
async def test_garbage_costs_the_one_who_sends_it(frames: list[bytes]) -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(mallory)
        await mallory.send(frames[0], *frames[1:])
        assert (await mallory.hear())[0] == Refused("protocol error")
        await still_serves(alice)
        assert alice.wire.traffic.garbage == 1
        assert alice.wire.traffic.garbage_by_peer == {mallory.identity.peer_id: 1}
        await mallory.send(Credit(1))
        with pytest.raises(TimeoutError):
            await mallory.hear(0.1)


async def test_garbage_from_a_stranger_is_counted_and_answered() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await mallory.send(b"babble")
        assert (await mallory.hear())[0] == Refused("protocol error")
        assert (alice.wire.traffic.garbage, alice.wire.traffic.garbage_by_peer) == (1, {})


async def test_a_giant_header_loses_the_connection() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(mallory)
        monitor = mallory.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        await mallory.send(bytes(1 << 20))
        async with asyncio.timeout(DEADLINE_S):
            await monitor.recv_multipart()
        mallory.socket.disable_monitor()
        await still_serves(alice)


async def test_credit_without_reading_ends_the_transfer_before_anything_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2pl.network.wire.SEND_MARK", 128)
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await alice.wire.publish(Version(1, 1, DATA * 40))
        await begin(mallory, credit=1)
        traffic = alice.wire.traffic
        heard = traffic.bytes_in + 40 * len(encode(Credit(64)))
        for _ in range(40):
            await mallory.send(Credit(64))
        await until(lambda: traffic.bytes_in == heard)
        sent = traffic.messages_out - 1  # the offer
        assert 100 < sent < 40 * 32
        for index in range(1, sent):
            assert (await mallory.hear())[0] == Chunk(index * CHUNK)
        with pytest.raises(TimeoutError):  # and not a chunk after a gap
            await mallory.hear(0.1)
        assert alice.wire.traffic.transfers_out == 0


async def test_a_second_pull_during_a_transfer_ends_it() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(mallory)
        await mallory.send(mallory.pull())
        assert (await mallory.hear())[0] == Refused("protocol error")


async def test_credit_for_nothing_is_passed_over() -> None:
    async with served() as alice, puller_by_hand(alice.address) as early:
        await early.send(Credit(1))
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(early)
        assert alice.wire.traffic.garbage == 0


async def test_a_stolen_card_is_refused() -> None:
    async with (
        served() as alice,
        puller_by_hand(alice.address) as mallory,
        puller_by_hand(alice.address) as victim,
    ):
        await alice.wire.publish(Version(1, 1, DATA))
        await mallory.send(victim.pull())
        assert (await mallory.hear())[0] == Refused("protocol error")
        assert not alice.wire.seen
        assert alice.wire.traffic.garbage_by_peer == {}


async def test_a_card_that_its_peer_has_not_signed_is_refused() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await alice.wire.publish(Version(1, 1, DATA))
        forged = msgspec.structs.replace(mallory.credential(), port=9)
        await mallory.send(msgspec.structs.replace(mallory.pull(), credential=forged))
        assert (await mallory.hear())[0] == Refused("protocol error")
        assert not alice.wire.seen


async def test_a_slow_loris_is_dropped_and_others_are_served_meanwhile() -> None:
    limits = ServeLimits(transfers=2, idle_s=0.5)
    async with served(limits=limits) as alice, puller_by_hand(alice.address) as loris:
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(loris)
        await still_serves(alice)
        header, _ = await loris.hear()
        assert header == Refused("too slow")


async def test_a_place_held_by_a_slow_loris_becomes_free() -> None:
    limits = ServeLimits(transfers=1, idle_s=0.3, retry_in_s=0.05)
    async with served(limits=limits) as alice, puller_by_hand(alice.address) as loris:
        await alice.wire.publish(Version(1, 1, DATA))
        began_s = time.monotonic()  # before the place is taken: a stall must not eat into the wait
        await begin(loris)
        await still_serves(alice)
        assert time.monotonic() - began_s > 0.2


async def test_a_puller_that_trickles_is_dropped_all_the_same() -> None:
    limits = ServeLimits(idle_s=5, transfer_s=0.4)
    async with served(limits=limits) as alice, puller_by_hand(alice.address) as loris:
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(loris, credit=1)
        header: Header = Chunk(0)
        while isinstance(header, Chunk):
            await loris.send(Credit(1))
            header, _ = await loris.hear()
            await asyncio.sleep(0.05)
        assert header == Refused("too slow")


async def test_when_all_places_are_taken_the_next_is_told_to_come_back() -> None:
    limits = ServeLimits(transfers=2, retry_in_s=0.25)
    async with (
        served(limits=limits) as alice,
        puller_by_hand(alice.address) as one,
        puller_by_hand(alice.address) as two,
        puller_by_hand(alice.address) as three,
    ):
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(one)
        await begin(two)
        await three.send(three.pull())
        assert (await three.hear())[0] == Busy(250)
        await one.send(Credit(60))
        for _ in range(28):
            assert isinstance((await one.hear())[0], Chunk)
        await begin(three)


async def test_a_peer_cannot_take_all_places() -> None:
    limits = ServeLimits(transfers=3, transfers_per_peer=1)
    identity = Identity.generate()
    async with (
        served(limits=limits) as alice,
        puller_by_hand(alice.address, identity) as one,
        puller_by_hand(alice.address, identity) as two,
    ):
        await alice.wire.publish(Version(1, 1, DATA))
        await begin(one)
        await begin(two)
        assert (await one.hear())[0] == Refused("replaced by a newer pull")
        await still_serves(alice)


async def test_a_peer_waits_once_for_a_round() -> None:
    identity = Identity.generate()
    async with (
        served() as alice,
        puller_by_hand(alice.address, identity) as one,
        puller_by_hand(alice.address, identity) as two,
    ):
        await one.send(one.pull(round=5, wait_ms=60_000))
        await until(lambda: alice.wire.seen)
        await two.send(two.pull(round=5, wait_ms=60_000))
        assert (await one.hear())[0] == Refused("replaced by a newer pull")
        await alice.wire.publish(Version(5, 1, DATA))
        assert isinstance((await two.hear())[0], VersionOffer)


async def test_only_so_many_may_wait_for_a_round() -> None:
    async with (
        served(limits=ServeLimits(waiting=1)) as alice,
        puller_by_hand(alice.address) as one,
        puller_by_hand(alice.address) as two,
    ):
        await one.send(one.pull(round=5, wait_ms=60_000))
        await until(lambda: alice.wire.seen)
        await two.send(two.pull(round=5, wait_ms=60_000))
        assert isinstance((await two.hear())[0], Busy)


async def test_garbage_while_waiting_for_a_round_ends_the_wait() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await mallory.send(mallory.pull(round=5, wait_ms=60_000))
        await mallory.send(b"babble")
        assert (await mallory.hear())[0] == Refused("protocol error")
        await alice.wire.publish(Version(5, 1, DATA))
        with pytest.raises(TimeoutError):
            await mallory.hear(0.1)


async def test_a_puller_that_is_gone_when_its_round_comes_leaves_nothing_behind() -> None:
    # It is offered a place where libzmq has not noticed yet that it is gone; then not for long.
    async with served(limits=ServeLimits(transfers=1, idle_s=0.5)) as alice:
        async with puller_by_hand(alice.address) as gone:
            await gone.send(gone.pull(round=5, wait_ms=60_000))
            await until(lambda: alice.wire.seen)
        await alice.wire.publish(Version(5, 1, DATA))
        await still_serves(alice)


async def test_a_puller_that_goes_away_in_mid_transfer_leaves_its_place() -> None:
    limits = ServeLimits(transfers=1, idle_s=0.5, retry_in_s=0.05)
    async with served(limits=limits) as alice:
        await alice.wire.publish(Version(1, 1, DATA))
        async with puller_by_hand(alice.address) as gone:
            await begin(gone)
        await still_serves(alice)


async def test_a_plaintext_client_gets_nothing_and_disturbs_nobody() -> None:
    async with served() as alice:
        await alice.wire.publish(Version(1, 1, DATA))
        context = zmq.asyncio.Context()
        try:
            plain = context.socket(zmq.DEALER)
            plain.connect(f"tcp://{HOST}:{alice.wire.port}")
            peer = Puller(plain, 4_000, Identity.generate(), CurveKeys.generate())
            with contextlib.suppress(TimeoutError):  # libzmq may not even take it
                async with asyncio.timeout(0.2):
                    await peer.send(peer.pull())
            await still_serves(alice)
            with pytest.raises(TimeoutError):
                await peer.hear(0.2)
        finally:
            context.destroy(linger=0)
        assert peer.identity.peer_id not in alice.wire.seen


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", bytes(4096), b"\xff" + bytes(8) + b"\x7f\x03"]
)
async def test_a_raw_tcp_client_disturbs_nobody(data: bytes) -> None:
    async with served() as alice:
        await alice.wire.publish(Version(1, 1, DATA))
        with socket.create_connection((HOST, alice.wire.port)) as raw:
            raw.sendall(data)
            await still_serves(alice)


async def test_not_modified_keeps_no_place() -> None:
    async with (
        served(limits=ServeLimits(transfers=1)) as alice,
        puller_by_hand(alice.address) as bob,
    ):
        await alice.wire.publish(Version(1, 1, DATA))
        await bob.send(bob.pull(credit=1))
        offer, _ = await bob.hear()
        assert isinstance(offer, VersionOffer)
        async with puller_by_hand(alice.address) as carol:
            await carol.send(msgspec.structs.replace(carol.pull(), have=offer.digest))
            assert isinstance((await carol.hear())[0], NotModified)


async def test_a_question_that_arrives_while_a_version_goes_out_to_others_is_answered() -> None:
    async with (
        served() as alice,
        puller_by_hand(alice.address) as one,
        puller_by_hand(alice.address) as two,
    ):
        await two.send(b"babble")
        await two.hear()  # its connection is open
        await one.send(one.pull(round=5, wait_ms=60_000))
        await until(lambda: alice.wire.seen)
        await two.send(two.pull())
        time.sleep(0.1)  # noqa: ASYNC251  # it arrives before the loop has looked for it
        await alice.wire.publish(Version(5, 1, b"small enough to be hashed at once"))
        assert isinstance((await one.hear())[0], VersionOffer)
        assert isinstance((await two.hear())[0], VersionOffer)
