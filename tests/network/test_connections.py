"""Short messages over kept connections, each within its bounds."""

import asyncio
import gc
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from support.wires import DEADLINE_S, HOST, SESSION, Puller, Served, puller_by_hand, served

from p2pl.errors import FrameError, PullError
from p2pl.network import connections as connections
from p2pl.network.connections import Inbox, Message
from p2pl.network.dial import Direct
from p2pl.network.keys import Identity
from p2pl.network.version import Version
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    MAX_TELL_BYTES,
    Busy,
    Header,
    Hello,
    Newest,
    Ping,
    Refused,
    Tell,
    Told,
    decode_connection_answer,
    encode,
)

pytestmark = pytest.mark.anyio


async def ping(me: Served, other: PeerAddress, deadline_s: float = DEADLINE_S) -> Newest:
    return await me.wire.ping(other, deadline_s=deadline_s)


async def tell(
    me: Served, other: PeerAddress, payload: bytes, deadline_s: float = DEADLINE_S
) -> None:
    await me.wire.tell(other, payload, deadline_s=deadline_s)


async def ask_by_hand(peer: Puller, ask: Header) -> Header:
    """Returns the answer to a message that was written by hand."""
    await peer.send(ask)
    async with asyncio.timeout(DEADLINE_S):
        (data,) = await peer.socket.recv_multipart()
    return decode_connection_answer(data)


@dataclass
class Relay:
    """A loopback TCP relay that counts what passes, both ways, as the sockets see it."""

    port: int = 0
    count: int = 0
    connections: int = 0


@asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[Relay]:
    """Yields a relay in front of a port."""
    relay = Relay()
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            relay.count += len(data)
            writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay.connections += 1
        there = await asyncio.open_connection(HOST, port)
        writers.extend((writer, there[1]))
        tasks.append(asyncio.create_task(pump(there[0], writer)))
        tasks.append(asyncio.create_task(pump(reader, there[1])))

    server = await asyncio.start_server(accept, HOST, 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_ping_names_the_newest_version() -> None:
    async with served() as alice, served() as bob:
        assert await ping(bob, alice.address) == Newest(0, 0, None)
        digest = await alice.wire.publish(Version(3, 500, b"weights"))
        assert await ping(bob, alice.address) == Newest(3, 500, digest)
        assert alice.wire.traffic.transfers_out == 0


async def test_once_a_connection_is_open_a_ping_takes_under_200_bytes_as_the_sockets_see_it() -> (
    None
):
    async with served() as alice, served() as bob, relay_to(alice.wire.port) as relay:
        await alice.wire.publish(Version(1 << 40, 1 << 40, b"weights"))
        address = replace(alice.address, port=relay.port)
        await ping(bob, address)
        before, counted = relay.count, bob.wire.traffic.bytes_in + bob.wire.traffic.bytes_out
        for _ in range(10):
            await ping(bob, address)
        assert relay.count - before < 10 * 200, relay.count - before
        assert relay.connections == 1
        assert bob.wire.traffic.bytes_in + bob.wire.traffic.bytes_out - counted < 10 * 60


async def test_what_is_told_is_in_the_inbox_in_order_with_the_name_of_its_sender() -> None:
    async with served() as alice, served() as bob, served() as carol:
        await tell(bob, alice.address, b"one")
        await tell(bob, alice.address, bytes(MAX_TELL_BYTES))
        await tell(carol, alice.address, b"three")
        assert await alice.wire.inbox.take() == Message(bob.identity.peer_id, b"one")
        assert alice.wire.inbox.take_all() == [
            Message(bob.identity.peer_id, bytes(MAX_TELL_BYTES)),
            Message(carol.identity.peer_id, b"three"),
        ]
        waiting = asyncio.create_task(alice.wire.inbox.take())
        await tell(bob, alice.address, b"four")
        assert (await waiting).payload == b"four"


async def test_who_has_told_too_much_waits_and_others_do_not() -> None:
    async with served() as alice, served() as bob, served() as carol:
        for _ in range(connections.MAX_INBOX_PER_PEER):
            await tell(bob, alice.address, b"again")
        with pytest.raises(PullError, match="late"):
            await tell(bob, alice.address, b"once more", deadline_s=0.3)
        await tell(carol, alice.address, b"me too")
        assert len(alice.wire.inbox.take_all()) == connections.MAX_INBOX_PER_PEER + 1
        await tell(bob, alice.address, b"once more")


def test_an_inbox_is_bounded_over_all_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_INBOX", 3)
    inbox = Inbox()
    assert [inbox.put(Message(str(peer), b"")) for peer in range(4)] == [True, True, True, False]


async def test_messages_beyond_the_quota_are_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MESSAGES_AT_ONCE", 2)
    monkeypatch.setattr(connections, "MESSAGES_PER_S", 0.001)
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        assert isinstance(await ask_by_hand(mallory, Hello(mallory.credential())), Hello)
        # Another connection is no other quota.
        answers = [await ask_by_hand(mallory, Ping())]
        assert isinstance(await ask_by_hand(mallory, Hello(mallory.credential())), Hello)
        answers += [await ask_by_hand(mallory, Ping()) for _ in range(2)]
        assert [type(answer) for answer in answers] == [Newest, Newest, Busy]


async def test_a_message_too_long_is_a_mistake_of_the_caller() -> None:
    async with served() as alice, served() as bob:
        with pytest.raises(ValueError, match="payload"):
            await tell(bob, alice.address, bytes(MAX_TELL_BYTES + 1))


@pytest.mark.parametrize("ask", [Ping(), Tell(b"psst")])
async def test_who_has_not_said_hello_is_told_to(ask: Header) -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        assert isinstance(await ask_by_hand(mallory, ask), Refused)
        assert alice.wire.inbox.take_all() == []


async def test_a_hello_with_the_card_of_another_opens_nothing() -> None:
    async with (
        served() as alice,
        served() as bob,
        puller_by_hand(alice.address) as mallory,
    ):
        stolen = mallory.credential(identity=bob.identity, curve_key=bob.address.curve_key)
        assert await ask_by_hand(mallory, Hello(stolen)) == Refused("protocol error")
        assert isinstance(await ask_by_hand(mallory, Tell(b"psst")), Refused)
        assert alice.wire.traffic.garbage == 1


async def test_a_broken_frame_costs_its_sender_the_connection() -> None:
    async with served() as alice, puller_by_hand(alice.address) as mallory:
        await ask_by_hand(mallory, Hello(mallory.credential()))
        assert await ask_by_hand(mallory, Tell(b"fine")) == Told()
        await mallory.send(encode(Ping()) + b"!")
        assert (await mallory.hear())[0] == Refused("protocol error")
        assert alice.wire.traffic.garbage_by_peer == {mallory.identity.peer_id: 1}
        assert isinstance(await ask_by_hand(mallory, Ping()), Refused)


async def test_a_connection_that_the_other_end_has_forgotten_is_opened_again() -> None:
    async with served() as alice, served() as bob, relay_to(alice.wire.port) as relay:
        address = replace(alice.address, port=relay.port)
        await ping(bob, address)
        async with (
            puller_by_hand(alice.address, bob.identity) as one,
            puller_by_hand(alice.address, bob.identity) as other,
        ):
            for newer in (one, other):
                assert isinstance(await ask_by_hand(newer, Hello(newer.credential())), Hello)
        await tell(bob, address, b"still here")
        assert relay.connections == 2
        assert [message.payload for message in alice.wire.inbox.take_all()] == [b"still here"]


async def test_a_peer_that_moved_is_asked_where_it_is_now() -> None:
    async with served() as bob:
        async with served() as alice:
            await ping(bob, alice.address)
        with pytest.raises(PullError):
            await ping(bob, alice.address, deadline_s=2)
        async with served() as again:
            moved = replace(again.address, id=alice.address.id)
            with pytest.raises(FrameError, match="peer id"):
                await ping(bob, moved)
            assert await ping(bob, again.address) == Newest(0, 0, None)


async def test_a_session_of_another_kind_is_refused() -> None:
    async with served(session_id="cd" * 32) as alice, served() as bob:
        with pytest.raises(PullError, match="refused"):
            await ping(bob, alice.address)


async def test_many_questions_at_once_are_each_answered() -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(7, 1, b"weights"))
        told = [tell(bob, alice.address, bytes([number])) for number in range(20)]
        answers = await asyncio.gather(*(ping(bob, alice.address) for _ in range(20)), *told)
        assert [answer.round for answer in answers[:20] if answer] == [7] * 20
        assert len(alice.wire.inbox.take_all()) == 20


async def test_closing_the_wire_ends_a_question_at_once() -> None:
    async with served() as alice:
        async with served() as bob:
            for _ in range(connections.MAX_INBOX_PER_PEER):
                await tell(bob, alice.address, b"full")
            asking = asyncio.create_task(tell(bob, alice.address, b"more", deadline_s=60))
            await asyncio.sleep(0.05)
        with pytest.raises(PullError, match="closed"):
            await asking


async def test_a_closed_wire_asks_nobody() -> None:
    async with served() as other:
        async with served() as me:
            pass
        with pytest.raises(PullError, match="closed"):
            await ping(me, other.address)


async def test_a_wire_whose_end_is_cut_short_leaves_no_connection_open() -> None:
    dialled: list[socket.socket] = []

    class Dialling(Direct):
        async def open(
            self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
        ) -> socket.socket:
            dialled.append(await super().open(address, deadline_s=deadline_s, hello=hello))
            return dialled[-1]

    async with served() as other:
        await other.wire.publish(Version(1, 1, b"x"))
        me = CurveWire(
            Identity.generate(), session_id=SESSION, listen=f"{HOST}:0", dialler=Dialling()
        )
        await me.__aenter__()
        await me.ping(other.address, deadline_s=DEADLINE_S)
        await me.pull(other.address, have=None, round=0, wait_s=0, deadline_s=DEADLINE_S, size=1)
        assert [stream.fileno() != -1 for stream in dialled] == [True, True]
        ending = asyncio.create_task(me.__aexit__())
        await asyncio.sleep(0)  # it waits for its tasks now
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    assert [stream.fileno() for stream in dialled] == [-1, -1]


async def test_a_question_that_is_given_up_before_it_has_begun_leaves_nothing_behind() -> None:
    async with served() as me, served() as other:
        asking = asyncio.create_task(ping(me, other.address))
        await asyncio.sleep(0)  # its own task has been made, and has not begun
        asking.cancel()
        with warnings.catch_warnings(record=True) as left:
            warnings.simplefilter("always")
            await asyncio.wait({asking})
        assert asking.cancelled()
        del asking
        gc.collect()
        assert not left
        assert (await ping(me, other.address)).round == 0
