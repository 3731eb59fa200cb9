"""Who is alive in each session, as last told to the tracker: a small interface and a memory store.

Work per announce is bounded whatever the number of peers: an upsert, a sample of k peers drawn in
O(k), and the removal of at most `EXPIRED_PER_CALL` peers that fell silent.

Identities cost nothing, addresses cost something. So a sample is drawn among addresses first, and
then among the peers of each: a thousand peers that one address makes up, dead or alive, crowd out
nobody who is elsewhere.

Addresses that cost nothing to somebody, such as those of a large IPv6 network, are a matter of who
answers: the tracker dials those that say they can be dialled, where they are seen, and calls those
that say a relay of its own leads to them (`checks.py`). Those that answered are drawn before those
of whom it does not know, and these before those that did not answer.
"""

import math
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, Self

from p2pl.errors import AnnounceError, wrong
from p2pl.pace import Rate
from p2pl.protocol.announce import MAX_SKEW_S, Announce, Counts, Event
from p2pl_tracker.address import SITE_BITS, SITE_SHARE, address_group, too_often
from p2pl_tracker.listing import Listing, dialled_port

EXPIRED_PER_CALL = 256  # chosen: about half a millisecond; drains far faster than peers can join
# An announce may be dated MAX_SKEW_S ahead and is accepted until MAX_SKEW_S after its date, so an
# old one can come back for twice that long; the sequence number of a peer outlives that.
REMEMBER_SEQUENCE_S = 2 * MAX_SKEW_S
# Peers of one address that left lately, as a multiple of those that it may have: who makes up peers
# and says that they left is not given room for others at once.
DEPARTED_SHARE = 10
CHECK_SOON_S = 60.0  # chosen: a peer that was busy, or a relay, is asked again after a minute
CHECK_EVERY_S = 300.0  # chosen: two announces of a peer that died are told to others meanwhile
# Of those that the tracker cannot check, most may be alive behind NAT, and all may be made up.
MOST_UNKNOWN = 0.5  # chosen: of a sample, as long as others are there
# Where it names relays, peers behind NAT take calls there, and few that are honest are left over.
MOST_UNKNOWN_BESIDE_RELAYS = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a store holds, for how long, how often a peer may announce, and whom it names."""

    ttl_s: float = 150.0  # more than twice the announce interval: one lost announce drops nobody
    max_peers: int = 1_000_000  # chosen: about 1 GiB
    max_sessions: int = 10_000
    max_peers_per_session: int = 100_000
    max_peers_per_address: int = 1_000  # of an IPv4 address, or of an IPv6 /64
    max_sessions_per_address: int = 100  # that such an address has peers in
    max_detail_bytes: int = 512 << 20  # of all peers' endpoints and proofs; of one, 3.5 KB at most
    min_interval_s: float = 0.5  # sustained, per peer; 0 = no limit
    burst: int = 10  # announces in a row before `min_interval_s` counts
    most_unknown: float = MOST_UNKNOWN  # of a sample: of whom is not known if they answer


class Pool(IntEnum):
    """What the tracker knows of whether a peer answers; the lower, the better."""

    ANSWERS = 0  # it did when it was checked last
    UNKNOWN = 1  # it was not checked, or cannot be
    SILENT = 2  # it did not when it was checked last


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store is told of a peer; that it is true has been checked."""

    session: bytes
    digest: bytes  # the peer's id, 32 bytes
    sequence: int  # grows with everything that the peer says
    event: Event
    numwant: int
    listing: Listing  # what others are told
    dialled_port: int = 0  # where it says that it can be dialled as it is seen; 0: nowhere
    relays: tuple[str, ...] = ()  # where it says that it can be called: endpoints

    @property
    def can_be_checked(self) -> bool:
        """Whether the tracker can find out if the peer answers."""
        return bool(self.dialled_port or self.relays)

    @classmethod
    def of(cls, announce: Announce, host: str, relays: Collection[str] = ()) -> Self:
        """Returns what an announce says.

        Args:
            announce: decoded and checked.
            host: the IP address that it came from.
            relays: endpoints of those that the tracker may call peers by.
        """
        return cls(
            announce.session,
            announce.digest,
            announce.sequence,
            announce.event,
            announce.numwant,
            Listing(announce, host),
            dialled_port(announce, host),
            tuple(way for way in announce.endpoints if way in relays) if relays else (),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the store says to an announce."""

    peers: Sequence[Listing]  # others
    alive: int  # peers in the session, the asker included
    training: int  # those of them that have not announced `completed`
    warning: str = ""  # why the asker was not added
    epoch: str = ""  # another one: the store has forgotten what it knew
    is_check_due: bool = False  # whether the asker is to be checked now

    @property
    def rows(self) -> list[bytes]:
        """The others as they are told to peers of version 1 on the tracker's own machine."""
        return [peer.row for peer in self.peers]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many peers a session has."""

    alive: int = 0
    training: int = 0  # those of them that have not announced `completed`
    completed: int = 0  # ever, of those that are or were there


@dataclass(frozen=True, slots=True)
class Totals:
    """How full a store is."""

    sessions: int
    peers: int


class Store(Protocol):
    """Where the tracker keeps its peers. Coroutines, so that a store may be elsewhere.

    One that is elsewhere and cannot be reached raises AnnounceError (503) from every one of them
    but `ready`.
    """

    async def announce(self, announce: Announce, host: str) -> Welcome:
        """Records an announce seen from `host`; see `enter`.

        The announce's signature and time have been checked.

        Args:
            announce: decoded and checked.
            host: the IP address that it came from.

        Raises:
            AnnounceError: its sequence number is not new (409), or it comes too soon (429).
        """
        return await self.enter(Entry.of(announce, host))

    async def enter(self, entry: Entry) -> Welcome:
        """Records what a peer says of itself; returns a uniform sample of the others.

        Raises:
            AnnounceError: its sequence number is not new (409), or it comes too soon (429).
        """
        ...

    async def checked(self, session: bytes, digest: bytes, found: Pool) -> None:
        """Takes in what was found of a peer when it was checked; one that is gone is no matter.

        Of whom nothing was found, nothing changes; it is due again as soon as one that is silent.
        """
        ...

    async def find(self, prefix: bytes) -> bytes | None:
        """Returns the session with a peer in it whose id begins with 20 bytes; None: there is none.

        Args:
            prefix: an id of version 2, truncated as BEP 52 has it.
        """
        ...

    async def scrape(self, session: bytes) -> Counts:
        """Returns the counts of a session as peers are told; zeros when nobody is in it."""
        tally = await self.tally(session)
        return Counts(alive=tally.alive, completed=tally.completed)

    async def tally(self, session: bytes) -> Tally:
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

    async def epoch(self) -> str:
        """Returns a word that is another one once the store has forgotten what it knew."""
        ...

    async def aclose(self) -> None:
        """Ends what the store holds open; it is not used any more."""
        ...


PREFIX_BYTES = 20  # BEP 52: of an id of version 2, what ordinary trackers are told


class Full(IntEnum):
    """Why there is no room for one more peer; `NO` where there is."""

    NO = 0
    PEERS = 1
    SESSIONS = 2
    SESSION = 3
    ADDRESS = 4
    SESSIONS_OF_ADDRESS = 5
    DEPARTED = 6

    def warning(self, limits: Limits) -> str:
        """Returns what the peer is told of it; an empty text where there is room."""
        why = {
            Full.PEERS: f"the tracker is full ({limits.max_peers} peers)",
            Full.SESSIONS: f"the tracker is full ({limits.max_sessions} sessions)",
            Full.SESSION: f"the session is full ({limits.max_peers_per_session} peers)",
            Full.ADDRESS: f"{limits.max_peers_per_address} peers share your address already",
            Full.SESSIONS_OF_ADDRESS: "your address has peers in "
            f"{limits.max_sessions_per_address} sessions already",
            Full.DEPARTED: f"more than {DEPARTED_SHARE * limits.max_peers_per_address} peers "
            "have left your address lately",
        }
        return f"not added: {why[self]}" if self in why else ""


NOT_KEPT = "endpoints and proof not kept: the tracker is full of others'"


def not_new(sequence: int, last: int) -> AnnounceError:
    """Returns the refusal of a sequence number.

    Args:
        sequence: that was said.
        last: that was said before.
    """
    hint = "a replayed announce, or two processes share one key"
    message = wrong("announce sequence", got=sequence, allowed=f"more than {last}", hint=hint)
    return AnnounceError(message, status=409)


def share_of_unknown(wanted: int, answering: int, unknown: int, *, most: float, draw: float) -> int:
    """Returns how many of a sample are taken from those of whom is not known if they answer.

    As many as their part of both is, so that among living peers nobody is preferred, but no more
    than `most` of it; what is left of a whole number is drawn.

    Args:
        wanted: how many there are to be.
        answering: places with peers that answered.
        unknown: places with peers of whom is not known if they do.
        most: 0..1, of the sample.
        draw: a random number, at least 0 and below 1.
    """
    if not answering:
        return wanted
    part = min(unknown / (answering + unknown), most)
    return int(wanted * part + draw)


class _Departed(NamedTuple):
    """What is remembered of a peer that is no longer there."""

    sequence: int  # of its last announce
    due_s: float  # as of a peer: whoever leaves and comes back earns no new burst
    until_s: float  # when it may be forgotten
    group: str  # where it was


STRANGER = _Departed(sequence=-1, due_s=-math.inf, until_s=-math.inf, group="")


class _Peer:
    """One peer in one session."""

    __slots__ = (
        "at",
        "check_due_s",
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
        self.check_due_s = -math.inf  # when it is to be checked again
        self.completed = False
        self.due_s = 0.0  # what `Rate` knows of its announces so far
        self.expires_s = 0.0
        self.listing: Listing | None = None
        self.sequence = 0


class _Place:
    """The peers of one session and one pool at one address, in any order, to draw from."""

    __slots__ = ("at", "group", "peers", "pool")

    def __init__(self, group: str, pool: Pool) -> None:
        self.group = group  # what `address_group` made of the host
        self.pool = pool
        self.peers: list[_Peer] = []
        self.at = -1  # place in swarm.places[pool]

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
        self.places: tuple[list[_Place], ...] = tuple([] for _ in Pool)
        self.by_group: tuple[dict[str, _Place], ...] = tuple({} for _ in Pool)
        self.completed = 0  # ever
        self.training = 0  # alive, and not completed

    def add(self, peer: _Peer) -> None:
        self.training += 1
        self.peers[peer.digest] = peer

    def remove(self, peer: _Peer) -> None:
        del self.peers[peer.digest]
        self.training -= not peer.completed

    def has_group(self, group: str) -> bool:
        """Returns whether there is a peer of an address, in whatever pool."""
        return any(group in places for places in self.by_group)

    def settle(self, peer: _Peer, group: str, pool: Pool) -> bool:
        """Puts a peer that is nowhere into a place; returns whether it is the first there."""
        is_first = not self.has_group(group)
        place = self.by_group[pool].get(group)
        if place is None:
            place = self.by_group[pool][group] = _Place(group, pool)
            place.at = len(self.places[pool])
            self.places[pool].append(place)
        place.add(peer)
        return is_first

    def unsettle(self, peer: _Peer) -> bool:
        """Takes a peer out of its place; returns whether it was the last at its address."""
        place = peer.place
        assert place is not None
        place.remove(peer)
        if not place.peers:
            del self.by_group[place.pool][place.group]
            places = self.places[place.pool]
            last = places.pop()
            if last is not place:
                places[place.at] = last
                last.at = place.at
            place.at = -1
        return not self.has_group(place.group)

    def mark(self, peer: _Peer, event: Event) -> None:
        """Keeps the counts: `completed` ends a peer's training, `started` begins it again."""
        if event == "completed" and not peer.completed:
            peer.completed = True
            self.completed += 1
            self.training -= 1
        elif event == "started" and peer.completed:
            peer.completed = False
            self.training += 1


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


class MemoryStore(Store):
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
        self._epoch = secrets.token_urlsafe(6)
        self._last_rounded_s = 0.0
        self._swarms: dict[bytes, _Swarm] = {}
        self._by_prefix: dict[bytes, bytes] = {}
        self._by_expiry: OrderedDict[_Peer, None] = OrderedDict()  # all peers, soonest first
        self._peers_at = _Census(limits.max_peers_per_address)
        self._sessions_at = _Census(limits.max_sessions_per_address)
        self._departed_at = _Census(DEPARTED_SHARE * limits.max_peers_per_address)
        # By session + digest, soonest forgotten first.
        self._departed: OrderedDict[bytes, _Departed] = OrderedDict()
        self._detail_bytes = 0  # that all listings hold

    async def enter(self, entry: Entry) -> Welcome:
        """Records what a peer says; returns a uniform sample of the others. See `Store.enter`.

        Raises:
            AnnounceError: its sequence number is not new (409), or it comes too soon (429).
        """
        now = self._now()
        self._expire(now)
        session, digest = entry.session, entry.digest
        peer = self._alive(session, digest, now)
        last = peer or self._departed.get(session + digest, STRANGER)
        if entry.sequence <= last.sequence:
            raise not_new(entry.sequence, last.sequence)
        if entry.event == "stopped":
            if peer:
                self._remove(peer, entry.sequence)
            return self._welcome(session, ())
        due_s = self._check_pace(last.due_s, now)
        group = address_group(entry.listing.host)
        moved = peer is not None and peer.place is not None and peer.place.group != group
        if peer and moved and self._fullness_at(session, group):
            self._remove(peer, entry.sequence)  # gone from there, and no room here
            peer = None
        if peer is None and (full := self._fullness(session, group)):
            others = self._sample(session, entry.numwant, None, now)
            return self._welcome(session, others, full.warning(self._limits))
        peer = peer or self._add(session, digest)
        peer.due_s = due_s
        warning, is_check_due = self._renew(peer, entry, group, now)
        others = self._sample(session, entry.numwant, peer, now)
        return self._welcome(session, others, warning, is_check_due=is_check_due)

    async def checked(self, session: bytes, digest: bytes, found: Pool) -> None:
        """Takes in what was found of a peer when it was checked."""
        swarm = self._swarms.get(session)
        peer = swarm.peers.get(digest) if swarm else None
        if swarm is None or peer is None or peer.place is None:
            return
        if found is not Pool.ANSWERS:
            peer.check_due_s = self._now() + CHECK_SOON_S
        if found not in (Pool.UNKNOWN, peer.place.pool):
            group = peer.place.group
            swarm.unsettle(peer)
            swarm.settle(peer, group, found)

    async def find(self, prefix: bytes) -> bytes | None:
        """Returns the session with a peer in it whose id begins with 20 bytes; None: none does."""
        return self._by_prefix.get(prefix)

    async def tally(self, session: bytes) -> Tally:
        """Returns the counts of a session; zeros when nobody is in it."""
        swarm = self._swarms.get(session)
        return Tally(len(swarm.peers), swarm.training, swarm.completed) if swarm else Tally()

    async def totals(self) -> Totals:
        """Returns how full the store is."""
        return Totals(sessions=len(self._swarms), peers=len(self._by_expiry))

    async def expire(self) -> bool:
        """Removes some peers that fell silent; returns whether there may be more."""
        return self._expire(self._now())

    async def ready(self) -> bool:
        """Returns True: what is in memory is there."""
        return True

    async def epoch(self) -> str:
        """Returns a word that is another one after a restart."""
        return self._epoch

    async def aclose(self) -> None:
        """Does nothing: the memory goes with the process."""

    def _welcome(
        self,
        session: bytes,
        peers: Sequence[Listing],
        warning: str = "",
        *,
        is_check_due: bool = False,
    ) -> Welcome:
        swarm = self._swarms.get(session)
        alive, training = (len(swarm.peers), swarm.training) if swarm else (0, 0)
        return Welcome(peers, alive, training, warning, self._epoch, is_check_due)

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

    def _check_pace(self, due_s: float, now: float) -> float:
        """Returns what `due_s` becomes by one more announce of a peer."""
        early_s = self._pace.wait_s(due_s, now)
        if early_s:
            raise too_often("this peer", 1 / self._pace.interval_s, early_s)
        return self._pace.count(due_s, now)

    def _fullness_at(self, session: bytes, group: str) -> Full:
        """Returns why there is no room for one more peer of an address."""
        swarm = self._swarms.get(session)
        if self._peers_at.is_full(group):
            return Full.ADDRESS
        is_new = swarm is None or not swarm.has_group(group)
        if is_new and self._sessions_at.is_full(group):
            return Full.SESSIONS_OF_ADDRESS
        return Full.NO

    def _fullness(self, session: bytes, group: str) -> Full:
        """Returns why there is no room for one more peer."""
        limits = self._limits
        if len(self._by_expiry) >= limits.max_peers:
            return Full.PEERS
        if session not in self._swarms and len(self._swarms) >= limits.max_sessions:
            return Full.SESSIONS
        if self._count(session) >= limits.max_peers_per_session:
            return Full.SESSION
        if self._departed_at.is_full(group):
            return Full.DEPARTED
        return self._fullness_at(session, group)

    def _add(self, session: bytes, digest: bytes) -> _Peer:
        swarm = self._swarms.get(session)
        if swarm is None:
            swarm = self._swarms[session] = _Swarm(session)
            self._by_prefix[session[:PREFIX_BYTES]] = session
        if session + digest in self._departed:
            self._forget_departed(session + digest)
        peer = _Peer(swarm, digest)
        swarm.add(peer)
        return peer

    def _renew(self, peer: _Peer, entry: Entry, group: str, now: float) -> tuple[str, bool]:
        """Takes in an entry; returns what was not kept, as a warning, and whether to check it."""
        listing = entry.listing
        if not self._stays(peer, entry):
            self._leave_place(peer)
            self._peers_at.count(group, 1)
            if peer.swarm.settle(peer, group, Pool.UNKNOWN):
                self._sessions_at.count(group, 1)
            peer.check_due_s = -math.inf
        is_check_due = entry.can_be_checked and peer.check_due_s <= now
        if is_check_due:
            peer.check_due_s = self._rounded(now + CHECK_EVERY_S)
        peer.swarm.mark(peer, entry.event)
        peer.sequence = entry.sequence
        peer.expires_s = now + self._limits.ttl_s
        self._by_expiry[peer] = None
        self._by_expiry.move_to_end(peer)
        return self._list(peer, listing), is_check_due

    def _stays(self, peer: _Peer, entry: Entry) -> bool:
        """Returns whether what is known of a peer's answering holds for what it says now."""
        if peer.place is None or peer.listing is None or peer.listing.row != entry.listing.row:
            return False
        return entry.can_be_checked or peer.place.pool is Pool.UNKNOWN

    def _rounded(self, when_s: float) -> float:
        """Returns a time some seconds later, one object for many peers: it takes 24 bytes."""
        rounded_s = math.ceil(when_s / 10) * 10.0
        if rounded_s != self._last_rounded_s:
            self._last_rounded_s = rounded_s
        return self._last_rounded_s

    def _list(self, peer: _Peer, listing: Listing | None) -> str:
        """Replaces what others are told of a peer; returns what was not kept, as a warning."""
        warning = ""
        self._detail_bytes -= peer.listing.detail_bytes if peer.listing else 0
        if listing is not None:
            if self._detail_bytes + listing.detail_bytes > self._limits.max_detail_bytes:
                listing.forget_details()
                warning = NOT_KEPT
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
            self._by_prefix.pop(swarm.session[:PREFIX_BYTES], None)
        del self._by_expiry[peer]
        assert peer.place is not None
        group = peer.place.group
        self._leave_place(peer)
        self._list(peer, None)
        self._departed[swarm.session + peer.digest] = _Departed(
            sequence, peer.due_s, self._now() + REMEMBER_SEQUENCE_S, group
        )
        self._departed_at.count(group, 1)
        if len(self._departed) > self._limits.max_peers:
            self._forget_departed(next(iter(self._departed)))

    def _forget_departed(self, who: bytes) -> None:
        self._departed_at.count(self._departed.pop(who).group, -1)

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
            self._forget_departed(key)
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
        answering, unknown = (len(swarm.places[pool]) for pool in (Pool.ANSWERS, Pool.UNKNOWN))
        found = self._take(swarm, Pool.ANSWERS, wanted, draw) if answering else []
        if unknown:
            others = self._take(swarm, Pool.UNKNOWN, wanted, draw)
            most, draw_share = self._limits.most_unknown, self._random()
            share = wanted
            if found:
                share = share_of_unknown(wanted, answering, unknown, most=most, draw=draw_share)
            kept = max(wanted - len(others), wanted - share)
            found = found[:kept]
            found += others[: wanted - len(found)]
        if len(found) < wanted and swarm.places[Pool.SILENT]:
            found += self._take(swarm, Pool.SILENT, wanted - len(found), draw)
        return found

    def _take(self, swarm: _Swarm, pool: Pool, wanted: int, draw: "_Draw") -> list[Listing]:
        """Returns as many of one pool as are wanted, or as there are."""
        found: list[Listing] = []
        places, drawn, random = swarm.places[pool], 0, self._random
        while len(found) < wanted and drawn < len(places) and draw.may_go_on:
            at = drawn + int(random() * (len(places) - drawn))
            place = places[at]
            if listing := draw.first_of(place):
                found.append(listing)
            if place.peers:  # else it is gone
                places[at], places[drawn] = places[drawn], place
                places[at].at, place.at = at, drawn
                drawn += 1
        if len(found) == wanted:
            return found
        left = [place for place in places if draw.has_more(place)]  # fewer than were wanted
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
        self.may_go_on = True  # whether not too many were found to have expired

    def first_of(self, place: _Place) -> Listing | None:
        """Returns a peer of a place of which none was drawn yet, as `next_of` does, but faster."""
        peers = place.peers
        peer = peers[0]
        if len(peers) > 1 or peer.expires_s <= self._now:
            return self.next_of(place)
        return None if peer is self._asker else peer.listing

    def has_more(self, place: _Place) -> bool:
        """Returns whether a place of which a peer was drawn has others."""
        return self._drawn.get(place, 1) < len(place.peers)

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
                self.may_go_on = self._removed < EXPIRED_PER_CALL
                continue
            place.swap(drawn, at)
            drawn += 1
            if peer is not self._asker:
                found = peer.listing
        self._drawn[place] = drawn
        return found
