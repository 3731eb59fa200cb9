"""Who is alive in each session, as last told to the tracker: a small interface and a memory store.

Work per announce is bounded whatever the number of peers: an upsert, a sample of k peers drawn in
O(k), and the removal of at most `EXPIRED_PER_CALL` peers that fell silent.

Identities cost nothing, addresses cost something. So a sample is drawn among addresses first, and
then among the peers of each: a thousand peers that one address makes up, dead or alive, crowd out
nobody who is elsewhere.
"""

import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from p2pl.errors import AnnounceError, wrong
from p2pl.pace import Rate
from p2pl.protocol.announce import MAX_SKEW_S, Announce, Counts, Event
from p2pl_tracker.address import SITE_BITS, SITE_SHARE, address_group, too_often
from p2pl_tracker.listing import Listing

EXPIRED_PER_CALL = 256  # chosen: about half a millisecond; drains far faster than peers can join
# An announce may be dated MAX_SKEW_S ahead and is accepted until MAX_SKEW_S after its date, so an
# old one can come back for twice that long; the sequence number of a peer outlives that.
REMEMBER_SEQUENCE_S = 2 * MAX_SKEW_S


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a store holds, for how long, and how often a peer may announce."""

    ttl_s: float = 150.0  # more than twice the announce interval: one lost announce drops nobody
    max_peers: int = 1_000_000  # chosen: about 1 GiB
    max_sessions: int = 10_000
    max_peers_per_session: int = 100_000
    max_peers_per_address: int = 1_000  # of an IPv4 address, or of an IPv6 /64
    max_sessions_per_address: int = 100  # that such an address has peers in
    max_detail_bytes: int = 512 << 20  # of all peers' endpoints and proofs; of one, 3.5 KB at most
    min_interval_s: float = 0.5  # sustained, per peer; 0 = no limit
    burst: int = 10  # announces in a row before `min_interval_s` counts


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the store says to an announce."""

    peers: Sequence[Listing]  # others
    alive: int  # peers in the session, the asker included
    training: int  # those of them that have not announced `completed`
    warning: str = ""  # why the asker was not added

    @property
    def rows(self) -> list[bytes]:
        """The others as they are told to peers of version 1 on the tracker's own machine."""
        return [peer.row for peer in self.peers]


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
        "at",
        "completed",
        "digest",
        "due_s",
        "expires_s",
        "listing",
        "place",
        "sequence",
        "swarm",
    )

    def __init__(self, swarm: "_Swarm", digest: bytes) -> None:
        self.swarm = swarm
        self.digest = digest
        self.place: _Place | None = None  # where it was seen
        self.at = -1  # place in place.peers
        self.completed = False
        self.due_s = 0.0  # what `Rate` knows of its announces so far
        self.expires_s = 0.0
        self.listing: Listing | None = None
        self.sequence = 0


class _Place:
    """The peers of one session at one address, in any order, to draw from."""

    __slots__ = ("at", "group", "peers")

    def __init__(self, group: str) -> None:
        self.group = group  # what `address_group` made of the host
        self.peers: list[_Peer] = []
        self.at = -1  # place in swarm.places

    def add(self, peer: _Peer) -> None:
        peer.place, peer.at = self, len(self.peers)
        self.peers.append(peer)

    def remove(self, peer: _Peer) -> None:
        last = self.peers.pop()
        if last is not peer:
            self.peers[peer.at] = last
            last.at = peer.at
        peer.place = None

    def swap(self, left: int, right: int) -> None:
        peers = self.peers
        peers[left], peers[right] = peers[right], peers[left]
        peers[left].at, peers[right].at = left, right


class _Swarm:
    """The peers of one session: a dictionary to find one, and their places to draw from."""

    __slots__ = ("by_group", "completed", "peers", "places", "session", "training")

    def __init__(self, session: bytes) -> None:
        self.session = session
        self.peers: dict[bytes, _Peer] = {}
        self.places: list[_Place] = []
        self.by_group: dict[str, _Place] = {}
        self.completed = 0  # ever
        self.training = 0  # alive, and not completed

    def add(self, peer: _Peer) -> None:
        self.training += 1
        self.peers[peer.digest] = peer

    def remove(self, peer: _Peer) -> None:
        del self.peers[peer.digest]
        self.training -= not peer.completed

    def settle(self, peer: _Peer, group: str) -> bool:
        """Puts a peer that is nowhere into a place; returns whether it is the first there."""
        place = self.by_group.get(group)
        is_new = place is None
        if place is None:
            place = self.by_group[group] = _Place(group)
            place.at = len(self.places)
            self.places.append(place)
        place.add(peer)
        return is_new

    def unsettle(self, peer: _Peer) -> bool:
        """Takes a peer out of its place; returns whether it was the last there."""
        place = peer.place
        assert place is not None
        place.remove(peer)
        if place.peers:
            return False
        del self.by_group[place.group]
        last = self.places.pop()
        if last is not place:
            self.places[place.at] = last
            last.at = place.at
        place.at = -1
        return True

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
        places = self.places
        places[left], places[right] = places[right], places[left]
        places[left].at, places[right].at = left, right


class _Census:
    """How many there are of something at each address, and at each site of an IPv6 address."""

    def __init__(self, limit: int) -> None:
        """Has counted nothing yet.

        Args:
            limit: of one address; a site may have `SITE_SHARE` times as many.
        """
        self._limit = limit
        self._addresses: dict[str, int] = {}
        self._sites: dict[str, int] = {}

    def count(self, group: str, change: int) -> None:
        """Takes in that there are more or fewer at an address."""
        _change(self._addresses, group, change)
        if ":" in group:
            _change(self._sites, address_group(group, SITE_BITS), change)

    def is_full(self, group: str) -> bool:
        """Returns whether there is no room for one more."""
        if self._addresses.get(group, 0) >= self._limit:
            return True
        site = address_group(group, SITE_BITS) if ":" in group else ""
        return self._sites.get(site, 0) >= SITE_SHARE * self._limit


def _change(counts: dict[str, int], key: str, change: int) -> None:
    left = counts.get(key, 0) + change
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)


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
        self._peers_at = _Census(limits.max_peers_per_address)
        self._sessions_at = _Census(limits.max_sessions_per_address)
        # By session + digest, soonest forgotten first.
        self._departed: OrderedDict[bytes, _Departed] = OrderedDict()
        self._detail_bytes = 0  # that all listings hold

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
        moved = peer is not None and peer.place is not None and peer.place.group != group
        if peer and moved and self._fullness_at(session, group):
            self._remove(peer, announce.sequence)  # gone from there, and no room here
            peer = None
        if peer is None and (warning := self._fullness(session, group)):
            others = self._sample(session, announce.numwant, None, now)
            return self._welcome(session, others, warning)
        peer = peer or self._add(session, digest)
        peer.due_s = due_s
        warning = self._renew(peer, announce, host, now)
        return self._welcome(session, self._sample(session, announce.numwant, peer, now), warning)

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

    def _welcome(self, session: bytes, peers: Sequence[Listing], warning: str = "") -> Welcome:
        swarm = self._swarms.get(session)
        if swarm is None:
            return Welcome(peers, 0, 0, warning)
        return Welcome(peers, len(swarm.peers), swarm.training, warning)

    def _count(self, session: bytes) -> int:
        swarm = self._swarms.get(session)
        return len(swarm.peers) if swarm else 0

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

    def _fullness_at(self, session: bytes, group: str) -> str:
        """Returns why there is no room for one more peer of an address; an empty text likewise."""
        limits, swarm = self._limits, self._swarms.get(session)
        if self._peers_at.is_full(group):
            return f"not added: {limits.max_peers_per_address} peers share your address already"
        is_new = swarm is None or group not in swarm.by_group
        if is_new and self._sessions_at.is_full(group):
            sessions = limits.max_sessions_per_address
            return f"not added: your address has peers in {sessions} sessions already"
        return ""

    def _fullness(self, session: bytes, group: str) -> str:
        """Returns why there is no room for one more peer; an empty text when there is."""
        limits = self._limits
        if len(self._by_expiry) >= limits.max_peers:
            return f"not added: the tracker is full ({limits.max_peers} peers)"
        if session not in self._swarms and len(self._swarms) >= limits.max_sessions:
            return f"not added: the tracker is full ({limits.max_sessions} sessions)"
        if self._count(session) >= limits.max_peers_per_session:
            return f"not added: the session is full ({limits.max_peers_per_session} peers)"
        return self._fullness_at(session, group)

    def _add(self, session: bytes, digest: bytes) -> _Peer:
        swarm = self._swarms.get(session)
        if swarm is None:
            swarm = self._swarms[session] = _Swarm(session)
        self._departed.pop(session + digest, None)
        peer = _Peer(swarm, digest)
        swarm.add(peer)
        return peer

    def _renew(self, peer: _Peer, announce: Announce, host: str, now: float) -> str:
        """Takes in an announce; returns what of it was not kept, as a warning."""
        group = address_group(host)
        if peer.place is None or peer.place.group != group:
            self._leave_place(peer)
            self._peers_at.count(group, 1)
            if peer.swarm.settle(peer, group):
                self._sessions_at.count(group, 1)
        peer.swarm.mark(peer, announce.event)
        peer.sequence = announce.sequence
        peer.expires_s = now + self._limits.ttl_s
        self._by_expiry[peer] = None
        self._by_expiry.move_to_end(peer)
        return self._list(peer, Listing(announce, host))

    def _list(self, peer: _Peer, listing: Listing | None) -> str:
        """Replaces what others are told of a peer; returns what was not kept, as a warning."""
        warning = ""
        self._detail_bytes -= peer.listing.detail_bytes if peer.listing else 0
        if listing is not None:
            if self._detail_bytes + listing.detail_bytes > self._limits.max_detail_bytes:
                listing.forget_details()
                warning = "endpoints and proof not kept: the tracker is full of others'"
            self._detail_bytes += listing.detail_bytes
        peer.listing = listing
        return warning

    def _leave_place(self, peer: _Peer) -> None:
        if peer.place is None:
            return
        group = peer.place.group
        self._peers_at.count(group, -1)
        if peer.swarm.unsettle(peer):
            self._sessions_at.count(group, -1)

    def _remove(self, peer: _Peer, sequence: int) -> None:
        swarm = peer.swarm
        swarm.remove(peer)
        if not swarm.peers:
            del self._swarms[swarm.session]
        del self._by_expiry[peer]
        self._leave_place(peer)
        self._list(peer, None)
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

    def _sample(
        self, session: bytes, wanted: int, asker: _Peer | None, now: float
    ) -> list[Listing]:
        """Returns `wanted` of the others, without replacement: places first, then peers of each.

        Where every peer has an address of its own, and where all have the same one, the sample is
        uniform. Lists are shuffled in place from the front. An expired peer that is drawn is
        removed on the way; after `EXPIRED_PER_CALL` of them the answer stays short.
        """
        swarm = self._swarms.get(session)
        if swarm is None:
            return []
        draw = _Draw(self, asker, now)
        found: list[Listing] = []
        drawn = 0
        while len(found) < wanted and drawn < len(swarm.places) and draw.may_go_on:
            at = drawn + int(self._random() * (len(swarm.places) - drawn))
            place = swarm.places[at]
            if listing := draw.next_of(place):
                found.append(listing)
            if place.peers:  # else it is gone
                swarm.swap(drawn, at)
                drawn += 1
        if len(found) == wanted:
            return found
        left = list(swarm.places)  # fewer than were wanted
        while len(found) < wanted and left and draw.may_go_on:
            at = int(self._random() * len(left))
            listing = draw.next_of(left[at])
            if listing is None:
                left[at] = left[-1]
                left.pop()
            else:
                found.append(listing)
        return found


class _Draw:
    """Draws peers of places, each peer once."""

    def __init__(self, store: MemoryStore, asker: _Peer | None, now: float) -> None:
        self._store, self._asker, self._now = store, asker, now
        self._drawn: dict[_Place, int] = {}  # how many stand in front that were drawn
        self._removed = 0

    @property
    def may_go_on(self) -> bool:
        """Whether not too many were found to have expired."""
        return self._removed < EXPIRED_PER_CALL

    def next_of(self, place: _Place) -> Listing | None:
        """Returns one more peer of a place; None where there is none."""
        drawn = self._drawn.get(place, 0)
        found = None
        while found is None and drawn < len(place.peers) and self.may_go_on:
            at = drawn + int(self._store._random() * (len(place.peers) - drawn))
            peer = place.peers[at]
            if peer.expires_s <= self._now:
                self._store._remove(peer, peer.sequence)
                self._removed += 1
                continue
            place.swap(drawn, at)
            drawn += 1
            if peer is not self._asker:
                found = peer.listing
        self._drawn[place] = drawn
        return found
