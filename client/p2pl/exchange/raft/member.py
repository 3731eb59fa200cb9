"""Exchange kind `raft`: one peer at a time aggregates, elected for a term; any peer may be next.

Behera et al. 2021 ("Federated Learning using Peer-to-peer Network for Decentralized Orchestration
of Model Weights"). The first peers agree on who votes (`founders`) and elect a leader
(`leadership`), which resigns after a term. Everybody is a participant: it fetches the global model,
trains it on its own data, and gives the result to the leader. The leader is an aggregator besides
(`aggregator`): it mixes the results by the session's rule, and announces the next model.

A model counts once a majority holds it, and the next one is made of the results of a majority, so
whoever is cut off with a minority can make none. What a leader had in hand when it died is not
lost: participants keep their results until there is a newer model, and give them to the next.

Requests and replies are sealed (figure 3 of the paper): S1 seal to the leader's key, S2 the leader
opens, S3 it seals to the key that came with the request, S4 the participant opens. All members get
every sealed message, and pass over what they cannot open. The connections below are between peers
that know each other, so a message is anonymous to the network and the others, not to the leader.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from p2pl.errors import FrameError, PullError, QuorumError, RunDirError, TrackerError, wrong
from p2pl.events import Undone
from p2pl.exchange.base import EXCHANGES, Collected, Exchange
from p2pl.exchange.cohort import POLL_S
from p2pl.exchange.linger import linger
from p2pl.exchange.node import Node, stepper
from p2pl.exchange.raft.aggregator import Term, collect
from p2pl.exchange.raft.bootstrap import Founders
from p2pl.exchange.raft.leadership import Bell, EventLog, Leadership, SeatFile
from p2pl.exchange.raft.outbox import Post
from p2pl.exchange.round import Meter, Outcome, remember, save
from p2pl.exchange.swap import Pulls, announce
from p2pl.learning.train import Start, Trained
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
    Update,
    Who,
)
from p2pl.run.state import PeerState

log = logging.getLogger(__name__)
T = TypeVar("T")

ASK_AGAIN_S = 3.0  # chosen: a request whose answer is lost is made anew, with a new key
MAX_ASKED = 16  # attempts whose answer would still do; each costs a try to open whatever comes


@dataclass(frozen=True, slots=True)
class Done:
    """What I trained last, and from which model."""

    base: ModelId
    start: Start
    trained: Trained
    meter: Meter


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of mine that waits for its answer."""

    pair: KeyPair
    term: int
    answer: asyncio.Future[Reply]


class Moved(Exception):  # no error: the world went on
    """There is another leader or another model than the one this was about."""


async def run(node: Node, state: PeerState) -> PeerState:
    """Returns the peer's state once it holds the last global model, and the others do, or left.

    Raises:
        TrackerError: no tracker answered at the start, and no peer is known.
        QuorumError: the members did not meet, or no majority of them was there for too long.
        RunDirError: what was saved is damaged, or of another kind of exchange.
    """
    member = Member(node, state)
    try:
        return await first_of(member.take_part(), member.read_inbox())
    finally:
        await member.post.close()


@EXCHANGES.builtin("raft")
class Raft(Exchange):
    """Rounds that an elected peer leads."""

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state after the last round."""
        return await run(node, state)

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Is never asked."""
        raise NotImplementedError

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state as it is."""
        del node
        return state


class Member:
    """One peer of a raft session: participant always, aggregator while it leads.

    Attributes:
        state, held: my model, and which it is.
        leadership: my seat in the election; None where I have no vote.
        term: what I have as leader; None where I do not lead.
        passed_over: sealed messages that were not for me.
    """

    def __init__(self, node: Node, state: PeerState) -> None:
        self.node, self.state = node, state
        self.me = node.transport.identity.peer_id
        self.settings = node.session.exchange.raft
        self.held = model_id_of(state)
        self.post, self.bell = Post(node), Bell()
        self.events = EventLog(node.run_dir, self.me)
        self.seat = SeatFile(node.run_dir, node.file.id)
        self.founders = Founders(
            node, seat=self.seat, post=self.post, bell=self.bell, events=self.events
        )
        self.leadership: Leadership | None = None
        self.term: Term | None = None
        self.notices: dict[str, Notice] = {}  # the newest, of each member that has led
        self.done: Done | None = None
        self.pulled: Mapping[str, PeerModel] = {}  # what the model that I hold was made of
        self.adopting = asyncio.Lock()  # one model after the other
        self.asked: list[Asked] = []
        self.passed_over = 0

    async def take_part(self) -> PeerState:
        """Returns the state after the last round."""
        members = await self.founders.agree()
        helpers: list[Coroutine[Any, Any, None]] = [self.repeat_myself()]
        if self.me in members:
            self.leadership = self.take_seat(members)
            helpers += [self.leadership.run(), self.lead_when_elected(self.leadership)]
        else:
            self.node.events.said("the members are chosen; taking part without a vote")
        return await first_of(self.participate_to_the_end(), *helpers)

    def take_seat(self, members: frozenset[str]) -> Leadership:
        """Returns my part in the election, which begins now."""
        settings = self.settings
        rules = election.Rules(
            me=self.me,
            members=members,
            heartbeat_s=settings.heartbeat_s,
            timeout_s=(settings.shortest_timeout_s, settings.longest_timeout_s),
            term_s=settings.term_s,
        )
        return Leadership(
            rules,
            self.seat,
            self.held,
            tell=lambda to, message: self.post.send([to], raft.encode(message)),
            bell=self.bell,
            events=self.events,
            now=self.node.clock,
        )

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
        """Takes in one message."""
        if isinstance(message, Notice):
            self.on_announce(message)
        elif isinstance(message, Sealed):
            self.on_sealed(sender, message.box)
        elif isinstance(message, Who):
            self.on_who(sender)
        elif isinstance(message, founding.Acceptance | founding.Refusal):
            await self.founders.hear(sender, message)
        elif self.leadership:
            self.leadership.hear(sender, message)

    def on_announce(self, message: Notice) -> None:
        """Keeps what a member announces as leader, if it is newer than what it said before."""
        known = self.notices.get(message.leader)
        if message.leader not in self.founders.members - {self.me} or message == known:
            return
        if known is None or (message.term, message.model_id) >= (known.term, known.model_id):
            message.check(self.node.file.id)
            self.notices[message.leader] = message
            self.bell.ring()

    def on_sealed(self, sender: str, box: bytes) -> None:
        """Opens what is for me: the answer to a request of mine (S4), or a request to me."""
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
        if self.term and sender not in self.founders.members:
            self.term.welcome(sender)

    def broadcast(self, message: raft.Clear, more: Iterable[str] = ()) -> None:
        """Tells all other members, and `more`."""
        self.post.send((self.founders.members | set(more)) - {self.me}, raft.encode(message))

    @property
    def notice(self) -> Notice | None:
        """What the present leader has announced last, as far as I know."""
        if self.leadership is None:
            return max(
                self.notices.values(), key=lambda one: (one.term, one.model_id), default=None
            )
        if self.term:
            return self.term.notice
        seen = self.leadership.state
        notice = self.notices.get(seen.leader or "")
        return notice if notice and notice.term == seen.term else None

    async def repeat_myself(self) -> None:
        """Says again, as leader, what is newest; or, without a vote, that I am listening."""
        while True:
            await asyncio.sleep(self.settings.announce_s)
            if self.term:
                self.term.announce()
            elif not self.leadership:
                await self.look_for_the_leader()

    async def look_for_the_leader(self) -> None:
        """Asks the leader I know, or else everybody, who leads; for a peer without a vote."""
        if self.notice:
            self.post.send([self.notice.leader], raft.encode(Who()))
            return
        with contextlib.suppress(TrackerError):
            await announce(self.node, "update", MAX_NUMWANT)
        self.broadcast(Who())

    # Participant.

    async def participate_to_the_end(self) -> PeerState:
        """Returns my state once I hold the last model and have served it long enough."""

        async def go_on(node: Node, state: PeerState) -> PeerState:
            while self.held.round < self.node.rounds or self.is_overtaken():
                with contextlib.suppress(Moved):
                    await self.participate()
            return self.state

        return await linger(self.node, await go_on(self.node, self.state), go_on)

    def is_overtaken(self) -> bool:
        """Returns whether the last model that I hold was not decided, and a later leader goes on.

        That leader has another one, or still waits for what I made of the one before.
        """
        notice = self.notice
        if notice is None or notice.leader == self.me or self.leadership is None:
            return False
        awaited = self.done is not None and self.done.base == notice.model_id
        return notice.model_id > self.held or awaited

    async def participate(self) -> None:
        """Does what is next: fetch the leader's model, or train it, or give the result away.

        Raises:
            Moved: there is another leader or another model now.
            QuorumError: there was no leader for too long.
        """
        notice = await self.current_notice()
        newest = self.held if notice.leader == self.me else notice.model_id
        if self.done and self.done.base == newest:  # whatever I have made of it since, undecided
            await self.give_result(notice, self.done)
            await self.while_current(notice, asyncio.Event().wait())
        elif self.held != newest:
            await self.fetch(notice)
        else:
            self.done = await self.train()

    async def current_notice(self) -> Notice:
        """Returns what the present leader announces, as soon as there is one."""
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

    async def while_current(self, notice: Notice, work: Awaitable[T]) -> T:
        """Returns what `work` returns; raises Moved as soon as `notice` is not current any more."""
        working = asyncio.ensure_future(work)
        try:
            while not working.done():
                if notice is not self.notice:
                    raise Moved
                ringing = asyncio.create_task(self.bell.wait(self.settings.announce_s))
                await asyncio.wait({working, ringing}, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def train(self) -> Done:
        """Returns what I make of the model that I hold, on my own data."""
        node, state, base = self.node, self.state, self.held
        meter, index = Meter.read(node), base.round + 1
        start = Start(state.weights, state.optimizer)
        on_step = stepper(node.events, index, node.stopping)
        trained = await node.worker(partial(node.learner.fit, start, index, on_step))
        return Done(base, start, trained, meter)

    async def fetch(self, notice: Notice) -> None:
        """Takes over the leader's model."""
        reply = await self.ask(notice, Fetch)
        if not isinstance(reply, ModelLocation):
            raise Moved
        try:
            coming = collect(self.node, notice.leader, reply.blob, reply.lock_key)
            vector = await self.while_current(notice, coming)
        except (PullError, FrameError) as fault:
            self.node.events.said(f"the leader's model did not come: {fault}")
            await self.bell.wait(POLL_S)
            raise Moved from fault
        leader = notice.leader
        pulls = Pulls((leader,), {leader: PeerModel(reply.model_id.round, 1, vector)}, {})
        mixed = Mixed(vector, {leader: 1.0}, {}, self.node.learner.memory(self.state.trust))
        async with self.adopting:
            if notice is not self.notice:
                raise Moved
            await self.adopt(reply.model_id, mixed, pulls)
        self.events.note("fetched", term=reply.model_id.term, round=reply.model_id.round)

    async def give_result(self, notice: Notice, done: Done) -> None:
        """Gives my result to the leader; to myself, if that is me."""
        learner, base = self.node.learner, done.base
        vector = await self.to_serve(base.round + 1, done.trained.vector)
        if self.term:
            self.term.give(self.me, base, PeerModel(base.round + 1, learner.samples, vector))
            return
        locked = await asyncio.to_thread(lambda: lock(learner.codec.encode(vector)))
        name = os.urandom(BLOB_NAME_BYTES)
        await self.node.transport.put_blob(name, locked.box)
        try:
            await self.ask(notice, lambda key: Update(key, base, learner.samples, name, locked.key))
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
        """
        suite = self.settings.suite
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        try:
            while True:
                pair = await asyncio.to_thread(KeyPair.generate, suite)
                self.asked = [*self.asked, Asked(pair, notice.term, answer)][-MAX_ASKED:]
                about = raft.about(self.node.file.id, notice.term, "request")
                box = seal(suite, notice.key, raft.encode(request(pair.public)), about)
                self.broadcast(Sealed(box), [notice.leader])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN_S):
                        return await self.while_current(notice, asyncio.shield(answer))
        finally:
            self.asked = [asked for asked in self.asked if asked.answer is not answer]
            answer.cancel()

    # Aggregator.

    async def lead_when_elected(self, leadership: Leadership) -> None:
        """Runs the aggregator whenever I am elected, for as long as I lead that term."""
        while True:
            number = leadership.state.term
            if leadership.leads(number):
                self.term = Term(self.node, number, self.broadcast, self.bell)
                leading = asyncio.create_task(self.aggregate(self.term))
                try:
                    while leadership.leads(number):
                        if leading.done():
                            leading.result()  # raises what went wrong
                        await self.bell.wait(POLL_S)
                finally:
                    leading.cancel()
                    await asyncio.gather(leading, return_exceptions=True)
                    await self.term.close()
                    self.term = None
            else:
                await self.bell.wait(POLL_S)

    async def aggregate(self, term: Term) -> None:
        """Makes one global model after the other of what participants give, while I lead."""
        async with self.adopting:
            await term.serve(self.held, self.state.weights)  # what was decided, not mine to change
        while self.held.round < self.node.rounds:
            base = self.held
            received = await term.gather(base, self.founders.members, self.present)
            names = list(received)
            own = received.pop(self.me)
            before = self.state
            mix = partial(
                self.node.learner.mix,
                own.vector,
                received,
                own.round,
                before.trust,
                start=before.weights,
            )
            async with self.adopting:
                mixed = await self.node.worker(mix)
                made = ModelId(term.number, base.round + 1)
                await self.adopt(made, mixed, Pulls(tuple(received), received, {}))
                self.events.note("aggregated", term=made.term, round=made.round, received=names)
                await term.serve(made, await self.to_serve(made.round, mixed.vector))

    def present(self) -> set[str]:
        """Returns the members that answer my heartbeats, or have not had the time to."""
        if self.leadership is None or self.term is None:
            return set()
        since_s = self.node.clock() - self.settings.longest_timeout_s
        if self.term.began_s > since_s:
            return set(self.founders.members)
        acks = self.leadership.state.acks
        return {one for one, (at_s, _) in acks.items() if at_s > since_s}

    # Both.

    async def adopt(self, model_id: ModelId, mixed: Mixed, pulls: Pulls) -> None:
        """Holds this model from now on; it is on disk before anybody is told."""
        node, done = self.node, self.done
        optimizer = self.state.optimizer
        # I trained from what I hold; or from the one before, and what I hold was not decided.
        trained = done and (
            done.base == self.held or done.base.round + 1 == self.held.round == model_id.round
        )
        if done and trained:
            follow = node.learner.follow
            optimizer = follow(done.start, done.trained, mixed.vector, done.base.round + 1)
        after = PeerState(
            round=model_id.round,
            weights=mixed.vector,
            optimizer=optimizer,
            trust=mixed.memory,
            memory={"term": model_id.term},
        )
        if model_id.round <= self.held.round:
            node.events(Undone(model_id.round - 1))  # what I had is not what was decided
        if done and trained and done.base.round + 1 == model_id.round:
            score = partial(node.learner.score, done.trained.vector, mixed.vector)
            scored = await node.worker(score)
            outcome = Outcome(model_id.round, done.trained, pulls, mixed, scored)
            await remember(node, after, outcome, done.meter)
        else:
            await save(node, after)
        self.state, self.held, self.pulled = after, model_id, pulls.models
        if self.leadership:
            await self.leadership.hold(model_id)
        self.bell.ring()

    async def to_serve(self, index: int, vector: Tensor) -> Tensor:
        """Returns what others get in the place of these parameters: they, from an honest peer."""
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


async def first_of(main: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, Any]) -> T:
    """Returns what `main` returns, while `helpers` run; what any of them raises ends them all."""
    leading = asyncio.ensure_future(main)
    tasks = [leading, *(asyncio.ensure_future(helper) for helper in helpers)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
        return await leading
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
