"""A network in the memory of one process: a double of the wire and the tracker, for many peers.

Nothing is encrypted. It keeps the rules that an exchange relies on: who is asked is who answers,
whoever asks for a round that is not there yet is made to wait, each call ends at its deadline, and
a peer that is cut off cannot be reached.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from p2pl.errors import PullError, TrackerError
from p2pl.network.connections import Inbox, Message
from p2pl.network.keys import Identity
from p2pl.network.known import KnownPeers
from p2pl.network.pull import Pulled, Unchanged
from p2pl.network.traffic import Traffic
from p2pl.network.version import Commits, Payload, Published, Version, hashing, prepare
from p2pl.protocol.announce import Answer, Event, PeerAddress
from p2pl.protocol.frame import Newest

INTERVAL_S = 30  # between two announces, as the tracker asks for
_KEY = "." * 40  # in the place of a CURVE key; nobody reads it


@dataclass(slots=True)
class MemoryNetwork:
    """Who is there, and who cannot be reached.

    Attributes:
        seed: of the cohorts that the tracker draws.
        now: a clock that never steps back, in seconds.
        cut_off: ids of peers that nobody reaches, and that reach nobody.
        tracker_answers: whether the tracker is there.
        committed: whether peers of the session keep update logs.
    """

    seed: int = 0
    now: Callable[[], float] = time.monotonic
    cut_off: set[str] = field(default_factory=set)
    tracker_answers: bool = True
    committed: bool = False
    _transports: dict[str, "MemoryTransport"] = field(default_factory=dict)
    _announced: dict[str, Event] = field(default_factory=dict)

    def join(self, identity: Identity) -> tuple["MemoryTransport", "MemoryDirectory"]:
        """Returns the transport and the directory of one more peer."""
        address = PeerAddress(
            id=identity.peer_id, host="127.0.0.1", port=1 + len(self._transports), curve_key=_KEY
        )
        transport = MemoryTransport(self, identity, address)
        self._transports[identity.peer_id] = transport
        return transport, MemoryDirectory(self, address)

    def reach(self, sender: str, receiver: str) -> "MemoryTransport":
        """Returns the transport of the peer that is spoken to.

        Raises:
            PullError: one of the two is cut off, or the other one is not there.
        """
        if {sender, receiver} & self.cut_off or receiver not in self._transports:
            raise PullError("cannot be reached")
        return self._transports[receiver]

    def announce(self, me: PeerAddress, event: Event, numwant: int) -> Answer:
        """Returns the tracker's answer to a peer.

        Args:
            me: who announces.
            event: what it announces.
            numwant: how many peers are drawn for it at most.

        Raises:
            TrackerError: the tracker is not there.
        """
        if not self.tracker_answers or me.id in self.cut_off:
            raise TrackerError("tracker: no answer")
        if event == "stopped":
            self._announced.pop(me.id, None)
        else:
            self._announced[me.id] = event
        others = [peer for peer in self._announced if peer != me.id]
        self.seed += 1
        drawn = random.Random(self.seed).sample(others, min(numwant, len(others)))
        states = list(self._announced.values())
        return Answer(
            interval_s=INTERVAL_S,
            min_interval_s=0.0,
            epoch="memory",
            alive=len(states),
            training=sum(state != "completed" for state in states),
            peers=tuple(self._transports[peer].address for peer in drawn),
        )


class MemoryTransport:
    """One peer's side of a network in memory.

    Attributes:
        address: where others reach this peer.
        traffic: payload bytes and transfers so far.
        seen: peers that have asked this one, by id, most recent last.
        inbox: what others have told this peer.
    """

    def __init__(self, network: MemoryNetwork, identity: Identity, address: PeerAddress) -> None:
        self.address, self.traffic, self.inbox = address, Traffic(), Inbox()
        self.seen: Mapping[str, PeerAddress] = {}
        self._network, self._identity = network, identity
        self._newest: Published | None = None
        self._replaced: Published | None = None
        self._checkpoint: Published | None = None
        self._blobs: dict[bytes, Published] = {}
        self._published = asyncio.Event()

    @property
    def identity(self) -> Identity:
        """Who this peer is to others."""
        return self._identity

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cuts this peer off."""
        self._network.cut_off.add(self.identity.peer_id)

    async def publish(self, version: Version, *, keep_last: bool = False) -> bytes:
        """Gives `version` to all who ask from now on, and returns its digest."""
        published = await prepare(version, committed=self._network.committed)
        self._replaced = self._newest if keep_last else None
        self._newest = published
        self._published.set()
        self._published = asyncio.Event()
        return published.digest

    async def publish_checkpoint(self, payload: Payload) -> None:
        """Gives the initial checkpoint to all who ask for it."""
        self._checkpoint = await prepare(Version(round=0, samples=0, payload=payload))

    async def pull(  # noqa: PLR0913  # as the door says
        self,
        address: PeerAddress,
        *,
        have: bytes | None,
        round: int,
        wait_s: float,
        deadline_s: float,
        size: int,
        said: bytes | None = None,
    ) -> Pulled | Unchanged:
        """Returns the newest version of the peer at `address`; see `Transport.pull`.

        Raises:
            PullError: it cannot be reached, serves nothing yet, was too slow, or its version has
                another size.
        """
        other = self._greet(address)
        try:
            async with asyncio.timeout(deadline_s):
                published = await other.wait_for(round, wait_s)
        except TimeoutError as late:
            raise PullError(f"no answer within {deadline_s:g} s") from late
        if published.digest == have:
            return Unchanged(address.id, published.round)
        return self._pulled(other, published, size, said)

    async def wait_for(self, round: int, wait_s: float) -> Published:
        """Returns the version of this round, or the newest once it has come or `wait_s` passed.

        Args:
            round: hoped for.
            wait_s: how long to wait for it at most; seconds on the network's clock.

        Raises:
            PullError: nothing is served yet.
        """
        if self._replaced is not None and self._replaced.round == round:
            return self._replaced
        until_s = self._network.now() + wait_s
        while self._newest is None or self._newest.round < round:
            left_s = until_s - self._network.now()
            if left_s <= 0:
                break
            try:
                async with asyncio.timeout(left_s):
                    await self._published.wait()
            except TimeoutError:
                break
        if self._newest is None:
            raise PullError("nothing is served yet")
        return self._newest

    async def pull_checkpoint(
        self, address: PeerAddress, *, size: int, deadline_s: float
    ) -> memoryview:
        """Returns the bytes that a peer serves as the initial checkpoint.

        Raises:
            PullError: it cannot be reached, or serves none of this size.
        """
        del deadline_s
        other = self._greet(address)
        if other._checkpoint is None:
            raise PullError("no checkpoint is served")
        return self._take(other, other._checkpoint, size)

    async def put_blob(self, name: bytes, payload: Payload, commits: Commits | None = None) -> None:
        """Gives `payload` to those who know its name."""
        version = Version(0, 0, payload, commits=commits)
        self._blobs[name] = await prepare(version, committed=self._network.committed)

    def drop_blob(self, name: bytes) -> None:
        """Gives a blob to nobody any more."""
        self._blobs.pop(name, None)

    async def fetch_blob(
        self,
        address: PeerAddress,
        name: bytes,
        *,
        size: int,
        deadline_s: float,
        said: bytes | None = None,
    ) -> Pulled:
        """Returns the blob of this name.

        Raises:
            PullError: the peer cannot be reached, or has no such blob of this size.
        """
        del deadline_s
        other = self._greet(address)
        if name not in other._blobs:
            raise PullError("there is no such blob")
        return self._pulled(other, other._blobs[name], size, said)

    async def ping(self, address: PeerAddress, *, deadline_s: float) -> Newest:
        """Returns which version a pull would get.

        Raises:
            PullError: the peer cannot be reached.
        """
        del deadline_s
        newest = self._greet(address)._newest
        if newest is None:
            return Newest(round=0, samples=0, digest=None)
        return Newest(round=newest.round, samples=newest.samples, digest=newest.digest)

    async def tell(self, address: PeerAddress, payload: bytes, *, deadline_s: float) -> None:
        """Puts `payload` into the inbox of the peer at `address`.

        Raises:
            PullError: the peer cannot be reached, or its inbox is full.
        """
        del deadline_s
        other = self._greet(address)
        if not other.inbox.put(Message(self.identity.peer_id, payload)):
            raise PullError("busy")
        self.traffic.went(address.id, len(payload))
        other.traffic.came(self.identity.peer_id, len(payload))

    def _greet(self, address: PeerAddress) -> "MemoryTransport":
        """Returns the other peer, which now has seen this one."""
        other = self._network.reach(self.identity.peer_id, address.id)
        seen = {who: at for who, at in other.seen.items() if who != self.identity.peer_id}
        other.seen = {**seen, self.identity.peer_id: self.address}
        return other

    def _pulled(
        self, other: "MemoryTransport", published: Published, size: int, said: bytes | None
    ) -> Pulled:
        """Returns what another peer serves, with what commits it to that where it was asked."""
        commits, peer_id = published.commits, other.identity.peer_id
        asked = said is not None and commits is not None
        commitment = commits.answer(self.identity.peer_id, said) if asked else b""  # type: ignore[union-attr, arg-type]
        payload = self._take(other, published, size)
        made = hashing(True)
        if self._network.committed:
            made.update(payload)
        return Pulled(
            peer_id=peer_id,
            round=published.round,
            samples=published.samples,
            digest=published.digest,
            notes=published.notes,
            payload=payload,
            hash=made.digest(),
            commitment=commitment,
        )

    def _take(self, other: "MemoryTransport", published: Published, size: int) -> memoryview:
        """Returns a copy of what another peer serves, and counts its bytes at both ends."""
        if len(published.view) != size:
            raise PullError(f"size: got {len(published.view)} bytes, allowed {size}")
        me, them = self.identity.peer_id, other.identity.peer_id
        self.traffic.came(them, size)
        self.traffic.transfers_in += 1
        other.traffic.went(me, size)
        other.traffic.transfers_out += 1
        return memoryview(bytearray(published.view))


class MemoryDirectory:
    """One peer's side of a tracker in memory.

    Attributes:
        known: all peers heard of.
        seconds, bytes_in, bytes_out: 0: a tracker in memory costs nothing.
    """

    def __init__(self, network: MemoryNetwork, me: PeerAddress) -> None:
        self.seconds, self.bytes_in, self.bytes_out = 0.0, 0, 0
        self.known = KnownPeers(me.id, now=network.now, rng=random.Random(me.id))
        self._network, self._me = network, me

    async def announce(self, event: Event = "update", *, numwant: int) -> Answer:
        """Returns the tracker's answer.

        Raises:
            TrackerError: the tracker is not there.
        """
        answer = self._network.announce(self._me, event, numwant)
        self.known.hear(answer.peers)
        return answer

    async def leave(self) -> None:
        """Tells the tracker that this peer is gone."""
        self._network.announce(self._me, "stopped", 0)

    def state(self) -> dict[str, Any] | None:
        """Returns None: there is nothing that a restarted peer could go on with."""
        return None
