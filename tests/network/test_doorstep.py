"""What a caller says before the listener can hear it is kept, where the stream is copied anyway."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.wires import CHUNK, DEADLINE_S, SESSION, Served, served
from zmq.utils import z85

from p2pl.network import dial
from p2pl.network.doorstep import Doorstep
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.zmtp import Client, Connection
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import Hello, Refused, decode_connection_answer, encode, issue_credential
from p2pl.rendezvous.service import SocketPipe, splice

pytestmark = pytest.mark.anyio


class Copied:
    """Dials a peer; a doorstep stands before its listener."""

    def __init__(self) -> None:
        self.copying: list[asyncio.Task[None]] = []

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        own = await dial.connect(address.host, address.port, deadline_s=deadline_s)
        here, there = socket.socketpair()
        here.setblocking(False)
        copying = splice(SocketPipe(there), Doorstep(own), lambda *_: None)
        self.copying.append(asyncio.create_task(copying))
        return await dial.said_first(here, hello)


@asynccontextmanager
async def called() -> AsyncIterator[tuple[Served, Copied]]:
    """Yields a peer, and how to dial it."""
    dialler = Copied()
    async with served() as peer:
        yield peer, dialler
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*dialler.copying)


async def test_a_question_goes_with_the_initiate_and_is_answered() -> None:
    identity, keys = Identity.generate(), CurveKeys.generate()
    credential = issue_credential(
        identity.private_key, session_id=SESSION, curve_key=keys.public, port=4_000
    )
    async with called() as (peer, dialler):
        connection = await Connection.open(
            dialler, keys, peer.address, max_payload_bytes=CHUNK, deadline_s=DEADLINE_S
        )
        with contextlib.closing(connection):
            assert connection.properties == {}, "it was waited for"
            await connection.send(encode(Hello(credential)))
            async with asyncio.timeout(DEADLINE_S):
                answer = decode_connection_answer(bytes((await connection.receive())[0]))
            assert isinstance(answer, Hello)
            assert connection.properties[b"socket-type"] == b"ROUTER"


@pytest.mark.parametrize("most", [1, 7, 10_000])
async def test_it_matters_not_how_the_bytes_are_cut(most: int) -> None:
    """A caller by hand, that says all it can as soon as it can."""
    loop = asyncio.get_running_loop()
    async with called() as (peer, dialler):
        key = z85.decode(peer.wire.curve_key)
        client = Client(CurveKeys.generate(), key, max_payload_bytes=CHUNK)
        stream = await dialler.open(peer.address, deadline_s=DEADLINE_S)
        with stream:
            asked = False
            async with asyncio.timeout(DEADLINE_S):
                while (message := client.message() if asked else None) is None:
                    for at in range(0, len(client.unsent), most):
                        await loop.sock_sendall(stream, client.unsent[at : at + most])
                    client.unsent.clear()
                    room = client.room()[0]
                    data = await loop.sock_recv(stream, min(most, len(room)))
                    assert data, "it was hung up"
                    room[: len(data)] = data
                    client.took(len(data))
                    client.shake_hands()
                    if client.may_send and not asked:
                        asked = True
                        assert not client.is_open
                        client.put(b"nonsense")
        assert decode_connection_answer(bytes(message[0])) == Refused("protocol error")


async def test_libzmq_hangs_up_on_a_question_that_comes_with_the_initiate() -> None:
    """The reason for a doorstep, and why a direct pull waits for the READY."""
    loop = asyncio.get_running_loop()
    async with served() as peer:
        key = z85.decode(peer.wire.curve_key)
        client = Client(CurveKeys.generate(), key, max_payload_bytes=CHUNK)
        hello = bytes(client.unsent)
        client.unsent.clear()
        stream = await dial.Direct().open(peer.address, deadline_s=DEADLINE_S, hello=hello)
        with stream:
            async with asyncio.timeout(DEADLINE_S):
                while not client.unsent:
                    data = await loop.sock_recv(stream, 4_096)
                    client.room()[0][: len(data)] = data
                    client.took(len(data))
                    client.shake_hands()
                client.is_patient = True  # it is not
                client.put(b"a question")
                await loop.sock_sendall(stream, bytes(client.unsent))
                with contextlib.suppress(ConnectionError):
                    assert await loop.sock_recv(stream, 4_096) == b""


async def test_a_listener_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p2pl.network.doorstep.HANDSHAKE_S", 0.05)
    own, listener = socket.socketpair()
    with listener:
        door = Doorstep(own)
        handshake = bytes(64) + b"\x04\x01H" + b"\x06" + (2).to_bytes(8) + b"II"
        await door.send(handshake)
        with pytest.raises(TimeoutError):
            await door.send(b"a question")
        door.close()
        assert listener.recv(1_000) == handshake
