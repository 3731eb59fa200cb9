"""Which way leads to a peer, and whole pulls by each of them."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from support.relays import HOST, certificate, relaying
from support.wires import CHUNK, DEADLINE_S, SESSION, until

from p2pl.errors import PullError
from p2pl.network.dial import Direct
from p2pl.network.keys import Identity
from p2pl.network.pull import Pulled
from p2pl.network.relay import MEET, Meeting, Pumps, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.version import Version
from p2pl.network.ways import Places, Reception, Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import Endpoint

RAW_SESSION = bytes.fromhex(SESSION)
MODEL = bytes(range(256)) * 4_096
DEAD = "192.0.2.1"  # of no machine (RFC 5737)


@dataclass
class Peer:
    """A peer that serves a model, and its ways to others."""

    wire: CurveWire
    ways: Ways
    pumps: Pumps
    speaker: Speaker

    def address(self, *endpoints: Endpoint) -> PeerAddress:
        """Returns where it is said to be; its own port is told as one that nobody has."""
        return PeerAddress(
            id=self.wire.identity.peer_id,
            host=DEAD,
            port=9,
            curve_key=self.wire.curve_key,
            version=2,
            endpoints=endpoints,
        )

    async def pull(self, address: PeerAddress) -> bytes:
        pulled = await self.wire.pull(
            address, have=None, round=0, wait_s=0.0, deadline_s=DEADLINE_S, size=len(MODEL)
        )
        assert isinstance(pulled, Pulled)
        return bytes(pulled.payload)

    def receive(self, *relays: Endpoint, others: tuple[PeerAddress, ...] = ()) -> Reception:
        here = (HOST, self.wire.port)
        self.reception = Reception(self.speaker, here, self.pumps, random.Random(1))
        self.places = Places(lambda: relays, lambda: others)
        return self.reception


@asynccontextmanager
async def peer(
    folder: Path | None = None, *, meeting: Meeting | None = None
) -> AsyncIterator[Peer]:
    identity = Identity.generate()
    trust = certificate(folder).client if folder else None
    speaker = Speaker(identity, RAW_SESSION, trust=trust)
    pumps = Pumps(Traffic())
    ways = Ways(Direct(), speaker, pumps, meeting=meeting)
    async with CurveWire(
        identity, session_id=SESSION, listen=f"{HOST}:0", chunk_bytes=CHUNK, dialler=ways
    ) as wire:
        pumps.traffic = wire.traffic
        wire.takes_relayed(pumps.ports)
        await wire.publish(Version(1, 10, MODEL))
        try:
            yield Peer(wire, ways, pumps, speaker)
        finally:
            await pumps.close()


@pytest.mark.parametrize("kind", ["relay", "relays"])
def test_two_peers_that_nobody_dials_pull_from_each_other(tmp_path: Path, kind: str) -> None:
    paper = certificate(tmp_path)

    async def scenario() -> tuple[bytes, bytes, int, int]:
        async with contextlib.AsyncExitStack() as stack:
            relay = await stack.enter_async_context(relaying(context=paper.server))
            where = relay.plain if kind == "relay" else relay.secure
            two = [await stack.enter_async_context(peer()) for _ in range(2)]
            for one in two:
                one.speaker = Speaker(one.wire.identity, RAW_SESSION, trust=paper.client)
                one.ways._speaker = one.speaker
                reception = one.receive(where)
                await stack.enter_async_context(reception.open(one.places))
            await until(lambda: all(one.reception.endpoints == (where,) for one in two))
            ann, bob = two
            pulled = await ann.pull(bob.address(where)), await bob.pull(ann.address(where))
            assert not ann.wire.seen  # nobody is at the address that the relay's copy came from
            traffic = ann.wire.traffic
            return *pulled, traffic.relayed_in, traffic.relayed_out

    one, other, came, went = asyncio.run(scenario())
    assert one == other == MODEL
    assert min(came, went) > len(MODEL)


def test_a_peer_that_waits_is_called_and_no_relay_carries_a_byte() -> None:
    async def scenario() -> tuple[bytes, int, bytes]:
        async with contextlib.AsyncExitStack() as stack:
            meeting = Meeting(RAW_SESSION)
            await stack.enter_async_context(meeting.open(HOST))
            open_one = await stack.enter_async_context(peer(meeting=meeting))
            shut_one = await stack.enter_async_context(peer())
            at = Endpoint(MEET, HOST, meeting.port)
            port = open_one.wire.port
            there = open_one.address(Endpoint("tcp", HOST, port), at)
            there = msgspec.structs.replace(there, host=HOST, port=port)
            reception = shut_one.receive(others=(there,))
            await stack.enter_async_context(reception.open(shut_one.places))
            await until(lambda: meeting.holds(shut_one.wire.identity.peer_id))
            direct = await shut_one.pull(there)
            called = await open_one.pull(shut_one.address())
            traffic = open_one.wire.traffic
            return called, traffic.relayed_in + traffic.relayed_out, direct

    called, relayed, direct = asyncio.run(scenario())
    assert called == direct == MODEL
    assert relayed == 0


def test_nobody_is_sent_to_a_third_machine_to_wait_there() -> None:
    async def scenario() -> int:
        tried: list[object] = []
        server = await asyncio.start_server(lambda *_: tried.append(1), HOST, 0)
        async with server, peer() as shut_one, peer() as liar:
            victim = Endpoint(MEET, HOST, server.sockets[0].getsockname()[1])
            reception = shut_one.receive(others=(liar.address(victim),))
            async with reception.open(shut_one.places):
                await asyncio.sleep(0)
                reception._go_to(shut_one.places)
                return len(reception._listening)

    assert asyncio.run(scenario()) == 0


class Nowhere:
    """Dials nobody, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.asked = 0

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        self.asked += 1
        raise PullError("unreachable: no connection")


def test_what_worked_is_tried_first_and_what_fails_is_said() -> None:
    async def scenario() -> tuple[int, int]:
        async with relaying() as relay, peer() as ann, peer() as bob:
            nowhere = Nowhere()
            ann.ways._direct = nowhere
            reception = bob.receive(relay.plain)
            address = bob.address(Endpoint("tcp", DEAD, 9), relay.plain)
            with pytest.raises(PullError, match=r"no connection; unreachable: relay://.* not here"):
                await ann.pull(address)
            async with reception.open(bob.places):
                await until(lambda: bob.reception.endpoints)
                assert await ann.pull(address) == MODEL
                before = nowhere.asked
                assert await ann.pull(address) == MODEL
                return before, nowhere.asked

    before, after = asyncio.run(scenario())
    assert after == before


def test_a_peer_that_names_no_way_is_not_dialled() -> None:
    async def scenario() -> None:
        async with peer() as ann, peer() as bob:
            await ann.pull(bob.address())

    with pytest.raises(PullError, match="names no way"):
        asyncio.run(scenario())


def test_who_uses_no_relay_is_told_that_a_relay_leads_there() -> None:
    async def scenario() -> None:
        async with peer() as ann, peer() as bob:
            ann.ways._uses_relays = False
            await ann.pull(bob.address(Endpoint("relay", DEAD, 9)))

    with pytest.raises(PullError, match=r"a relay leads to it, .*--relay never"):
        asyncio.run(scenario())
