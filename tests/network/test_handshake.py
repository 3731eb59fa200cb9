"""Handshakes over sockets: what either end can say in one costs that connection, and no process."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import nacl.bindings as sodium
import pytest
import zmq
import zmq.asyncio
from fuzz_curve import GREETING, SMALL_ORDER, Listener
from support.wires import CHUNK, DEADLINE_S, HOST, SESSION, Served, served, until
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from p2pl.errors import PullError
from p2pl.network.dial import Direct
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.pull import Pulled
from p2pl.network.version import Version
from p2pl.network.wire import CurveWire
from p2pl.network.zmtp import Client, Connection
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import Hello, encode, issue_credential

pytestmark = pytest.mark.anyio
Script = Callable[[Listener, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
# HSalsa20 of 32 zeros: the key of all boxes for which a key of small order was used.
NONE = bytes.fromhex("351f86faa3b988468a850122b65b0acece9c4826806aeee63de9c0da2bd7f91e")
HEARD_BYTES = 64 + 2 + 200  # of a client's greeting and HELLO


def address_of(port: int, key: str) -> PeerAddress:
    return PeerAddress(id="cd" * 32, host=HOST, port=port, curve_key=key)


@asynccontextmanager
async def listening(script: Script) -> AsyncIterator[PeerAddress]:
    """Yields the address of a listener that hears a HELLO and follows `script`."""
    there = Listener()
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            there.hear_hello(await reader.readexactly(HEARD_BYTES))
            writer.write(GREETING)
            await script(there, reader, writer)

    server = await asyncio.start_server(accept, HOST, 0)
    async with server:
        yield address_of(server.sockets[0].getsockname()[1], there.key)
        for writer in writers:
            writer.transport.abort()


async def pull(me: Served, address: PeerAddress, deadline_s: float = DEADLINE_S) -> object:
    return await me.wire.pull(
        address, have=None, round=0, wait_s=0, deadline_s=deadline_s, size=100
    )


@pytest.mark.parametrize("key", SMALL_ORDER, ids=lambda key: key.hex()[:4])
async def test_a_listener_whose_short_term_key_is_of_small_order_ends_no_process(
    key: bytes,
) -> None:
    async def script(
        there: Listener, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(there.welcome(short=key))

    async with served() as me, listening(script) as address:
        with pytest.raises(PullError, match=r"^unreachable: not a p2pl peer$"):
            await pull(me, address)
        with pytest.raises(PullError, match=r"^unreachable: not a p2pl peer$"):
            await me.wire.ping(address, deadline_s=DEADLINE_S)


async def test_a_listener_that_hangs_up_in_the_handshake_is_unreachable() -> None:
    async def script(
        there: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(there.welcome())
        await reader.readexactly(100)
        writer.close()

    async with served() as me, listening(script) as address:
        with pytest.raises(PullError, match=r"^unreachable: no CURVE handshake$"):
            await pull(me, address)


async def test_a_handshake_that_goes_on_for_ever_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2pl.network.zmtp.HANDSHAKE_S", 0.3)

    async def script(
        there: Listener, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for byte in there.welcome():
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)

    async with served() as me, listening(script) as address:
        with pytest.raises(PullError, match=r"^unreachable: no CURVE handshake$"):
            await pull(me, address)


async def test_a_listener_that_lets_nobody_in_says_so() -> None:
    context, keys = zmq.asyncio.Context(), CurveKeys.generate()
    authenticator = AsyncioAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=".")  # where no key is
    try:
        router = context.socket(zmq.ROUTER)
        router.curve_server, router.zap_domain, router.linger = True, b"p2pl", 0
        router.curve_publickey = keys.public.encode()
        router.curve_secretkey = keys.secret.encode()
        port = router.bind_to_random_port(f"tcp://{HOST}")
        async with served() as me:
            with pytest.raises(PullError, match=r"^unreachable: refused the CURVE key$"):
                await pull(me, address_of(port, keys.public))
    finally:
        authenticator.stop()
        context.destroy(linger=0)


@pytest.mark.parametrize("key", SMALL_ORDER, ids=lambda key: key.hex()[:4])
async def test_a_dialler_whose_short_term_key_is_of_small_order_gets_no_answer(key: bytes) -> None:
    async with served() as alice, served() as bob:
        await alice.wire.publish(Version(1, 1, b"x" * 100))
        stream = await Direct().open(alice.address, deadline_s=DEADLINE_S)
        client = Client(
            CurveKeys.generate(), z85.decode(alice.wire.curve_key), max_payload_bytes=100
        )
        hello = bytearray(client.unsent)
        hello[146:178] = key  # at 80 of the command
        proof = sodium.crypto_box_easy_afternm(
            bytes(64), b"CurveZMQHELLO---" + bytes(hello[178:186]), NONE
        )
        hello[186:266] = proof  # which a server must not take
        with stream:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream, bytes(hello))
            async with asyncio.timeout(DEADLINE_S):
                heard = b""
                while data := await loop.sock_recv(stream, 4_096):
                    heard += data
        assert len(heard) <= len(GREETING), "it was welcomed"
        assert await pull(bob, alice.address)


class Piped:
    """Dials by TCP, and gives one end of a socket pair: what is said passes through here."""

    def __init__(self) -> None:
        self.said: list[int] = []  # bytes of each flight from here
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        there = await Direct().open(address, deadline_s=deadline_s, hello=hello)
        self.said.append(len(hello))
        here, ours = socket.socketpair()
        here.setblocking(False)
        ours.setblocking(False)
        for start, end, said in ((ours, there, self.said), (there, ours, [])):
            self._tasks.add(asyncio.create_task(self._pump(start, end, said)))
        return here

    async def _pump(self, start: socket.socket, end: socket.socket, said: list[int]) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError), start:
            while data := await loop.sock_recv(start, 1 << 20):
                said.append(len(data))
                await loop.sock_sendall(end, data)
            end.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_pull_takes_three_flights_over_any_stream_and_the_next_takes_one() -> None:
    data = bytes(range(256)) * 1_000
    dialler, identity = Piped(), Identity.generate()
    async with served() as alice:
        await alice.wire.publish(Version(1, 1, data))
        wire = CurveWire(
            identity, session_id=SESSION, listen=f"{HOST}:0", chunk_bytes=CHUNK, dialler=dialler
        )
        async with wire:
            for flights in (3, 4):  # greeting and HELLO; INITIATE; the question; the next question
                pulled = await wire.pull(
                    alice.address,
                    have=None,
                    round=0,
                    wait_s=0,
                    deadline_s=DEADLINE_S,
                    size=len(data),
                )
                assert isinstance(pulled, Pulled)
                assert pulled.payload == data
                assert len(dialler.said) == flights
        await dialler.aclose()


async def test_a_connection_is_kept_for_many_messages_and_closed_at_once() -> None:
    identity, keys = Identity.generate(), CurveKeys.generate()
    credential = issue_credential(
        identity.private_key, session_id=SESSION, curve_key=keys.public, port=4_000
    )
    async with served() as alice:
        connection = await Connection.open(
            Direct(), keys, alice.address, max_payload_bytes=2_048, deadline_s=DEADLINE_S
        )
        for _ in range(3):
            await connection.send(encode(Hello(credential)))
            async with asyncio.timeout(DEADLINE_S):
                assert len(await connection.receive()) == 1
        assert len(alice.wire.gate) == 1
        connection.close()
        await until(lambda: not len(alice.wire.gate))
