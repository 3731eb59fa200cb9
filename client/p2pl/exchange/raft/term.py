"""What a raft leader has and does besides taking part: one `Term`, gone when its leadership ends.

It gives the global model to those who ask, and takes in what they made of it. Behera et al. 2021,
figure 3: a request is opened with the leader's key (S2), and answered sealed to the key that came
with it (S3).
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from p2pl.errors import FrameError, PullError, QuorumError, wrong
from p2pl.exchange.node import Node
from p2pl.exchange.raft.leadership import Bell
from p2pl.exchange.raft.transfers import Transfers
from p2pl.exchange.swap import committed
from p2pl.mixing.base import PeerModel
from p2pl.network.sealed import KeyPair, lock, locked_bytes, seal, unlock
from p2pl.network.version import Commits, sha256_of
from p2pl.protocol.frame import BLOB_NAME_BYTES
from p2pl.protocol.raft import messages as raft
from p2pl.protocol.raft.election import ModelId
from p2pl.protocol.raft.messages import (
    Fetch,
    ModelLocation,
    Notice,
    Reply,
    Request,
    Sealed,
    Taken,
    Update,
)
from p2pl.protocol.updates.entry import Stage
from p2pl.updates import log as updates

log = logging.getLogger(__name__)

MAX_GUESTS = 256  # peers without a vote that a leader speaks to; as many as a cohort at most
GUEST_S = 10.0  # a guest that was not heard for so long is gone
# In whose name all guests are waited for that have given nothing yet: to call oneself anew, and to
# listen, costs nothing, and must not cost the members `exchange.wait_s` in each round.
NEWCOMER = ""
KEPT_KEYS = 2  # the announced one and the one before, for requests on their way
# How long a leader waits for members that are there: chosen, so that nobody who computes on a small
# machine is taken for one who never gives anything.
TRAININGS, PATIENCES = 100, 10
MAX_ANSWERED = 4_096  # reply keys remembered for each of them, so that no request counts twice


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key that was announced, and the reply keys of the requests that it has opened."""

    pair: KeyPair
    answered: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Blob:
    """A model that is given to those who know its name and key."""

    model_id: ModelId
    name: bytes
    key: bytes


class Term:
    """One term as leader.

    Args:
        node: the peer.
        number: of the term.
        broadcast: tells all other members something, and those named besides.
        bell: rung when something has come.
        transfers: what of the members' models does not get through.

    Attributes:
        began_s: when, by the peer's clock.
        notice: what is announced; None before the first model is served.
    """

    def __init__(
        self,
        node: Node,
        number: int,
        broadcast: Callable[[raft.Clear, Iterable[str]], None],
        bell: Bell,
        transfers: Transfers,
    ) -> None:
        self.number, self.began_s = number, node.clock()
        self.notice: Notice | None = None
        self._node, self._broadcast, self._bell = node, broadcast, bell
        self._transfers = transfers
        plain_s = node.session.exchange.pull_deadline_s  # a guest gets no longer, for it is nobody
        self._of_guests = Transfers(
            deadline_s=plain_s, patience_s=plain_s, longest_s=plain_s, now=node.clock
        )
        self._members: frozenset[str] = frozenset()  # whose results are waited for
        self._exchange = node.session.exchange
        self._keys: list[OwnKey] = []  # the newest last
        self._blobs: list[Blob] = []  # the newest last
        self._results: dict[str, tuple[ModelId, PeerModel]] = {}  # by peer id
        self._coming: dict[str, asyncio.Task[None]] = {}  # results on their way, by peer id
        self._guests: dict[str, float] = {}  # peer id -> when last heard
        self._givers: set[str] = set()  # guests that have given a result

    @property
    def guests(self) -> set[str]:
        """Peers without a vote that were heard of late."""
        since_s = self._node.clock() - GUEST_S
        return {guest for guest, at_s in self._guests.items() if at_s > since_s}

    async def close(self) -> None:
        """Forgets everything; nobody gets anything more of this term."""
        coming = list(self._coming.values())
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
        for blob in self._blobs:
            self._node.transport.drop_blob(blob.name)

    async def serve(self, held: ModelId, vector: Tensor) -> None:
        """Gives this model to whoever asks from now on, and announces it with a new key.

        Args:
            held: which model it is.
            vector: its parameters, [P].
        """
        node = self._node
        pair = await asyncio.to_thread(KeyPair.generate, self._exchange.raft.suite)
        payload = await asyncio.to_thread(node.learner.codec.encode, vector)
        locked = await asyncio.to_thread(lock, payload)
        commits = await commits_to(node, "mixed", held, payload)
        blob = Blob(held, os.urandom(BLOB_NAME_BYTES), locked.key)
        await node.transport.put_blob(blob.name, locked.box, commits)
        for old in self._blobs[:-1]:
            node.transport.drop_blob(old.name)
        self._blobs = [*self._blobs[-1:], blob]
        self._keys = [*self._keys, OwnKey(pair)][-KEPT_KEYS:]
        key = node.transport.identity.private_key
        self.notice = raft.announce(key, node.file.id, self.number, held, pair.public)
        self.announce()
        self._bell.ring()

    def announce(self) -> None:
        """Says again what is newest."""
        if self.notice:
            self._broadcast(self.notice, self.guests)

    def welcome(self, guest: str) -> None:
        """Speaks to a peer without a vote for a while."""
        self._guests = {one: self._guests[one] for one in self.guests}
        self._givers &= self._guests.keys()
        if guest in self._guests or len(self._guests) < MAX_GUESTS:
            self._guests[guest] = self._node.clock()

    async def gather(
        self,
        base: ModelId,
        members: frozenset[str],
        present: Callable[[], set[str]],
        until_s: float = math.inf,
    ) -> dict[str, PeerModel]:
        """Returns the results of a majority of the members at least, the leader's among them.

        Of all who are there, if they give theirs within `exchange.wait_s` of the majority. Who did
        not is waited for ever more seldom.

        Args:
            base: the model that they are made of.
            members: who counts for the majority.
            present: returns the members that are there now.
            until_s: when to give up, on the node's clock.

        Raises:
            QuorumError: results of members do not get through, or do not come.
        """
        me, enough_s = self._node.transport.identity.peer_id, None
        self._members = members
        begun_s, told = self._node.clock(), ""
        while True:
            given = {
                one: model
                for one, (model_id, model) in self._results.items()
                if model_id == base and not self._node.turned_down(one)
            }
            if me in given and len(given.keys() & members) > len(members) // 2:
                if enough_s is None:
                    enough_s = self._node.clock()
                awaited = self._worth_waiting((present() | self.guests) - given.keys(), base)
                late = self._node.clock() - enough_s >= self._exchange.wait_s
                if late or not awaited:
                    self._end_waits(given.keys(), awaited, base)
                    self._results = {}
                    return given
            self._transfers.check()
            names = ", ".join(sorted(one[:8] for one in members - given.keys()))
            if names != told and self._node.clock() - begun_s > self._exchange.raft.announce_s:
                told = names
                self._node.events.said(f"waiting for the results of {names}")
            if self._node.clock() > until_s:
                raise _no_results(names, len(members) // 2 + 1)
            await self._bell.wait(self._exchange.raft.heartbeat_s)

    def _worth_waiting(self, missing: set[str], base: ModelId) -> set[str]:
        """Returns the names in which the missing are waited for in the round that `base` begins."""
        names, waits = {self._waited_as(one) for one in missing}, self._node.waits
        lockstep = self._exchange.lockstep
        return {one for one in names if lockstep or waits.is_worth(one, base.round + 1)}

    def _end_waits(self, given: Iterable[str], awaited: Iterable[str], base: ModelId) -> None:
        for one in given:
            self._node.waits.ended(one, base.round + 1, in_vain=False)
        for one in awaited:
            self._node.waits.ended(one, base.round + 1, in_vain=True)

    def _waited_as(self, peer: str) -> str:
        return peer if peer in self._members or peer in self._givers else NEWCOMER

    def give(self, sender: str, base: ModelId, model: PeerModel) -> None:
        """Takes in what a peer has made of a model.

        Args:
            sender: the peer's id.
            base: the model that its result is made of.
            model: the result.
        """
        self._results[sender] = base, model
        if sender in self._guests:
            self._givers.add(sender)
        self._bell.ring()

    def open(self, sender: str, box: bytes) -> bool:
        """Returns whether a sealed message was for this leader; if so, it is being answered.

        Args:
            sender: id of the peer that the message came from.
            box: the sealed bytes.

        Raises:
            FrameError: what is inside is no request.
        """
        about = raft.about(self._node.file.id, self.number, "request")
        for key in self._keys:
            plain = key.pair.open(box, about)
            if plain is not None:
                self._on_request(sender, key, raft.decode_request(plain))
                return True
        return False

    def _on_request(self, sender: str, key: OwnKey, request: Request) -> None:
        if request.reply_key in key.answered or len(key.answered) >= MAX_ANSWERED:
            log.debug("a request came again peer=%s", sender)
            return
        key.answered.add(request.reply_key)
        newest = self._blobs[-1]
        if isinstance(request, Fetch):
            model = ModelLocation(newest.model_id, newest.name, newest.key)
            self._answer(sender, request.reply_key, model)
            return
        known = self._results.get(sender)
        if request.model_id != newest.model_id or (known and known[0] == request.model_id):
            self._answer(sender, request.reply_key, Taken(newest.model_id))
        elif sender not in self._coming and len(self._coming) < 2 * MAX_GUESTS:
            self._coming[sender] = asyncio.create_task(self._take(sender, request))

    async def _take(self, sender: str, update: Update) -> None:
        """Fetches a peer's result, and tells it so."""
        is_member = sender in self._members
        transfers = self._transfers if is_member else self._of_guests
        try:
            vector = await collect(self._node, sender, update.blob, update.lock_key, transfers)
            self.give(
                sender,
                update.model_id,
                PeerModel(update.model_id.round + 1, update.samples, vector),
            )
            self._answer(sender, update.reply_key, Taken(update.model_id))
        except (PullError, FrameError) as fault:
            self._node.events.said(f"no result from {sender[:8]}: {fault}")
            if is_member:
                self._transfers.late(sender, str(fault))
        except asyncio.CancelledError:
            if is_member:
                self._transfers.interrupted(sender, "its result, as the term ended")
            raise
        finally:
            del self._coming[sender]

    def _answer(self, sender: str, reply_key: bytes, reply: Reply) -> None:
        """Seals an answer to the key that came with the request, and tells everybody."""
        about = raft.about(self._node.file.id, self.number, "reply")
        try:
            box = seal(self._exchange.raft.suite, reply_key, raft.encode(reply), about)
        except FrameError as fault:
            log.debug("no answer peer=%s reason=%s", sender, fault)
            return
        self._broadcast(Sealed(box), [sender])


def _no_results(names: str, majority: int) -> QuorumError:
    """Returns the error of a leader whose members are there, and never give anything."""
    return QuorumError(
        wrong(
            "results",
            got=f"none from {names}, though {TRAININGS} trainings like this peer's would have "
            f"been over, and {PATIENCES} times exchange.raft.patience_s",
            allowed=f"those of {majority} members",
            hint="the state is saved; run the same command again when they are well",
        )
    )


async def collect(node: Node, sender: str, name: bytes, key: bytes, transfers: Transfers) -> Tensor:
    """Returns the parameters in a locked blob of another peer, [P].

    Args:
        node: the peer that fetches.
        sender: id of the one that holds the blob.
        name: of the blob.
        key: that it is locked with.
        transfers: says for how long a blob may stand still, and take in all.

    Raises:
        PullError, FrameError: it cannot be had, or is not what it should be.
    """
    address = node.directory.known.find(sender)
    if address is None:
        raise PullError("nobody has said where this peer is")
    if why := node.turned_down(sender):
        raise FrameError(why)
    asked = node.keeper.question(sender) if node.keeper else None
    size = locked_bytes(node.learner.codec.payload_bytes)
    came = node.transport.traffic.bytes_in_by_peer
    coming = node.transport.fetch_blob(
        address,
        name,
        size=size,
        deadline_s=transfers.longest_s,
        said=asked.data if asked else None,
    )
    blob = await transfers.while_moving(sender, size, lambda: came.get(sender, 0), coming)
    payload = await asyncio.to_thread(unlock, key, blob.payload)
    if node.keeper and asked:
        digest = await sha256_of(payload)
        node.keeper.take(sender, asked, blob.commitment, digest)
    return await asyncio.to_thread(node.learner.codec.decode, payload)


async def commits_to(
    node: Node, stage: Stage, model_id: ModelId, payload: memoryview
) -> Commits | None:
    """Returns what commits the peer to a model that is locked before it travels.

    Args:
        node: the peer.
        stage: whether the peer has trained it, or leads and has mixed it.
        model_id: its round, and its term or that of the model that it was trained from.
        payload: as it is locked.
    """
    if node.keeper is None:
        return None
    digest = await sha256_of(payload)
    version = updates.Version(stage, model_id.round, digest, term=model_id.term)
    return await committed(node, version)
