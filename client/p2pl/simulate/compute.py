"""How the peers of a simulation are computed: all together, stacked, or one after another.

Which is faster depends on the model and the machine: many small models gain from being stacked, a
convolutional network on a processor does not. So both are tried for a few steps, and the faster one
does the run; where a step is long, it is tried with more threads too. They agree up to rounding.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from p2pl.errors import InputError, TrainingDiverged, wrong
from p2pl.learning import stacked
from p2pl.learning.examples import Part
from p2pl.learning.learner import Learner, Scored
from p2pl.learning.seeds import seeded
from p2pl.learning.train import Start, Trained, diverged, train
from p2pl.learning.weights import flatten

TRIED_PEERS = 8
TRIED_STEPS = 2
TRIALS = 2  # the faster one counts: the first may pay for what happens once
# Work shorter than this is done by one thread: on a busy machine, threads that wait for each other
# after every operation took 50 times as long. Chosen: a step of many milliseconds is long enough.
LONG_STEP_S = 0.02
LONG_SCORING_OPERATIONS = 2e10  # about half a second for one thread


@dataclass(frozen=True, slots=True)
class Engine:
    """How peers are computed."""

    kind: str  # stacked, or sequential
    threads: int  # to compute with
    allowed: int  # threads, for what is long


def choose(wanted: str, learners: Sequence[Learner], threads: int) -> Engine:
    """Returns the engine that trains these peers fastest.

    Args:
        wanted: auto, stacked or sequential.
        learners: by peer.
        threads: that may be used at most.

    Raises:
        InputError: `stacked` is wanted, and these peers cannot be stacked.
    """
    stackable = all(learner.private is None for learner in learners)
    if wanted == "stacked" and not stackable:
        raise InputError(wrong("--engine", got=wanted, allowed="sequential, with private training"))
    kinds = ("stacked", "sequential") if wanted == "auto" and len(learners) > 1 else (wanted,)
    if not stackable or kinds == ("auto",):
        kinds = ("sequential",)
    tried = learners[:TRIED_PEERS]
    took = {kind: _seconds(kind, 1, tried) for kind in kinds}
    kind = min(kinds, key=took.__getitem__)
    if took[kind] == math.inf:
        raise InputError(wrong("--engine", got=wanted, allowed="sequential, with this model"))
    steps = TRIED_STEPS * (len(tried) if kind == "sequential" else 1)
    if threads > 1 and took[kind] > steps * LONG_STEP_S and learners[0].device.type == "cpu":
        best = min((1, threads), key=lambda count: _seconds(kind, count, tried))
        return Engine(kind, best, threads)
    return Engine(kind, 1, threads)


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
            a mixing rule that is fooled so far shall be seen in its accuracy.

    Raises:
        TrainingDiverged: a peer's loss is no longer finite.
    """
    if engine.kind == "stacked":
        trained = _train_stacked(learners, starts, index)
    else:
        trained = [
            _train_one(learner, start, index)
            for learner, start in zip(learners, starts, strict=True)
        ]
    if forgiving:
        return [
            one if math.isfinite(one.loss) else Trained(s.vector, math.nan, 0, 0, s.optimizer)
            for one, s in zip(trained, starts, strict=True)
        ]
    for one in trained:
        if not math.isfinite(one.loss):
            raise diverged(one.loss, learners[0].session.training)
    return trained


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
    if engine.kind == "sequential":
        return [
            learner.score(trained, mixed)
            for learner, trained, mixed in zip(learners, before, after, strict=True)
        ]
    model, test = learners[0].model, learners[0].test
    classes = learners[0].session.task.classes
    assert test is not None  # `peers_of` has seen to it
    operations = 2 * learners[0].layout.total * len(test) * len(learners)
    held = [_part(learner.validation) for learner in learners]
    long = operations > LONG_SCORING_OPERATIONS
    with computing_with(engine.allowed if long else engine.threads):
        return [
            Scored(*scores)
            for scores in zip(
                stacked.evaluate(model, before, test, classes),
                stacked.evaluate(model, after, test, classes),
                stacked.evaluate_own(model, after, held, classes),
                strict=True,
            )
        ]


def _train_stacked(
    learners: Sequence[Learner], starts: Sequence[Start], index: int
) -> list[Trained]:
    jobs = [
        stacked.Job(start, _part(learner.own), learner.order(index))
        for learner, start in zip(learners, starts, strict=True)
    ]
    return stacked.train(learners[0].model, jobs, learners[0].session.training)


def _train_one(learner: Learner, start: Start, index: int) -> Trained:
    try:
        return learner.train(start, index, _nothing)
    except TrainingDiverged:
        return Trained(start.vector, math.nan, 0, 0, start.optimizer)


def _nothing(done: int, steps: int) -> None:
    """Takes no notice of a step."""


def _part(source: object) -> Part:
    assert isinstance(source, Part)  # `peers_of` makes them so
    return source


def _seconds(kind: str, threads: int, learners: Sequence[Learner]) -> float:
    """Returns how long a few steps take; infinity where the model cannot be stacked."""
    try:
        with computing_with(threads):
            return min(_trial(kind, learners) for _ in range(TRIALS))
    except RuntimeError:  # torch.func.vmap: an operation that it cannot batch
        if kind == "sequential":
            raise
        return math.inf


def _trial(kind: str, learners: Sequence[Learner]) -> float:
    """Returns the seconds that a few steps of some peers took; what they make is thrown away."""
    model, device = learners[0].model, learners[0].device
    training = msgspec.structs.replace(learners[0].session.training, local_epochs=1)
    count = TRIED_STEPS * training.batch_size
    start = Start(flatten(model))
    jobs = [
        stacked.Job(start, part.part(torch.arange(min(count, len(part)))), seeded("", "", 0, "try"))
        for part in (_part(learner.own) for learner in learners)
    ]
    begun = time.perf_counter()
    if kind == "stacked":
        stacked.train(model, jobs, training)
    else:
        for job in jobs:
            train(model, job.start, job.part, training, job.order)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


@contextmanager
def computing_with(count: int) -> Iterator[None]:
    """Uses `count` threads for each operation inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
