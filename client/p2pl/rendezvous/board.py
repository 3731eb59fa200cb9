"""Who listens, who calls whom and what is joined: the state of a relay, apart from its sockets.

A connection is a number here (a line). Whatever happens to one is told to a method, which returns
what is to be done: messages to send, lines to join, to finish or to end. Nothing here waits.

A line is new until it has said what it wants; then it listens (a peer that takes calls keeps it
open), calls (until the peer that it wants accepts), or is joined to another. All that strangers can
make grow has a limit, by address before anything is known of them, and by peer and by session once
they have proved who they are.
"""

import ipaddress
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from p2pl.errors import ProtocolError
from p2pl.pace import Rate, RateLimiter
from p2pl.protocol import entry
from p2pl.protocol.announce import MAX_SKEW_S
from p2pl.protocol.relay import (
    ABSENT,
    NONCE_BYTES,
    Accept,
    Call,
    Joined,
    Listen,
    Listening,
    Ping,
    Refused,
    Ring,
    Said,
    Told,
)

K = TypeVar("K")
Line: TypeAlias = int
Peer: TypeAlias = tuple[bytes, bytes]  # session, and id of the peer
Role: TypeAlias = Literal["new", "listening", "calling", "joined", "ending"]

MAX_NONCES = 200_000  # chosen: some 30 MB; the oldest is forgotten first
MAX_KEYS = 100_000  # rates that are remembered; the longest idle is forgotten first
MISSED = 2.5  # keepalives that do not come before a listener counts as gone
LINGER_S = 5.0  # for what is on its way when one side has ended
ADDRESS_BITS = 64  # of an IPv6 address: whoever has one has all that begin with these


@dataclass(frozen=True, slots=True)
class Policy:
    """What whoever runs it allows.

    Attributes:
        issuers: public keys of those whose tickets count.
        authors: public keys of those whose invitations to private sessions count as tickets.
        is_open: whether no ticket is wanted.
        sessions: that it is for; None: for all.
        takes_calls: whether strangers may call; else only the process that runs it does.
        max_lines: connections in all.
        max_per_address: of an IPv4 address or an IPv6 /64; a whole network may stand behind it.
        max_per_session: connections of peers of one session.
        max_per_peer: connections of one peer.
        connects_per_s: of one address.
        asks_per_s: `Listen` and `Call` of one peer.
        bytes_per_s: copied for everybody together; 0 = no limit.
        bytes_per_s_per_peer: copied to and from one peer; 0 = no limit.
        hello_s: within which a connection says what it wants.
        ring_s: for which a call waits to be accepted.
        keepalive_s: a listener says `Ping` so often.
        idle_s: after which joined lines end that carry nothing.
        total_s: after which joined lines end, whatever they carry.
        total_bytes: after which joined lines end; both directions together.
    """

    issuers: frozenset[bytes] = frozenset()
    authors: frozenset[bytes] = frozenset()
    is_open: bool = False
    sessions: frozenset[bytes] | None = None
    takes_calls: bool = True
    max_lines: int = 4_096
    max_per_address: int = 512
    max_per_session: int = 2_048
    max_per_peer: int = 64
    connects_per_s: float = 20.0
    connects_at_once: int = 400
    asks_per_s: float = 4.0
    asks_at_once: int = 64
    bytes_per_s: float = 0.0
    bytes_per_s_per_peer: float = 0.0
    hello_s: float = 10.0
    ring_s: float = 15.0
    keepalive_s: float = 20.0
    idle_s: float = 300.0
    total_s: float = 6 * 3_600.0
    total_bytes: int = 256 << 30


@dataclass(frozen=True, slots=True)
class Send:
    """A message goes to a line."""

    line: Line
    message: Told


@dataclass(frozen=True, slots=True)
class Join:
    """From now on what comes over one line goes to the other."""

    caller: Line
    callee: Line


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more will be written to a line; it may still say something."""

    line: Line


@dataclass(frozen=True, slots=True)
class End:
    """A line is to be closed, after what was sent to it."""

    line: Line


Command: TypeAlias = Send | Join | Finish | End


@dataclass(slots=True)
class Counts:
    """What has happened so far; plain numbers for whoever shows them."""

    connections: int = 0
    listens: int = 0
    calls: int = 0
    joins: int = 0
    bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by reason, of a few


@dataclass(slots=True, eq=False)
class _Line:
    number: Line
    group: str
    role: Role = "new"
    since_s: float = 0.0  # in this role
    heard_s: float = 0.0
    peer: Peer | None = None
    other: Line | None = None  # of a joined line; of a calling one: the listener
    call: bytes = b""
    joint: "_Joint | None" = None


@dataclass(slots=True, eq=False)
class _Joint:
    """What two joined lines have in common."""

    since_s: float
    moved_s: float
    copied: int = 0
    ended: int = 0  # of the two
    ended_s: float = 0.0


class Budget:
    """So many bytes a second for each key, and a second's worth at once.

    Args:
        bytes_per_s: 0 = no limit.
        now: a clock that never steps back, in seconds.
    """

    def __init__(self, bytes_per_s: float, now: Callable[[], float]) -> None:
        self._rate, self._now = bytes_per_s, now
        self._due_s: OrderedDict[object, float] = OrderedDict()

    def take(self, key: object, count: int) -> float:
        """Returns how long to wait before the next bytes, `count` having been moved; seconds."""
        if not self._rate:
            return 0.0
        now_s = self._now()
        due_s = max(self._due_s.get(key, 0.0), now_s) + count / self._rate
        self._due_s[key] = due_s
        self._due_s.move_to_end(key)
        if len(self._due_s) > MAX_KEYS:
            self._due_s.popitem(last=False)
        return max(0.0, due_s - now_s - 1.0)


class Board:
    """The state of one rendezvous.

    Args:
        policy: what is allowed.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970.
        draw: returns so many bytes that nobody can guess.
        bars: returns why a peer is not let in, whatever it shows; "": it is.

    Attributes:
        counts: what has happened so far.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        draw: Callable[[int], bytes] = secrets.token_bytes,
        bars: Callable[[Peer], str] = lambda _: "",
    ) -> None:
        self.policy = policy
        self.counts = Counts()
        self._now, self._wall, self._draw, self._bars = now, wall, draw, bars
        self._lines: dict[Line, _Line] = {}
        self._next: Line = 1
        self._listeners: dict[Peer, _Line] = {}
        self._calls: dict[bytes, _Line] = {}
        self._groups: Counter[str] = Counter()
        self._sessions: Counter[bytes] = Counter()
        self._peers: Counter[Peer] = Counter()
        self._nonces: OrderedDict[bytes, float] = OrderedDict()
        self._connects: RateLimiter[str] = RateLimiter(
            Rate.per_second(policy.connects_per_s, policy.connects_at_once),
            now=now,
            max_keys=MAX_KEYS,
        )
        self._asks: RateLimiter[Peer] = RateLimiter(
            Rate.per_second(policy.asks_per_s, policy.asks_at_once), now=now, max_keys=MAX_KEYS
        )
        self._all = Budget(policy.bytes_per_s, now)
        self._each = Budget(policy.bytes_per_s_per_peer, now)
        self._draining = False

    @property
    def lines(self) -> int:
        """How many connections there are."""
        return len(self._lines)

    @property
    def listeners(self) -> int:
        """How many peers take calls."""
        return len(self._listeners)

    @property
    def joints(self) -> int:
        """How many pairs of lines are joined."""
        lines = list(self._lines.values())  # at once: metrics are read by another thread
        return sum(line.role == "joined" for line in lines) // 2

    def listens(self, peer: Peer) -> bool:
        """Returns whether a peer takes calls here."""
        return peer in self._listeners

    def is_joined(self, line: Line) -> bool:
        """Returns whether what comes over a line is for another one."""
        one = self._lines.get(line)
        return one is not None and one.role == "joined"

    def opened(self, host: str) -> tuple[Line, list[Command]]:
        """Returns the number of a new connection, and what is to be done about it.

        Args:
            host: the IP address that it came from; "": this very process.
        """
        group = group_of(host)
        now_s = self._now()
        line = _Line(self._next, group, since_s=now_s, heard_s=now_s)
        self._next += 1
        self.counts.connections += 1
        wait_s = self._connects.take(group) if group else 0.0
        many = len(self._lines) >= self.policy.max_lines
        crowded = bool(group) and self._groups[group] >= self.policy.max_per_address
        self._lines[line.number] = line
        self._groups[group] += 1
        if many:
            return line.number, self._refuse(line, "full", "this relay is full", 5.0)
        if crowded or wait_s:
            why = "too many connections from this address"
            return line.number, self._refuse(line, "address", why, max(wait_s, 5.0))
        return line.number, []

    def heard(self, line: Line, message: Said) -> list[Command]:
        """Returns what is to be done about a message.

        Args:
            line: that it came over.
            message: decoded; nothing in it is checked yet.
        """
        one = self._lines.get(line)
        if one is None or one.role == "ending":
            return []
        one.heard_s = self._now()
        if one.role == "listening" and isinstance(message, Ping):
            return [Send(line, Ping())]
        if one.role != "new" or isinstance(message, Ping):
            return self._refuse(one, "protocol", "not now", None)
        if self._draining:
            return self._refuse(one, "draining", "this relay is about to stop", 5.0)
        if isinstance(message, Accept):
            return self._accept(one, message)
        try:
            self._admit(one, message)
        except _Refusal as no:
            return self._refuse(one, no.kind, str(no), no.retry_in_s)
        if isinstance(message, Listen):
            return self._listen(one)
        return self._call(one, (message.session, message.target))

    def broke(self, line: Line, reason: str) -> list[Command]:
        """Returns what is to be done about a line whose bytes are no message."""
        one = self._lines.get(line)
        if one is None or one.role == "ending":
            return []
        return self._refuse(one, "protocol", reason, None)

    def call_from_here(self, line: Line, session: bytes, target: bytes) -> list[Command]:
        """Returns what is to be done about a call of the process that runs this itself.

        Args:
            line: opened for it, with no host.
            session: the session's id.
            target: the id of the peer that is called.
        """
        one = self._lines[line]
        return self._call(one, (session, target))

    def copied(self, line: Line, count: int) -> float:
        """Counts bytes that came over a joined line; returns the seconds to rest before the next.

        Args:
            line: that they came over.
            count: bytes.
        """
        one = self._lines.get(line)
        if one is None or one.joint is None:
            return 0.0
        joint = one.joint
        joint.moved_s = self._now()
        joint.copied += count
        self.counts.bytes += count
        wait_s = self._all.take("", count)
        if self.policy.bytes_per_s_per_peer:
            other = self._lines.get(one.other or 0)
            for peer in {one.peer, other.peer if other else None} - {None}:
                wait_s = max(wait_s, self._each.take(peer, count))
        return wait_s

    def ended(self, line: Line) -> list[Command]:
        """Returns what is to be done when a line will say nothing more, though it may still hear.

        Args:
            line: which.
        """
        one = self._lines.get(line)
        if one is None:
            return []
        if one.role != "joined" or one.joint is None:
            return [End(line)]
        one.joint.ended += 1
        one.joint.ended_s = self._now()
        if one.joint.ended > 1:
            return [End(line), End(one.other or 0)]
        return [Finish(one.other or 0)]

    def lost(self, line: Line) -> list[Command]:
        """Returns what is to be done when a line is closed; it does not exist any more."""
        one = self._lines.pop(line, None)
        if one is None:
            return []
        _less(self._groups, one.group)
        self._forget(one)
        other = self._lines.get(one.other or 0)
        if one.role == "joined" and other is not None and other.role == "joined":
            other.role = "ending"
            return [End(other.number)]
        return []

    def sweep(self) -> list[Command]:
        """Returns what is to be done about lines that take too long; to be asked for often."""
        now_s = self._now()
        commands: list[Command] = []
        for one in list(self._lines.values()):
            if why := self._overdue(one, now_s):
                commands += self._refuse(one, "late", why, None)
        while self._nonces and next(iter(self._nonces.values())) < now_s:
            self._nonces.popitem(last=False)
        return commands

    def drain(self) -> list[Command]:
        """Returns what is to be done when no new call is taken any more; what is joined goes on."""
        self._draining = True
        commands: list[Command] = []
        for one in list(self._lines.values()):
            if one.role in ("new", "listening", "calling"):
                commands += self._refuse(one, "draining", "this relay is about to stop", 5.0)
        return commands

    def _overdue(self, one: _Line, now_s: float) -> str:
        policy, age_s = self.policy, now_s - one.since_s
        if one.role == "new" and age_s > policy.hello_s:
            return "said nothing"
        if one.role == "calling" and age_s > policy.ring_s:
            return "the peer that is called does not answer"
        silent_s = MISSED * policy.keepalive_s
        if one.role == "listening" and now_s - one.heard_s > silent_s:
            return "no sign of life"
        if one.joint is not None and one.role == "joined":
            return self._outlasted(one.joint, now_s)
        return ""

    def _outlasted(self, joint: _Joint, now_s: float) -> str:
        policy = self.policy
        if now_s - joint.moved_s > policy.idle_s:
            return "idle"
        if joint.ended and now_s - max(joint.ended_s, joint.moved_s) > LINGER_S:
            return "over"
        if now_s - joint.since_s > policy.total_s or joint.copied > policy.total_bytes:
            return "enough"
        return ""

    def _admit(self, one: _Line, message: Listen | Call) -> None:
        """Takes in who speaks on a line, or raises _Refusal; the cheap checks stand first."""
        policy = self.policy
        peer: Peer = (message.session, message.peer)
        if policy.sessions is not None and message.session not in policy.sessions:
            raise _Refusal("session", "not a session that is served here", None)
        if isinstance(message, Call) and not policy.takes_calls:
            raise _Refusal("protocol", "no calls are taken here", None)
        if policy.max_per_session <= self._sessions[message.session]:
            raise _Refusal("session", "too many connections of this session", 5.0)
        if policy.max_per_peer <= self._peers[peer]:
            raise _Refusal("peer", "too many connections of this peer", 5.0)
        try:
            if not policy.is_open:
                entry.check(
                    message.ticket,
                    session=message.session,
                    public_key=message.public_key,
                    counts=entry.Counts(policy.issuers, policy.authors),
                    now_s=self._wall(),
                )
            message.check("listen" if isinstance(message, Listen) else "call", self._wall())
        except ProtocolError as fault:
            raise _Refusal("ticket", str(fault), None) from fault
        if why := self._bars(peer):
            raise _Refusal("ticket", why, None)
        if wait_s := self._asks.take(peer):
            raise _Refusal("rate", "this peer asks too often", wait_s)
        self._once(message)
        one.peer = peer
        self._sessions[message.session] += 1
        self._peers[peer] += 1

    def _once(self, message: Listen | Call) -> None:
        """Raises _Refusal where this very message was said before."""
        told = message.nonce + message.public_key
        if told in self._nonces:
            raise _Refusal("replay", "said before", None)
        self._nonces[told] = self._now() + 2 * MAX_SKEW_S
        if len(self._nonces) > MAX_NONCES:
            self._nonces.popitem(last=False)

    def _listen(self, one: _Line) -> list[Command]:
        """Makes a line the one over which its peer takes calls; one before it is ended."""
        assert one.peer is not None
        self.counts.listens += 1
        commands: list[Command] = []
        if before := self._listeners.pop(one.peer, None):
            commands += self._refuse(before, "replaced", "it listens elsewhere by now", None)
        self._listeners[one.peer] = one
        self._become(one, "listening")
        return [*commands, Send(one.number, Listening(self.policy.keepalive_s))]

    def _call(self, one: _Line, target: Peer) -> list[Command]:
        self.counts.calls += 1
        listener = self._listeners.get(target)
        if listener is None:
            return self._refuse(one, "absent", ABSENT, 1.0)
        if self._peers[target] >= self.policy.max_per_peer:
            return self._refuse(one, "peer", "the peer that is called is busy", 1.0)
        one.call = self._draw(NONCE_BYTES)
        one.other = listener.number
        self._calls[one.call] = one
        self._become(one, "calling")
        caller = one.peer[1] if one.peer else target[1]
        return [Send(listener.number, Ring(one.call, caller))]

    def _accept(self, one: _Line, message: Accept) -> list[Command]:
        caller = self._calls.pop(message.call, None)
        if caller is None:
            return self._refuse(one, "absent", "nobody calls, or not any more", None)
        listener = self._lines.get(caller.other or 0)
        if listener is not None and listener.peer is not None:
            one.peer = listener.peer
            self._sessions[one.peer[0]] += 1
            self._peers[one.peer] += 1
        now_s = self._now()
        joint = _Joint(now_s, now_s)
        for line, other in ((caller, one), (one, caller)):
            line.other, line.joint = other.number, joint
            self._become(line, "joined")
        self.counts.joins += 1
        lines = (caller.number, one.number)
        return [*(Send(line, Joined()) for line in lines), Join(*lines)]

    def _become(self, one: _Line, role: Role) -> None:
        one.role, one.since_s = role, self._now()

    def _refuse(
        self, one: _Line, kind: str, reason: str, retry_in_s: float | None
    ) -> list[Command]:
        """Returns how a line is ended, and the one that is joined to it."""
        joined = one.role == "joined"
        self.counts.refused[kind] += 1
        self._forget(one)
        self._become(one, "ending")
        if not joined:
            return [Send(one.number, Refused(reason[:300], retry_in_s)), End(one.number)]
        other = self._lines.get(one.other or 0)
        if other is None or other.role != "joined":
            return [End(one.number)]
        self._forget(other)
        self._become(other, "ending")
        return [End(one.number), End(other.number)]

    def _forget(self, one: _Line) -> None:
        """Takes a line out of all tables but that of lines."""
        if one.peer is not None:
            if self._listeners.get(one.peer) is one:
                del self._listeners[one.peer]
            _less(self._sessions, one.peer[0])
            _less(self._peers, one.peer)
            one.peer = None
        if self._calls.get(one.call) is one:
            del self._calls[one.call]


class _Refusal(Exception):
    """Why a peer is not admitted."""

    def __init__(self, kind: str, reason: str, retry_in_s: float | None) -> None:
        super().__init__(reason)
        self.kind, self.retry_in_s = kind, retry_in_s


def group_of(host: str) -> str:
    """Returns what an address counts under: itself, or the first 64 bits of one of IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 4:
        return address.compressed
    return ipaddress.ip_network((address, ADDRESS_BITS), strict=False).compressed


def _less(counter: Counter[K], key: K) -> None:
    """Counts one less of something, and forgets it at none."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
