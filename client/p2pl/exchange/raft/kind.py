"""Exchange kind `raft`: one peer at a time aggregates, elected for a term; any peer may be next.

Behera et al. 2021 ("Federated Learning using Peer-to-peer Network for Decentralized Orchestration
of Model Weights"). The first peers agree on who votes (`bootstrap`) and elect a leader
(`leadership`), which resigns after a term. Everybody is a participant (`participant`): it fetches
the global model, trains it on its own data, and gives the result to the leader. The leader is an
aggregator besides (`aggregator`): it mixes the results by the session's rule, and announces the
next model.

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
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from p2pl.exchange.base import EXCHANGES, Collected, Exchange, Overtaken
from p2pl.exchange.linger import linger
from p2pl.exchange.node import Node
from p2pl.exchange.raft.aggregator import Aggregator
from p2pl.exchange.raft.participant import Came, Moved, Participant
from p2pl.exchange.round import Local, Meter, end_round, run_round, save, undo
from p2pl.learning.train import Start, Trained
from p2pl.mixing.base import PeerModel
from p2pl.protocol.raft.election import ModelId
from p2pl.run.state import PeerState


@dataclass(frozen=True, slots=True)
class Done:
    """A training, and the model that it began with."""

    base: ModelId
    local: Local

    def leads_to(self, model_id: ModelId) -> bool:
        """Returns whether a model is what became of this training."""
        return self.base.round + 1 == model_id.round


@EXCHANGES.builtin("raft")
class RaftExchange(Exchange):
    """Rounds that an elected peer leads."""

    _peer: Participant
    _aggregator: Aggregator
    _group: asyncio.TaskGroup
    _meter: Meter  # at the beginning of the round
    _came: Came  # the newest model, which is held once it is saved

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        # The last two trainings: one may have led to a model that is replaced.
        self._done: tuple[Done, ...] = ()

    @contextlib.asynccontextmanager
    async def running(self, node: Node) -> AsyncIterator[None]:
        """Listens to others all the while, and does what a seat in the election asks for.

        Raises:
            RunDirError: the peer's seat on disk is damaged, or of another session.
        """
        self._peer = Participant(node)
        self._aggregator = Aggregator(self._peer)
        try:
            async with asyncio.TaskGroup() as self._group:
                self._begin(self._peer.read_inbox())
                yield
                for task in self._tasks:
                    task.cancel()
        except BaseExceptionGroup as faults:  # the first one, as if there were no tasks
            raise faults.exceptions[0] from None
        finally:
            await self._peer.post.close()

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the newest decided model, once the members are known and one of them leads.

        Raises:
            TrackerError: no tracker answered, and no peer is known.
            QuorumError: the members did not meet, or no majority of them was there for too long.
            RunDirError: what was saved is damaged, or of another kind of exchange.
        """
        peer = self._peer
        peer.begin(state)
        members = await peer.founders.agree()
        self._begin(peer.repeat())
        if peer.me in members:
            leadership = peer.take_seat(members)
            self._begin(leadership.run())
            self._begin(peer.watch_transfers())
            self._begin(self._aggregator.lead_when_elected(leadership))
        else:
            node.events.said("the members are chosen; taking part without a vote")
        while state.round < node.rounds:
            with contextlib.suppress(Moved):
                notice = await peer.current_notice()
                if peer.newest(notice) == peer.held:
                    break
                state = await self._step_to(node, state, await peer.fetch(notice))
        self._meter = Meter.read(node)
        return state

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Gives what was trained to the leader, and returns the model that became of it.

        Raises:
            Overtaken: another model was decided, of an earlier or a much later round.
            QuorumError: there was no leader for too long.
        """
        start = Start(state.weights, state.optimizer)
        self._peer.trained_s = node.clock() - self._meter.clock_s
        done = Done(self._peer.held, Local(state.round + 1, start, trained, self._meter))
        self._done = (*self._done[-1:], done)
        came = await self._next_model(node, state)
        if not done.leads_to(came.model_id):
            raise Overtaken(await self._step_to(node, state, came))
        return self._take(came)

    async def saved(self, node: Node, state: PeerState) -> None:
        """Tells the election which model is held now; a leader gives it out from here on."""
        peer, came = self._peer, self._came
        await peer.hold(state, came.pulls.models)
        number = {"term": came.model_id.term, "round": came.model_id.round}
        if came.fetched:
            peer.events.note("fetched", **number)
        else:
            names = sorted({peer.me, *came.pulls.models})
            peer.events.note("aggregated", **number, received=names)
        peer.at_rest.set()
        peer.bell.ring()
        self._meter = Meter.read(node)

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state once the others hold the last model too, or left."""

        async def go_on(node: Node, state: PeerState) -> PeerState:
            while state.round < node.rounds or self._is_overtaken():
                if state.round < node.rounds:
                    state = await run_round(node, self, state)
                    continue
                with contextlib.suppress(Moved):  # and perhaps it is not overtaken any more
                    came = await self._ask_leader(node, state)
                    state = await self._step_to(node, state, came)
            return state

        return await linger(node, state, go_on)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something beside the rounds; what it raises ends the run."""
        self._tasks.append(self._group.create_task(work))

    async def _next_model(self, node: Node, state: PeerState) -> Came:
        """Returns the model that follows, whoever leads meanwhile, giving away what was trained."""
        while True:
            with contextlib.suppress(Moved):
                return await self._ask_leader(node, state)

    async def _ask_leader(self, node: Node, state: PeerState) -> Came:
        """Returns the present leader's newer model, or raises Moved when something has changed."""
        peer = self._peer
        notice = await peer.current_notice()
        newest = peer.newest(notice)
        done = next((one for one in reversed(self._done) if one.base == newest), None)
        if done is None:
            return await peer.fetch(notice)
        index, learner = done.local.index, node.learner
        vector = await peer.to_serve(index, done.local.trained.vector)
        own = PeerModel(index, learner.samples, vector)
        if peer.term is not None:
            making = self._aggregator.make_next(peer.term, state, own)
            return await peer.while_current(notice, making)
        await peer.give(notice, done.base, own)
        about = f"the next model of the leader, {notice.leader[:8]}"
        await peer.while_current(notice, asyncio.Event().wait(), about)
        raise Moved

    def _is_overtaken(self) -> bool:
        """Returns whether the last model that is held was not decided, and a later leader goes on.

        That leader has another one, or still waits for what the peer made of the one before.
        """
        notice, peer = self._peer.notice, self._peer
        if notice is None or notice.leader == peer.me or peer.leadership is None:
            return False
        awaited = any(done.base == notice.model_id for done in self._done)
        return notice.model_id > peer.held or awaited

    async def _step_to(self, node: Node, state: PeerState, came: Came) -> PeerState:
        """Returns the state with a model that does not follow from the one that is held.

        It is saved. Where the training before the last one led to it, it takes the place of an
        undecided model of the same round, and that round is logged again.
        """
        peer = self._peer
        held, round_index = peer.held, came.model_id.round
        if round_index <= held.round:
            undo(node, round_index - 1)
        done = next((one for one in reversed(self._done) if one.leads_to(came.model_id)), None)
        if done is not None:
            return await end_round(node, self, state, done.local, self._take(came))
        optimizer = state.optimizer
        last = self._done[-1] if self._done else None
        if last is not None and last.base == held and round_index > held.round:  # rounds missed
            one = last.local
            follow = node.learner.follow
            optimizer = follow(one.start, one.trained, came.mixed.vector, one.index)
        self._take(came)
        after = PeerState(
            round=round_index,
            weights=came.mixed.vector,
            optimizer=optimizer,
            trust=came.mixed.memory,
            memory=came.memory(),
        )
        await save(node, after)
        await self.saved(node, after)
        return after

    def _take(self, came: Came) -> Collected:
        """Returns what a model brings to its round; until it is saved, nothing is given out."""
        self._came = came
        self._peer.at_rest.clear()
        return Collected(
            came.pulls,
            came.pulls.models,
            age=came.model_id.round,
            reached=came.model_id.round,
            memory=lambda _: came.memory(),
            mixed=came.mixed,
        )
