"""What computes some peers of a simulation elsewhere: in a worker process of a cluster.

A worker holds what does not change: the data, the model and everybody's learner. Whatever a peer is
between two rounds comes with each call and goes back with its answer. So any worker can compute any
peer, and a call that was lost with a worker is made again at another one, with the same numbers:
their randomness is named by peer and round (`p2pl.seeds`), never by place.

What travels are numpy arrays, for a store that several processes read without a copy, and small
values beside them. An array that arrives may be read-only memory: nothing here writes to one.
"""

import copy
import hashlib
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from p2pl import __version__
from p2pl.data.examples import Examples
from p2pl.data.load import Data
from p2pl.learner import Learner, Scored
from p2pl.learning import device as devices
from p2pl.learning.models import MODELS
from p2pl.learning.task import TASKS, Scores
from p2pl.learning.train import OptimizerState, Start, Trained
from p2pl.mixing.base import MIXERS, Mixed, PeerModel
from p2pl.registry import Registry
from p2pl.simulation import compute
from p2pl.simulation.engine import Result, run
from p2pl.simulation.peers import peers_of
from p2pl.simulation.setup import Setup

Array: TypeAlias = Any  # a numpy array of any shape and type
Arrays: TypeAlias = Mapping[str, Array]

# What a person may have registered in the process that simulates, by the field of a session.
REGISTRIES: Mapping[str, Registry[Any]] = {"task": TASKS, "model": MODELS, "mixing": MIXERS}


@dataclass(frozen=True, slots=True)
class Stamp:
    """By what a process computes: two that are alike give the same numbers."""

    version: str  # of p2pl
    code: str  # a digest of the package's files
    torch: str
    python: str


@dataclass(frozen=True, slots=True)
class Shared:
    """Everybody's data on their way to the workers; the arrays of both parts go beside."""

    labels: tuple[str, ...]
    test_share: float | None
    forms: tuple[str, str]  # of the inputs to train and to test on: one, tuple, or names


@dataclass(frozen=True, slots=True)
class Brought:
    """A task, a model or a rule that a person registered in the process that simulates."""

    field: str  # one of REGISTRIES
    name: str
    thing: Any


@dataclass(frozen=True, slots=True)
class Made:
    """What training made of one peer; its parameters and its optimizer's state go beside."""

    loss: float
    steps: int
    samples: int


@dataclass(frozen=True, slots=True)
class Served:
    """A model that was received; its parameters go beside."""

    round: int
    samples: int
    notes: bytes
    at: int  # among the arrays


@dataclass(frozen=True, slots=True)
class Mixing:
    """What one peer mixes; numbers say where among the arrays parameters are."""

    own: int
    start: int
    received: Mapping[str, int]  # by peer id: which of the models
    memory: msgspec.Struct | None


@dataclass(frozen=True, slots=True)
class Blend:
    """What one peer made of what it received; its parameters go beside."""

    row: Mapping[str, float]
    rejected: Mapping[str, str]
    memory: msgspec.Struct


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores without a tensor."""

    loss: float
    metrics: Mapping[str, float]
    confusion: Array  # [C, C] int64


def stamp() -> Stamp:
    """Returns by what this process computes."""
    mark, package = hashlib.sha256(), Path(devices.__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        mark.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return Stamp(__version__, mark.hexdigest()[:16], torch.__version__, platform.python_version())


class Worker:
    """Computes the peers that it is asked for.

    Args:
        threads: for each operation.
        device: auto, cpu or cuda.
    """

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._threads, self._device = threads, devices.pick(device)
        self._learners: tuple[Learner, ...] = ()
        self._data: Data | None = None
        self._engine = compute.Engine("sequential", threads, threads)

    def stamp(self) -> Stamp:
        """Returns by what this worker computes, as soon as it is there."""
        return stamp()

    def take(self, brought: Sequence[Brought], shared: Shared, *parts: Arrays) -> None:
        """Keeps what all seeds need.

        Args:
            brought: what the session names and p2pl does not bring.
            shared: what the data are.
            parts: the arrays to train and to test on.
        """
        for one in brought:
            REGISTRIES[one.field].register(one.name)(one.thing)
        self._data = data_of(shared, parts)

    def simulate(
        self, setup: Setup, model: nn.Module | None
    ) -> tuple[Result, list[Array], list[Judged]]:
        """Returns what comes of a seed, all peers of which are computed here, one after the other.

        Args:
            setup: of the seed, with an engine of one process.
            model: in the place of the session's; None: the session's own.

        Returns:
            The result without peers, their parameters and scores; the two.
        """
        assert self._data is not None  # `take` comes first
        result = run(setup, self._data, self._device, model=model)
        scores = list(map(judged_of, result.scores))
        vectors = list(map(array_of, result.vectors))
        return replace(result, learners=(), vectors=(), scores=()), vectors, scores

    def begin(self, setup: Setup, model: nn.Module | None) -> None:
        """Makes the worker ready for some peers of one seed.

        Args:
            setup: of the seed.
            model: in the place of the session's; None: the session's own.

        Raises:
            InputError: the session names something that is not here.
        """
        assert self._data is not None  # `take` comes first
        self._learners = peers_of(setup, self._data, self._device, copy.deepcopy(model))
        self._engine = compute.choose("auto", self._learners, self._threads)

    def train(
        self, peers: Sequence[int], index: int, forgiving: bool, *states: Array
    ) -> tuple[Any, ...]:
        """Returns what the local epochs of some peers made.

        Args:
            peers: their numbers.
            index: the round.
            forgiving: see `compute.train_all`.
            states: by peer, its parameters, [P], and then its optimizer's state, by name.

        Returns:
            `Made` by peer in one list; then by peer, its parameters, and its optimizer's state.

        Raises:
            TrainingDiverged: a peer's loss is no longer finite.
        """
        starts = [
            Start(self._here(vector), {name: self._here(one) for name, one in state.items()})
            for vector, state in zip(states[::2], states[1::2], strict=True)
        ]
        trained = compute.train_all(
            self._engine, self._of(peers), starts, index, forgiving=forgiving
        )
        beside = (
            each for one in trained for each in (array_of(one.vector), arrays_of(one.optimizer))
        )
        return [Made(one.loss, one.steps, one.samples) for one in trained], *beside

    def mix(
        self,
        peers: Sequence[int],
        index: int,
        mixings: Sequence[Mixing],
        served: Sequence[Served],
        *vectors: Array,
    ) -> tuple[Any, ...]:
        """Returns what some peers make of what they received.

        Args:
            peers: their numbers.
            index: the round.
            mixings: by peer.
            served: the models that `mixings` number.
            vectors: the parameters that both number, [P] each.

        Returns:
            `Blend` by peer in one list; then the parameters by peer.
        """
        here = [self._here(vector) for vector in vectors]
        models = [PeerModel(one.round, one.samples, here[one.at], one.notes) for one in served]
        mixed = compute.mix_all(
            self._engine,
            self._of(peers),
            [here[one.own] for one in mixings],
            [{who: models[which] for who, which in one.received.items()} for one in mixings],
            [(here[one.start], one.memory) for one in mixings],
            index,
        )
        told = [Blend(dict(one.row), dict(one.rejected), one.memory) for one in mixed]
        return told, *(array_of(one.vector) for one in mixed)

    def score(self, peers: Sequence[int], *vectors: Array) -> list[tuple[Judged, ...]]:
        """Returns how good parameters are: before and after the mix, and on the peer's own.

        Args:
            peers: their numbers.
            vectors: by peer, what it trained and what it mixed, [P] each.
        """
        here = [self._here(vector) for vector in vectors]
        scored = compute.score_all(self._engine, self._of(peers), here[::2], here[1::2])
        return [tuple(map(judged_of, (one.before, one.after, one.validation))) for one in scored]

    def judge(self, peers: Sequence[int], *vectors: Array) -> list[Judged]:
        """Returns the scores of parameters on the test set.

        Args:
            peers: whose, by number.
            vectors: by peer, [P].
        """
        here = [self._here(vector) for vector in vectors]
        return list(map(judged_of, compute.judge_all(self._engine, self._of(peers), here)))

    def _of(self, peers: Sequence[int]) -> list[Learner]:
        return [self._learners[peer] for peer in peers]

    def _here(self, array: Array) -> Tensor:
        return tensor_of(array).to(self._device)


# --- between tensors and what travels -------------------------------------------------------------


def array_of(tensor: Tensor) -> Array:
    """Returns the numbers of a tensor; on the CPU without a copy."""
    return tensor.detach().cpu().numpy()


def tensor_of(array: Array) -> Tensor:
    """Returns an array as a tensor on the CPU, without a copy; what is read-only stays so."""
    with warnings.catch_warnings():  # that it must not be written to, which nobody does
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(np.asarray(array))


def arrays_of(state: OptimizerState) -> Arrays:
    """Returns the state of an optimizer, by name."""
    return {name: array_of(one) for name, one in state.items()}


def judged_of(scores: Scores) -> Judged:
    """Returns scores as they travel."""
    return Judged(scores.loss, dict(scores.metrics), scores.confusion.numpy())


def scores_of(judged: Judged) -> Scores:
    """Returns scores that have travelled."""
    confusion = torch.tensor(judged.confusion)  # a copy: it is small, and the sums of it are not
    return Scores(judged.loss, judged.metrics, confusion)


def scored_of(judged: Sequence[Judged]) -> Scored:
    """Returns the scores around a mix that have travelled."""
    before, after, validation = map(scores_of, judged)
    return Scored(before, after, validation)


def trained_of(made: Made, vector: Array, state: Arrays) -> Trained:
    """Returns what training made, once it has travelled."""
    optimizer = {name: tensor_of(one) for name, one in state.items()}
    return Trained(tensor_of(vector), made.loss, made.steps, made.samples, optimizer)


def mixed_of(blend: Blend, vector: Array) -> Mixed:
    """Returns what a peer mixed, once it has travelled."""
    return Mixed(tensor_of(vector), blend.row, blend.rejected, blend.memory)


def shared_of(data: Data) -> tuple[Shared, Arrays, Arrays]:
    """Returns data as they travel: what they are, and the arrays to train and to test on."""
    assert data.test is not None  # `peers_of` has seen to it
    (form, train), (test_form, test) = map(_packed, (data.train, data.test))
    return Shared(data.labels, data.test_share, (form, test_form)), train, test


def data_of(shared: Shared, parts: Sequence[Arrays]) -> Data:
    """Returns data that have travelled."""
    train, test = map(_unpacked, shared.forms, parts)
    return Data(train, test, shared.labels, shared.test_share)


def _packed(examples: Examples) -> tuple[str, Arrays]:
    """Returns of which form inputs are, and the arrays of examples."""
    x, y = examples.x, array_of(examples.y)
    if isinstance(x, Tensor):
        return "one", {"x": array_of(x), "y": y}
    named = x.items() if isinstance(x, Mapping) else enumerate(x)
    form = "names" if isinstance(x, Mapping) else "tuple"
    return form, {**{f"x/{name}": array_of(one) for name, one in named}, "y": y}


def _unpacked(form: str, arrays: Arrays) -> Examples:
    """Returns examples of their arrays."""
    here = {name: tensor_of(one) for name, one in arrays.items()}
    y = here.pop("y")
    if form == "one":
        return Examples(here["x"], y)
    named = {name.removeprefix("x/"): one for name, one in here.items()}
    return Examples(named if form == "names" else tuple(named.values()), y)


def brought_by(setup: Setup, model: nn.Module | None) -> tuple[Brought, ...]:
    """Returns what the session names and p2pl does not bring.

    Args:
        setup: of the simulation.
        model: in the place of the session's; None: the session's own.
    """
    session = setup.session
    names = {"task": session.task.kind, "mixing": session.mixing.rule}
    if model is None:
        names["model"] = session.model.name
    found = [Brought(field, name, REGISTRIES[field].find(name)) for field, name in names.items()]
    return tuple(one for one in found if not is_ours(one.thing))


def is_ours(thing: object) -> bool:
    """Returns whether p2pl itself brings a task, a model or a rule."""
    return str(getattr(thing, "__module__", "")).startswith("p2pl.")
