"""A peer that nobody dials is reached by a relay or at a meeting; a fault costs that call."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.relays import HOST, certificate, relaying
from support.wires import DEADLINE_S, SESSION, Served, served, until

from p2pl.errors import PullError
from p2pl.network.keys import Identity
from p2pl.network.relay import Meeting, Pumps, RelayListener, Speaker, dial_through
from p2pl.network.traffic import Traffic
from p2pl.protocol import invitation, ticket
from p2pl.protocol import relay as messages
from p2pl.protocol.endpoint import Endpoint
from p2pl.rendezvous.board import Policy

RAW_SESSION = bytes.fromhex(SESSION)
GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"  # how a listener of ZeroMQ begins
ISSUER = Identity.generate()
POLICY = Policy(issuers=frozenset({ISSUER.public_key}))


def speaker(identity: Identity | None = None, **named: object) -> Speaker:
    return Speaker(identity or Identity.generate(), RAW_SESSION, **named)  # type: ignore[arg-type]


@asynccontextmanager
async def pumping() -> AsyncIterator[Pumps]:
    pumps = Pumps(Traffic())
    try:
        yield pumps
    finally:
        await pumps.close()


@asynccontextmanager
async def hidden(
    relay: Endpoint, pumps: Pumps, **named: object
) -> AsyncIterator[tuple[Served, RelayListener]]:
    """Yields a peer that takes calls at a relay."""
    async with served() as peer:
        own = speaker(peer.identity, **named)
        at = (HOST, peer.wire.port)
        listener = RelayListener([relay], own, at, pumps=pumps, rng=random.Random(1))
        task = asyncio.create_task(listener.run())
        try:
            yield peer, listener
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def first_bytes(stream: socket.socket) -> bytes:
    """Returns what the listener of a peer says first."""
    loop, said = asyncio.get_running_loop(), b""
    with stream:
        async with asyncio.timeout(DEADLINE_S):
            await loop.sock_sendall(stream, GREETING)
            while len(said) < len(GREETING):
                said += await loop.sock_recv(stream, len(GREETING) - len(said))
    return said


@pytest.mark.parametrize("kind", ["relay", "relays", "name"])
def test_a_peer_that_nobody_dials_is_reached(tmp_path: Path, kind: str) -> None:
    paper = certificate(tmp_path)

    async def scenario() -> tuple[bytes, Traffic]:
        async with relaying(context=paper.server) as relay, pumping() as pumps:
            where = {
                "relay": relay.plain,
                "relays": relay.secure,
                "name": Endpoint("relay", "localhost", relay.plain.port),
            }[kind]
            async with hidden(where, pumps, trust=paper.client) as (peer, listener):
                await until(lambda: listener.is_listening)
                stream = await dial_through(
                    where,
                    peer.identity.peer_id,
                    speaker(trust=paper.client),
                    pumps=pumps,
                    deadline_s=DEADLINE_S,
                )
                assert not stream.getblocking()
                return await first_bytes(stream), pumps.traffic

    said, traffic = asyncio.run(scenario())
    assert said == GREETING
    assert traffic.relayed_in >= len(GREETING)
    assert traffic.relayed_out >= len(GREETING)


def test_a_relay_that_comes_back_is_listened_at_again() -> None:
    async def scenario() -> bytes:
        async with pumping() as pumps, contextlib.AsyncExitStack() as stack:
            async with relaying() as first:
                where = first.plain
                peer, listener = await stack.enter_async_context(hidden(where, pumps))
                await until(lambda: listener.is_listening)
            await until(lambda: not listener.is_listening)
            with pytest.raises(PullError, match=f"unreachable: {where}: no connection"):
                await call(where, peer, pumps)
            async with relaying(port=where.port):
                await until(lambda: listener.is_listening)
                return await first_bytes(await call(where, peer, pumps))

    assert asyncio.run(scenario()) == GREETING


async def call(relay: Endpoint, peer: Served, pumps: Pumps) -> socket.socket:
    return await dial_through(
        relay, peer.identity.peer_id, speaker(), pumps=pumps, deadline_s=DEADLINE_S
    )


def test_a_ticket_of_the_tracker_opens_a_relay_and_nothing_else_does() -> None:
    def ticket_for(identity: Identity) -> bytes:
        digest = bytes.fromhex(identity.peer_id)
        until_s = int(time.time()) + 600
        return ticket.issue(
            ISSUER.private_key, session=RAW_SESSION, peer=digest, not_after_s=until_s
        )

    async def scenario() -> bytes:
        async with relaying(POLICY) as relay, pumping() as pumps, served() as peer:
            own = speaker(peer.identity, ticket=lambda _: ticket_for(peer.identity))
            at = (HOST, peer.wire.port)
            listener = RelayListener([relay.plain], own, at, pumps=pumps, rng=random.Random(1))
            task = asyncio.create_task(listener.run())
            await until(lambda: listener.is_listening)
            with pytest.raises(PullError, match=r"refuses: ticket: got 'none'"):
                await call(relay.plain, peer, pumps)
            other = Identity.generate()
            caller = speaker(other, ticket=lambda _: ticket_for(other))
            stream = await dial_through(
                relay.plain, peer.identity.peer_id, caller, pumps=pumps, deadline_s=DEADLINE_S
            )
            said = await first_bytes(stream)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return said

    assert asyncio.run(scenario()) == GREETING


def test_whoever_is_not_at_the_relay_cannot_be_reached_by_it() -> None:
    async def scenario() -> None:
        async with relaying() as relay, pumping() as pumps, served() as peer:
            await call(relay.plain, peer, pumps)

    with pytest.raises(PullError, match="refuses: the peer that is called is not here"):
        asyncio.run(scenario())


def test_a_relay_that_takes_nothing_behind_a_call_is_called_once_more() -> None:
    said: list[bytes] = []

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers as a relay did that looks for a message behind a call."""
        await reader.readexactly(len(messages.PREFACE))
        head = await reader.readexactly(messages.LENGTH_BYTES)
        await reader.readexactly(messages.length_of(head))
        said.append(b"")
        if reader._buffer:  # type: ignore[attr-defined]
            writer.write(messages.encode(messages.Refused("message: got '65280 bytes'")))
        else:
            writer.write(messages.encode(messages.Joined()))
            said[-1] = await reader.readexactly(len(GREETING))
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(old, HOST, 0)
        async with server, pumping() as pumps:
            where = Endpoint("relay", HOST, server.sockets[0].getsockname()[1])
            stream = await dial_through(
                where, "ab" * 32, speaker(), pumps=pumps, deadline_s=DEADLINE_S, hello=GREETING
            )
            with stream:
                await until(lambda: said[-1])

    asyncio.run(scenario())
    assert said == [b"", GREETING]


async def _nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        await reader.read()


@pytest.mark.parametrize(
    ("behave", "told"),
    [
        (_nonsense, "is no relay"),
        (_hang_up, "[Cc]onnection (lost|reset)"),
        (_say_nothing, "does not answer"),
    ],
)
def test_what_is_no_relay_costs_that_call(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], told: str
) -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(behave, HOST, 0)
        async with server, pumping() as pumps:
            relay = Endpoint("relay", HOST, server.sockets[0].getsockname()[1])
            await dial_through(relay, "ab" * 32, speaker(), pumps=pumps, deadline_s=0.5)

    with pytest.raises(PullError, match=f"unreachable: relay://.* ?{told}"):
        asyncio.run(scenario())


AWAY = "127.0.0.2"  # nothing is asked of this machine itself through a proxy


@asynccontextmanager
async def proxying(port: int, answer: bytes = b"200 OK") -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yields a proxy that leads whoever asks to a port of this machine, and what it was asked."""
    asked: list[bytes] = []
    copying: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).splitlines()[0])
        writer.write(b"HTTP/1.1 %s\r\n\r\n" % answer)
        there, its = await asyncio.open_connection(HOST, port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        copying.extend(asyncio.create_task(copy(*two)) for two in ((reader, its), (there, writer)))

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield f"me:secret@{HOST}:{server.sockets[0].getsockname()[1]}", asked
        await asyncio.gather(*copying)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
def test_a_relay_is_reached_through_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    paper = certificate(tmp_path, AWAY)

    async def scenario() -> tuple[bytes, list[bytes]]:
        async with relaying(context=paper.server) as relay, pumping() as pumps:
            where = Endpoint("relays", AWAY, 443)
            async with proxying(relay.secure.port) as (proxy, asked):
                monkeypatch.setenv(variable, f"http://{proxy}")
                async with hidden(where, pumps, trust=paper.client) as (peer, listener):
                    await until(lambda: listener.is_listening)
                    caller, who = speaker(trust=paper.client), peer.identity.peer_id
                    stream = await dial_through(
                        where, who, caller, pumps=pumps, deadline_s=DEADLINE_S
                    )
                    said = await first_bytes(stream)
                await pumps.close()
            return said, asked

    said, asked = asyncio.run(scenario())
    assert said == GREETING
    assert asked == [b"CONNECT 127.0.0.2:443 HTTP/1.1"] * 3


@pytest.mark.parametrize(
    ("scheme", "answer", "told"),
    [
        ("http", b"403 Forbidden", r"the proxy http://127.0.0.1:\d+ .* does not lead there: .*403"),
        ("socks5", b"200 OK", r"the proxy socks5://127.0.0.1:\d+ .* pip install 'python-socks"),
        ("ftp", b"200 OK", r"the proxy ftp://127.0.0.1:\d+ .* ftp isn't supported"),
    ],
)
def test_a_proxy_that_is_of_no_use_is_named(
    monkeypatch: pytest.MonkeyPatch, scheme: str, answer: bytes, told: str
) -> None:
    async def scenario() -> None:
        async with proxying(9, answer) as (proxy, _), pumping() as pumps:
            monkeypatch.setenv("https_proxy", f"{scheme}://{proxy}")
            where = Endpoint("relays", AWAY, 443)
            await dial_through(where, "ab" * 32, speaker(), pumps=pumps, deadline_s=DEADLINE_S)

    with pytest.raises(PullError, match=told) as caught:
        asyncio.run(scenario())
    assert "secret" not in str(caught.value)


def test_so_many_shake_hands_at_once_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pl.rendezvous.doorman.MAX_PER_ADDRESS", 2)
    monkeypatch.setattr("p2pl.rendezvous.doorman.MAX_HANDSHAKES", 3)
    paper = certificate(tmp_path)
    ends: list[socket.socket] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        async def silent(host: str) -> socket.socket:
            there = socket.socket()
            ends.append(there)
            there.bind((host, 0))
            there.setblocking(False)
            await loop.sock_connect(there, (HOST, relay.secure.port))
            return there

        async def is_hung_up(there: socket.socket) -> bool:
            with contextlib.suppress(ConnectionError):
                return await loop.sock_recv(there, 1) == b""
            return True

        async with relaying(context=paper.server) as relay, pumping() as pumps:
            refused = relay.board.counts.refused
            held = [await silent(HOST), await silent(HOST)]
            assert await is_hung_up(await silent(HOST))
            held.append(await silent(AWAY))
            assert await is_hung_up(await silent(AWAY))
            assert refused["handshake"] == 2
            for one in held:
                one.close()
            async with hidden(relay.secure, pumps, trust=paper.client) as (peer, listener):
                await until(lambda: listener.is_listening)
                for _ in range(4):  # who has shaken hands counts no more
                    stream = await dial_through(
                        relay.secure,
                        peer.identity.peer_id,
                        speaker(trust=paper.client),
                        pumps=pumps,
                        deadline_s=DEADLINE_S,
                    )
                    ends.append(stream)

    async def bounded() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await scenario()

    try:
        asyncio.run(bounded())
    finally:
        for end in ends:
            end.close()


def test_a_relay_that_nobody_trusts_is_not_used(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relaying(context=certificate(tmp_path).server) as relay, pumping() as pumps:
            await dial_through(
                relay.secure, "ab" * 32, speaker(), pumps=pumps, deadline_s=DEADLINE_S
            )

    with pytest.raises(PullError, match="--ca"):
        asyncio.run(scenario())


def test_a_peer_that_can_be_dialled_calls_one_that_cannot() -> None:
    async def scenario() -> tuple[bytes, Traffic]:
        meeting = Meeting(RAW_SESSION)
        async with meeting.open(HOST), pumping() as pumps:
            where = Endpoint("meet", HOST, meeting.port)
            async with hidden(where, pumps) as (peer, listener):
                assert not meeting.holds(peer.identity.peer_id)
                await until(lambda: listener.is_listening)
                assert meeting.holds(peer.identity.peer_id)
                called = await meeting.call(peer.identity.peer_id, deadline_s=DEADLINE_S)
                with pytest.raises(PullError, match="no calls are taken here"):
                    await call(where, peer, pumps)
                return await first_bytes(called), pumps.traffic

    said, traffic = asyncio.run(scenario())
    assert said == GREETING
    assert (traffic.relayed_in, traffic.relayed_out) == (0, 0)


def test_a_meeting_is_for_one_session() -> None:
    async def scenario() -> str:
        meeting = Meeting(bytes(32))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(meeting.open(HOST))
            pumps = await stack.enter_async_context(pumping())
            where = Endpoint("meet", HOST, meeting.port)
            _, listener = await stack.enter_async_context(hidden(where, pumps))
            await until(lambda: listener.reason)
            return listener.reason

    assert "not a session that is served here" in asyncio.run(scenario())


@pytest.mark.parametrize(
    ("who", "told"),
    [
        ("invited", ""),
        ("uninvited", "allowed an invitation"),
        ("another's", "the invitation is another peer's"),
        ("revoked", "its invitation was taken back"),
    ],
)
def test_a_meeting_of_a_private_session_keeps_only_the_invited_waiting(who: str, told: str) -> None:
    author = Identity.generate()

    def paper(identity: Identity) -> bytes:
        given = invitation.invite(author.private_key, session_id=SESSION, peer_id=identity.peer_id)
        return b"" if who == "uninvited" else invitation.encode(given)

    async def scenario() -> tuple[bool, str]:
        meeting = Meeting(RAW_SESSION, author.public_key)
        async with meeting.open(HOST), pumping() as pumps, served() as peer:
            where, me = Endpoint("meet", HOST, meeting.port), peer.identity
            owner = Identity.generate() if who == "another's" else me
            meeting.revoked = lambda: {me.peer_id} if who == "revoked" else ()
            at, own = (HOST, peer.wire.port), speaker(me, ticket=lambda _: paper(owner))
            listener = RelayListener([where], own, at, pumps=pumps, rng=random.Random(1))
            task = asyncio.create_task(listener.run())
            await until(lambda: listener.is_listening or listener.reason)
            found = meeting.holds(me.peer_id), listener.reason
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return found

    holds, reason = asyncio.run(scenario())
    assert holds == (who == "invited")
    assert told in reason


def test_a_meeting_calls_nobody_who_is_not_there() -> None:
    async def scenario() -> None:
        meeting = Meeting(RAW_SESSION)
        async with meeting.open(HOST):
            await meeting.call("ab" * 32, deadline_s=DEADLINE_S)

    with pytest.raises(PullError, match="is not here"):
        asyncio.run(scenario())
