"""The pulling half of the wire: one peer, one question, one deadline.

Each pull has a connection of its own, closed when it ends. What a stalled or lying peer still has
in flight is gone with it and cannot be mistaken for an answer to the next question, and there is no
pool to bound or to age. The price is a handshake a pull: a few milliseconds on loopback, and three
round trips on a network.
"""

import asyncio
import contextlib
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from xxhash import xxh3_128

from p2pl.errors import FrameError, PullError, wrong
from p2pl.network.dial import Dialler
from p2pl.network.keys import CurveKeys
from p2pl.network.traffic import Traffic
from p2pl.network.zmtp import Connection
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
CREDIT_STEPS = 4  # credit goes back each quarter of the window: each message wakes three threads…
CREDIT_S = 1.0  # …but at least so often, or the sender takes this peer for a slow loris
MIN_RETRY_MS = 50  # whatever a busy peer says
HASH_BYTES = 1 << 20  # chosen: hashed while it is still in the processor's cache
# For an offer, beside the wait that was asked for. Chosen: who is there says at once that it is
# busy, and has a place before so long; who never has must not cost a round its whole deadline.
FIRST_ANSWER_S = 10.0


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
        dialler: opens streams to peers.
        keys: of this peer's connections.
        credential: of this peer, shown with every question.
        chunk_bytes: of the session.
        traffic: counts what comes and goes.
    """

    def __init__(
        self,
        dialler: Dialler,
        *,
        keys: CurveKeys,
        credential: Credential,
        chunk_bytes: int,
        traffic: Traffic,
    ) -> None:
        self._dialler = dialler
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
        talk = _Talk(address, room, self._chunk_bytes, self._traffic)
        try:
            async with asyncio.timeout(deadline_s), contextlib.AsyncExitStack() as held:
                connection = await Connection.open(
                    self._dialler,
                    self._keys,
                    address,
                    max_payload_bytes=max(self._chunk_bytes, MAX_HEADER_BYTES),
                    deadline_s=deadline_s,
                )
                held.callback(connection.close)
                return await talk.ask(connection, question)
        except TimeoutError as fault:
            raise PullError(f"late: {talk.stage} after {deadline_s:g} s") from fault
        except FrameError:
            self._traffic.broke(talk.peer_id)
            raise


class _Talk:
    """One conversation with one peer, over a connection of its own.

    Attributes:
        peer_id: of the other end, once it has proved who it is.
        stage: how far it has come; for the message, should it fail.
    """

    def __init__(
        self, address: PeerAddress, room: Room, chunk_bytes: int, traffic: Traffic
    ) -> None:
        self.peer_id: str | None = None
        self.stage = "no answer"
        self._address = address
        self._room = room
        self._chunk_bytes = chunk_bytes
        self._traffic = traffic

    async def ask(self, connection: Connection, question: Pull | FetchBlob) -> Pulled | Unchanged:
        """Returns the peer's answer; asks again for as long as it is busy."""
        self._connection = connection
        wait_s = question.wait_ms / 1_000 if isinstance(question, Pull) else 0.0
        most_s = wait_s + FIRST_ANSWER_S
        until_s = time.monotonic() + most_s
        while True:
            await self._say(question)
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
        self._connection.place(view, self._chunk_bytes)
        digest, hashed = xxh3_128(), 0
        step, offset, owed, last_s = max(1, window // CREDIT_STEPS), 0, 0, time.monotonic()
        lacking = -(-size // self._chunk_bytes) - window  # chunks that no credit was given for
        while offset < size:
            self.stage = f"{offset} of {size} bytes"
            offset, owed = offset + await self._next_chunk(offset), owed + 1
            if offset - hashed >= HASH_BYTES or offset == size:
                digest.update(view[hashed:offset])
                hashed = offset
            if lacking > 0 and (owed >= step or time.monotonic() - last_s > CREDIT_S):
                await self._say(Credit(min(owed, lacking)))
                lacking, owed, last_s = lacking - owed, 0, time.monotonic()
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

    async def _next_chunk(self, offset: int) -> int:
        """Returns how many bytes now stand at `offset`; they must be the next that come.

        A chunk of the size that it must have was put into its place by the connection.
        """
        answer, payload = await self._hear()
        if isinstance(answer, Refused):
            raise PullError(f"refused: {answer.reason!r} after {self.stage}")
        if not isinstance(answer, Chunk) or payload is None:
            raise FrameError(wrong("answer", got=type(answer).__name__, allowed="Chunk"))
        expected = min(self._chunk_bytes, self._room.size - offset)
        if answer.offset != offset or len(payload) != expected:
            got = f"{len(payload)} bytes at {answer.offset}"
            raise FrameError(wrong("chunk", got=got, allowed=f"{expected} at {offset}"))
        return expected

    async def _say(self, header: Header) -> None:
        data = encode(header)
        await self._connection.send(data)
        self._traffic.went(self.peer_id, len(data))

    async def _hear(self) -> tuple[Answer, memoryview | bytes | None]:
        """Returns the next header, and the bytes that belong to it if it is a chunk."""
        header, *rest = await self._connection.receive()
        self._traffic.came(self.peer_id, len(header) + sum(map(len, rest)))
        answer = decode_answer(header)
        if len(rest) != isinstance(answer, Chunk):
            raise FrameError(
                wrong("message", got=f"{len(rest) + 1} frames", allowed="2 for a chunk, else 1")
            )
        return answer, rest[0] if rest else None
