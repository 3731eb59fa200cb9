"""What every peer of a raft session does: it hears others, knows who leads, fetches and gives."""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from torch import Tensor

from p2pl.errors import FrameError, PullError, QuorumError, RunDirError, TrackerError, wrong
from p2pl.exchange.cohort import POLL_S
from p2pl.exchange.node import Node
from p2pl.exchange.raft.bootstrap import Founders
from p2pl.exchange.raft.leadership import Bell, EventLog, Leadership, SeatFile
from p2pl.exchange.raft.outbox import Post
from p2pl.exchange.raft.term import Term, collect, commits_to
from p2pl.exchange.raft.transfers import LEAST_BYTES_S, Transfers
from p2pl.exchange.swap import Pulls, announce
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.network.sealed import KeyPair, lock, seal
from p2pl.protocol.announce import MAX_NUMWANT
from p2pl.protocol.frame import BLOB_NAME_BYTES
from p2pl.protocol.raft import bootstrap as founding
from p2pl.protocol.raft import election
from p2pl.protocol.raft import messages as raft
from p2pl.protocol.raft.election import ModelId
from p2pl.protocol.raft.messages import (
    Fetch,
    ModelLocation,
    Notice,
    Reply,
    Request,
    Sealed,
    TwoHistories,
    Update,
    Who,
)
from p2pl.protocol.updates.entry import encode
from p2pl.run.state import PeerState

log = logging.getLogger(__name__)
T = TypeVar("T")

ASK_AGAIN_S = 3.0  # chosen: a request whose answer is lost is made anew, with a new key
SILENT_ANNOUNCES = 5  # chosen: so many missed in a row mean that the leader is gone
MAX_ASKED = 16  # attempts whose answer would still do; each costs a try to open whatever comes


@dataclass(frozen=True, slots=True)
class Came:
    """A global model that has come, or was made here.

    Attributes:
        model_id: which one.
        mixed: its parameters, and what they are made of as far as the peer knows.
        pulls: whose models came, and from whom.
        fetched: whether it is another peer's.
    """

    model_id: ModelId
    mixed: Mixed
    pulls: Pulls
    fetched: bool = False

    def memory(self) -> dict[str, int]:
        """Returns what a saved state says of it beside its round."""
        return {"term": self.model_id.term}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the peer's that waits for its answer."""

    pair: KeyPair
    term: int
    answer: asyncio.Future[Reply]


class Moved(Exception):  # no error: the world went on
    """There is another leader or another model than the one this was about."""


class Participant:
    """One peer of a raft session.

    Attributes:
        me: its id.
        held: which model it holds, on disk.
        state: with that model.
        leadership: its seat in the election; None where it has no vote.
        term: what it has as leader; None where it does not lead.
        at_rest: set while no newer model is on its way to the disk.
        passed_over: sealed messages that were not for this peer.
        transfers: what of the members' models does not get through.
        held_s: since when it holds its model, on its own clock.
        trained_s: how long its last training took.
    """

    state: PeerState

    def __init__(self, node: Node) -> None:
        self.node = node
        self.me = node.transport.identity.peer_id
        self.settings = node.session.exchange.raft
        self.post, self.bell = Post(node), Bell()
        self.events = EventLog(node.run_dir, self.me)
        self.seat = SeatFile(node.run_dir, node.file.id)
        self.founders = Founders(
            node, seat=self.seat, post=self.post, bell=self.bell, events=self.events
        )
        self.held = ModelId()
        self.leadership: Leadership | None = None
        self.term: Term | None = None
        self.notices: dict[str, Notice] = {}  # the newest, of each member that has led
        self.heard_s: dict[str, float] = {}  # when each of them said one itself, the last time
        self.pulled: Mapping[str, PeerModel] = {}  # what the model that is held was made of
        self.at_rest = asyncio.Event()
        self.at_rest.set()
        self.asked: list[Asked] = []
        self.passed_over = 0
        self.transfers = Transfers(
            deadline_s=node.session.exchange.pull_deadline_s,
            patience_s=self.settings.patience_s,
            longest_s=self.settings.term_s,
            now=node.clock,
        )
        self.held_s = node.clock()
        self.trained_s = 0.0

    # What it holds.

    def begin(self, state: PeerState) -> None:
        """Holds what was saved, or the initial model.

        Raises:
            RunDirError: it was saved by another kind of exchange.
        """
        self.held, self.state = model_id_of(state), state

    async def hold(self, state: PeerState, pulled: Mapping[str, PeerModel]) -> None:
        """Holds a model from now on, which is on disk, and tells the election.

        Args:
            state: with the model.
            pulled: what it was made of, by peer id.
        """
        self.held, self.state, self.pulled = model_id_of(state), state, pulled
        self.held_s = self.node.clock()
        self.transfers.came()
        if self.leadership:
            await self.leadership.hold(self.held)

    def take_seat(self, members: frozenset[str]) -> Leadership:
        """Returns the peer's part in the election, which begins now."""
        settings = self.settings
        rules = election.Rules(
            me=self.me,
            members=members,
            heartbeat_s=settings.heartbeat_s,
            timeout_s=(settings.shortest_timeout_s, settings.longest_timeout_s),
            term_s=settings.term_s,
        )
        self.leadership = Leadership(
            rules,
            self.seat,
            self.held,
            tell=lambda to, message: self.post.send([to], raft.encode(message)),
            bell=self.bell,
            events=self.events,
            times=lambda: self.transfers.times(settings.longest_timeout_s),
            now=self.node.clock,
        )
        return self.leadership

    # What others say.

    async def read_inbox(self) -> None:
        """Takes in what others say until cancelled; nonsense costs its sender one message."""
        while True:
            told = await self.node.transport.inbox.take()
            try:
                await self.on_message(told.peer_id, raft.decode(told.payload))
            except FrameError as fault:
                self.node.transport.traffic.broke(told.peer_id)
                log.debug("broken message peer=%s reason=%s", told.peer_id, fault)

    async def on_message(self, sender: str, message: raft.Clear) -> None:
        """Takes in one message.

        Args:
            sender: id of the peer that it came from, which it has proved.
            message: decoded.

        Raises:
            FrameError: it is not what it seems to be; it costs its sender one message.
        """
        if isinstance(message, Notice):
            self.on_announce(sender, message)
        elif isinstance(message, Sealed):
            self.on_sealed(sender, message.box)
        elif isinstance(message, Who):
            self.on_who(sender)
        elif isinstance(message, TwoHistories):
            self.on_proof(message.proof)
        elif isinstance(message, founding.Acceptance | founding.Refusal | founding.Withdrawal):
            await self.founders.hear(sender, message)
        elif self.leadership and not self.is_out(sender):
            self.leadership.hear(sender, message)

    def is_out(self, member: str) -> bool:
        """Returns whether a member counts as silent in the election: it has two histories.

        To Raft, a message that is not heard is one that was lost. So it is as safe as ever, and a
        majority is still one of all members.
        """
        return self.node.keeper is not None and member in self.node.keeper.watch.faults

    def on_proof(self, proof: bytes) -> None:
        """Keeps the proof that a peer has two histories.

        Args:
            proof: as it came.

        Raises:
            FrameError: it proves nothing.
        """
        if self.node.keeper:
            self.node.keeper.take_proof(proof)
            self.bell.ring()

    def on_announce(self, sender: str, message: Notice) -> None:
        """Keeps what a member announces as leader, if it is newer than what it said before.

        Args:
            sender: id of the peer that it came from: the leader, or one that passes it on.
            message: decoded.

        Raises:
            FrameError: the member did not sign it.
        """
        known = self.notices.get(message.leader)
        if message.leader not in self.founders.members - {self.me} or self.is_out(message.leader):
            return
        if sender == message.leader:  # of a dead one, others can say anything again
            self.heard_s[sender] = self.node.clock()
        if message == known:
            return
        if known is None or (message.term, message.model_id) >= (known.term, known.model_id):
            message.check(self.node.file.id)
            self.notices[message.leader] = message
            self.bell.ring()

    def on_sealed(self, sender: str, box: bytes) -> None:
        """Opens what is for this peer: the answer to a request (S4), or a request to a leader.

        Args:
            sender: id of the peer that it came from.
            box: the sealed bytes.

        Raises:
            FrameError: what is inside is no answer, or no request.
        """
        for asked in self.asked:
            plain = asked.pair.open(box, raft.about(self.node.file.id, asked.term, "reply"))
            if plain is not None:
                if not asked.answer.done():
                    asked.answer.set_result(raft.decode_reply(plain))
                return
        if self.term and self.term.open(sender, box):
            self.welcome(sender)
        else:
            self.passed_over += 1

    def on_who(self, sender: str) -> None:
        """Tells a peer who votes and who leads."""
        self.founders.notice(sender)
        self.welcome(sender)
        for message in (self.founders.charter, self.notice):
            if message:
                self.post.send([sender], raft.encode(message))

    def welcome(self, sender: str) -> None:
        """Takes in, as leader, that a peer without a vote is listening."""
        if self.term and sender not in self.founders.members:
            self.term.welcome(sender)

    def broadcast(self, message: raft.Clear, more: Iterable[str] = ()) -> None:
        """Tells all other members, and `more`.

        Args:
            message: to be encoded.
            more: ids of others who are told too.
        """
        self.post.send((self.founders.members | set(more)) - {self.me}, raft.encode(message))

    @property
    def notice(self) -> Notice | None:
        """What the present leader has announced last, as far as the peer knows."""
        heard = {one: notice for one, notice in self.notices.items() if not self.is_out(one)}
        if self.leadership is None:
            return max(heard.values(), key=lambda one: (one.term, one.model_id), default=None)
        if self.term:
            return self.term.notice
        seen = self.leadership.state
        notice = heard.get(seen.leader or "")
        return notice if notice and notice.term == seen.term else None

    async def repeat(self) -> None:
        """Says again, as leader, what is newest; without a vote, that the peer is listening."""
        while True:
            await asyncio.sleep(self.settings.announce_s)
            if self.term:
                self.term.announce()
            elif not self.leadership:
                await self.look_for_the_leader()
            self.pass_proofs_on()

    def pass_proofs_on(self) -> None:
        """Tells the other members which of them have two histories: all must elect without those.

        Again and again, for a message may be lost; it has 600 bytes, and there is seldom one.
        """
        faults = self.node.keeper.watch.faults if self.node.keeper else {}
        for member in sorted(faults.keys() & self.founders.members):
            guests = self.term.guests if self.term else ()
            self.broadcast(TwoHistories(encode(faults[member])), guests)

    async def watch_transfers(self) -> None:
        """Tells the election whose models move, until cancelled."""
        traffic, before_s = self.node.transport.traffic, self.node.clock()
        members = sorted(self.founders.members - {self.me})
        before = dict.fromkeys(members, (0, 0))
        while self.leadership is not None:
            await asyncio.sleep(self.settings.heartbeat_s)
            least = LEAST_BYTES_S * (self.node.clock() - before_s)
            before_s = self.node.clock()
            for one in members:
                if self.is_out(one):
                    continue
                came = traffic.bytes_in_by_peer.get(one, 0)
                taken = traffic.moves_by_peer.get(one, 0)
                if came - before[one][0] > least or taken > before[one][1]:
                    self.leadership.moves(one)
                before[one] = came, taken

    async def look_for_the_leader(self) -> None:
        """Asks the leader, if it is known and speaks, or else everybody, who leads; without a vote.

        A leader that was killed may be back at another address, and lead no more: whoever asked
        nobody else would wait for it for ever.
        """
        notice = self.notice
        if notice and self.node.clock() - self.heard_s.get(notice.leader, -math.inf) < (
            SILENT_ANNOUNCES * self.settings.announce_s
        ):
            self.post.send([notice.leader], raft.encode(Who()))
            return
        with contextlib.suppress(TrackerError):
            await announce(self.node, "update", MAX_NUMWANT)
        self.broadcast(Who())

    # What it asks of the leader, and gives to it.

    async def current_notice(self) -> Notice:
        """Returns what the present leader announces, as soon as there is one.

        Raises:
            QuorumError: there was none for as long as the session's `patience_s`, or no model got
                through for so long.
        """
        self.transfers.check()
        until_s = self.node.clock() + self.settings.patience_s
        while (notice := self.notice) is None:
            if self.node.clock() > until_s:
                raise QuorumError(
                    wrong(
                        "leader",
                        got=f"none for {self.settings.patience_s:.0f} s",
                        allowed=f"one that more than half of {len(self.founders.members)} elect",
                        hint="the state is saved; run the same command again when they are there",
                    )
                )
            self.node.events.said("waiting for a leader")
            await self.bell.wait(self.settings.announce_s)
        return notice

    async def while_current(self, notice: Notice, work: Awaitable[T], about: str = "") -> T:
        """Returns what `work` returns.

        Args:
            notice: of the leader that the work is for.
            work: cancelled where it is not needed any more.
            about: what is told to be waited for, where that takes long; "": nothing.

        Raises:
            Moved: `notice` is not current any more.
        """
        working, begun_s = asyncio.ensure_future(work), self.node.clock()
        try:
            while not working.done():
                if notice is not self.notice:
                    raise Moved
                if about and self.node.clock() - begun_s > self.settings.announce_s:
                    self.node.events.said(f"waiting for {about}")
                    about = ""
                ringing = asyncio.create_task(self.bell.wait(self.settings.announce_s))
                await asyncio.wait({working, ringing}, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    def newest(self, notice: Notice) -> ModelId:
        """Returns which model is the newest, as its leader says; a leader knows by itself."""
        return self.held if notice.leader == self.me else notice.model_id

    async def fetch(self, notice: Notice) -> Came:
        """Returns the leader's model.

        Raises:
            Moved: there is another leader or another model meanwhile, or it did not come.
        """
        if notice.leader == self.me:
            await self.bell.wait(POLL_S)
            raise Moved
        reply = await self.ask(notice, Fetch)
        if not isinstance(reply, ModelLocation):
            raise Moved
        if reply.model_id == self.held:  # and the notice that says so is still on its way
            await self.bell.wait(POLL_S)
            raise Moved
        try:
            coming = collect(self.node, notice.leader, reply.blob, reply.lock_key, self.transfers)
            about = f"the model of the leader, {notice.leader[:8]}"
            vector = await self.while_current(notice, coming, about)
            vector = self.node.learner.at_home(vector, self.state.weights)
        except Moved:
            self.transfers.interrupted(notice.leader, "its model, as another was announced")
            raise
        except (PullError, FrameError) as fault:
            self.transfers.late(notice.leader, str(fault))
            self.node.events.said(f"the leader's model did not come: {fault}")
            await self.bell.wait(POLL_S)
            raise Moved from fault
        leader = notice.leader
        given = {leader: PeerModel(reply.model_id.round, 1, vector)}
        weigh = partial(self.node.learner.too_large, self.state.weights, given)
        if huge := await self.while_current(notice, self.node.worker(weigh)):
            self.node.events.said(f"the leader's model is not taken: {huge[leader]}")
            await self.bell.wait(POLL_S)
            raise Moved
        pulls = Pulls((leader,), given, {})
        memory = self.node.learner.memory(self.state.trust)
        mixed = Mixed(vector, {leader: 1.0}, {}, memory)
        if notice is not self.notice:
            raise Moved
        return Came(reply.model_id, mixed, pulls, fetched=True)

    async def give(self, notice: Notice, base: ModelId, own: PeerModel) -> None:
        """Gives a result to the leader, and returns when it has it or does not need it.

        Args:
            notice: of the leader.
            base: the model that the result is made of.
            own: the result.
        """
        codec = self.node.learner.codec
        payload = await asyncio.to_thread(codec.encode, own.vector)
        locked = await asyncio.to_thread(lock, payload)
        name = os.urandom(BLOB_NAME_BYTES)
        commits = await commits_to(self.node, "trained", ModelId(base.term, own.round), payload)
        await self.node.transport.put_blob(name, locked.box, commits)
        try:
            await self.ask(notice, lambda key: Update(key, base, own.samples, name, locked.key))
        finally:
            self.node.transport.drop_blob(name)

    async def ask(self, notice: Notice, request: Callable[[bytes], Request]) -> Reply:
        """Returns the leader's answer to a sealed request (S1).

        Every attempt has a reply key of its own, and the answer to any of them will do.

        Args:
            notice: of the leader.
            request: makes the request that carries this reply key.

        Raises:
            Moved: there is another leader or another model meanwhile.
            QuorumError: there was no answer for as long as the session's `patience_s`.
        """
        suite, moves_of = self.settings.suite, self.node.transport.traffic.moves_by_peer
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        try:
            while True:
                taken = moves_of.get(notice.leader, 0)
                pair = await asyncio.to_thread(KeyPair.generate, suite)
                self.asked = [*self.asked, Asked(pair, notice.term, answer)][-MAX_ASKED:]
                about = raft.about(self.node.file.id, notice.term, "request")
                box = seal(suite, notice.key, raft.encode(request(pair.public)), about)
                self.broadcast(Sealed(box), [notice.leader])
                whom = f"an answer of the leader, {notice.leader[:8]}"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN_S):
                        reply = await self.while_current(notice, asyncio.shield(answer), whom)
                        self.transfers.answered()
                        return reply
                self.transfers.unanswered(notice.leader)
                if moves_of.get(notice.leader, 0) > taken:
                    self.transfers.moves()  # it takes a result in, and answers when it has it
                self.transfers.check()
        finally:
            self.asked = [asked for asked in self.asked if asked.answer is not answer]
            answer.cancel()

    async def to_serve(self, index: int, vector: Tensor) -> Tensor:
        """Returns what others get in the place of these parameters: they, from an honest peer.

        Args:
            index: the round.
            vector: [P], what the peer has trained or mixed.
        """
        if self.node.attacker is None:
            return vector
        return await self.node.worker(partial(self.node.attacker.lie, index, vector, self.pulled))


def model_id_of(state: PeerState) -> ModelId:
    """Returns which model a saved state holds.

    Raises:
        RunDirError: it was saved by another kind of exchange.
    """
    term = state.memory.get("term", 0)
    if not isinstance(term, int) or (state.round and "term" not in state.memory):
        raise RunDirError(wrong("saved state", got=dict(state.memory), allowed="one of raft"))
    return ModelId(term, state.round)
