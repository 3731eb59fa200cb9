"""Lines: kept connections for short messages, where a pull would cost a handshake each time.

A line is opened by its first message. Both ends show their card once; from then on a question takes
some tens of bytes, and so does its answer: a ping 110 in all, with the framing of ZeroMQ and CURVE
(`tests/client/test_lines.py`). One question is under way on a line at a time. Whatever goes wrong,
the line is closed and with it all that was in flight, so no late answer can be mistaken for
another; the next question opens a new one.

Who answers keeps a bounded table of lines and a quota for each peer. What it was told waits in an
inbox, bounded for each peer as well, until the exchange takes it out.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq.asyncio

from p2pl.errors import FrameError, PullError, wrong
from p2pl.network.keys import CurveKeys
from p2pl.network.pull import MIN_RETRY_MS, dealing, endpoint, unless_lost
from p2pl.network.traffic import Traffic
from p2pl.network.version import Published
from p2pl.pace import Rate, RateLimiter
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    Busy,
    Card,
    Hello,
    LineAnswer,
    LineAsk,
    Newest,
    Ping,
    Refused,
    Tell,
    Told,
    decode_line_answer,
    encode,
)

MAX_LINES = 300  # of mine; chosen: a little more than the largest cohort
MAX_LINES_IN = 1_024  # of others; as many as peers are remembered
MAX_LINES_PER_PEER = 2  # a peer that was cut off opens a second before the first is known dead
MESSAGES_PER_S = 50.0  # from one peer; chosen: ten times what a leader with a short pulse sends
MESSAGES_AT_ONCE = 100
MAX_INBOX_PER_PEER = 32  # messages; 48 KiB
MAX_INBOX = 1_024
RETRY_MS = 100  # told to a peer that is over its quota

NO_LINE = Refused("no line: say hello first")


@dataclass(frozen=True, slots=True)
class Message:
    """What a peer told me."""

    peer_id: str
    payload: bytes


class Inbox:
    """What others have told me and the exchange has not read yet, oldest first."""

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


class Answering:
    """The answering end of all lines that others have opened.

    Args:
        card: mine.
        newest: returns the version that I serve, if any.
        inbox: takes what I am told.
        now: a clock that never steps back, in seconds.
    """

    def __init__(
        self,
        card: Card,
        newest: Callable[[], Published | None],
        inbox: Inbox,
        now: Callable[[], float],
    ) -> None:
        self._hello = Hello(card)
        self._newest, self._inbox = newest, inbox
        self._peers: dict[bytes, str] = {}  # by connection; the least recently used first
        # By peer, so that a new line is no new quota.
        self._quotas: RateLimiter[str] = RateLimiter(
            Rate.per_second(MESSAGES_PER_S, MESSAGES_AT_ONCE), now=now, max_keys=MAX_LINES_IN
        )

    def peer_on(self, route: bytes) -> str | None:
        """Returns who has said hello on a connection."""
        return self._peers.get(route)

    def greet(self, route: bytes, peer_id: str) -> LineAnswer:
        """Returns the answer to a hello whose card has been checked."""
        self._peers.pop(route, None)
        mine = [other for other, who in self._peers.items() if who == peer_id]
        if len(mine) >= MAX_LINES_PER_PEER:
            self.forget(mine[0])
        elif len(self._peers) >= MAX_LINES_IN:
            self.forget(next(iter(self._peers)))
        self._peers[route] = peer_id
        return self._hello

    def answer(self, route: bytes, ask: Ping | Tell) -> LineAnswer:
        """Returns the answer to what came over a line."""
        peer_id = self._peers.pop(route, None)
        if peer_id is None:
            return NO_LINE
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
        """Closes a line, if there is one; a peer's quota is kept, so a new line is no new quota."""
        self._peers.pop(route, None)


@dataclass(slots=True)
class _Line:
    """One line of mine; closed when `held` is."""

    address: PeerAddress
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    dealer: zmq.asyncio.Socket | None = None
    monitor: zmq.asyncio.Socket | None = None

    def close(self) -> None:
        self.held.close()
        self.dealer = self.monitor = None


class Calling:
    """The asking end of all lines that I have opened."""

    def __init__(
        self, context: zmq.asyncio.Context, *, keys: CurveKeys, card: Card, traffic: Traffic
    ) -> None:
        self._context, self._keys, self._card, self._traffic = context, keys, card, traffic
        self._lines: dict[str, _Line] = {}  # by peer id; the least recently used first

    async def ask(self, address: PeerAddress, ask: Ping | Tell, deadline_s: float) -> LineAnswer:
        """Returns the answer of the peer at `address`: `Newest` to a ping, `Told` to a tell.

        Raises:
            PullError: the peer is late, unreachable, busy until the deadline, or refuses.
            FrameError: the peer is not who it should be, or answers something else.
        """
        where = endpoint(address)
        try:
            async with asyncio.timeout(deadline_s):
                line = self._line(address)
                try:
                    async with line.lock:
                        return await self._ask(line, where, ask)
                finally:
                    if self._lines.get(address.id) is not line:
                        line.close()  # replaced meanwhile
        except TimeoutError as fault:
            raise PullError(f"late: no answer after {deadline_s:g} s") from fault

    def close(self) -> None:
        """Closes all lines."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _line(self, address: PeerAddress) -> _Line:
        """Returns the line to a peer; not open yet where it is new, or the peer has moved."""
        line = self._lines.pop(address.id, None)
        if line is None or line.address != address:
            if line and not line.lock.locked():
                line.close()
            line = _Line(address)
        self._lines[address.id] = line
        if len(self._lines) > MAX_LINES:
            idle = next((one for one in self._lines.values() if not one.lock.locked()), None)
            if idle is not None:
                idle.close()
                del self._lines[idle.address.id]
        return line

    async def _ask(self, line: _Line, where: str, ask: Ping | Tell) -> LineAnswer:
        """Returns the answer; a line that turns out dead or forgotten is opened again, once."""
        was_open = line.dealer is not None
        try:
            try:
                answer = await self._converse(line, where, ask)
            except PullError:
                if not was_open:
                    raise
                line.close()
                answer = await self._converse(line, where, ask)
        except FrameError:
            self._traffic.broke(line.address.id)
            line.close()
            raise
        except BaseException:
            line.close()  # what is in flight must not answer the next question
            raise
        return answer

    async def _converse(self, line: _Line, where: str, ask: Ping | Tell) -> LineAnswer:
        if line.dealer is None:
            await self._open(line, where)
        allowed = Newest if isinstance(ask, Ping) else Told
        while True:
            answer = await self._exchange(line, ask)
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

    async def _open(self, line: _Line, where: str) -> None:
        dealer, monitor = line.held.enter_context(dealing(self._context, self._keys, line.address))
        dealer.connect(where)
        line.dealer, line.monitor = dealer, monitor
        answer = await self._exchange(line, Hello(self._card))
        if isinstance(answer, Refused):
            raise PullError(f"refused: {answer.reason!r}")
        if not isinstance(answer, Hello):
            raise FrameError(wrong("answer", got=type(answer).__name__, allowed="Hello"))
        peer_id = answer.card.check(
            session_id=self._card.session.hex(), curve_key=line.address.curve_key
        )
        if peer_id != line.address.id:
            raise FrameError(
                wrong("peer id", got=peer_id, allowed=f"{line.address.id}, whom we meant to ask")
            )

    async def _exchange(self, line: _Line, ask: LineAsk) -> LineAnswer:
        """Returns the next message on an open line after `ask` was sent."""
        if line.dealer is None or line.monitor is None:
            raise ValueError("the line is not open")
        return await unless_lost(self._send_and_hear(line, line.dealer, ask), line.monitor)

    async def _send_and_hear(
        self, line: _Line, dealer: zmq.asyncio.Socket, ask: LineAsk
    ) -> LineAnswer:
        data = encode(ask)
        await dealer.send(data)
        self._traffic.went(line.address.id, len(data))
        frames = await dealer.recv_multipart()
        self._traffic.came(line.address.id, sum(map(len, frames)))
        if len(frames) != 1:
            raise FrameError(wrong("message", got=f"{len(frames)} frames", allowed="1"))
        return decode_line_answer(frames[0])
