"""The pulling half of the wire: one peer, one question, one deadline.

A connection on which a pull has ended well is kept for the next one from that peer, so that only
the first costs the dialling and the handshake: three round trips. Any other end closes it, and what
a stalled or lying peer still has in flight is gone with it. Few are kept, those used last, and each
is looked at before it is used again: one that has said anything meanwhile is closed.

A connection that breaks in the middle of a version is opened again, within the deadline, and the
peer is asked for what is missing.
"""

import asyncio
import contextlib
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from p2pl.errors import ConnectionLost, FrameError, PullError, wrong
from p2pl.network.credit import Allowance, window
from p2pl.network.dial import Dialler
from p2pl.network.keys import CurveKeys
from p2pl.network.numbering import ANY_NUMBERING, Numbering
from p2pl.network.traffic import Traffic
from p2pl.network.version import hashing
from p2pl.network.zmtp import INSIDE_BYTES, Connection
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    DIGEST_BYTES,
    MAX_OFFER_BYTES,
    MAX_WAIT_MS,
    PROPERTY,
    PROPERTY_VALUE,
    Answer,
    Busy,
    Chunk,
    Committed,
    CommittedOffer,
    Credential,
    Credit,
    FetchBlob,
    Header,
    NotModified,
    Pull,
    Refused,
    Resume,
    VersionOffer,
    decode_answer,
    encode,
)

MIN_RETRY_MS = 50  # whatever a busy peer says
HASH_BYTES = 1 << 20  # chosen: hashed while it is still in the processor's cache
MAX_HASH_BYTES = 16 << 20  # chosen: 10 ms of SHA-256, which a pull that is ended leaves behind
MAX_KEPT = 32  # connections without a pull; chosen: two rounds of a usual cohort
REOPEN_PAUSES_S = (0.0, 0.25, 1.0)  # before each try to open what broke
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
    hash: bytes = b""  # all of its digest: SHA-256 in a session with update logs
    commitment: bytes = b""  # what came with the offer there; unchecked


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
        committed: whether peers of the session keep update logs.
        numbering: how this peer's data number their classes; who differs is not asked.
    """

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        dialler: Dialler,
        *,
        keys: CurveKeys,
        credential: Credential,
        chunk_bytes: int,
        traffic: Traffic,
        committed: bool = False,
        numbering: Numbering = ANY_NUMBERING,
    ) -> None:
        self._committed, self._numbering = committed, numbering
        self._dialler = dialler
        self._keys = keys
        self._credential = credential
        self._chunk_bytes = chunk_bytes
        self._window = window(chunk_bytes)
        self._traffic = traffic
        self._kept: dict[str, Connection] = {}  # by CURVE key; the one used last is the last
        self._is_closed = False

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
        self,
        address: PeerAddress,
        question: Pull | FetchBlob,
        *,
        room: Room,
        deadline_s: float,
        said: bytes | None = None,
    ) -> Pulled | Unchanged:
        """Returns the answer of the peer at `address`.

        Args:
            address: whom to ask, where, and the CURVE key it is said to have.
            question: what to ask.
            room: how long the answer must be, and where to put it.
            deadline_s: seconds for all of it.
            said: goes with the question, in a session with update logs; None: nothing does.

        Raises:
            PullError: the peer is late, unreachable, busy until the deadline, or refuses.
            FrameError: the peer is not who it should be, or what it sent is not what it promised.
        """
        talk = _Talk(question, address, room, self._chunk_bytes, self._traffic)
        talk.said, talk.committed = said, self._committed
        try:
            async with asyncio.timeout(deadline_s):
                return await self._converse(talk, address, deadline_s)
        except TimeoutError as fault:
            raise PullError(f"late: {talk.stage} after {deadline_s:g} s") from fault
        except FrameError:
            self._traffic.broke(talk.peer_id)
            raise

    def close(self) -> None:
        """Closes the connections that are kept; none is kept any more."""
        self._is_closed = True
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    async def _converse(
        self, talk: "_Talk", address: PeerAddress, deadline_s: float
    ) -> Pulled | Unchanged:
        """Returns the answer; what breaks in the middle of it is taken up again."""
        kept = self._take(address)
        if kept is not None:
            with contextlib.suppress(ConnectionLost):  # it was dead, and nobody had been told
                return await self._over(kept, talk)
        connection = await self._open(address, deadline_s)
        while True:
            before = talk.offset
            try:
                return await self._over(connection, talk)
            except ConnectionLost as fault:
                if not talk.can_resume or talk.offset == before:
                    raise
                connection = await self._open_again(address, deadline_s, fault)

    async def _over(self, connection: Connection, talk: "_Talk") -> Pulled | Unchanged:
        """Returns the answer to what is asked over a connection, which is kept or closed."""
        with contextlib.ExitStack() as held:
            held.callback(connection.close)
            answer = await talk.ask(connection)
            if not self._is_closed and connection.rest():
                held.pop_all()
                self._keep(talk.address, connection)
        return answer

    async def _open(self, address: PeerAddress, deadline_s: float) -> Connection:
        return await Connection.open(
            self._dialler,
            self._keys,
            address,
            max_payload_bytes=max(self._chunk_bytes, MAX_OFFER_BYTES),
            deadline_s=deadline_s,
            ready=partial(self._numbering.check, address.id),
        )

    async def _open_again(
        self, address: PeerAddress, deadline_s: float, lost: ConnectionLost
    ) -> Connection:
        """Returns a new connection in place of one that broke, or raises why that one did."""
        for pause_s in REOPEN_PAUSES_S:
            await asyncio.sleep(pause_s)
            with contextlib.suppress(PullError):
                return await self._open(address, deadline_s)
        raise lost

    def _take(self, address: PeerAddress) -> Connection | None:
        """Returns the connection that was kept, if it is as it was left."""
        connection = self._kept.pop(address.curve_key, None)
        if connection is not None and not connection.rest():
            connection.close()
            return None
        return connection

    def _keep(self, address: PeerAddress, connection: Connection) -> None:
        older = self._kept.pop(address.curve_key, None)
        self._kept[address.curve_key] = connection
        if older is None and len(self._kept) > MAX_KEPT:
            older = self._kept.pop(next(iter(self._kept)))
        if older is not None:
            older.close()


class _Talk:
    """One question to one peer, over one connection after the other.

    Attributes:
        address: of the peer.
        peer_id: of the other end, once it has proved who it is.
        stage: how far it has come; for the message, should it fail.
        offset: bytes of the version that have come in a row.
        can_resume: whether the peer understands what asks for the rest.
        said: goes with the question, in a session with update logs; None: nothing does.
        committed: whether peers of the session keep update logs.
    """

    def __init__(
        self,
        question: Pull | FetchBlob,
        address: PeerAddress,
        room: Room,
        chunk_bytes: int,
        traffic: Traffic,
    ) -> None:
        self.peer_id: str | None = None
        self.stage = "no answer"
        self.offset = 0
        self.can_resume = False
        self.said: bytes | None = None
        self.committed = False
        self.address = address
        self._question = question
        self._room = room
        self._chunk_bytes = chunk_bytes
        self._traffic = traffic
        self._offered = b""  # the digest of the version that comes
        self._view = memoryview(b"")
        self._commitment = b""
        self._digest, self._hashed = hashing(False), 0
        self._hashing: asyncio.Future[object] | None = None  # up to `_hashed`, in a thread

    async def ask(self, connection: Connection) -> Pulled | Unchanged:
        """Returns the peer's answer; asks again for as long as it is busy."""
        self._connection = connection
        question = self._question
        answer = await self._first_answer()
        said = connection.properties.get(PROPERTY.lower().encode())
        self.can_resume = said == PROPERTY_VALUE.encode()
        self._check_credential(answer.credential, question.credential.session.hex())
        if isinstance(answer, VersionOffer):
            return await self._download(answer, question.credit)
        if isinstance(question, FetchBlob) or question.have is None:
            raise FrameError("answer: not modified, to someone who holds no version")
        return Unchanged(self.address.id, answer.round)

    async def _first_answer(self) -> VersionOffer | NotModified:
        """Returns what the peer says once it is not busy."""
        question = self._question
        wait_s = question.wait_ms / 1_000 if isinstance(question, Pull) else 0.0
        most_s = wait_s + FIRST_ANSWER_S
        until_s = time.monotonic() + most_s
        again = self.offset and self.can_resume
        asked = Resume(question, self._offered, self.offset) if again else question
        while True:
            await self._say(asked if self.said is None else Committed(asked, self.said))
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    answer, _ = await self._hear()
            except TimeoutError as fault:
                raise PullError(f"late: {self.stage} after {most_s:g} s") from fault
            if isinstance(answer, Refused):
                raise PullError(f"refused: {answer.reason!r}")
            if isinstance(answer, Chunk):
                raise FrameError(wrong("answer", got="a chunk", allowed="an offer before it"))
            if isinstance(answer, CommittedOffer):
                self._commitment = answer.commitment
                return answer.offer
            if not isinstance(answer, Busy):
                return answer
            self.stage = "busy"
            await asyncio.sleep(max(answer.retry_in_ms, MIN_RETRY_MS) / 1_000)

    def _check_credential(self, credential: Credential, session_id: str) -> None:
        """Raises FrameError unless the other end is the peer that was to be asked."""
        peer_id = credential.check(session_id=session_id, curve_key=self.address.curve_key)
        if peer_id != self.address.id:
            raise FrameError(
                wrong("peer id", got=peer_id, allowed=f"{self.address.id}, who was to be asked")
            )
        self.peer_id = peer_id

    async def _download(self, offer: VersionOffer, granted: int) -> Pulled:
        """Returns what was offered, received straight into its place."""
        size = self._room.size
        if offer.size != size:
            raise FrameError(wrong("offer.size", got=offer.size, allowed=f"{size}, by the session"))
        if offer.digest != self._offered or not self.can_resume:
            self._begin(offer)
        self._connection.place(self._view, self._chunk_bytes, self.offset)
        allowance = Allowance(
            -(-(size - self.offset) // self._chunk_bytes),
            granted,
            chunk_bytes=self._chunk_bytes,
            can_hold_more=self.can_resume,
            now_s=time.monotonic(),
        )
        while self.offset < size:
            self.stage = f"{self.offset} of {size} bytes"
            self._grow(await self._next_chunk(self.offset))
            for chunks in allowance.arrived(time.monotonic()):
                await self._say(Credit(chunks))
        made = await self._made()
        if (got := made[:DIGEST_BYTES]) != offer.digest:
            raise FrameError(wrong("digest", got=got.hex(), allowed=offer.digest.hex()))
        self._traffic.transfers_in += 1
        return Pulled(
            peer_id=self.address.id,
            round=offer.round,
            samples=offer.samples,
            digest=offer.digest,
            notes=offer.notes,
            payload=self._view,
            hash=made,
            commitment=self._commitment,
        )

    def _begin(self, offer: VersionOffer) -> None:
        """Forgets what has come so far, which is of another version."""
        self._offered = offer.digest
        if not self.offset:
            self._view = self._room.view()
        self.offset = 0
        self._digest, self._hashed, self._hashing = hashing(self.committed), 0, None

    def _grow(self, count: int) -> None:
        """Takes in a chunk that stands in its place; hashes it while it is in the cache.

        SHA-256 takes a third as long as what else is done with a chunk: a thread has it meanwhile.
        """
        self.offset += count
        if self._ready - self._hashed < HASH_BYTES or (self._hashing and not self._hashing.done()):
            return
        block = self._next_block()
        if self.committed:
            loop = asyncio.get_running_loop()
            self._hashing = loop.run_in_executor(None, self._digest.update, block)
        else:
            self._digest.update(block)

    @property
    def _ready(self) -> int:
        """How many bytes stay as they are: decrypting a chunk borrows the end of the one before."""
        return self.offset if self.offset == self._room.size else self.offset - INSIDE_BYTES

    def _next_block(self) -> memoryview:
        """Returns what has come and is to be hashed next."""
        begin = self._hashed
        self._hashed = min(self._ready, begin + MAX_HASH_BYTES)
        return self._view[begin : self._hashed]

    async def _made(self) -> bytes:
        """Returns the digest of all that came, once what is left of it is hashed."""
        if self._hashing is not None:
            await self._hashing
        while self._hashed < self._room.size:
            block = self._next_block()
            if len(block) <= HASH_BYTES:
                self._digest.update(block)
            else:
                await asyncio.to_thread(self._digest.update, block)
        return self._digest.digest()

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
        answer = decode_answer(header, committed=self.committed)
        if len(rest) != isinstance(answer, Chunk):
            raise FrameError(
                wrong("message", got=f"{len(rest) + 1} frames", allowed="2 for a chunk, else 1")
            )
        return answer, rest[0] if rest else None
