"""Rounds in lockstep: all train, all draw a cohort, all mix what the cohort trained this round.

Every number comes from the same `Learner` that a networked peer computes with; what the network
does between two of its calls is done here by lists. All peers share one model as working space and
one copy of the data.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from p2pl.data.load import Data
from p2pl.errors import FrameError
from p2pl.garbage import rarely_collected
from p2pl.learner import Learner, Scored
from p2pl.learning import models
from p2pl.learning.device import computing_with
from p2pl.learning.flower import Clients
from p2pl.learning.task import Scores
from p2pl.learning.train import OptimizerState, Start, Trained
from p2pl.learning.trainer import unchanged
from p2pl.learning.weights import flatten
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.run.log import RoundEntry
from p2pl.simulation import attackers
from p2pl.simulation.compute import Engine, choose, judge_all, mix_all, score_all, train_all
from p2pl.simulation.everybody import AllBut, Entries, Others
from p2pl.simulation.peers import peers_of
from p2pl.simulation.pulling import sources
from p2pl.simulation.raft import mix_at_the_leader, rows_behind
from p2pl.simulation.reality import Past
from p2pl.simulation.scoring import on_fewer
from p2pl.simulation.setup import Setup, check

T = TypeVar("T")
Offers: TypeAlias = Mapping[tuple[int, int | None], PeerModel | str]
OnRound = Callable[["SimulatedRound"], None]
OnBegin: TypeAlias = Callable[[Sequence[Learner]], None]
# Returns the engine for some peers: of the kind that is wanted, with so many threads at most.
Choosing: TypeAlias = Callable[[str, Sequence[Learner], int], Engine]


@dataclass(frozen=True, slots=True)
class SimulatedRound:
    """One round of all peers."""

    index: int
    entries: Sequence[RoundEntry]  # by peer: what its run log says
    liars: attackers.Liars | None  # None: all peers are honest
    consensus_distance: float  # mean |theta_i - mean|^2 / |mean|^2 over the honest peers
    mean_model: Mapping[str, float]  # metrics of the mean of the honest peers' parameters
    seconds: Mapping[str, float]  # by phase: train, mix, evaluate
    cpu_seconds: Mapping[str, float]  # of this process, likewise
    present: int  # peers that took part
    asked: int  # models that those asked for
    came: int  # of them, models that were delivered


@dataclass(frozen=True, slots=True)
class Result:
    """One seed's simulation."""

    setup: Setup
    honest: tuple[int, ...]  # numbers of the peers that figures are means over
    rounds: tuple[SimulatedRound, ...]
    scores: tuple[Scores, ...]  # by peer: of the final parameters, on the test set
    taken_in: float | None  # percent, by a backdoor, at last; None: there is none
    learners: tuple[Learner, ...]
    vectors: tuple[Tensor, ...]  # by peer: the final parameters, [P]
    samples: tuple[int, ...]  # by peer: to train on
    payload_bytes: int
    engine: Engine  # how peers were computed
    seconds: float  # all rounds together
    cpu_seconds: float  # of this process, likewise, with what the peers were made with
    scored_examples: int | None  # of the test set, before the last round; None: all
    began: float  # the first round, seconds since 1970
    cpu_seconds_before: float  # of this process, since it was started, until then


class Running(Protocol):
    """Runs one simulation, as `run` does."""

    def __call__(  # as `run`
        self,
        setup: Setup,
        data: Data | Clients,
        device: torch.device,
        on_round: OnRound | None = None,
        model: nn.Module | None = None,
        on_begin: OnBegin | None = None,
    ) -> Result:
        """Returns what came of it."""
        ...


@dataclass(frozen=True, slots=True)
class _State:
    """One peer between two rounds."""

    vector: Tensor  # [P], after mixing
    optimizer: OptimizerState = field(default_factory=dict)
    trust: msgspec.Struct | None = None  # what the mixing rule remembers
    personal: Tensor | None = None  # [P]; None: none is kept


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays from round to round, beside the states of the peers."""

    bad: attackers.Memory
    past: Past[PeerModel | str]
    judges: tuple[Learner, ...]  # by peer: who scores it before the last round


@dataclass(frozen=True, slots=True)
class _Pulls:
    """What one peer's cohort delivered."""

    cohort: Sequence[int]
    models: Mapping[str, PeerModel]
    rejected: Mapping[str, str]


@rarely_collected()
def run(  # noqa: PLR0913  # what is simulated, on what, and who is told of it
    setup: Setup,
    data: Data | Clients,
    device: torch.device,
    on_round: OnRound | None = None,
    model: nn.Module | None = None,
    on_begin: OnBegin | None = None,
    choosing: Choosing = choose,
) -> Result:
    """Returns what came of one simulation.

    Args:
        setup: the session, the peers, the seed.
        data: all of it; the partition says whose a training example is. Or clients of Flower, which
            have their own, and are scored on it.
        device: to compute on.
        on_round: called after every round.
        model: in the place of the session's, of the same layout, and left as it is; None: the
            session's own.
        on_begin: called with the peers, by number, before the first round.
        choosing: says how the peers are computed; a cluster's has its workers do it.

    Raises:
        InputError: the setup is not one that can be run.
        DataError: there is no test set, or too little data for so many peers.
        TrainingDiverged: a peer's loss is no longer finite.
    """
    check(setup)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    made = models.build(setup.seeded_session) if model is None else copy.deepcopy(model)
    space = made.to(device)
    learners = peers_of(setup, data, device, space)
    threads = torch.get_num_threads()
    if isinstance(data, Data):
        engine = choosing(setup.engine, learners, threads)
    else:
        engine = Engine("sequential", threads, threads)
    initial = flatten(space)
    learners = tuple(learner.beginning(initial) for learner in learners)
    if on_begin is not None:
        on_begin(learners)
    states: Sequence[_State] = [_State(initial) for _ in learners]
    honest = tuple(range(len(learners) - setup.bad))
    examples = setup.scoring.examples_of(learners, setup.session.training.local_epochs)
    judges = on_fewer(learners, examples)
    kept = _Kept(attackers.Memory(), Past(setup.reality.delay_rounds), judges)
    done: list[SimulatedRound] = []
    scores: Sequence[Scores] = ()
    began, cpu_seconds_before = time.time(), time.process_time()
    with computing_with(engine.threads):
        for index in range(1, setup.session.exchange.rounds + 1):
            states, one, scores = _round(setup, engine, learners, states, kept, index)
            done.append(one)
            if on_round is not None:
                on_round(one)
    return Result(
        setup=setup,
        honest=honest,
        rounds=tuple(done),
        scores=tuple(scores),
        taken_in=attackers.taken_in(setup, learners[0], [states[peer].vector for peer in honest]),
        learners=learners,
        vectors=tuple(state.vector for state in states),
        samples=tuple(learner.trainer.own_samples for learner in learners),
        payload_bytes=learners[0].codec.payload_bytes,
        engine=replace(engine, stack=None, workers=None),  # whose memory is not needed any more
        seconds=time.perf_counter() - begun,
        cpu_seconds=time.process_time() - cpu_begun,
        scored_examples=examples,
        began=began,
        cpu_seconds_before=cpu_seconds_before,
    )


def _round(
    setup: Setup,
    engine: Engine,
    learners: Sequence[Learner],
    states: Sequence[_State],
    kept: _Kept,
    index: int,
) -> tuple[list[_State], SimulatedRound, list[Scores]]:
    """Returns the peers' states after one round, what came of it, and scores, the last time all."""
    watch = _Watch(learners[0].trainer.device)
    everybody = range(len(learners))
    present = setup.reality.present(setup.name, setup.ids[: len(learners)], index)
    with watch("train"):
        starts = [Start(state.vector, state.optimizer) for state in states]
        forgiving = setup.attack is not None
        made = train_all(
            engine,
            [learners[peer] for peer in present],
            [starts[peer] for peer in present],
            index,
            forgiving=forgiving,
        )
        trained = _filled(present, made, lambda peer: unchanged(starts[peer]), len(learners))
    with watch("mix"):
        offers = _offers(setup, learners, states, trained, kept.bad, index)
        there = frozenset(present)
        kept.past.add(index, {key: one for key, one in offers.items() if key[0] in there})
        blocked = {peer: learners[peer].blocked(states[peer].trust) for peer in everybody}
        cohorts = sources(setup, index, blocked)[: len(learners)]
        pulls = _all_pulled(setup, offers, index, cohorts) or [
            _pull(setup, kept.past, peer, index, (cohorts[peer], there)) for peer in everybody
        ]
        kept.past.forget(index)
        at_leader = setup.session.exchange.kind == "raft" and not setup.baseline
        mixing = partial(mix_at_the_leader, setup) if at_leader else partial(mix_all, engine)
        blends = mixing(
            [learners[peer] for peer in present],
            [trained[peer].vector for peer in present],
            [pulls[peer].models for peer in present],
            [(states[peer].vector, states[peer].trust) for peer in present],
            index,
        )
        mixed = _filled(
            present, blends, lambda peer: _left_alone(learners[peer], states[peer]), len(learners)
        )
    with watch("evaluate"):
        vectors = [one.vector for one in mixed]
        scored, judged = _evaluate(setup, engine, learners, kept, (trained, vectors), index)
        distance, mean_model = _consensus(setup, learners, kept, (vectors, judged), index)
    personal = [state.personal for state in states]
    if setup.personal:
        with watch("personal"):
            for p in present:
                personal[p] = learners[p].personalise(
                    trained[p].vector, personal[p], pulls[p].models, mixed[p]
                )
    after = _filled(
        present,
        [
            _State(
                vectors[peer],
                learners[peer].follow(starts[peer], trained[peer], vectors[peer], index),
                mixed[peer].memory,
                personal[peer],
            )
            for peer in present
        ],
        states.__getitem__,
        len(learners),
    )
    sent, payload_bytes = _sent(pulls), learners[0].codec.payload_bytes
    mean_s = sum(watch.seconds.values()) / len(learners)
    alike = _all_alike(pulls, mixed)
    entries: Sequence[RoundEntry] = tuple(
        _entry(
            learners[peer],
            (index, payload_bytes, mean_s, sent[peer]),
            _Outcome(trained[peer], pulls[peer], mixed[peer], scored.get(peer), judged.get(peer)),
            personal[peer],
            named=not alike,
        )
        for peer in everybody
    )
    entries = Entries(entries, setup.names_in(index), mixed[0].row) if alike else entries
    rows = rows_behind(setup, mixed, index) if at_leader else [one.row for one in mixed]
    liars = attackers.liars(setup, entries, rows, index)
    asked = sum(len(cohorts[peer]) for peer in present)
    came = sum(len(pull.cohort) for pull in pulls)
    one = SimulatedRound(
        index=index,
        entries=entries,
        liars=liars,
        consensus_distance=distance,
        mean_model=mean_model,
        seconds=watch.seconds,
        cpu_seconds=watch.cpu_seconds,
        present=len(present),
        asked=asked,
        came=came,
    )
    return after, one, [judged[peer] for peer in sorted(judged)]


def _evaluate(
    setup: Setup,
    engine: Engine,
    learners: Sequence[Learner],
    kept: _Kept,
    vectors: tuple[Sequence[Trained], Sequence[Tensor]],
    index: int,
) -> tuple[dict[int, Scored], dict[int, Scores]]:
    """Returns scores around the mix, by peer, and of the mixed parameters alone: at last of all.

    Args:
        setup: of the simulation.
        engine: how.
        learners: by peer.
        kept: who scores before the last round.
        vectors: by peer, as trained and as mixed.
        index: the round.
    """
    trained, mixed = vectors
    some = scored_peers(setup, len(learners), index)
    judges = kept.judges if index < setup.session.exchange.rounds else learners
    around = score_all(
        engine,
        [judges[peer] for peer in some],
        [trained[peer].vector for peer in some],
        [mixed[peer] for peer in some],
    )
    scored = dict(zip(some, around, strict=True))
    judged = {peer: one.after for peer, one in scored.items()}
    if index == setup.session.exchange.rounds:
        if some and engine.stack is not None:  # all are scored on the same examples
            # Peers who all mix the same share one vector, which is scored once.
            same = (peer for peer, vector in enumerate(mixed) if vector is mixed[some[0]])
            judged = {**dict.fromkeys(same, judged[some[0]]), **judged}
        rest = [peer for peer in range(len(learners)) if peer not in judged]
        last = judge_all(engine, [learners[p] for p in rest], [mixed[p] for p in rest])
        judged |= dict(zip(rest, last, strict=True))
    return scored, judged


def _consensus(
    setup: Setup,
    learners: Sequence[Learner],
    kept: _Kept,
    mixed: tuple[Sequence[Tensor], Mapping[int, Scores]],
    index: int,
) -> tuple[float, Mapping[str, float]]:
    """Returns how far honest peers' parameters are from their mean, and the mean's metrics.

    Args:
        setup: of the simulation.
        learners: by peer.
        kept: who scores before the last round.
        mixed: by peer, [P], and the scores of those that were scored.
        index: the round; in one that is not scored, there are no metrics.
    """
    vectors, judged = mixed
    distance, mean = _spread(vectors[: len(vectors) - setup.bad])
    rounds = setup.session.exchange.rounds
    if not setup.scoring.scores(index, rounds):
        return distance, {}
    if 0 in judged and mean is vectors[0]:  # peers who all mix the same are at their mean
        return distance, judged[0].metrics
    judges = kept.judges if index < rounds else learners
    return distance, judges[0].judge(mean).metrics


def scored_peers(setup: Setup, peers: int, index: int) -> tuple[int, ...]:
    """Returns the numbers of the peers that are scored before and after the mix of a round.

    Args:
        setup: of the simulation.
        peers: how many there are.
        index: the round, from 1 on.
    """
    rounds = setup.session.exchange.rounds
    if index < rounds and not (setup.curves and setup.scoring.scores(index, rounds)):
        return ()
    return setup.scoring.numbers(peers)


def _offers(
    setup: Setup,
    learners: Sequence[Learner],
    states: Sequence[_State],
    trained: Sequence[Trained],
    memory: attackers.Memory,
    index: int,
) -> Offers:
    """Returns what everybody serves: by (peer, who asks), or by (peer, None) to all alike."""
    moment = attackers.Moment(
        index=index,
        before=[state.vector for state in states],
        trained=[one.vector for one in trained],
        trust=[state.trust for state in states],
    )
    serve = partial(_serve, index)
    made = attackers.crafted(setup, learners, moment, memory, serve)
    plain: dict[tuple[int, int | None], PeerModel | str] = {
        (p, None): serve(learners[p], trained[p].vector, learners[p].notes(states[p].trust))
        for p in range(len(learners) - setup.bad)
    }
    return {**plain, **made}


def _serve(index: int, learner: Learner, vector: Tensor, notes: bytes) -> PeerModel | str:
    """Returns what others get of a peer's parameters once they travelled; or why it is refused."""
    try:
        received = learner.at_home(learner.codec.arrived(vector), vector)
    except FrameError as fault:
        return str(fault)
    return PeerModel(index, learner.samples, received, notes)


def _all_pulled(
    setup: Setup, offers: Offers, index: int, cohorts: Sequence[Sequence[int]]
) -> list[_Pulls]:
    """Returns what each peer gets where everybody gets everybody's model; else nothing."""
    names = setup.names_in(index)
    served = {names[peer]: answer for (peer, asker), answer in offers.items() if asker is None}
    whole = {who: one for who, one in sorted(served.items()) if isinstance(one, PeerModel)}
    is_whole = len(whole) == len(offers) == len(names) and setup.reality.is_ideal
    if not is_whole or not all(isinstance(cohort, Others) for cohort in cohorts):
        return []
    pairs = zip(cohorts, names, strict=True)
    return [_Pulls(cohort, AllBut(whole, name), {}) for cohort, name in pairs]


def _all_alike(pulls: Sequence[_Pulls], mixed: Sequence[Mixed]) -> bool:
    """Returns whether everybody got everybody's model and mixed them all with the same weights."""
    all_got = all(isinstance(pull.models, AllBut) for pull in pulls)
    return all_got and all(one.row is mixed[0].row for one in mixed)


def _sent(pulls: Sequence[_Pulls]) -> Mapping[int, int]:
    """Returns how many models each peer gives, by number."""
    if all(isinstance(pull.cohort, Others) for pull in pulls):
        return dict.fromkeys(range(len(pulls)), len(pulls) - 1)
    return Counter(other for pull in pulls for other in pull.cohort)


def _pull(
    setup: Setup,
    past: Past[PeerModel | str],
    me: int,
    index: int,
    those: tuple[Sequence[int], frozenset[int]],
) -> _Pulls:
    """Returns what a peer's cohort of this round delivers.

    Args:
        setup: of the simulation.
        past: what everybody served, up to this round.
        me: the peer's number.
        index: the round.
        those: numbers of the peers of its cohort, and of those that take part in the round.
    """
    cohort, present = those
    if me not in present:
        return _Pulls((), {}, {})
    reality, drawn, names = setup.reality, (setup.name, setup.ids[me]), setup.names_in(index)
    reached = reality.delivered(drawn, index, cohort, present)
    delays = reality.delays(drawn, index, len(reached))
    answers = {
        names[other]: past.served(other, me, index, delay)
        for other, delay in zip(reached, delays, strict=True)
    }
    return _Pulls(
        reached,
        {peer: answer for peer, answer in answers.items() if isinstance(answer, PeerModel)},
        {peer: answer for peer, answer in answers.items() if isinstance(answer, str)},
    )


def _left_alone(learner: Learner, state: _State) -> Mixed:
    """Returns what a round is for a peer that does not take part: its model as it was."""
    return Mixed(state.vector, {learner.peer_id: 1.0}, {}, learner.memory(state.trust))


def _filled(
    present: Sequence[int], made: Sequence[T], other: Callable[[int], T], peers: int
) -> list[T]:
    """Returns by peer what those who take part made, and of each other one what it had.

    Args:
        present: numbers of those who take part.
        made: what each of them made.
        other: says what another one had.
        peers: how many there are.
    """
    if len(present) == peers:
        return list(made)
    found = dict(zip(present, made, strict=True))
    return [found[peer] if peer in found else other(peer) for peer in range(peers)]


def _spread(vectors: Sequence[Tensor]) -> tuple[float, Tensor]:
    """Returns how far parameters are from their mean, and the mean, [P].

    The relative distance: mean of |theta_i - mean|^2 over |mean|^2; 0 where all are equal.
    """
    if all(vector is vectors[0] for vector in vectors):
        return 0.0, vectors[0]
    mean = torch.zeros_like(vectors[0])
    for vector in vectors:
        mean.add_(vector, alpha=1 / len(vectors))
    apart = torch.stack([(vector - mean).square().sum() for vector in vectors]).mean()
    distance = float(apart / mean.square().sum().clamp(min=torch.finfo(mean.dtype).tiny))
    return distance, mean


@dataclass(frozen=True, slots=True)
class _Outcome:
    """All that came out of one peer's round."""

    trained: Trained
    pulls: _Pulls
    mixed: Mixed
    scored: Scored | None  # None: not scored around the mix
    judged: Scores | None  # of the mixed parameters, on the test set


def _entry(
    learner: Learner,
    spent_on: tuple[int, int, float, int],
    outcome: _Outcome,
    personal: Tensor | None,
    *,
    named: bool,
) -> RoundEntry:
    """Returns what the peer's run log says of the round.

    Args:
        learner: the peer's.
        spent_on: the round, the bytes of one model, the peer's share of the seconds, and how many
            models it gave.
        outcome: of its round.
        personal: its personal model, [P]; None: it keeps none.
        named: whether the others are named, and their weights.
    """
    scored, pulls, spent = outcome.scored, outcome.pulls, learner.trainer.spent
    own: dict[str, float] = {}
    if scored and personal is not None:
        own = learner.own_scores(personal, scored)
    index, payload_bytes, seconds, given = spent_on
    entry = RoundEntry(
        round=index,
        seconds=seconds,
        time=time.time(),
        train_loss=outcome.trained.loss if math.isfinite(outcome.trained.loss) else None,
        validation_loss=scored.validation.loss if scored else None,
        accuracy=outcome.judged.accuracy if outcome.judged else None,
        accuracy_before_mix=scored.before.accuracy if scored else None,
        metrics=dict(outcome.judged.metrics) if outcome.judged else {},
        metrics_before_mix=dict(scored.before.metrics) if scored else {},
        trust=dict(outcome.mixed.row) if named else {},
        cohort=(*pulls.models, *pulls.rejected) if named else (),
        received=tuple(pulls.models) if named else (),
        rejected={**pulls.rejected, **outcome.mixed.rejected},
        bytes_in=len(pulls.cohort) * payload_bytes,
        bytes_out=given * payload_bytes,
        samples=outcome.trained.samples,
        epsilon=spent.epsilon if spent else None,
        trust_epsilon=spent.trust_epsilon if spent else None,
    )
    return msgspec.structs.replace(entry, **own) if own else entry


class _Watch:
    """Adds up seconds by phase; work queued on a GPU counts in the phase that queued it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}  # of this process
        self._device = device

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun
        self.cpu_seconds[phase] = self.cpu_seconds.get(phase, 0.0) + time.process_time() - cpu_begun
