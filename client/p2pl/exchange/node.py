"""All that one peer holds while it takes part in a session, and the steps that exchanges share."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import msgspec
from torch import Tensor

from p2pl.attacks.peer import Attacker
from p2pl.errors import FrameError, PullError, TrackerError
from p2pl.learning.learner import Learner, Mixed, Model, Scored
from p2pl.learning.train import OnStep, Trained
from p2pl.network.directory import Directory
from p2pl.network.pull import Unchanged
from p2pl.network.version import Version
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import Answer, Event, PeerAddress
from p2pl.protocol.session import SessionFile
from p2pl.run.log import RoundEntry, RunLog
from p2pl.run.presence import Presence
from p2pl.run.state import PeerState, save_state
from p2pl.terminal import View

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_INTERVAL_S = 30.0  # until a tracker has said how often it wants to hear from me
MAX_SPARE = 8  # asked for beyond the cohort, in the place of peers that I will not ask
MAX_WAITED_LAG = 2  # rounds; who is further behind is not waited for, and so holds nobody up


class Interrupted(Exception):  # no error: the person asked for it
    """The person asked to stop; raised inside the worker thread, between two steps."""


@dataclass(frozen=True, slots=True)
class Held:
    """A version, kept in case it is still the newest when I ask again."""

    digest: bytes
    model: Model


@dataclass(slots=True)
class Peer:
    """One peer in one session."""

    file: SessionFile
    wire: CurveWire
    directory: Directory
    learner: Learner
    log: RunLog
    view: View
    rounds: int  # to do in all
    seeding_s: float  # to serve others at most, when done
    stopping: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    announcing: asyncio.Lock = field(default_factory=asyncio.Lock)  # one at a time, in order
    answer: Answer | None = None  # the tracker's last
    held: Mapping[str, Held] = field(default_factory=dict)  # by peer id, of the last round
    met: dict[str, PeerAddress] = field(default_factory=dict)  # who asked me, as last passed on
    mine: Held | None = None  # what I serve
    attacker: Attacker | None = None  # None: I serve what I trained
    presence: Presence = field(default_factory=Presence)
    keeps_personal: bool = False  # whether I keep a model of my own distribution beside
    personal: Tensor | None = None  # that model, [P]

    async def worker(self, work: Callable[[], T]) -> T:
        """Returns `work()`, done in a thread, so that others are served meanwhile."""
        return await asyncio.to_thread(work)

    def newly_met(self) -> list[PeerAddress]:
        """Returns the peers that asked me from an address that I had not passed on yet."""
        new = [one for peer_id, one in self.wire.seen.items() if self.met.get(peer_id) != one]
        self.met = dict(self.wire.seen)
        return new


def stepper(view: View, index: int, stopping: threading.Event) -> OnStep:
    """Returns what training calls between two steps: it shows progress and ends on request."""

    def step(done: int, steps: int) -> None:
        if stopping.is_set():
            raise Interrupted
        view.training(index, done, steps, float("nan"))

    return step


@dataclass(frozen=True, slots=True)
class Pulls:
    """What one round's pulls brought."""

    cohort: tuple[str, ...]  # ids of the peers asked
    models: Mapping[str, Model]  # by peer id, the usable ones
    rejected: Mapping[str, str]  # peer id -> why there is nothing usable from it


@dataclass(frozen=True, slots=True)
class Meter:
    """Clock and counters at the beginning of a round."""

    clock_s: float
    bytes_in: Mapping[str, int]
    bytes_out: Mapping[str, int]
    total_in: int
    total_out: int
    messages_out: int
    tracker_bytes: int
    tracker_seconds: float
    answer: Answer | None  # the tracker's last

    @classmethod
    def read(cls, peer: Peer) -> "Meter":
        """Returns what the counters of `peer` show now."""
        traffic = peer.wire.traffic
        return cls(
            clock_s=peer.clock(),
            bytes_in=dict(traffic.bytes_in_by_peer),
            bytes_out=dict(traffic.bytes_out_by_peer),
            total_in=traffic.bytes_in,
            total_out=traffic.bytes_out,
            messages_out=traffic.messages_out,
            tracker_bytes=peer.directory.bytes_in + peer.directory.bytes_out,
            tracker_seconds=peer.directory.seconds,
            answer=peer.answer,
        )


async def publish(peer: Peer, index: int, vector: Tensor, notes: bytes = b"") -> None:
    """Serves `vector` as my newest version from now on, with what I think of others."""
    if peer.attacker is not None:
        pulled = {peer_id: held.model for peer_id, held in peer.held.items()}
        vector = await peer.worker(partial(peer.attacker.lie, index, vector, pulled))
        notes = peer.attacker.gossip(notes, pulled)
    payload = await peer.worker(partial(peer.learner.encode, vector))
    samples = peer.learner.samples
    keep_last = peer.file.session.exchange.lockstep
    digest = await peer.wire.publish(Version(index, samples, payload, notes), keep_last=keep_last)
    peer.mine = Held(digest, Model(index, samples, vector))


async def announce(
    peer: Peer, event: Event, wanted: int, *, without: Collection[str] = ()
) -> list[PeerAddress]:
    """Returns up to `wanted` peers: a random cohort from the tracker, or from those I know.

    A peer that could not be reached lately is left out, and so costs no round a deadline; so are
    those of the ids `without`.

    Raises:
        TrackerError: no tracker answered, and no peer is known.
    """
    known = peer.directory.known
    known.hear(peer.newly_met())
    resting = {one.id for one in known.addresses() if known.rests(one.id)}
    spare = min(MAX_SPARE, len(resting.union(without))) if wanted else 0
    try:
        async with peer.announcing:
            peer.answer = await peer.directory.announce(event, numwant=wanted + spare)
    except TrackerError as fault:
        cohort = known.sample(wanted, without=without)
        if not cohort:
            raise
        log.info("no tracker: going on with %d known peers; %s", len(cohort), fault)
        return cohort
    avoided = resting.union(without)
    there = [address for address in peer.answer.peers if address.id not in avoided]
    # A tracker that was just restarted knows fewer peers than I do.
    taken = avoided.union(one.id for one in there)
    there += known.sample(max(0, wanted - len(there)), without=taken)
    return there[:wanted]


async def keep_announcing(peer: Peer) -> None:
    """Announces whenever a round takes longer than the tracker remembers a silent peer."""
    while True:
        await asyncio.sleep(peer.answer.interval_s if peer.answer else FIRST_INTERVAL_S)
        with contextlib.suppress(TrackerError):
            await announce(peer, "update", 0)


async def pull_all(peer: Peer, cohort: Sequence[PeerAddress], index: int) -> Pulls:
    """Returns what the cohort serves, within one deadline; a late or lying peer is only named.

    Args:
        peer: me.
        cohort: whom to ask, all at the same time.
        index: my round; who is not far behind it gets `exchange.wait_s` to reach it.
    """
    answers = await asyncio.gather(*(_pull(peer, address, index) for address in cohort))
    held: dict[str, Held] = {}
    rejected: dict[str, str] = {}
    for address, answer in zip(cohort, answers, strict=True):
        if isinstance(answer, str):
            rejected[address.id] = answer
        else:
            held[address.id] = answer
    peer.held = held
    models = {peer_id: one.model for peer_id, one in held.items()}
    return Pulls(tuple(address.id for address in cohort), models, rejected)


async def _pull(peer: Peer, address: PeerAddress, index: int) -> Held | str:
    """Returns one peer's newest version, or why there is none."""
    known = peer.held.get(address.id)
    lags = known is not None and known.model.round < index - MAX_WAITED_LAG
    wait_s = 0.0 if lags else peer.file.session.exchange.wait_s
    before = known or peer.mine  # at the start, theirs is the initial checkpoint like mine
    return await _ask_for(peer, address, index, wait_s, before)


async def fetch(peer: Peer, address: PeerAddress) -> Held | str:
    """Returns a peer's newest version as it is now, or why there is none."""
    return await _ask_for(peer, address, 0, 0.0, None)


async def _ask_for(
    peer: Peer, address: PeerAddress, index: int, wait_s: float, before: Held | None
) -> Held | str:
    """Returns a peer's version, or why there is none; whose fault that is rests for a while.

    Args:
        peer: me.
        address: whom to ask.
        index: the round that it is to have reached.
        wait_s: how long to wait for that.
        before: a version that need not be sent again.
    """
    known = peer.directory.known
    try:
        pulled = await peer.wire.pull(
            address,
            have=before.digest if before else None,
            round=index,
            wait_s=wait_s,
            deadline_s=peer.file.session.exchange.pull_deadline_s,
            size=peer.learner.payload_bytes,
        )
        if isinstance(pulled, Unchanged):
            if before is None:
                raise FrameError("answer: got 'not modified', though I hold nothing of it")
            model = replace(before.model, round=pulled.round)
            held = replace(before, model=model)
        else:
            vector = await peer.worker(partial(peer.learner.decode, pulled.payload))
            model = Model(pulled.round, pulled.samples, vector, pulled.notes)
            held = Held(pulled.digest, model)
    except PullError as fault:
        known.blame(address.id)
        return str(fault)
    except FrameError as fault:
        known.blame(address.id, answered=True)
        return str(fault)
    known.learn(address)
    return held


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that came out of one round."""

    index: int
    trained: Trained
    pulls: Pulls
    mixed: Mixed
    scored: Scored


async def save(peer: Peer, state: PeerState) -> None:
    """Makes `state` what a restart goes on from."""
    whole = replace(
        state,
        directory=peer.directory.state(),
        charged=peer.learner.charged,
        personal=peer.personal,
    )
    await peer.worker(partial(save_state, peer.log.directory, peer.file.id, whole))


async def remember(peer: Peer, after: PeerState, outcome: Outcome, meter: Meter) -> None:
    """Saves the state, then logs and shows the round; a crash in between costs one log line."""
    scored: dict[str, float] = {}
    if peer.keeps_personal:
        scored = await peer.worker(partial(_personalise, peer, outcome))
    await save(peer, after)
    entry = msgspec.structs.replace(_entry(peer, after.round, outcome, meter), **scored)
    peer.log.append(entry)
    peer.view.round(entry)


def _personalise(peer: Peer, outcome: Outcome) -> dict[str, float]:
    """Goes on with my personal model, and returns how good it and the shared one are for me."""
    learner, trained = peer.learner, outcome.trained.vector
    peer.personal = learner.personalise(trained, peer.personal, outcome.pulls.models, outcome.mixed)
    return {
        "personal_accuracy": learner.own_accuracy(learner.judge(peer.personal)),
        "own_accuracy": learner.own_accuracy(outcome.scored.after),
        "own_accuracy_before_mix": learner.own_accuracy(outcome.scored.before),
    }


def _entry(peer: Peer, reached: int, outcome: Outcome, meter: Meter) -> RoundEntry:
    now = Meter.read(peer)
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
    known = peer.directory.known
    gone = [peer_id for peer_id in pulls.rejected if known.is_missing(peer_id)]
    here = [peer_id for peer_id in pulls.cohort if peer_id not in pulls.rejected]
    churn = peer.presence.look(now.clock_s, here, gone)
    return RoundEntry(
        round=reached,
        train_loss=outcome.trained.loss,
        validation_loss=scored.validation.loss,
        accuracy=scored.after.accuracy,
        accuracy_before_mix=scored.before.accuracy,
        trust=dict(outcome.mixed.row),
        cohort=pulls.cohort,
        received=tuple(pulls.models),
        rejected={**pulls.rejected, **outcome.mixed.rejected},
        versions={peer_id: model.round for peer_id, model in pulls.models.items()},
        joined=churn.joined,
        left=churn.left,
        bytes_in=now.total_in - meter.total_in,
        bytes_out=now.total_out - meter.total_out,
        messages_out=now.messages_out - meter.messages_out,
        bytes_by_peer={peer_id: both for peer_id, both in moved.items() if any(both)},
        tracker_bytes=now.tracker_bytes - meter.tracker_bytes,
        tracker_seconds=None if silent else now.tracker_seconds - meter.tracker_seconds,
        seconds=now.clock_s - meter.clock_s,
        samples=outcome.trained.samples,
        epsilon=peer.learner.epsilon,
        trust_epsilon=peer.learner.trust_epsilon,
        time=peer.wall_clock(),
    )
