"""Both ends of the wire by hand, for peers that do what p2pl never does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import zmq
import zmq.asyncio

from p2pl.errors import PullError
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.numbering import ANY_NUMBERING, Numbering
from p2pl.network.serve import ServeLimits
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    Answer,
    Credential,
    Header,
    Pull,
    decode_answer,
    decode_ask,
    encode,
    issue_credential,
)

SESSION = "ab" * 32
HOST = "127.0.0.1"
CHUNK = 1 << 16
DEADLINE_S = 10.0
TRIES_S = (0.4, 2.0, 8.0)  # deadlines; the longer ones where this machine stands still


async def until(reached: Callable[[], object]) -> None:
    """Returns when `reached()` is true, or fails after `DEADLINE_S`."""
    async with asyncio.timeout(DEADLINE_S):
        while not reached():  # noqa: ASYNC110  # no event tells: the counters are plain numbers
            await asyncio.sleep(0)


async def late(ask: Callable[[float], Awaitable[object]], stage: str) -> float:
    """Returns the deadline that `ask` was given and kept to, having come to `stage` by then."""
    for deadline_s in TRIES_S:
        began_s = time.monotonic()
        with pytest.raises(PullError, match=f"late: .* after {deadline_s:g} s$") as caught:
            await ask(deadline_s)
        assert time.monotonic() - began_s >= deadline_s
        if f"late: {stage} after" in str(caught.value):
            return deadline_s
    pytest.fail(f"it never came to {stage!r}: {caught.value}")


@dataclass
class Served:
    """A wire that is open, and where it is."""

    wire: CurveWire
    identity: Identity
    address: PeerAddress


@asynccontextmanager
async def served(
    *,
    session_id: str = SESSION,
    listen: str = f"{HOST}:0",
    host: str = HOST,
    chunk_bytes: int = CHUNK,
    limits: ServeLimits | None = None,
    numbering: Numbering = ANY_NUMBERING,
    committed: bool = False,
) -> AsyncIterator[Served]:
    """Yields an open wire of a new peer."""
    identity = Identity.generate()
    async with CurveWire(
        identity,
        session_id=session_id,
        listen=listen,
        chunk_bytes=chunk_bytes,
        limits=limits,
        committed=committed,
        numbering=numbering,
    ) as wire:
        address = PeerAddress(
            id=identity.peer_id, host=host, port=wire.port, curve_key=wire.curve_key
        )
        yield Served(wire, identity, address)


@dataclass
class ByHand:
    """A peer whose every message the test writes itself."""

    socket: zmq.asyncio.Socket
    port: int
    identity: Identity = field(default_factory=Identity.generate)
    keys: CurveKeys = field(default_factory=CurveKeys.generate)

    def credential(
        self, *, session_id: str = SESSION, curve_key: str = "", identity: Identity | None = None
    ) -> Credential:
        """Returns a credential of this peer, with lies where the test wants them."""
        key = (identity or self.identity).private_key
        curve_key = curve_key or self.keys.public
        return issue_credential(key, session_id=session_id, curve_key=curve_key, port=self.port)

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(
            id=self.identity.peer_id, host=HOST, port=self.port, curve_key=self.keys.public
        )


class Server(ByHand):
    """The serving end."""

    async def next_pull(self) -> tuple[bytes, Pull]:
        """Returns the connection and the header of the next pull; credit is passed over."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                route, data = await self.socket.recv_multipart()
                ask = decode_ask(data)
                if isinstance(ask, Pull):
                    return route, ask

    async def send(self, route: bytes, header: Header | bytes, *payload: bytes) -> None:
        data = header if isinstance(header, bytes) else encode(header)
        await self.socket.send_multipart([route, data, *payload])


class Puller(ByHand):
    """The asking end, connected to one wire."""

    def pull(self, *, credit: int = 4, round: int = 0, wait_ms: int = 0) -> Pull:
        return Pull(self.credential(), "model", None, round, wait_ms, credit)

    async def send(self, header: Header | bytes, *more: bytes) -> None:
        data = header if isinstance(header, bytes) else encode(header)
        await self.socket.send_multipart([data, *more])

    async def hear(self, deadline_s: float = DEADLINE_S) -> tuple[Answer, bytes]:
        """Returns the next message of the wire: its header, and its chunk if it has one."""
        async with asyncio.timeout(deadline_s):
            header, *payload = await self.socket.recv_multipart()
        return decode_answer(header), b"".join(payload)


@asynccontextmanager
async def server_by_hand() -> AsyncIterator[Server]:
    """Yields a peer that others can pull from."""
    context = zmq.asyncio.Context()
    try:
        router = context.socket(zmq.ROUTER)
        peer = Server(router, 0)
        router.linger = 0
        router.curve_server = True
        router.curve_publickey = peer.keys.public.encode()
        router.curve_secretkey = peer.keys.secret.encode()
        peer.port = router.bind_to_random_port(f"tcp://{HOST}")
        yield peer
    finally:
        context.destroy(linger=0)


@asynccontextmanager
async def puller_by_hand(
    target: PeerAddress, identity: Identity | None = None
) -> AsyncIterator[Puller]:
    """Yields a peer that is connected to the wire at `target`."""
    context = zmq.asyncio.Context()
    try:
        dealer = context.socket(zmq.DEALER)
        peer = Puller(dealer, 4_000, identity or Identity.generate())
        dealer.linger = 0
        dealer.rcvhwm = 16
        dealer.ipv6 = True
        dealer.curve_serverkey = target.curve_key.encode()
        dealer.curve_publickey = peer.keys.public.encode()
        dealer.curve_secretkey = peer.keys.secret.encode()
        dealer.connect(f"tcp://{target.host}:{target.port}")
        yield peer
    finally:
        context.destroy(linger=0)
