"""What ZeroMQ does not bound by itself costs the connection that takes too much of it."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq
import zmq.asyncio
from support.announces import Clock
from support.wires import HOST, puller_by_hand, served, until

from p2pl.network.gate import EVENTS, Gate
from p2pl.network.version import Version
from p2pl.pace import Rate
from p2pl.protocol.frame import VersionOffer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the bytes"),
]
PARTS = [bytes(2_000)] * 40


@asynccontextmanager
async def gated(**bounds: Any) -> AsyncIterator[tuple[zmq.asyncio.Context, Gate, str]]:  # noqa: ANN401
    """Yields a gate in front of a socket from which nobody takes a message, and where it is."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port(f"tcp://{HOST}")
    gate = Gate(port, **bounds)
    watching = asyncio.create_task(gate.run(router.get_monitor_socket(EVENTS)))
    try:
        yield context, gate, f"tcp://{HOST}:{port}"
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        router.disable_monitor()
        context.destroy(linger=0)


def dealer(context: zmq.asyncio.Context, where: str) -> zmq.asyncio.Socket:
    made = context.socket(zmq.DEALER)
    made.reconnect_ivl = -1
    made.connect(where)
    return made


async def test_what_is_held_of_one_connection_is_bounded() -> None:
    async with gated(max_held=1 << 16) as (context, gate, where):
        small, large = dealer(context, where), dealer(context, where)
        await small.send(b"x")
        await large.send_multipart(PARTS)  # 80 kB, of which nobody takes one
        await until(lambda: gate.shut == 1)
        assert len(gate) == 1


async def test_what_is_held_of_all_together_is_bounded() -> None:
    async with gated(max_held_in_all=5 * 80_000) as (context, gate, where):
        dealers = [dealer(context, where) for _ in range(8)]
        for one in dealers:
            await one.send_multipart(PARTS)
        await until(lambda: gate.shut >= 3)
        assert len(gate) + gate.shut == 8
        assert len(gate) >= 4


async def test_too_many_connections_cost_the_longest_open_one() -> None:
    async with served() as peer:
        peer.wire.gate._max_open = 3
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(socket.create_connection((HOST, peer.address.port)))
            await until(lambda: peer.wire.gate.shut == 1)
            assert len(peer.wire.gate) == 3
        await until(lambda: len(peer.wire.gate) == 0)


async def test_an_address_that_connects_too_fast_is_shut_out_until_it_is_slower() -> None:
    clock = Clock()
    gate = Gate(0, opened=Rate.per_second(10.0, 3), now=clock)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((HOST, 0)))
        gate._port = listening.getsockname()[1]

        def accepts() -> socket.socket:
            mine = stack.enter_context(socket.create_connection(listening.getsockname()))
            mine.settimeout(10)
            theirs = stack.enter_context(listening.accept()[0])
            gate._opened(theirs.fileno())
            return mine

        opened = [accepts() for _ in range(5)]
        assert (len(gate), gate.shut) == (3, 2)
        assert [one.recv(1) for one in opened[3:]] == [b"", b""]
        clock.advance(0.15)
        accepts()
        assert (len(gate), gate.shut) == (4, 2)


async def test_honest_messages_are_not_held_and_others_are_served_meanwhile() -> None:
    async with served() as peer, served() as other:
        gate = peer.wire.gate
        gate._max_held = 1 << 14
        await peer.wire.publish(Version(1, 1, b"x"))
        for _ in range(60):
            await other.wire.tell(peer.address, bytes(1_500), deadline_s=10)
            peer.wire.inbox.take_all()
        gate.look()
        assert gate.shut == 0
        async with puller_by_hand(peer.address) as bad:
            await bad.socket.send_multipart([bytes(2_000)] * 4_000)
            async with puller_by_hand(peer.address) as good:
                await good.send(good.pull())
                assert isinstance((await good.hear())[0], VersionOffer)
