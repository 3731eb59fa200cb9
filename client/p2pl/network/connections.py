"""Kept connections for short messages, where a pull would cost a handshake each time.

A connection is opened by its first message. Both ends show their credential once; from then on a
question takes some tens of bytes, and so does its answer: a ping 110 in all, with the framing of
ZeroMQ and CURVE (`tests/network/test_connections.py`). One question is under way on a connection at
a time. Whatever goes wrong, the connection is closed and with it all that was in flight, so no late
answer can be mistaken for another; the next question opens a new one.

The peer that answers keeps a bounded table of connections and a quota for each peer. What it was
told waits in an inbox, bounded for each peer as well, until the exchange takes it out.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from p2pl.errors import FrameError, PullError, wrong
from p2pl.network.dial import Dialler
from p2pl.network.keys import CurveKeys
from p2pl.network.numbering import ANY_NUMBERING, Numbering
from p2pl.network.pull import MIN_RETRY_MS
from p2pl.network.traffic import Traffic
from p2pl.network.version import Published
from p2pl.network.zmtp import Connection
from p2pl.pace import Rate, RateLimiter
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    MAX_HEADER_BYTES,
    Busy,
    ConnectionAnswer,
    ConnectionAsk,
    Credential,
    Hello,
    Newest,
    Ping,
    Refused,
    Tell,
    Told,
    decode_connection_answer,
    encode,
)

MAX_CONNECTIONS = 300  # opened; chosen: a little more than the largest cohort
MAX_ACCEPTED = 1_024  # opened by others; as many as peers are remembered
MAX_ACCEPTED_PER_PEER = 2  # a peer that was cut off opens a second before the first is known dead
MESSAGES_PER_S = 50.0  # from one peer; chosen: ten times what a leader with a short pulse sends
MESSAGES_AT_ONCE = 100
MAX_INBOX_PER_PEER = 32  # messages; 48 KiB
MAX_INBOX = 1_024
RETRY_MS = 100  # told to a peer that is over its quota

NO_HELLO = Refused("no line: say hello first")  # the words are as they were first sent


@dataclass(frozen=True, slots=True)
class Message:
    """What one peer told this one."""

    peer_id: str
    payload: bytes


class Inbox:
    """What other peers have told this one and the exchange has not read yet, oldest first."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._by_peer: dict[str, int] = {}
        self._arrived = asyncio.Event()

    def put(self, message: Message) -> bool:
        """Returns whether there was room for the message."""
        waiting = self._by_peer.get(message.peer_id, 0)
        if waiting >= MAX_INBOX_PER_PEER or len(self._messages) >= MAX_INBOX:
            return False
        self._messages.append(message)
        self._by_peer[message.peer_id] = waiting + 1
        self._arrived.set()
        return True

    def take_all(self) -> list[Message]:
        """Returns all messages that wait, and forgets them."""
        taken = list(self._messages)
        self._messages.clear()
        self._by_peer.clear()
        self._arrived.clear()
        return taken

    async def take(self) -> Message:
        """Returns the oldest message, as soon as there is one."""
        while not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._by_peer[message.peer_id] -= 1
        if not self._by_peer[message.peer_id]:
            del self._by_peer[message.peer_id]
        return message


class AcceptedConnections:
    """The answering end of all connections that other peers have opened.

    Args:
        credential: of the peer that answers.
        newest: returns the version that it serves, if any.
        inbox: takes what it is told.
        now: a clock that never steps back, in seconds.
    """

    def __init__(
        self,
        credential: Credential,
        newest: Callable[[], Published | None],
        inbox: Inbox,
        now: Callable[[], float],
    ) -> None:
        self._hello = Hello(credential)
        self._newest, self._inbox = newest, inbox
        self._peers: dict[bytes, str] = {}  # by connection; the least recently used first
        # By peer, so that a new connection is no new quota.
        self._quotas: RateLimiter[str] = RateLimiter(
            Rate.per_second(MESSAGES_PER_S, MESSAGES_AT_ONCE), now=now, max_keys=MAX_ACCEPTED
        )

    def peer_on(self, route: bytes) -> str | None:
        """Returns who has said hello on a connection."""
        return self._peers.get(route)

    def greet(self, route: bytes, peer_id: str) -> ConnectionAnswer:
        """Returns the answer to a hello whose credential has been checked.

        Args:
            route: by which the connection's messages come.
            peer_id: that the credential proved.
        """
        self._peers.pop(route, None)
        before = [other for other, who in self._peers.items() if who == peer_id]
        if len(before) >= MAX_ACCEPTED_PER_PEER:
            self.forget(before[0])
        elif len(self._peers) >= MAX_ACCEPTED:
            self.forget(next(iter(self._peers)))
        self._peers[route] = peer_id
        return self._hello

    def answer(self, route: bytes, ask: Ping | Tell) -> ConnectionAnswer:
        """Returns the answer to what came over a connection: `Busy` past the peer's quota.

        Args:
            route: by which it came.
            ask: what came.
        """
        peer_id = self._peers.pop(route, None)
        if peer_id is None:
            return NO_HELLO
        self._peers[route] = peer_id
        if self._quotas.take(peer_id):
            return Busy(RETRY_MS)
        if isinstance(ask, Ping):
            version = self._newest()
            if version is None:
                return Newest(0, 0, None)
            return Newest(version.round, version.samples, version.digest)
        taken = self._inbox.put(Message(peer_id, ask.payload))
        return Told() if taken else Busy(RETRY_MS)

    def forget(self, route: bytes) -> None:
        """Closes a connection, if there is one; the peer's quota is kept."""
        self._peers.pop(route, None)


@dataclass(slots=True)
class _Kept:
    """One connection, once it was opened."""

    address: PeerAddress
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    open: Connection | None = None

    def close(self) -> None:
        if self.open is not None:
            self.open.close()
        self.open = None


class Connections:
    """The asking end of all connections that this peer has opened, one to each other peer.

    Args:
        dialler: opens streams to peers.
        keys: of this peer's connections.
        credential: of this peer, shown once on each.
        traffic: counts what comes and goes.
        numbering: how this peer's data number their classes; who differs is not asked.
    """

    def __init__(
        self,
        dialler: Dialler,
        *,
        keys: CurveKeys,
        credential: Credential,
        traffic: Traffic,
        numbering: Numbering = ANY_NUMBERING,
    ) -> None:
        self._numbering = numbering
        self._dialler, self._keys = dialler, keys
        self._credential, self._traffic = credential, traffic
        self._connections: dict[str, _Kept] = {}  # by peer id; the least recently used first

    async def ask(
        self, address: PeerAddress, ask: Ping | Tell, deadline_s: float
    ) -> ConnectionAnswer:
        """Returns the answer of the peer at `address`: `Newest` to a ping, `Told` to a tell.

        Args:
            address: whom to ask; the peer there must prove to be that very one.
            ask: the question.
            deadline_s: seconds for all of it, the opening of a connection included.

        Raises:
            PullError: the peer is late, unreachable, busy until the deadline, or refuses.
            FrameError: the peer is not who it should be, or answers something else.
        """
        try:
            async with asyncio.timeout(deadline_s):
                connection = self._connection(address)
                try:
                    async with connection.lock:
                        return await self._ask(connection, ask, deadline_s)
                finally:
                    if self._connections.get(address.id) is not connection:
                        connection.close()  # replaced meanwhile
        except TimeoutError as fault:
            raise PullError(f"late: no answer after {deadline_s:g} s") from fault

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _connection(self, address: PeerAddress) -> _Kept:
        """Returns the connection to a peer; not open yet where it is new, or the peer has moved."""
        connection = self._connections.pop(address.id, None)
        if connection is None or connection.address != address:
            if connection and not connection.lock.locked():
                connection.close()
            connection = _Kept(address)
        self._connections[address.id] = connection
        if len(self._connections) > MAX_CONNECTIONS:
            idle = next((one for one in self._connections.values() if not one.lock.locked()), None)
            if idle is not None:
                idle.close()
                del self._connections[idle.address.id]
        return connection

    async def _ask(
        self, connection: _Kept, ask: Ping | Tell, deadline_s: float
    ) -> ConnectionAnswer:
        """Returns the answer; a connection found dead or forgotten is opened again, once."""
        was_open = connection.open is not None
        try:
            try:
                answer = await self._converse(connection, ask, deadline_s)
            except PullError:
                if not was_open:
                    raise
                connection.close()
                answer = await self._converse(connection, ask, deadline_s)
        except FrameError:
            self._traffic.broke(connection.address.id)
            connection.close()
            raise
        except BaseException:
            connection.close()  # what is in flight must not answer the next question
            raise
        return answer

    async def _converse(
        self, connection: _Kept, ask: Ping | Tell, deadline_s: float
    ) -> ConnectionAnswer:
        if connection.open is None:
            await self._open(connection, deadline_s)
        allowed = Newest if isinstance(ask, Ping) else Told
        while True:
            answer = await self._exchange(connection, ask)
            if isinstance(answer, Busy):
                await asyncio.sleep(max(answer.retry_in_ms, MIN_RETRY_MS) / 1_000)
            elif isinstance(answer, Refused):
                raise PullError(f"refused: {answer.reason!r}")
            elif isinstance(answer, allowed):
                return answer
            else:
                raise FrameError(
                    wrong("answer", got=type(answer).__name__, allowed=allowed.__name__)
                )

    async def _open(self, connection: _Kept, deadline_s: float) -> None:
        connection.open = await Connection.open(
            self._dialler,
            self._keys,
            connection.address,
            max_payload_bytes=MAX_HEADER_BYTES,
            deadline_s=deadline_s,
            ready=partial(self._numbering.check, connection.address.id),
        )
        answer = await self._exchange(connection, Hello(self._credential))
        if isinstance(answer, Refused):
            raise PullError(f"refused: {answer.reason!r}")
        if not isinstance(answer, Hello):
            raise FrameError(wrong("answer", got=type(answer).__name__, allowed="Hello"))
        peer_id = answer.credential.check(
            session_id=self._credential.session.hex(), curve_key=connection.address.curve_key
        )
        if peer_id != connection.address.id:
            raise FrameError(
                wrong(
                    "peer id", got=peer_id, allowed=f"{connection.address.id}, who was to be asked"
                )
            )

    async def _exchange(self, connection: _Kept, ask: ConnectionAsk) -> ConnectionAnswer:
        """Returns the next message on an open connection after `ask` was sent."""
        if connection.open is None:
            raise ValueError("the connection is not open")
        data = encode(ask)
        await connection.open.send(data)
        self._traffic.went(connection.address.id, len(data))
        frames = await connection.open.receive()
        self._traffic.came(connection.address.id, sum(map(len, frames)))
        if len(frames) != 1:
            raise FrameError(wrong("message", got=f"{len(frames)} frames", allowed="1"))
        return decode_connection_answer(frames[0])
