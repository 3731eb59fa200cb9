"""Two that both dialled out, joined over real sockets."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import PullError
from p2pl.protocol import relay
from p2pl.protocol.relay import Accept, Joined, Listening, Refused, Ring, Said, Told
from p2pl.rendezvous.board import Board, Policy
from p2pl.rendezvous.service import Service, SocketPipe

SESSION = bytes(32)
ANN, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
BOB_ID = relay.listen(BOB, session=SESSION, time_s=0).peer
DEADLINE_S = 20.0


class End:
    """One connection to the relay, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def hear(self) -> Told:
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readexactly(2)
            return relay.decode_told(await self.reader.readexactly(relay.length_of(head)))

    async def is_over(self) -> bool:
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.close()


class Place:
    """A relay on this machine, open to all."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.ends: list[End] = []

    async def dial(self, data: bytes = b"") -> End:
        end = End(*await asyncio.open_connection("127.0.0.1", self.port))
        end.writer.write(data)
        self.ends.append(end)
        return end

    async def say(self, message: Said, more: bytes = b"") -> End:
        return await self.dial(relay.PREFACE + relay.encode(message) + more)

    async def joined(self) -> tuple[End, End]:
        """Returns the ends of a peer that calls, and of the one that is called."""
        bob = await self.listening()
        ann = await self.say(call())
        ring = await bob.hear()
        assert isinstance(ring, Ring)
        taken = await self.say(Accept(ring.call))
        assert await ann.hear() == await taken.hear() == Joined()
        return ann, taken

    async def listening(self) -> End:
        bob = await self.say(relay.listen(BOB, session=SESSION, time_s=time.time()))
        assert isinstance(await bob.hear(), Listening)
        return bob


def call() -> Said:
    return relay.call(ANN, session=SESSION, target=BOB_ID, time_s=time.time())


@asynccontextmanager
async def place(policy: Policy | None = None) -> AsyncIterator[Place]:
    """Yields a relay that attends to its connections."""
    board = Board(policy or Policy(is_open=True), now=time.monotonic, wall=time.time)
    service = Service(board)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        tasks = [asyncio.create_task(service.accept(listener))]
        tasks.append(asyncio.create_task(service.sweep()))
        here = Place(service, listener.getsockname()[1])
        try:
            yield here
        finally:
            for end in here.ends:
                end.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def test_bytes_come_out_as_they_went_in_both_ways() -> None:
    there, back = os.urandom(3 << 20), os.urandom(2 << 20)

    async def scenario() -> tuple[bytes, bytes, int]:
        async with place() as here:
            ann, bob = await here.joined()

            async def speak(end: End, data: bytes) -> None:
                end.writer.write(data)
                await end.writer.drain()

            async with asyncio.timeout(DEADLINE_S):
                said = asyncio.gather(speak(ann, there), speak(bob, back))
                heard = await asyncio.gather(
                    bob.reader.readexactly(len(there)), ann.reader.readexactly(len(back))
                )
                await said
            return *heard, here.service.board.counts.bytes

    assert asyncio.run(scenario()) == (there, back, len(there) + len(back))


def test_what_one_side_said_last_still_arrives() -> None:
    async def scenario() -> tuple[bytes, bool, int]:
        async with place() as here:
            ann, bob = await here.joined()
            ann.writer.write(b"good")
            ann.writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                heard = await bob.reader.read()
                bob.writer.write(b"bye")
                assert await ann.reader.readexactly(3) == b"bye"
            bob.close()
            over = await ann.is_over()
            async with asyncio.timeout(DEADLINE_S):
                while here.service.board.joints:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            return heard, over, here.service.board.lines

    assert asyncio.run(scenario()) == (b"good", True, 1)  # Bob still listens


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", relay.PREFACE + b"\xff\xff", relay.PREFACE + b"\x00\x01\xc0"],
)
def test_whoever_speaks_something_else_is_ended(data: bytes) -> None:
    async def scenario() -> bool:
        async with place() as here:
            end = await here.dial(data)
            return isinstance(await end.hear(), Refused) and await end.is_over()

    assert asyncio.run(scenario())


def test_what_is_said_behind_a_call_comes_to_whoever_takes_it() -> None:
    early = bytes(range(256)) * 2

    async def scenario() -> tuple[bytes, int]:
        async with place() as here:
            bob = await here.listening()
            ann = await here.say(call(), early[:100])
            ring = await bob.hear()
            ann.writer.write(early[100:])
            await ann.writer.drain()
            assert isinstance(ring, Ring)
            taken = await here.say(Accept(ring.call))
            assert await ann.hear() == await taken.hear() == Joined()
            ann.writer.write(b"and more")
            async with asyncio.timeout(DEADLINE_S):
                heard = await taken.reader.readexactly(len(early) + 8)
            return heard, here.service.board.counts.bytes

    assert asyncio.run(scenario()) == (early + b"and more", len(early) + 8)


def test_whoever_speaks_too_early_is_ended() -> None:
    async def scenario() -> tuple[Told, Told]:
        async with place() as here:
            bob = await here.listening()
            hasty = await here.say(call(), bytes(relay.MAX_EARLY_BYTES))
            ring = await bob.hear()
            assert isinstance(ring, Ring)
            hasty.writer.write(b"x")
            first = await hasty.hear()
            await here.say(call())
            ring = await bob.hear()
            assert isinstance(ring, Ring)
            taken = await here.say(Accept(ring.call), b"more")
            return first, await taken.hear()

    first, second = asyncio.run(scenario())
    assert isinstance(first, Refused)
    assert isinstance(second, Refused)


def test_a_relay_that_drains_waits_for_what_is_joined() -> None:
    async def scenario() -> bytes:
        async with place() as here:
            ann, bob = await here.joined()
            draining = asyncio.create_task(here.service.drain(DEADLINE_S))
            ann.writer.write(b"still")
            async with asyncio.timeout(DEADLINE_S):
                heard = await bob.reader.readexactly(5)
                refused = await here.say(call())
                assert isinstance(await refused.hear(), Refused)
                assert not draining.done()
                ann.close()
                bob.close()
                await draining
            assert here.service.board.joints == 0
            return heard

    assert asyncio.run(scenario()) == b"still"


def test_whoever_runs_it_calls_without_a_connection_of_its_own() -> None:
    async def scenario() -> bytes:
        async with place() as here:
            bob = await here.listening()
            calling = asyncio.create_task(here.service.call(SESSION, BOB_ID))
            ring = await bob.hear()
            assert isinstance(ring, Ring)
            taken = await here.say(Accept(ring.call))
            pipe = await calling
            assert isinstance(pipe, SocketPipe)
            assert await taken.hear() == Joined()
            taken.writer.write(b"hello")
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(DEADLINE_S):
                heard = await loop.sock_recv(pipe.socket, 100)
                await loop.sock_sendall(pipe.socket, heard.upper())
                back = await taken.reader.readexactly(5)
            pipe.close()
            return back

    assert asyncio.run(scenario()) == b"HELLO"


def test_a_call_from_here_to_nobody_says_so() -> None:
    async def scenario() -> None:
        async with place() as here:
            await here.service.call(SESSION, BOB_ID)

    with pytest.raises(PullError, match="unreachable: the peer that is called is not here"):
        asyncio.run(scenario())
