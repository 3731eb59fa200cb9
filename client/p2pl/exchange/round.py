"""One round, straight down: train, collect, mix, evaluate, save, tell."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
from torch import Tensor

from p2pl.events import RoundEnded, Undone
from p2pl.exchange.base import Collected, Exchange, Overtaken
from p2pl.exchange.node import Node
from p2pl.exchange.swap import Pulls
from p2pl.learner import Learner, Scored
from p2pl.learning.train import Start, Trained
from p2pl.mixing.base import Mixed
from p2pl.protocol.announce import Answer
from p2pl.run.files import write_atomically
from p2pl.run.log import BEST_FILE, RoundEntry
from p2pl.run.state import Best, PeerState, reopened, save_state


async def run(node: Node, exchange: Exchange, state: PeerState) -> PeerState:
    """Returns the state after the last round, when the peer has served others long enough.

    Args:
        node: the peer.
        exchange: how it gets the models of others.
        state: to begin with.

    Raises:
        TrackerError: no tracker answered at the start, and no peer is known.
        QuorumError: too few of the peers that decide are there.
        RunDirError: the saved state is of another kind of exchange.
        TrainingDiverged: the local loss is no longer finite.
    """
    try:
        async with exchange.running(node):
            state = await exchange.enter(node, state)
            while state.round < node.rounds:
                state = await run_round(node, exchange, state)
            return await exchange.finish(node, state)
    finally:
        await node.stop_coming()


async def run_round(node: Node, exchange: Exchange, state: PeerState) -> PeerState:
    """Returns the peer's state after one round.

    Args:
        node: the peer.
        exchange: its kind of exchange.
        state: after the last round.
    """
    index = state.round + 1
    meter = Meter.read(node)
    start = Start(state.weights, state.optimizer)
    trained = await node.fit(start, index)
    try:
        collected = await exchange.collect(node, state, trained)
    except Overtaken as moved:
        return moved.state
    trained = node.shared(trained)
    return await end_round(node, exchange, state, Local(index, start, trained, meter), collected)


async def end_round(
    node: Node, exchange: Exchange, state: PeerState, local: "Local", collected: Collected
) -> PeerState:
    """Returns the peer's state after a round, once it is mixed, scored, saved and told.

    Args:
        node: the peer.
        exchange: how it got the models of others.
        state: before the round.
        local: what the peer did in it by itself.
        collected: what others gave.
    """
    start, trained = local.start, local.trained
    mixed = collected.mixed or await node.mix(
        state, trained.vector, collected.models, collected.age, start.vector
    )
    mixed = replace(mixed, vector=node.learner.at_home(mixed.vector, trained.vector))
    scored = await node.score(trained.vector, mixed.vector)
    after = PeerState(
        round=min(node.rounds, collected.reached),
        weights=mixed.vector,
        optimizer=node.learner.follow(start, trained, mixed.vector, local.index),
        trust=mixed.memory,
        memory=collected.memory(mixed),
    )
    outcome = Outcome(local.index, trained, collected.pulls, mixed, scored)
    await note_mix(node, after.round, mixed, collected.pulls.rejected)
    await remember(node, after, outcome, local.meter)
    after = reopened(node.run_dir, after)
    await exchange.saved(node, after)
    return after


@dataclass(frozen=True, slots=True)
class Meter:
    """Clock and counters at the beginning of a round."""

    clock_s: float
    bytes_in: Mapping[str, int]
    bytes_out: Mapping[str, int]
    total_in: int
    total_out: int
    messages_out: int
    relayed: int
    tracker_bytes: int
    tracker_seconds: float
    answer: Answer | None  # the tracker's last

    @classmethod
    def read(cls, node: Node) -> "Meter":
        """Returns what the counters of `node` show now."""
        traffic = node.transport.traffic
        return cls(
            clock_s=node.clock(),
            bytes_in=dict(traffic.bytes_in_by_peer),
            bytes_out=dict(traffic.bytes_out_by_peer),
            total_in=traffic.bytes_in,
            total_out=traffic.bytes_out,
            messages_out=traffic.messages_out,
            relayed=traffic.relayed_in + traffic.relayed_out,
            tracker_bytes=node.directory.bytes_in + node.directory.bytes_out,
            tracker_seconds=node.directory.seconds,
            answer=node.answer,
        )


@dataclass(frozen=True, slots=True)
class Local:
    """What a peer did in a round by itself."""

    index: int  # of the round
    start: Start
    trained: Trained
    meter: Meter  # at the beginning


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that came out of one round."""

    index: int
    trained: Trained
    pulls: Pulls
    mixed: Mixed
    scored: Scored


async def note_mix(node: Node, index: int, mixed: Mixed, rejected: Mapping[str, str]) -> None:
    """Keeps in the update log, if there is one, what the peer made its parameters of.

    Args:
        node: the peer.
        index: the round that ended.
        mixed: what became of it.
        rejected: by peer id, why a model did not come or could not be used.
    """
    if node.keeper:
        digests = {who: held.hash for who, held in node.held.items()}
        await node.keeper.mixed(index, mixed.row, digests, {**rejected, **mixed.rejected})


async def save(node: Node, state: PeerState) -> None:
    """Makes `state` what a restart goes on from."""
    spent = node.learner.trainer.spent
    whole = replace(
        state,
        directory=node.directory.state(),
        charged=spent.charged if spent else 0,
        personal=node.personal,
        best=node.best,
        logged=len(node.keeper.log) if node.keeper else 0,
    )
    await node.worker(partial(_saved, node, whole))


def _saved(node: Node, whole: PeerState) -> None:
    if node.keeper:
        node.keeper.save_sometimes()
    save_state(node.run_dir, node.file.id, whole)


async def remember(node: Node, after: PeerState, outcome: Outcome, meter: Meter) -> None:
    """Saves the state, then logs and shows the round; a crash in between costs one log line.

    Args:
        node: the peer.
        after: the state to save.
        outcome: what came of the round.
        meter: what was counted when it began.
    """
    scored: dict[str, float] = {}
    if node.keeps_personal:
        scored = await node.worker(partial(_personalise, node, outcome))
    before = node.best
    if node.keeps_best:
        node.best = better(before, after.round, outcome.scored.validation.loss)
    await save(node, after)
    if node.best is not before:
        await node.worker(partial(keep_best, node.run_dir, node.learner, after.weights))
    entry = msgspec.structs.replace(_entry(node, after.round, outcome, meter), **scored)
    node.events(RoundEnded(entry))


def better(before: Best | None, index: int, validation_loss: float) -> Best | None:
    """Returns the best round once round `index` is over; the earlier one of two that are alike.

    Args:
        before: the best one so far.
        index: of the round.
        validation_loss: of its model, after mixing; NaN where it is not known.
    """
    if not math.isfinite(validation_loss):
        return before
    if before is None or validation_loss < before.validation_loss:
        return Best(index, validation_loss)
    return before


def keep_best(run_dir: Path, learner: Learner, weights: Tensor) -> None:
    """Writes the parameters [P] of the best round, which `best` in the saved state names.

    A crash between the two leaves the state of that very round, from which this is done again.
    """
    write_atomically(run_dir / BEST_FILE, learner.checkpoint(weights))


def undo(node: Node, index: int) -> None:
    """Takes rounds later than `index` back: they are to be done again."""
    node.events(Undone(index))
    if node.best is not None and node.best.round > index:
        node.best = None


def _personalise(node: Node, outcome: Outcome) -> dict[str, float]:
    """Goes on with the personal model; returns how good it and the shared one are for the peer."""
    learner, trained = node.learner, outcome.trained.vector
    node.personal = learner.personalise(trained, node.personal, outcome.pulls.models, outcome.mixed)
    return learner.own_scores(node.personal, outcome.scored)


def _entry(node: Node, reached: int, outcome: Outcome, meter: Meter) -> RoundEntry:
    now = Meter.read(node)
    spent = node.learner.trainer.spent
    scored, pulls = outcome.scored, outcome.pulls
    silent = now.answer is meter.answer  # no tracker answered in this round
    met = sorted({*now.bytes_in, *now.bytes_out})
    moved = {
        peer_id: (
            now.bytes_in.get(peer_id, 0) - meter.bytes_in.get(peer_id, 0),
            now.bytes_out.get(peer_id, 0) - meter.bytes_out.get(peer_id, 0),
        )
        for peer_id in met
    }
    known = node.directory.known
    gone = [peer_id for peer_id in pulls.rejected if known.is_missing(peer_id)]
    here = [peer_id for peer_id in pulls.cohort if peer_id not in pulls.rejected]
    churn = node.presence.look(now.clock_s, here, gone)
    waited, node.seconds = node.seconds, {}
    turned_down = node.keeper.watch.faults if node.keeper else ()
    return RoundEntry(
        round=reached,
        train_loss=outcome.trained.loss,
        validation_loss=scored.validation.loss,
        accuracy=scored.after.accuracy,
        accuracy_before_mix=scored.before.accuracy,
        metrics=dict(scored.after.metrics),
        metrics_before_mix=dict(scored.before.metrics),
        trust=dict(outcome.mixed.row),
        cohort=pulls.cohort,
        received=tuple(pulls.models),
        rejected={**pulls.rejected, **outcome.mixed.rejected},
        resting={
            **{who: why for who, why in known.resting().items() if who not in pulls.cohort},
            **pulls.resting,
            **{who: node.turned_down(who) or "" for who in turned_down if who not in pulls.cohort},
        },
        versions={peer_id: model.round for peer_id, model in pulls.models.items()},
        joined=churn.joined,
        left=churn.left,
        bytes_in=now.total_in - meter.total_in,
        bytes_out=now.total_out - meter.total_out,
        messages_out=now.messages_out - meter.messages_out,
        bytes_relayed=now.relayed - meter.relayed,
        bytes_by_peer={peer_id: both for peer_id, both in moved.items() if any(both)},
        seconds_by_peer=waited,
        tracker_bytes=now.tracker_bytes - meter.tracker_bytes,
        tracker_seconds=None if silent else now.tracker_seconds - meter.tracker_seconds,
        seconds=now.clock_s - meter.clock_s,
        samples=outcome.trained.samples,
        epsilon=spent.epsilon if spent else None,
        trust_epsilon=spent.trust_epsilon if spent else None,
        time=node.wall_clock(),
    )
