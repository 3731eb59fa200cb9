"""Who is alive in each session, as last told to the tracker: a small interface and a memory store.

Work per announce is bounded whatever the number of peers: an upsert, a sample of k peers drawn in
O(k), and the removal of at most `EXPIRED_PER_CALL` peers that fell silent.
"""

import ipaddress
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from p2pl.errors import AnnounceError, wrong
from p2pl.pace import Rate
from p2pl.protocol.announce import MAX_SKEW_S, Announce, Counts, Event, encode_row

EXPIRED_PER_CALL = 256  # chosen: about half a millisecond; drains far faster than peers can join
# An announce may be dated MAX_SKEW_S ahead and is accepted until MAX_SKEW_S after its date, so an
# old one can come back for twice that long; the sequence number of a peer outlives that.
REMEMBER_SEQUENCE_S = 2 * MAX_SKEW_S


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a store holds, for how long, and how often a peer may announce."""

    ttl_s: float = 150.0  # more than twice the announce interval: one lost announce drops nobody
    max_peers: int = 1_000_000  # chosen: under 1 GiB
    max_sessions: int = 10_000
    max_peers_per_session: int = 100_000
    max_peers_per_address: int = 1_000  # of an IPv4 address, or of an IPv6 /64
    min_interval_s: float = 0.5  # sustained, per peer; 0 = no limit
    burst: int = 10  # announces in a row before `min_interval_s` counts


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the store says to an announce."""

    rows: Sequence[bytes]  # other peers as `encode_row` wrote them
    alive: int  # peers in the session, the asker included
    training: int  # those of them that have not announced `completed`
    warning: str = ""  # why the asker was not added


@dataclass(frozen=True, slots=True)
class Totals:
    """How full a store is."""

    sessions: int
    peers: int


class Store(Protocol):
    """Where the tracker keeps its peers. Coroutines, so that a store may be elsewhere."""

    async def announce(self, announce: Announce, host: str) -> Welcome:
        """Records an announce seen from `host`; returns a uniform sample of the other peers.

        The announce's signature and time have been checked.

        Args:
            announce: decoded and checked.
            host: the IP address that it came from.

        Raises:
            AnnounceError: its sequence number is not new (409), or it comes too soon (429).
        """
        ...

    async def scrape(self, session: bytes) -> Counts:
        """Returns the counts of a session; zeros when nobody is in it."""
        ...

    async def totals(self) -> Totals:
        """Returns how full the store is."""
        ...

    async def expire(self) -> bool:
        """Removes some peers that fell silent; returns whether there may be more."""
        ...

    async def ready(self) -> bool:
        """Returns whether announces can be served."""
        ...


class _Departed(NamedTuple):
    """What is remembered of a peer that is no longer there."""

    sequence: int  # of its last announce
    due_s: float  # as of a peer: whoever leaves and comes back earns no new burst
    until_s: float  # when it may be forgotten


STRANGER = _Departed(sequence=-1, due_s=-math.inf, until_s=-math.inf)


class _Peer:
    """One peer in one session."""

    __slots__ = (
        "address",
        "at",
        "completed",
        "digest",
        "due_s",
        "expires_s",
        "row",
        "sequence",
        "swarm",
    )

    def __init__(self, swarm: "_Swarm", digest: bytes) -> None:
        self.swarm = swarm
        self.digest = digest
        self.address = ""  # what `address_group` made of its host
        self.at = -1  # place in swarm.order
        self.completed = False
        self.due_s = 0.0  # what `Rate` knows of its announces so far
        self.expires_s = 0.0
        self.row = b""
        self.sequence = 0


class _Swarm:
    """The peers of one session: a dictionary to find one, a list in any order to draw from."""

    __slots__ = ("completed", "order", "peers", "session", "training")

    def __init__(self, session: bytes) -> None:
        self.session = session
        self.peers: dict[bytes, _Peer] = {}
        self.order: list[_Peer] = []
        self.completed = 0  # ever
        self.training = 0  # alive, and not completed

    def add(self, peer: _Peer) -> None:
        self.training += 1
        peer.at = len(self.order)
        self.order.append(peer)
        self.peers[peer.digest] = peer

    def remove(self, peer: _Peer) -> None:
        last = self.order.pop()
        if last is not peer:
            self.order[peer.at] = last
            last.at = peer.at
        del self.peers[peer.digest]
        self.training -= not peer.completed

    def mark(self, peer: _Peer, event: Event) -> None:
        """Keeps the counts: `completed` ends a peer's training, `started` begins it again."""
        if event == "completed" and not peer.completed:
            peer.completed = True
            self.completed += 1
            self.training -= 1
        elif event == "started" and peer.completed:
            peer.completed = False
            self.training += 1

    def swap(self, left: int, right: int) -> None:
        order = self.order
        one, other = order[left], order[right]
        order[left], order[right] = other, one
        other.at, one.at = left, right


@lru_cache(maxsize=65_536)
def address_group(host: str, bits: int = 64) -> str:
    """Returns what the per-address limits count by: an IPv4 address, or an IPv6 /64.

    Args:
        host: an IP address.
        bits: of an IPv6 address, that those who count together have in common.
    """
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return host
    return str(ipaddress.IPv6Network((address, bits), strict=False).network_address)


class MemoryStore:
    """A store in this process's memory; a restart forgets it, and peers announce themselves anew.

    What a restart also forgets is the sequence numbers: an announce of the last minutes can then be
    replayed once, from the replayer's own address, until the peer's next announce corrects it.

    Args:
        limits: how many peers it keeps, and how often they may announce.
        now: the clock of all deadlines, seconds.
        rng: draws the samples; None: a new one.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        now: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._limits = limits
        self._now = now
        self._pace = Rate(limits.min_interval_s, limits.burst)
        self._random = (rng or random.Random()).random
        self._swarms: dict[bytes, _Swarm] = {}
        self._by_expiry: OrderedDict[_Peer, None] = OrderedDict()  # all peers, soonest first
        self._per_address: dict[str, int] = {}
        # By session + digest, soonest forgotten first.
        self._departed: OrderedDict[bytes, _Departed] = OrderedDict()

    async def announce(self, announce: Announce, host: str) -> Welcome:
        """Records an announce; returns a uniform sample of the others. See `Store.announce`.

        Raises:
            AnnounceError: its sequence number is not new (409), or it comes too soon (429).
        """
        now = self._now()
        self._expire(now)
        session, digest = announce.session, announce.digest
        peer = self._alive(session, digest, now)
        last = peer or self._departed.get(session + digest, STRANGER)
        self._check_sequence(announce.sequence, last.sequence)
        if announce.event == "stopped":
            if peer:
                self._remove(peer, announce.sequence)
            return self._welcome(session, ())
        due_s = self._check_pace(last.due_s, now)
        group = address_group(host)
        if peer and peer.address != group and self._is_full_for(group):
            self._remove(peer, announce.sequence)  # gone from there, and no room here
            peer = None
        if peer is None and (warning := self._fullness(session, group)):
            rows = self._sample(session, announce.numwant, None, now)
            return self._welcome(session, rows, warning)
        peer = peer or self._add(session, digest)
        peer.due_s = due_s
        self._renew(peer, announce, host, now)
        return self._welcome(session, self._sample(session, announce.numwant, peer, now))

    async def scrape(self, session: bytes) -> Counts:
        """Returns the counts of a session; zeros when nobody is in it."""
        swarm = self._swarms.get(session)
        return Counts(alive=self._count(session), completed=swarm.completed if swarm else 0)

    async def totals(self) -> Totals:
        """Returns how full the store is."""
        return Totals(sessions=len(self._swarms), peers=len(self._by_expiry))

    async def expire(self) -> bool:
        """Removes some peers that fell silent; returns whether there may be more."""
        return self._expire(self._now())

    async def ready(self) -> bool:
        """Returns True: what is in memory is there."""
        return True

    def _welcome(self, session: bytes, rows: Sequence[bytes], warning: str = "") -> Welcome:
        swarm = self._swarms.get(session)
        if swarm is None:
            return Welcome(rows, 0, 0, warning)
        return Welcome(rows, len(swarm.order), swarm.training, warning)

    def _count(self, session: bytes) -> int:
        swarm = self._swarms.get(session)
        return len(swarm.order) if swarm else 0

    def _alive(self, session: bytes, digest: bytes, now: float) -> _Peer | None:
        swarm = self._swarms.get(session)
        peer = swarm.peers.get(digest) if swarm else None
        if peer and peer.expires_s <= now:
            self._remove(peer, peer.sequence)
            return None
        return peer

    def _check_sequence(self, sequence: int, last: int) -> None:
        if sequence <= last:
            message = wrong(
                "announce sequence",
                got=sequence,
                allowed=f"more than {last}",
                hint="a replayed announce, or two processes share one key",
            )
            raise AnnounceError(message, status=409)

    def _check_pace(self, due_s: float, now: float) -> float:
        """Returns what `due_s` becomes by one more announce of a peer."""
        early_s = self._pace.wait_s(due_s, now)
        if early_s:
            raise too_often("this peer", 1 / self._pace.interval_s, early_s)
        return self._pace.count(due_s, now)

    def _is_full_for(self, group: str) -> bool:
        return self._per_address.get(group, 0) >= self._limits.max_peers_per_address

    def _fullness(self, session: bytes, group: str) -> str:
        """Returns why there is no room for one more peer; an empty text when there is."""
        limits = self._limits
        if len(self._by_expiry) >= limits.max_peers:
            return f"not added: the tracker is full ({limits.max_peers} peers)"
        if session not in self._swarms and len(self._swarms) >= limits.max_sessions:
            return f"not added: the tracker is full ({limits.max_sessions} sessions)"
        if self._count(session) >= limits.max_peers_per_session:
            return f"not added: the session is full ({limits.max_peers_per_session} peers)"
        if self._is_full_for(group):
            return f"not added: {limits.max_peers_per_address} peers share your address already"
        return ""

    def _add(self, session: bytes, digest: bytes) -> _Peer:
        swarm = self._swarms.get(session)
        if swarm is None:
            swarm = self._swarms[session] = _Swarm(session)
        self._departed.pop(session + digest, None)
        peer = _Peer(swarm, digest)
        swarm.add(peer)
        return peer

    def _renew(self, peer: _Peer, announce: Announce, host: str, now: float) -> None:
        group = address_group(host)
        if peer.address != group:
            self._leave_address(peer.address)
            self._per_address[group] = self._per_address.get(group, 0) + 1
            peer.address = group
        peer.swarm.mark(peer, announce.event)
        peer.sequence = announce.sequence
        peer.row = encode_row(announce, host)
        peer.expires_s = now + self._limits.ttl_s
        self._by_expiry[peer] = None
        self._by_expiry.move_to_end(peer)

    def _leave_address(self, group: str) -> None:
        left = self._per_address.get(group, 0) - 1
        if left > 0:
            self._per_address[group] = left
        else:
            self._per_address.pop(group, None)

    def _remove(self, peer: _Peer, sequence: int) -> None:
        swarm = peer.swarm
        swarm.remove(peer)
        if not swarm.order:
            del self._swarms[swarm.session]
        del self._by_expiry[peer]
        self._leave_address(peer.address)
        self._departed[swarm.session + peer.digest] = _Departed(
            sequence, peer.due_s, self._now() + REMEMBER_SEQUENCE_S
        )
        if len(self._departed) > self._limits.max_peers:
            self._departed.popitem(last=False)

    def _expire(self, now: float) -> bool:
        for _ in range(EXPIRED_PER_CALL):
            peer = next(iter(self._by_expiry), None)
            if peer is None or peer.expires_s > now:
                break
            self._remove(peer, peer.sequence)
        else:
            return True
        for _ in range(EXPIRED_PER_CALL):
            key = next(iter(self._departed), None)
            if key is None or self._departed[key].until_s > now:
                return False
            del self._departed[key]
        return True

    def _sample(self, session: bytes, wanted: int, asker: _Peer | None, now: float) -> list[bytes]:
        """Returns `wanted` of the others, uniform without replacement (a partial Fisher-Yates).

        The list is shuffled in place from the front, so nothing is copied. An expired peer that is
        drawn is removed on the way; after `EXPIRED_PER_CALL` of them the answer stays short.
        """
        rows: list[bytes] = []
        swarm = self._swarms.get(session)
        if swarm is None:
            return rows
        drawn, removed = 0, 0
        while len(rows) < wanted and drawn < len(swarm.order) and removed < EXPIRED_PER_CALL:
            at = drawn + int(self._random() * (len(swarm.order) - drawn))
            peer = swarm.order[at]
            if peer.expires_s <= now:
                self._remove(peer, peer.sequence)
                removed += 1
                continue
            swarm.swap(drawn, at)
            drawn += 1
            if peer is not asker:
                rows.append(peer.row)
        return rows


def too_often(who: str, rate: float, retry_in_s: float) -> AnnounceError:
    """Returns the refusal of one request too many.

    Args:
        who: asked too often, for the message.
        rate: how often is allowed, a second.
        retry_in_s: seconds until one more is allowed.
    """
    message = f"too many requests from {who}: allowed {rate:g} a second; wait {retry_in_s:.1f} s"
    return AnnounceError(message, status=429, retry_in_s=retry_in_s)
