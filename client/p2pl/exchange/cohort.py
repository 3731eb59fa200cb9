"""Exchange kind `cohort`: each round, a peer pulls the newest models of a random few, and mixes.

The founding document's system. The tracker names the cohort, parameters travel between peers alone,
and nobody waits for anybody longer than a deadline.
"""

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median_low

import torch

from p2pl.errors import TrackerError
from p2pl.events import Merged
from p2pl.exchange.base import EXCHANGES, Collected, Exchange
from p2pl.exchange.node import Node
from p2pl.exchange.round import note_mix, save
from p2pl.exchange.swap import Pulls, announce, publish, pull_all, pull_next
from p2pl.exchange.witness import Envelope, Watch
from p2pl.learning.train import Trained
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.protocol.announce import PeerAddress
from p2pl.run.state import PeerState

TRACKER_PATIENCE_S = 15.0  # at the start; chosen: a tracker's restart takes a few seconds
NOT_TRUSTED = "not asked: its models did harm before; it is tried again later"
MAX_LAG_ROUNDS = 2  # chosen: within it the wait for each other's round closes the gap
MAX_WORSE_NATS = 0.7  # chosen: half the likelihood; a model of liars is far beyond it
POLL_S = 1.0  # between two looks at the swarm while waiting for others
# Nobody has pulled for so long: nobody needs this peer any more. Chosen: a peer that is started
# again has its model and data loaded within 10 s on a small, busy machine.
SEEDING_QUIET_S = 20.0


@EXCHANGES.builtin("cohort")
class Cohort(Exchange):
    """A random few of the swarm in each round, named by the tracker."""

    def __init__(self) -> None:
        self._envelope = Envelope()
        self._index = 0  # of the round that was collected last

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state to begin with: the peer's own, or the swarm's."""
        entered = await enter(node, state)
        self._envelope.limit(entered.round, node.clock())  # from here on it trains at its pace
        return entered

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Serves what was trained, and returns what a new cohort serves."""
        index = self._index = state.round + 1
        await publish(node, index, trained.vector, node.learner.notes(state.trust))
        blocked = await node.worker(partial(node.learner.blocked, state.trust))
        cohort = await find_cohort(node, without=blocked.union(node.coming))
        pulls = await pull_all(node, cohort, index)
        pulls = replace(pulls, resting=not_asked(node, blocked, pulls))
        believed = self._envelope.believed(index, node.clock(), pulls.models)
        reached = swarm_round(index, believed)
        if node.session.exchange.lockstep:
            pulls = in_step(pulls, index)
        return Collected(pulls, pulls.models, age=index, reached=reached)

    async def saved(self, node: Node, state: PeerState) -> None:
        """Serves the mix as well, where the swarm is rounds ahead of what this peer has trained.

        What it has trained is of a round that is long over for the others, who pass it over. The
        mix is of theirs, and what this peer has learned is in it.
        """
        if self._index < state.round < node.rounds and not node.session.exchange.lockstep:
            notes = node.learner.notes(state.trust)
            await publish(node, state.round, state.weights, notes, stage="mixed")

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Serves the final model until the others are done, or nobody asks for it any more."""
        await seed(node, state)
        return state


async def find_cohort(node: Node, without: Collection[str]) -> list[PeerAddress]:
    """Returns this round's cohort; empty, and said so, when there is nobody to ask.

    Args:
        node: the peer.
        without: ids of peers that are not to be in it.
    """
    try:
        return await announce(node, "update", node.session.exchange.cohort, without=without)
    except TrackerError as fault:
        node.events.said(f"training alone this round: {fault}")
        return []


def not_asked(node: Node, blocked: Collection[str], pulls: Pulls) -> dict[str, str]:
    """Returns which of the peers that are known were not asked for their record's sake, and why.

    Args:
        node: the peer.
        blocked: ids of those whose models the mixing rule would reject.
        pulls: of the round.
    """
    known = node.directory.known
    return {who: NOT_TRUSTED for who in blocked if who in known and who not in pulls.cohort}


def in_step(pulls: Pulls, index: int) -> Pulls:
    """Returns the pulls without the models of another round than the peer's own.

    A peer keeps the version before its newest for those who ask for that round. Where the cohort is
    everybody, nobody can be further ahead than that: its next round needs everybody's. So what is
    mixed depends on the data, the identities and the session alone, and not on who is fast.

    Args:
        pulls: of one round.
        index: the peer's round.
    """
    models = {who: model for who, model in pulls.models.items() if model.round == index}
    others = {
        who: f"out of step: of round {model.round}, this peer is at {index}"
        for who, model in pulls.models.items()
        if model.round != index
    }
    return replace(pulls, models=models, rejected={**pulls.rejected, **others})


def swarm_round(index: int, models: Mapping[str, PeerModel]) -> int:
    """Returns the round a peer has reached: its own, or its cohort's where that is well ahead.

    A peer that is much slower than the others would otherwise still train when they have left. The
    cohort's round is the lower median, so that less than half of a cohort cannot move the peer.

    Args:
        index: the peer's round.
        models: of its cohort, by peer id.
    """
    if not models:
        return index
    others = median_low([model.round for model in models.values()])
    return others if others > index + MAX_LAG_ROUNDS else index


async def enter(node: Node, state: PeerState) -> PeerState:
    """Returns the state to begin with: the peer's own once enough are there, or the swarm's.

    A swarm that is well past the peer's round is not made to wait: the peer takes its model, and
    its round where most of those it met were seen to go on from it, or where all others are done.
    One that is just ahead has nothing that cannot be mixed and judged as usual; and those whom a
    peer meets first may be liars.

    Args:
        node: the peer.
        state: as saved, or new.

    Raises:
        TrackerError: no tracker answered, and no peer is known.
    """
    exchange = node.session.exchange
    begun = node.clock()
    await publish(node, state.round, state.weights, stage="mixed")
    while True:
        cohort = await meet(node, begun + TRACKER_PATIENCE_S)
        pulls = await pull_all(node, cohort, state.round)
        rounds = [model.round for model in pulls.models.values()]
        waited_s = node.clock() - begun
        if swarm_round(state.round, pulls.models) > state.round:
            left_s = exchange.start_deadline_s - waited_s
            seen = await watch(node, cohort, state.round, left_s)
            return await catch_up(node, state, seen or pulls.models, believed=bool(seen))
        there = node.answer.alive if node.answer else 0
        if any(rounds) or there >= exchange.min_peers or waited_s > exchange.start_deadline_s:
            return state
        node.events.said(waiting_for(there, exchange.min_peers, exchange.start_deadline_s))
        await asyncio.sleep(POLL_S)


def waiting_for(there: int, wanted: int, deadline_s: float) -> str:
    """Returns the sentence that says for how many peers one waits, and how long at most."""
    return f"waiting for peers: {there} of {wanted}; begins without them after {deadline_s:g} s"


async def watch(
    node: Node, cohort: Sequence[PeerAddress], index: int, patience_s: float
) -> dict[str, PeerModel]:
    """Returns what those peers serve that are believed to be ahead; nothing where too few are.

    More than half of those who say that they are ahead must take a step before its eyes. Where the
    tracker says that nobody else trains any more, there are no steps left to see.

    Args:
        node: the peer, with the first answer of each of the cohort in `held`.
        cohort: whom to watch.
        index: the peer's round.
        patience_s: how long at most.
    """
    until_s, last = node.clock() + patience_s, node.session.exchange.rounds
    ahead = {who: one for who, one in node.held.items() if one.model.round > index}
    seen = Watch()
    seen.look(node.clock(), ahead)
    while True:
        if node.answer is not None and node.answer.training <= 1:
            done = {who: one.model for who, one in node.held.items() if one.model.round == last}
            if 2 * len(done) > len(ahead):
                return done
        addresses = [one for one in cohort if one.id in ahead]
        await pull_next(node, addresses)
        stepped = seen.look(node.clock(), node.held)
        if 2 * len(stepped) > len(ahead):
            return dict(stepped)
        if node.clock() > until_s:
            return {}
        node.events.said("waiting to see others go on from the round that they say they are at")
        with contextlib.suppress(TrackerError):
            await announce(node, "update", 0)
        await asyncio.sleep(POLL_S)


async def meet(node: Node, until_s: float, wanted: int | None = None) -> list[PeerAddress]:
    """Returns the first cohort; a tracker that does not answer is asked again, unless it refuses.

    Args:
        node: the peer.
        until_s: when to give up, on the node's clock; seconds.
        wanted: how many peers; None: as many as the session's cohort.

    Raises:
        TrackerError: no tracker answered until then, or all refuse; and no peer is known.
    """
    wanted = wanted or max(1, node.session.exchange.cohort)
    while True:
        try:
            return await announce(node, "update", wanted)
        except TrackerError as fault:
            if fault.is_final or node.clock() > until_s:
                raise
            node.events.said(f"{fault}; trying again for {TRACKER_PATIENCE_S:.0f} s")
            await asyncio.sleep(POLL_S)


async def catch_up(
    node: Node, state: PeerState, models: Mapping[str, PeerModel], *, believed: bool
) -> PeerState:
    """Returns the state moved to the swarm's round, with the swarm's model unless that is no good.

    It is no good where it fits the peer's data much worse than the peer's own. A specialist's own
    model always fits its own data a little better, so a little worse is no reason to stay behind.

    Args:
        node: the peer.
        state: of the peer.
        models: of its cohort, by peer id; at least one.
        believed: whether they are believed to be where they say; else the peer stays at its round.
    """
    reached = min(node.rounds, median_low([model.round for model in models.values()]))
    at_home = {
        who: replace(model, vector=node.learner.at_home(model.vector, state.weights))
        for who, model in models.items()
    }
    huge = await node.worker(partial(node.learner.too_large, state.weights, at_home))
    vectors = [model.vector for who, model in at_home.items() if who not in huge]
    theirs = middle(vectors or [state.weights])
    lost = await node.worker(partial(node.learner.loss_by_taking, theirs, state.weights))
    good = lost < MAX_WORSE_NATS
    model = "taking its model" if good else "its model is no good on own data, keeping the own one"
    where = f"the swarm is at round {reached}"
    if not believed:
        where = f"round {reached}, say others, and nobody was seen to go on: staying behind"
    taken = tuple(models) if good else ()
    node.events(Merged(taken, f"{where}: {model}"))
    moved = replace(
        state,
        round=reached if believed else state.round,
        weights=theirs if good else state.weights,
    )
    if good:  # of each of them alike, as far as a median is of anybody
        row = dict.fromkeys(set(at_home) - set(huge), 1 / max(1, len(vectors)))
        await note_mix(node, moved.round, Mixed(theirs, row), huge)
    await save(node, moved)
    return moved


def middle(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the coordinate-wise median of K vectors [P], or their mean where K < 3.

    Models of strangers are taken over here before any trust in them exists, and the median ignores
    less than half of them, whatever they hold (Yin et al. 2018, arXiv:1803.01498).
    """
    stacked = torch.stack(vectors)
    return stacked.median(dim=0).values if len(vectors) >= 3 else stacked.mean(dim=0)


async def seed(node: Node, state: PeerState) -> None:
    """Serves the final model until the others are done too, or nobody asks for it any more.

    While somebody is missing who was here before, the peer stays a little: one that crashed and
    comes back should find the swarm's model, even if all who held it have finished.

    Args:
        node: the peer.
        state: after its last round.
    """
    await publish(node, state.round, state.weights, stage="mixed")
    begun = quiet_since = node.clock()
    served = node.transport.traffic.transfers_out
    while node.clock() - begun < node.seeding_s and node.clock() - quiet_since < SEEDING_QUIET_S:
        try:
            # Every time: a tracker that was restarted would count this peer as training still.
            await announce(node, "completed", 0)
            missing = node.directory.known.missing()
            if node.answer and node.answer.training == 0 and not missing:
                return
        except TrackerError:
            pass
        node.events.said("done; serving the final model to peers that still train or come back")
        await asyncio.sleep(POLL_S)
        if node.transport.traffic.transfers_out != served:
            served, quiet_since = node.transport.traffic.transfers_out, node.clock()
