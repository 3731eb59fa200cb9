"""The pulling half of the wire: one peer, one question, one deadline.

Each pull has a DEALER socket of its own, closed when it ends. What a stalled or lying peer still
has in flight is gone with the socket and cannot be mistaken for an answer to the next question, and
there is no pool to bound or to age. The price is a TCP connection and a CURVE handshake a pull: a
few milliseconds on loopback, two round trips more on a network (`scripts/bench wire` measures it).
"""

import asyncio
import contextlib
import functools
import mmap
import operator
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import zmq
import zmq.asyncio
from xxhash import xxh3_128
from zmq.utils.monitor import recv_monitor_message

from p2pl.errors import FrameError, PullError, wrong
from p2pl.network.keys import CurveKeys
from p2pl.network.traffic import Traffic
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    MAX_CREDIT,
    MAX_HEADER_BYTES,
    MAX_WAIT_MS,
    Answer,
    Busy,
    Chunk,
    Credential,
    Credit,
    FetchBlob,
    Header,
    Pull,
    Refused,
    VersionOffer,
    decode_answer,
    encode,
)

WINDOW_BYTES = 60 << 20  # in flight at most; chosen: a smaller one stalls the sender on two cores
MIN_WINDOW = 2  # chunks: one on its way while one is taken in
CREDIT_STEPS = 4  # credit goes back each quarter of the window: each message wakes four threads…
CREDIT_S = 1.0  # …but at least so often, or the sender takes this peer for a slow loris
YIELD_MESSAGES = 8  # taken in a row before the rest of the event loop has its turn
MIN_RETRY_MS = 50  # whatever a busy peer says
HASH_BYTES = 1 << 20  # chosen: hashed while it is still in the processor's cache
CONNECT_MS = 5_000  # chosen: two lost SYNs (1 s, 2 s) and a slow path
HANDSHAKE_MS = 5_000
RECONNECT_MS, RECONNECT_MAX_MS = 100, 1_000
FRAMING_BYTES = 128  # what CURVE adds to a frame: 33 bytes, and its handshake commands
# For an offer, beside the wait that was asked for. Chosen: who is there says at once that it is
# busy, and has a place before so long; who never has must not cost a round its whole deadline.
FIRST_ANSWER_S = 10.0
GRACE_S = 0.5  # to read what a peer sent before its connection was lost

T = TypeVar("T")
KEY_REFUSED = "unreachable: refused the CURVE key"
LOST: dict[int, str] = {
    zmq.EVENT_CLOSED: "unreachable: no connection",
    zmq.EVENT_DISCONNECTED: "unreachable: connection lost",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "unreachable: no CURVE handshake",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "unreachable: not a p2pl peer",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: KEY_REFUSED,
}


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version received whole and checked against its digest."""

    peer_id: str
    round: int
    samples: int  # as the peer says
    digest: bytes
    notes: bytes  # as the peer says; opaque
    payload: memoryview  # the only copy; whoever pulled it may change it


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The peer's newest version is the one that the asker holds."""

    peer_id: str
    round: int


@dataclass(frozen=True, slots=True)
class Room:
    """Where an answer goes, and how long it must be."""

    size: int  # bytes
    into: memoryview | None = None  # writable, of `size` bytes; None = new memory
    make: Callable[[int], memoryview] | None = None  # makes new memory; None = of the usual kind

    def __post_init__(self) -> None:
        into = self.into
        if into is not None and (into.nbytes != self.size or into.readonly):
            raise ValueError(f"into: allowed are {self.size} writable bytes")

    def view(self) -> memoryview:
        """Returns the memory to fill; new memory is not touched, so it costs nothing yet."""
        if self.into is not None:
            return self.into.cast("B")
        if self.make is not None:
            return self.make(self.size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return memoryview(mmap.mmap(-1, self.size, flags=flags))


class Puller:
    """Asks peers for their newest version.

    Args:
        context: that its sockets are made in.
        keys: of this peer's connections.
        credential: of this peer, shown with every question.
        chunk_bytes: of the session.
        traffic: counts what comes and goes.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        *,
        keys: CurveKeys,
        credential: Credential,
        chunk_bytes: int,
        traffic: Traffic,
    ) -> None:
        self._context = context
        self._keys = keys
        self._credential = credential
        self._chunk_bytes = chunk_bytes
        self._window = min(MAX_CREDIT, max(MIN_WINDOW, WINDOW_BYTES // chunk_bytes))
        self._traffic = traffic

    def question(
        self, want: Literal["model", "checkpoint"], *, have: bytes | None, round: int, wait_s: float
    ) -> Pull:
        """Returns the header that asks for something.

        Args:
            want: the newest model, or the initial checkpoint.
            have: digest of the version that this peer holds, if any.
            round: which the peer is to wait for, if it has not reached it.
            wait_s: how long it is to wait, in seconds; cut to what the protocol allows, 0..60.
        """
        wait_ms = min(MAX_WAIT_MS, max(0, int(wait_s * 1_000)))
        return Pull(self._credential, want, have, round, wait_ms, self._window)

    def blob_question(self, name: bytes) -> FetchBlob:
        """Returns the header that asks for the blob of this name."""
        return FetchBlob(self._credential, name, self._window)

    async def pull(
        self, address: PeerAddress, question: Pull | FetchBlob, *, room: Room, deadline_s: float
    ) -> Pulled | Unchanged:
        """Returns the answer of the peer at `address`.

        Args:
            address: whom to ask, where, and the CURVE key it is said to have.
            question: what to ask.
            room: how long the answer must be, and where to put it.
            deadline_s: seconds for all of it.

        Raises:
            PullError: the peer is late, unreachable, busy until the deadline, or refuses.
            FrameError: the peer is not who it should be, or what it sent is not what it promised.
        """
        where = endpoint(address)
        with dealing(self._context, self._keys, address) as (dealer, monitor):
            dealer.maxmsgsize = max(self._chunk_bytes, MAX_HEADER_BYTES) + FRAMING_BYTES
            dealer.rcvhwm = self._window + 1  # chunks, and the offer before them
            talk = _Talk(dealer, address, room, self._chunk_bytes, self._traffic)
            try:
                async with asyncio.timeout(deadline_s):
                    connect(dealer, where)
                    return await unless_lost(talk.ask(question), monitor)
            except TimeoutError as fault:
                raise PullError(f"late: {talk.stage} after {deadline_s:g} s") from fault
            except FrameError:
                self._traffic.broke(talk.peer_id)
                raise


@contextlib.contextmanager
def dealing(
    context: zmq.asyncio.Context, keys: CurveKeys, address: PeerAddress
) -> Iterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
    """Yields a socket that will talk to one peer only, and the socket that tells its fate.

    Both are closed at the end. The first is not connected yet.

    Raises:
        PullError: there is no socket for it, or ZeroMQ does not take the address: what is wrong
            with one address costs that address.
    """
    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(_dealing(context, keys, address))
        except zmq.ZMQError as fault:
            raise PullError(f"unreachable: {fault.strerror}") from fault
        yield pair


def connect(dealer: zmq.asyncio.Socket, where: str) -> None:
    """Connects a socket; raises PullError where ZeroMQ does not take the address."""
    try:
        dealer.connect(where)
    except zmq.ZMQError as fault:
        raise PullError(f"unreachable: {fault.strerror}") from fault


@contextlib.contextmanager
def _dealing(
    context: zmq.asyncio.Context, keys: CurveKeys, address: PeerAddress
) -> Iterator[tuple[zmq.asyncio.Socket, zmq.asyncio.Socket]]:
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.linger = 0
        dealer.ipv6 = True
        dealer.maxmsgsize = MAX_HEADER_BYTES + FRAMING_BYTES
        dealer.connect_timeout = CONNECT_MS
        dealer.handshake_ivl = HANDSHAKE_MS
        dealer.reconnect_ivl, dealer.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
        dealer.curve_serverkey = address.curve_key.encode()
        dealer.curve_publickey = keys.public.encode()
        dealer.curve_secretkey = keys.secret.encode()
        monitor = dealer.get_monitor_socket(functools.reduce(operator.or_, LOST))
        try:
            yield dealer, monitor
        finally:
            if not dealer.closed:  # else its context was destroyed, and the monitor with it
                dealer.disable_monitor()
            monitor.close()  # not left to the collector: an open socket holds up the whole context
    finally:
        dealer.close()


class _Talk:
    """One conversation with one peer, over a socket of its own.

    Attributes:
        peer_id: of the other end, once it has proved who it is.
        stage: how far it has come; for the message, should it fail.
    """

    def __init__(
        self,
        dealer: zmq.asyncio.Socket,
        address: PeerAddress,
        room: Room,
        chunk_bytes: int,
        traffic: Traffic,
    ) -> None:
        self.peer_id: str | None = None
        self.stage = "no answer"
        # The same socket without pyzmq's futures, which cost a tenth of the speed.
        self._at_once: zmq.Socket[bytes] = zmq.Socket.shadow(dealer.underlying)
        self._address = address
        self._room = room
        self._chunk_bytes = chunk_bytes
        self._traffic = traffic
        self._heard = 0

    async def ask(self, question: Pull | FetchBlob) -> Pulled | Unchanged:
        """Returns the peer's answer; asks again for as long as it is busy."""
        wait_s = question.wait_ms / 1_000 if isinstance(question, Pull) else 0.0
        most_s = wait_s + FIRST_ANSWER_S
        until_s = time.monotonic() + most_s
        while True:
            self._say(question)
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    answer, _ = await self._hear()
            except TimeoutError as fault:
                raise PullError(
                    f"late: {self.stage} after {wait_s + FIRST_ANSWER_S:g} s"
                ) from fault
            if isinstance(answer, Refused):
                raise PullError(f"refused: {answer.reason!r}")
            if isinstance(answer, Chunk):
                raise FrameError(wrong("answer", got="a chunk", allowed="an offer before it"))
            if not isinstance(answer, Busy):
                break
            self.stage = "busy"
            await asyncio.sleep(max(answer.retry_in_ms, MIN_RETRY_MS) / 1_000)
        self._check_credential(answer.credential, question.credential.session.hex())
        if isinstance(answer, VersionOffer):
            return await self._download(answer, question.credit)
        if isinstance(question, FetchBlob) or question.have is None:
            raise FrameError("answer: not modified, to someone who holds no version")
        return Unchanged(self._address.id, answer.round)

    def _check_credential(self, credential: Credential, session_id: str) -> None:
        """Raises FrameError unless the other end is the peer that was to be asked."""
        peer_id = credential.check(session_id=session_id, curve_key=self._address.curve_key)
        if peer_id != self._address.id:
            raise FrameError(
                wrong("peer id", got=peer_id, allowed=f"{self._address.id}, who was to be asked")
            )
        self.peer_id = peer_id

    async def _download(self, offer: VersionOffer, window: int) -> Pulled:
        """Returns what was offered, received straight into its place."""
        size = self._room.size
        if offer.size != size:
            raise FrameError(wrong("offer.size", got=offer.size, allowed=f"{size}, by the session"))
        view = self._room.view()
        digest, hashed = xxh3_128(), 0
        step, offset, owed, last_s = max(1, window // CREDIT_STEPS), 0, 0, time.monotonic()
        while offset < size:
            self.stage = f"{offset} of {size} bytes"
            payload = await self._next_chunk(offset)
            end = offset + len(payload)
            view[offset:end] = payload
            offset, owed = end, owed + 1
            if offset - hashed >= HASH_BYTES or offset == size:
                digest.update(view[hashed:offset])
                hashed = offset
            if offset < size and (owed >= step or time.monotonic() - last_s > CREDIT_S):
                self._say(Credit(owed))
                owed, last_s = 0, time.monotonic()
        if digest.digest() != offer.digest:
            raise FrameError(wrong("digest", got=digest.hexdigest(), allowed=offer.digest.hex()))
        self._traffic.transfers_in += 1
        return Pulled(
            peer_id=self._address.id,
            round=offer.round,
            samples=offer.samples,
            digest=offer.digest,
            notes=offer.notes,
            payload=view,
        )

    async def _next_chunk(self, offset: int) -> memoryview:
        """Returns the bytes that stand at `offset`; they must be the next that come."""
        answer, payload = await self._hear()
        if isinstance(answer, Refused):
            raise PullError(f"refused: {answer.reason!r} after {self.stage}")
        if not isinstance(answer, Chunk) or payload is None:
            raise FrameError(wrong("answer", got=type(answer).__name__, allowed="Chunk"))
        expected = min(self._chunk_bytes, self._room.size - offset)
        if answer.offset != offset or len(payload) != expected:
            got = f"{len(payload)} bytes at {answer.offset}"
            raise FrameError(wrong("chunk", got=got, allowed=f"{expected} at {offset}"))
        return payload

    def _say(self, header: Header) -> None:
        data = encode(header)
        try:
            self._at_once.send(data, zmq.DONTWAIT)
        except zmq.Again as fault:
            raise PullError(f"unreachable: reads nothing; {self.stage}") from fault
        self._traffic.went(self.peer_id, len(data))

    async def _hear(self) -> tuple[Answer, memoryview | None]:
        """Returns the next header, and the bytes that belong to it if it is a chunk."""
        while True:
            try:
                header, *rest = self._at_once.recv_multipart(zmq.DONTWAIT, copy=False)
                break
            except zmq.Again:
                await _news(self._at_once.fileno())
        self._heard += 1
        if self._heard % YIELD_MESSAGES == 0:
            await asyncio.sleep(0)  # with messages waiting, the line above never yields
        self._traffic.came(self.peer_id, len(header) + sum(map(len, rest)))
        answer = decode_answer(header.buffer)
        if len(rest) != isinstance(answer, Chunk):
            raise FrameError(
                wrong("message", got=f"{len(rest) + 1} frames", allowed="2 for a chunk, else 1")
            )
        return answer, rest[0].buffer if rest else None


async def _news(fd: int) -> None:
    """Returns when a socket has news, of which its descriptor tells once.

    So it is for those who have just found nothing to receive, and have done nothing since. The
    reader that pyzmq had put there is replaced: nobody else waits for this socket.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: None if news.done() else news.set_result(None))
    try:
        await news
    finally:
        loop.remove_reader(fd)


async def unless_lost(talk: Coroutine[None, None, T], monitor: zmq.asyncio.Socket) -> T:
    """Returns what `talk` returns, unless its connection is lost.

    Args:
        talk: a conversation; it is cancelled when this returns or raises.
        monitor: of the socket that it goes over.

    Raises:
        PullError: there is no connection, or it broke and `talk` had not read all that came.
    """
    talking = asyncio.create_task(talk)
    watching = asyncio.create_task(_lost(monitor))
    try:
        await asyncio.wait({talking, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not talking.done() and watching.result() == zmq.EVENT_DISCONNECTED:
            await asyncio.wait({talking}, timeout=GRACE_S)
        if talking.done():
            return talking.result()
        raise PullError(LOST[watching.result()])
    finally:
        talking.cancel()
        watching.cancel()
        await asyncio.gather(talking, watching, return_exceptions=True)


async def _lost(monitor: zmq.asyncio.Socket) -> int:
    """Returns the event that says that a connection failed, when it comes."""
    message = await recv_monitor_message(monitor)
    return int(message["event"])


def endpoint(address: PeerAddress) -> str:
    """Returns what ZeroMQ connects to, for example `tcp://[::1]:4000`.

    Raises:
        PullError: the address can be no peer's; a name is never looked up.
    """
    try:
        host = address.checked().host
    except ValueError as fault:
        raise PullError(f"address: {fault}") from fault
    return f"tcp://{f'[{host}]' if ':' in host else host}:{address.port}"
