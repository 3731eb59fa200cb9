"""How the peers of a simulation are computed: all together, stacked, or one after another.

Which is faster depends on the model and the machine: many small models gain from being stacked, a
convolutional network on a processor does not. So both are tried for a few steps, and the faster one
does the run; where a step is long, it is tried with more threads too. They agree up to rounding.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.errors import InputError, TrainingDiverged, wrong
from p2pl.learner import MAX_AGE_ROUNDS, Learner, Scored
from p2pl.learning.batched import stacked
from p2pl.learning.batched.schedule import Job
from p2pl.learning.batched.stacked import Stack, Unstackable
from p2pl.learning.channels import has_convolutions
from p2pl.learning.device import computing_with
from p2pl.learning.task import Scores
from p2pl.learning.train import Start, Trained, diverged, train
from p2pl.learning.trainer import Round, trains_in, unchanged
from p2pl.learning.weights import flatten
from p2pl.mixing import size
from p2pl.mixing.base import Mixed, Own, PeerModel
from p2pl.mixing.fixed import FixedRow
from p2pl.seeds import seeded
from p2pl.simulation.everybody import AllBut
from p2pl.simulation.peers import is_stackable, own_part, torch_trainer, validation_part

Clock: TypeAlias = Callable[[], float]  # in seconds

TRIED_PEERS = 8
TRIED_STEPS = 3
MAX_TRIALS = 3  # the fastest one counts: the first may pay for what happens once
LONG_TRIAL_S = 0.05  # of all trials together; after it there is no further one
# Work shorter than this is done by one thread: on a busy machine, threads that wait for each other
# after every operation took 50 times as long. Chosen: a step of many milliseconds is long enough.
LONG_STEP_S = 0.02
# Convolutions on a CPU gain from being stacked only where a step is shorter than this, and a trial
# of a stack is long. Measured: two of them in 1 ms are stacked in a quarter of the time, in 3 ms
# take 1.2 times as long stacked, in 8 ms 1.5 times, in 10 ms 2.2 times.
LONG_CONVOLUTIONS_S = 0.005

# Of all pairs of peers; where more than this share pull from each other, one matrix product over
# all peers mixes faster than sums of the few. Chosen: 100 peers with cohorts of 4 are below it.
DENSE_SHARE = 1 / 8
SUMMED = 64  # models added up at once; chosen: a small network's stay in a processor's cache


class Workers(Protocol):
    """Computes peers in other processes, maybe on other machines.

    Each function is one of this module's, without the engine.
    """

    def train(
        self, learners: Sequence[Learner], starts: Sequence[Start], index: int, *, forgiving: bool
    ) -> list[Trained]:
        """Returns what every peer's local epochs made; as `train_all`."""
        ...

    def mix(
        self,
        learners: Sequence[Learner],
        vectors: Sequence[Tensor],
        received: Sequence[Mapping[str, PeerModel]],
        before: Sequence[tuple[Tensor, msgspec.Struct | None]],
        index: int,
    ) -> list[Mixed]:
        """Returns what every peer makes of what it received; as `mix_all`."""
        ...

    def score(
        self, learners: Sequence[Learner], before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> list[Scored]:
        """Returns how good parameters are around the mix; as `score_all`."""
        ...

    def judge(self, learners: Sequence[Learner], vectors: Sequence[Tensor]) -> list[Scores]:
        """Returns scores on the test set; as `judge_all`."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """How peers are computed."""

    kind: str  # stacked, or sequential; or ray: by workers of a cluster
    threads: int  # for each operation
    allowed: int  # threads in all
    stack: Stack | None = None  # what trains the peers where they are stacked
    workers: Workers | None = None  # who does it in this process's place


def choose(wanted: str, learners: Sequence[Learner], threads: int) -> Engine:
    """Returns the engine that trains these peers fastest.

    Args:
        wanted: auto, stacked or sequential.
        learners: by peer.
        threads: that may be used at most.

    Raises:
        InputError: `stacked` is wanted, and these peers cannot be stacked; or the model's outputs
            are not of the task's shape.
    """
    stackable = all(map(is_stackable, learners))
    if wanted == "stacked" and not stackable:
        raise InputError(
            wrong(
                "--engine",
                got=wanted,
                allowed="sequential: not all peers can be stacked (private training, a loop "
                "of one's own, or another task than the accuracy of classes)",
            )
        )
    kinds = ("stacked", "sequential") if wanted == "auto" and len(learners) > 1 else (wanted,)
    if not stackable or kinds == ("auto",):
        kinds = ("sequential",)
    trainer = torch_trainer(learners[0])
    trainer.model.eval()
    with torch.no_grad():  # says what is wrong with the outputs, which a stack does not look at
        trainer.objective.losses(flatten(trainer.model), trainer.own.take(torch.tensor([0])))
    stack = Stack(trainer.model, own_part(learners[0]).whole, threads) if stackable else None
    if stack is not None and stack.is_chain and kinds[0] == "stacked":
        kinds = ("stacked",)
        if threads == 1:
            return Engine("stacked", 1, 1, stack)
    # A thread's own time leaves out what else the machine does.
    clock = time.perf_counter if _on_gpu(learners) else time.thread_time
    if len(kinds) > 1 and not _on_gpu(learners) and has_convolutions(trainer.model):
        step = partial(_try, "sequential", stack, learners[:1], steps=1)
        if _seconds(step, 1, clock) > LONG_CONVOLUTIONS_S:
            kinds = ("sequential",)
    if kinds == ("sequential",) and threads == 1:
        return Engine("sequential", 1, 1, stack)
    tried = learners[: TRIED_PEERS if len(kinds) > 1 else 1]
    took = {kind: _seconds(partial(_try, kind, stack, tried), 1, clock) for kind in kinds}
    kind = min(kinds, key=took.__getitem__)
    if took[kind] == math.inf:
        raise InputError(wrong("--engine", got=wanted, allowed="sequential, with this model"))
    steps = TRIED_STEPS * (len(tried) if kind == "sequential" else 1)
    if threads > 1 and took[kind] > steps * LONG_STEP_S and not _on_gpu(learners):
        work = partial(_try, kind, stack, tried)
        best = min((1, threads), key=lambda count: _seconds(work, count, time.perf_counter))
        return Engine(kind, best, threads, stack)
    return Engine(kind, 1, threads, stack)


def train_all(
    engine: Engine,
    learners: Sequence[Learner],
    starts: Sequence[Start],
    index: int,
    *,
    forgiving: bool,
) -> list[Trained]:
    """Returns what every peer's local epochs made.

    Args:
        engine: how.
        learners: by peer.
        starts: by peer.
        index: the round.
        forgiving: whether a peer whose loss is no longer finite keeps the parameters that it had:
            a mixing rule that is fooled so far shall be seen in its scores.

    Raises:
        TrainingDiverged: a peer's loss is no longer finite.
    """
    if not learners:
        return []
    if engine.workers:
        return engine.workers.train(learners, starts, index, forgiving=forgiving)
    if engine.stack and engine.kind == "stacked" and trains_in(learners[0].session, index):
        jobs = [
            Job(start, own_part(learner), torch_trainer(learner).order(index))
            for learner, start in zip(learners, starts, strict=True)
        ]
        trained = engine.stack.train(jobs, Round.of(learners[0].session, index).training)
    else:
        one_by_one = partial(_train_one, index=index, forgiving=forgiving)
        trained = list(map(one_by_one, learners, starts))
    lost = [one.steps > 0 and not math.isfinite(one.loss) for one in trained]
    if any(lost) and not forgiving:
        raise diverged(math.nan, learners[0].session.training)
    return [
        unchanged(start) if gone else one
        for one, start, gone in zip(trained, starts, lost, strict=True)
    ]


def mix_all(
    engine: Engine,
    learners: Sequence[Learner],
    vectors: Sequence[Tensor],
    received: Sequence[Mapping[str, PeerModel]],
    before: Sequence[tuple[Tensor, msgspec.Struct | None]],
    index: int,
) -> list[Mixed]:
    """Returns what every peer makes of what it received.

    Args:
        engine: how.
        learners: by peer.
        vectors: by peer, [P], as trained.
        received: by peer, its cohort's models by peer id.
        before: by peer, from where it trained, [P], and what it remembers of the others.
        index: the round.
    """
    if not learners:
        return []
    trust = [state for _, state in before]
    mixer = learners[0].mixer
    if isinstance(mixer, FixedRow) and mixer.is_even:
        same = _mix_everybody(mixer, learners, vectors, received, index)
        if same is not None:
            vector, row = same
            memories = (one.memory(state) for one, state in zip(learners, trust, strict=True))
            return [Mixed(vector, row, {}, memory) for memory in memories]
    if engine.workers:
        return engine.workers.mix(learners, vectors, received, before, index)
    if engine.kind == "stacked" and isinstance(mixer, FixedRow) and _all_travels(learners[0]):
        offered = _offered_to_all(received, index)
        if offered and _all_alike(vectors, offered):
            return _mix_stacked(learners, vectors, received, offered, trust, index)
    return [
        learner.mix(vector, models, index, state, start=start)
        for learner, vector, models, (start, state) in zip(
            learners, vectors, received, before, strict=True
        )
    ]


def _mix_everybody(
    mixer: FixedRow,
    learners: Sequence[Learner],
    vectors: Sequence[Tensor],
    received: Sequence[Mapping[str, PeerModel]],
    index: int,
) -> tuple[Tensor, dict[str, float]] | None:
    """Returns the one mix of all peers and its row; None where they do not all mix the same.

    Args:
        mixer: whose row is the same for all that mix the same.
        learners: by peer.
        vectors: by peer, [P], as trained.
        received: by peer, its cohort's models by peer id.
        index: the round.
    """
    first = received[0]
    if not isinstance(first, AllBut) or not all(isinstance(one, AllBut) for one in received):
        return None
    offered = first.whole
    pairs = zip(learners, vectors, strict=True)
    if not all(offered[one.peer_id].vector is vector for one, vector in pairs):
        return None  # what travels is rounded, and a peer's own is not
    me = learners[0]
    own = Own(vectors[0], index, me.samples, me.trainer)
    row = dict(zip((me.peer_id, *first), mixer.row(own, first), strict=True))
    row = {who: row[who] for who in offered}
    weights, models = torch.tensor(list(row.values())), list(offered.values())
    mixed = torch.zeros_like(vectors[0])
    norms: list[Tensor] = []
    for begin in range(0, len(models), SUMMED):
        part = torch.stack([model.vector for model in models[begin : begin + SUMMED]])
        mixed += weights[begin : begin + SUMMED].to(part) @ part
        norms.append(part.norm(dim=1))
    return (mixed, row) if _are_alike(torch.cat(norms)) else None


def _all_alike(vectors: Sequence[Tensor], offered: Mapping[str, PeerModel]) -> bool:
    """Returns whether no model is out of proportion to any other, so that none is rejected."""
    every = (*vectors, *(model.vector for model in offered.values()))
    return _are_alike(torch.stack([one.norm() for one in every]))


def _are_alike(norms: Tensor) -> bool:
    """Returns whether the largest of these norms, [N], is in proportion to the smallest."""
    return bool(norms.max() <= size.MAX_RATIO * norms.min())


def _all_travels(learner: Learner) -> bool:
    """Returns whether a peer mixes all of its parameters, and keeps none to itself."""
    return learner.session.training.buffers == "mix" or not learner.trainer.layout.local


def _offered_to_all(
    received: Sequence[Mapping[str, PeerModel]], index: int
) -> Mapping[str, PeerModel] | None:
    """Returns the models received, by peer id.

    None where a peer served two different ones, or one so old that it is not mixed.

    Args:
        received: by peer, its cohort's models by peer id.
        index: the round.
    """
    offered: dict[str, PeerModel] = {}
    for models in received:
        for who, model in models.items():
            if offered.setdefault(who, model) is not model:
                return None
    is_fresh = all(model.round >= index - MAX_AGE_ROUNDS for model in offered.values())
    return offered if is_fresh else None


def _mix_stacked(
    learners: Sequence[Learner],
    vectors: Sequence[Tensor],
    received: Sequence[Mapping[str, PeerModel]],
    offered: Mapping[str, PeerModel],
    trust: Sequence[msgspec.Struct | None],
    index: int,
) -> list[Mixed]:
    """Returns the mixes of a rule that learns nothing, all of them computed at once.

    A peer's own parameters are taken from among those that are served, where they are the same:
    then peers who mix the same with the same weights get the same, to the last bit.
    """
    column = {who: k for k, who in enumerate(offered)}
    own = torch.zeros(len(learners))
    rows: list[dict[str, float]] = []
    taken: list[Sequence[int]] = []  # by peer, columns of those that it mixes
    weights: list[Sequence[float]] = []
    for peer, (learner, models) in enumerate(zip(learners, received, strict=True)):
        usable = {who: models[who] for who in sorted(models)}
        assert isinstance(learner.mixer, FixedRow)
        own_model = Own(vectors[peer], index, learner.samples, learner.trainer)
        row = learner.mixer.row(own_model, usable)
        rows.append(dict(zip((learner.peer_id, *usable), row, strict=True)))
        mine, others = offered.get(learner.peer_id), [column[who] for who in usable]
        if mine is not None and _same(mine.vector, vectors[peer]):
            taken.append((column[learner.peer_id], *others))
            weights.append(row)
        else:
            taken.append(others)
            weights.append(row[1:])
            own[peer] = row[0]
    mixed = _sums(torch.stack([model.vector for model in offered.values()]), taken, weights)
    if own.any():
        mixed += torch.stack(list(vectors)).mul_(own.to(mixed).unsqueeze(1))
    return [
        Mixed(mixed[peer], row, {}, learners[peer].memory(state))
        for peer, (row, state) in enumerate(zip(rows, trust, strict=True))
    ]


def _sums(
    served: Tensor, taken: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]
) -> Tensor:
    """Returns weighted sums of what is served, [N, P].

    Args:
        served: [K, P].
        taken: of each sum, rows of `served`.
        weights: of each of those.
    """
    counts = torch.tensor([len(some) for some in taken])
    places = torch.tensor([one for some in taken for one in some], dtype=torch.int64)
    each = torch.tensor([one for some in weights for one in some])
    if len(places) > DENSE_SHARE * len(taken) * len(served):
        matrix = torch.zeros(len(taken), len(served))
        matrix[torch.arange(len(taken)).repeat_interleave(counts), places] = each
        return matrix.to(served) @ served
    begins = (counts.cumsum(0) - counts).to(served.device)
    return functional.embedding_bag(
        places.to(served.device), served, begins, mode="sum", per_sample_weights=each.to(served)
    )


def score_all(
    engine: Engine,
    learners: Sequence[Learner],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> list[Scored]:
    """Returns how good each peer's parameters are, before and after mixing.

    Args:
        engine: how.
        learners: of the peers to score.
        before: by peer, [P], as trained.
        after: by peer, [P], as mixed.
    """
    if engine.workers:
        return engine.workers.score(learners, before, after)
    if not all(map(is_stackable, learners)):
        return [
            learner.score(trained, mixed)
            for learner, trained, mixed in zip(learners, before, after, strict=True)
        ]
    if _scores_alone(engine, learners):
        with computing_with(_scoring_threads(engine, learners)):
            own = [
                one.trainer.evaluate(vector, "validation")
                for one, vector in zip(learners, after, strict=True)
            ]
    else:
        held = list(map(validation_part, learners))
        classes = learners[0].session.task.classes
        own = stacked.evaluate_own(model_of(learners), after, held, classes)
    each = (judge_all(engine, learners, before), judge_all(engine, learners, after), own)
    return [Scored(*scores) for scores in zip(*each, strict=True)]


def judge_all(
    engine: Engine, learners: Sequence[Learner], vectors: Sequence[Tensor]
) -> list[Scores]:
    """Returns each peer's scores on the test set.

    Args:
        engine: how.
        learners: of the peers to score.
        vectors: by peer, [P].
    """
    if engine.workers:
        return engine.workers.judge(learners, vectors)
    if not all(map(is_stackable, learners)):
        return [one.judge(vector) for one, vector in zip(learners, vectors, strict=True)]
    # Peers who all mix the same end with the same model, which is scored once.
    apart = [n for n, vector in enumerate(vectors) if n == 0 or not _same(vector, vectors[0])]
    if _scores_alone(engine, learners):
        with computing_with(_scoring_threads(engine, learners)):
            scores = [learners[n].judge(vectors[n]) for n in apart]
    else:
        model, test = model_of(learners), torch_trainer(learners[0]).test
        assert test is not None  # `peers_of` has seen to it
        classes = learners[0].session.task.classes
        different = [vectors[n] for n in apart]
        scores = stacked.evaluate(model, different, test, classes, engine.allowed)
    scored = dict(zip(apart, scores, strict=True))
    return [scored[n if n in scored else 0] for n in range(len(vectors))]


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _scores_alone(engine: Engine, learners: Sequence[Learner]) -> bool:
    """Returns whether peers are scored one after another: on a CPU, so are convolutions."""
    if engine.kind == "sequential" or not learners:
        return True
    return not _on_gpu(learners) and has_convolutions(model_of(learners))


def _scoring_threads(engine: Engine, learners: Sequence[Learner]) -> int:
    """Returns how many threads score one peer: all for convolutions, whose batches are large."""
    large = bool(learners) and has_convolutions(model_of(learners))
    return engine.allowed if large else engine.threads


def _train_one(learner: Learner, start: Start, index: int, *, forgiving: bool) -> Trained:
    try:
        return learner.fit(start, index)
    except TrainingDiverged:
        if not forgiving:
            raise
        return unchanged(start)


def model_of(learners: Sequence[Learner]) -> nn.Module:
    """Returns the model that all peers share as working space."""
    return torch_trainer(learners[0]).model


def _seconds(work: Callable[[], None], threads: int, clock: Clock) -> float:
    """Returns how long some work takes; infinity where the model cannot be stacked."""
    took: list[float] = []
    with computing_with(threads):
        while len(took) < 2 or (len(took) < MAX_TRIALS and sum(took) < LONG_TRIAL_S):
            begun = clock()
            try:
                work()
            except Unstackable:
                return math.inf
            took.append(clock() - begun)
    return min(took)


def _try(
    kind: str, stack: Stack | None, learners: Sequence[Learner], steps: int = TRIED_STEPS
) -> None:
    """Does a few steps of some peers' training; what they make is thrown away."""
    objective = torch_trainer(learners[0]).objective
    training = msgspec.structs.replace(learners[0].session.training, local_epochs=1)
    count = steps * training.batch_size
    start = Start(flatten(objective.model))
    jobs = [
        Job(start, part.part(torch.arange(min(count, len(part)))), seeded("", "", 0, "try"))
        for part in map(own_part, learners)
    ]
    if stack and kind == "stacked":
        stack.train(jobs, training)
    else:
        for job in jobs:
            with suppress(TrainingDiverged):  # the run itself will say so, or forgive it
                train(objective, job.start, job.part, training, job.order)
    if _on_gpu(learners):
        torch.cuda.synchronize(learners[0].trainer.device)


def _on_gpu(learners: Sequence[Learner]) -> bool:
    return learners[0].trainer.device.type == "cuda"
