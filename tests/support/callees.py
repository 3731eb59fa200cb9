"""Peers that take calls at a relay, and what they say to whoever calls."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from support.announces import Speaker
from support.processes import PATIENCE_S

from p2pl.network.keys import Identity
from p2pl.network.relay import Pumps, RelayListener
from p2pl.network.relay import Speaker as Caller
from p2pl.network.traffic import Traffic
from p2pl.protocol.endpoint import Endpoint

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def greeting(says: bytes) -> AsyncIterator[int]:
    """Yields the port of a program that says something to whoever connects."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def taking_calls(
    peer: Speaker, port: int, relay: Endpoint, ticket: bytes = b""
) -> AsyncIterator[None]:
    """Takes calls for a peer within the context.

    Args:
        peer: who.
        port: of its own listener, on this machine.
        relay: where.
        ticket: to that relay.
    """
    identity = Identity(peer.key, peer.public_key, peer.id)
    speaker = Caller(identity, bytes.fromhex(peer.session), lambda _: ticket)
    pumps = Pumps(Traffic())
    listener = RelayListener(
        [relay], speaker, (HOST, port), pumps=pumps, rng=random.Random(peer.number)
    )
    task = asyncio.create_task(listener.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not listener.is_listening:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.01)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pumps.close()
