"""Exchange kind `cohort`: each round, a random few; I pull their newest parameters, and mix.

The founding document's system. The tracker names the cohort, parameters travel between peers alone,
and nobody waits for anybody longer than a deadline.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from statistics import median_low

import torch

from p2pl.errors import TrackerError
from p2pl.exchange.node import (
    Meter,
    Outcome,
    Peer,
    Pulls,
    announce,
    publish,
    pull_all,
    remember,
    save,
    stepper,
)
from p2pl.learning.learner import Model
from p2pl.learning.train import Start
from p2pl.protocol.announce import PeerAddress
from p2pl.run.state import PeerState

TRACKER_PATIENCE_S = 15.0  # at the start; chosen: a tracker's restart takes a few seconds
MAX_LAG_ROUNDS = 2  # chosen: within it the wait for each other's round closes the gap
MAX_WORSE_NATS = 0.7  # chosen: half the likelihood; a model of liars is far beyond it
POLL_S = 1.0  # between two looks at the swarm while waiting for others
# Nobody has pulled for so long: nobody needs me any more. Chosen: a peer that is started again has
# its model and data loaded within 10 s on a small, busy machine.
SEEDING_QUIET_S = 20.0


async def run(peer: Peer, state: PeerState) -> PeerState:
    """Returns the peer's state after the session's last round.

    Raises:
        TrackerError: no tracker answered at the start, and no peer is known.
    """
    state = await enter(peer, state)
    while state.round < peer.rounds:
        state = await run_round(peer, state)
    await seed(peer, state)
    return state


async def run_round(peer: Peer, state: PeerState) -> PeerState:
    """Returns the peer's state after one round: train, swap, trust, mix, evaluate, log."""
    index = state.round + 1
    meter = Meter.read(peer)
    start = Start(state.weights, state.optimizer)
    on_step = stepper(peer.view, index, peer.stopping)
    trained = await peer.worker(partial(peer.learner.train, start, index, on_step))
    await publish(peer, index, trained.vector, peer.learner.notes(state.trust))
    shunned = await peer.worker(partial(peer.learner.shunned, state.trust))
    cohort = await find_cohort(peer, without=shunned)
    pulls = await pull_all(peer, cohort, index)
    reached = min(peer.rounds, swarm_round(index, pulls.models))
    if peer.file.session.exchange.lockstep:
        pulls = in_step(pulls, index)
    mixed = await peer.worker(
        partial(
            peer.learner.mix,
            trained.vector,
            pulls.models,
            index,
            state.trust,
            start=state.weights,
        )
    )
    scored = await peer.worker(partial(peer.learner.score, trained.vector, mixed.vector))
    after = PeerState(
        round=reached,
        weights=mixed.vector,
        optimizer=peer.learner.follow(start, trained, mixed.vector, index),
        trust=mixed.trust,
    )
    await remember(peer, after, Outcome(index, trained, pulls, mixed, scored), meter)
    return after


async def find_cohort(peer: Peer, without: Collection[str]) -> list[PeerAddress]:
    """Returns this round's cohort; empty, and said so, when there is nobody to ask."""
    try:
        return await announce(peer, "update", peer.file.session.exchange.cohort, without=without)
    except TrackerError as fault:
        peer.view.message(f"training alone this round: {fault}")
        return []


def in_step(pulls: Pulls, index: int) -> Pulls:
    """Returns the pulls without those that are of another round than mine.

    A peer keeps the version before its newest for those who ask for that round. Where the cohort is
    everybody, nobody can be further ahead than that: its next round needs mine. So what is mixed
    depends on the data, the identities and the session alone, and not on who is fast.
    """
    models = {who: model for who, model in pulls.models.items() if model.round == index}
    others = {
        who: f"out of step: of round {model.round}, mine is {index}"
        for who, model in pulls.models.items()
        if model.round != index
    }
    return replace(pulls, models=models, rejected={**pulls.rejected, **others})


def swarm_round(index: int, models: Mapping[str, Model]) -> int:
    """Returns the round I have reached: mine, or my cohort's where that is well ahead.

    A peer that is much slower than the others would otherwise still train when they have left. The
    lower median, so that less than half of a cohort cannot move me.
    """
    if not models:
        return index
    others = median_low([model.round for model in models.values()])
    return others if others > index + MAX_LAG_ROUNDS else index


async def enter(peer: Peer, state: PeerState) -> PeerState:
    """Returns the state to begin with: mine once enough peers are there, or the swarm's.

    A swarm that is well past my round is not made to wait: I take its model and its round. One that
    is just ahead has nothing that I could not mix with mine in the usual way, judged as usual; and
    whom I meet first may be liars.

    Raises:
        TrackerError: no tracker answered, and no peer is known.
    """
    exchange = peer.file.session.exchange
    begun = peer.clock()
    await publish(peer, state.round, state.weights)
    while True:
        cohort = await meet(peer, begun + TRACKER_PATIENCE_S)
        pulls = await pull_all(peer, cohort, state.round)
        rounds = [model.round for model in pulls.models.values()]
        if swarm_round(state.round, pulls.models) > state.round:
            return await catch_up(peer, state, pulls.models)
        waited_s = peer.clock() - begun
        there = peer.answer.alive if peer.answer else 0
        if any(rounds) or there >= exchange.min_peers or waited_s > exchange.start_deadline_s:
            return state
        peer.view.message(f"waiting for peers: {there} of {exchange.min_peers}")
        await asyncio.sleep(POLL_S)


async def meet(peer: Peer, until_s: float, wanted: int | None = None) -> list[PeerAddress]:
    """Returns the first cohort; a tracker that does not answer is asked again until `until_s`."""
    wanted = wanted or max(1, peer.file.session.exchange.cohort)
    while True:
        try:
            return await announce(peer, "update", wanted)
        except TrackerError as fault:
            if peer.clock() > until_s:
                raise
            peer.view.message(f"{fault}; trying again for {TRACKER_PATIENCE_S:.0f} s")
            await asyncio.sleep(POLL_S)


async def catch_up(peer: Peer, state: PeerState, models: Mapping[str, Model]) -> PeerState:
    """Returns my state moved to the swarm's round, with its model unless it is no good for my data.

    A specialist's own model fits its own data better than the swarm's does, so a little worse is no
    reason to stay behind.
    """
    reached = min(peer.rounds, median_low([model.round for model in models.values()]))
    theirs = middle([model.vector for model in models.values()])
    lost = await peer.worker(partial(peer.learner.loss_by_taking, theirs, state.weights))
    good = lost < MAX_WORSE_NATS
    model = "taking its model" if good else "its model is no good on my data, keeping mine"
    peer.view.message(f"the swarm is at round {reached}: {model}")
    moved = replace(state, round=reached, weights=theirs if good else state.weights)
    await save(peer, moved)
    return moved


def middle(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the coordinate-wise median of K vectors [P], or their mean where K < 3.

    Models of strangers are taken over here before any trust in them exists, and the median ignores
    less than half of them, whatever they hold (Yin et al. 2018, arXiv:1803.01498).
    """
    stacked = torch.stack(vectors)
    return stacked.median(dim=0).values if len(vectors) >= 3 else stacked.mean(dim=0)


async def seed(peer: Peer, state: PeerState) -> None:
    """Serves the final model until the others are done too, or nobody asks for it any more.

    While somebody is missing who was here before, I stay a little: a peer that crashed and comes
    back should find the swarm's model, even if all who held it have finished.
    """
    await publish(peer, state.round, state.weights)
    begun = quiet_since = peer.clock()
    served = peer.wire.traffic.transfers_out
    while peer.clock() - begun < peer.seeding_s and peer.clock() - quiet_since < SEEDING_QUIET_S:
        try:
            # Every time: a tracker that was restarted would count me as training still.
            await announce(peer, "completed", 0)
            missing = peer.directory.known.missing()
            if peer.answer and peer.answer.training == 0 and not missing:
                return
        except TrackerError:
            pass
        peer.view.message("done; serving the final model to peers that still train or come back")
        await asyncio.sleep(POLL_S)
        if peer.wire.traffic.transfers_out != served:
            served, quiet_since = peer.wire.traffic.transfers_out, peer.clock()
