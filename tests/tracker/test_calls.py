"""The tracker calls peers by relays that it names; what is the relay's fault is not the peer's."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.announces import Speaker
from support.callees import greeting, taking_calls
from support.processes import PATIENCE_S
from support.relays import HOST, Running, certificate, relaying

from p2pl.errors import AnnounceError
from p2pl.protocol import relay as messages
from p2pl.protocol import ticket
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.reach import GREETING
from p2pl.rendezvous.board import Policy
from p2pl_tracker import calls
from p2pl_tracker.calls import Caller
from p2pl_tracker.issuer import Relays
from p2pl_tracker.reach import DIALS_AT_ONCE
from p2pl_tracker.relay import Doors, Relay
from p2pl_tracker.swarm import Entry, Pool

pytestmark = pytest.mark.anyio
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
POLICY = Policy(issuers=frozenset({KEY.public_key().public_bytes_raw()}))
ELSEWHERE = Endpoint("relay", HOST, 1)  # where nobody listens


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits longer than a tracker does, on a machine that does much else."""
    for name in ("CONNECT_S", "ANSWER_S", "RELAY_S", "GREETING_S"):
        monkeypatch.setattr(calls, name, PATIENCE_S)


def admitted(peer: Speaker) -> bytes:
    """Returns a peer's ticket."""
    until_s = int(time.time()) + 600
    return ticket.issue(
        KEY,
        session=bytes.fromhex(peer.session),
        peer=bytes.fromhex(peer.id),
        not_after_s=until_s,
    )


def caller(*relays: Endpoint, own: Relay | None = None, **named: object) -> Caller:
    known = Relays(tuple(map(str, relays)), KEY)
    return Caller(known, own, now=lambda: 0.0, wall=time.time, **named)  # type: ignore[arg-type]


def entry(peer: Speaker, one: Caller, *names: Endpoint, host: str = HOST) -> Entry:
    """Returns what a peer says that can be called at some relays."""
    said = msgspec.structs.replace(
        peer.says(), version=2, endpoints=tuple(map(str, names or sorted(one.endpoints)))
    )
    return Entry.of(said, host, one.endpoints)


@contextlib.asynccontextmanager
async def one_who_says(said: bytes, relay: Running) -> AsyncIterator[Speaker]:
    """Yields a peer that takes calls, and says this to whoever calls."""
    peer = Speaker(1)
    async with greeting(said) as port, taking_calls(peer, port, relay.plain, admitted(peer)):
        yield peer


async def test_a_peer_that_takes_calls_answers_and_others_do_not() -> None:
    async with relaying(POLICY) as relay, one_who_says(GREETING, relay) as living:
        one = caller(relay.plain)
        assert await one.call(entry(living, one)) is Pool.ANSWERS
        assert await one.call(entry(Speaker(2), one)) is Pool.SILENT


async def test_who_greets_otherwise_or_takes_no_call_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with relaying(POLICY) as relay:
        one = caller(relay.plain)
        async with one_who_says(b"HTTP/1.1 400 Bad", relay) as other:
            assert await one.call(entry(other, one)) is Pool.SILENT
        monkeypatch.setattr(calls, "ANSWER_S", 0.2)
        mute = Speaker(2)
        reader, writer = await asyncio.open_connection(relay.plain.host, relay.plain.port)
        said = messages.listen(
            mute.key,
            session=bytes.fromhex(mute.session),
            time_s=time.time(),
            ticket=admitted(mute),
        )
        writer.write(messages.PREFACE + messages.encode(said))
        await reader.readexactly(messages.LENGTH_BYTES)  # it listens
        assert await one.call(entry(mute, one)) is Pool.SILENT
        writer.close()
        await writer.wait_closed()


async def test_a_relay_in_the_trackers_own_process_is_asked_without_a_connection() -> None:
    with socket.create_server((HOST, 0)) as door:
        own = Relay(POLICY, Doors(door), drain_s=0.0)
        async with own.running():
            here = Running(own.board, Endpoint("relay", *door.getsockname()), ELSEWHERE)
            async with one_who_says(GREETING, here) as living:
                alone = caller(ELSEWHERE, own=own)
                assert await alone.call(entry(living, alone)) is Pool.ANSWERS
                assert await alone.call(entry(Speaker(2), alone)) is Pool.SILENT
                # Who is not there may be at another relay, which cannot be asked.
                beside = caller(ELSEWHERE, Endpoint("relay", "localhost", 1), own=own)
                assert await beside.call(entry(living, beside)) is Pool.ANSWERS
                assert await beside.call(entry(Speaker(3), beside)) is Pool.UNKNOWN


async def test_a_relay_is_called_by_websocket_over_tls(tmp_path: Path) -> None:
    paper = certificate(tmp_path)
    async with (
        relaying(POLICY, context=paper.server) as relay,
        one_who_says(GREETING, relay) as living,
    ):
        one = caller(relay.secure, trust=paper.client)
        assert await one.call(entry(living, one)) is Pool.ANSWERS
        assert await one.call(entry(Speaker(2), one)) is Pool.SILENT
        distrustful = caller(relay.secure)
        assert await distrustful.call(entry(living, distrustful)) is Pool.UNKNOWN


async def test_what_is_the_relays_fault_tells_nothing_of_a_peer_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = Policy(issuers=frozenset({b"x" * 32}))
    async with relaying(stranger) as relay, greeting(GREETING * 9) as port:
        none = Endpoint("relay", HOST, port)
        for where, why in ((relay.plain, "an issuer"), (ELSEWHERE, "Connect"), (none, "message")):
            one = caller(where)
            with caplog.at_level(logging.WARNING):
                for number in range(3):
                    assert await one.call(entry(Speaker(number), one)) is Pool.UNKNOWN
            (line,) = caplog.messages
            assert str(where) in line
            assert why in line
            caplog.clear()


async def test_a_relay_that_hangs_tells_nothing_of_a_peer_either(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ANSWER_S", "RELAY_S"):
        monkeypatch.setattr(calls, name, 0.1)
    with socket.create_server((HOST, 0)) as hanging:  # the system takes connections for it
        one = caller(Endpoint("relay", *hanging.getsockname()))
        with caplog.at_level(logging.WARNING):
            assert await one.call(entry(Speaker(1), one)) is Pool.UNKNOWN
    assert "answers nothing" in caplog.text


async def test_another_way_to_the_same_relay_and_another_relay_are_tried(tmp_path: Path) -> None:
    paper = certificate(tmp_path)
    async with (
        relaying(POLICY, context=paper.server) as relay,
        relaying(POLICY) as another,
        one_who_says(GREETING, another) as living,
    ):
        by_name = Endpoint("relay", "localhost", another.plain.port)
        one = caller(relay.secure, relay.plain, by_name)  # whose certificate nobody trusts
        assert await one.call(entry(living, one, relay.secure, relay.plain)) is Pool.SILENT
        said = entry(living, one, relay.secure, relay.plain, by_name)
        assert await one.call(said) is Pool.ANSWERS


async def test_only_relays_that_the_tracker_names_are_called() -> None:
    one = caller(ELSEWHERE)
    strange = Endpoint("relay", HOST, 2)
    assert entry(Speaker(1), one, strange, ELSEWHERE).relays == (str(ELSEWHERE),)
    said = entry(Speaker(1), one, strange)
    assert said.relays == ()
    assert not said.can_be_checked


async def test_peers_of_one_address_are_called_so_often_and_then_have_to_wait() -> None:
    async with relaying(POLICY) as relay:
        one = caller(relay.plain)
        for number in range(DIALS_AT_ONCE):
            await one.call(entry(Speaker(number), one))
        with pytest.raises(AnnounceError, match="too many requests from this address"):
            await one.call(entry(Speaker(99), one))
        assert await one.call(entry(Speaker(99), one, host="127.0.0.2")) is Pool.SILENT


async def test_one_relay_has_so_many_calls_at_once_and_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "CALLS_AT_ONCE", 2)
    gate, under_way, most = asyncio.Event(), 0, 0

    class Slow(Caller):
        async def _there(self, way: Endpoint, said: Entry) -> Pool:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await gate.wait()
            under_way -= 1
            return Pool.SILENT

    relay, another = ELSEWHERE, Endpoint("relay", "localhost", 1)
    known = Relays((str(relay), str(another)), KEY)
    one = Slow(known, now=lambda: 0.0, wall=time.time)
    said = [entry(Speaker(number), one, relay) for number in range(5)]
    calling = [asyncio.create_task(one.call(each)) for each in said]
    calling.append(asyncio.create_task(one.call(entry(Speaker(9), one, another))))
    for _ in range(3):
        await asyncio.sleep(0)
    assert under_way == 2 + 1
    gate.set()
    assert set(await asyncio.gather(*calling)) == {Pool.SILENT}
    assert most == 2 + 1
