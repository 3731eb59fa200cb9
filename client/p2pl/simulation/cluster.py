"""The workers of a Ray cluster, as what computes a simulation's peers.

Rounds are led by the process that simulates: it draws cohorts, keeps what every peer is between two
rounds, and makes what attackers serve. The workers train, mix and score, each a block of the peers.
Parameters lie in Ray's object store. Whoever needs them is given a name for them: a worker reads
those of the peers that it mixes from where they were trained, and without a copy where that is its
own machine.

A worker that dies takes nothing along but the call that it was at, which is divided among the
others.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from p2pl.data.load import Data
from p2pl.errors import InputError, NetworkError, wrong
from p2pl.learner import Learner, Scored
from p2pl.learning import device as devices
from p2pl.learning.flower import Clients
from p2pl.learning.task import Scores
from p2pl.learning.train import OptimizerState, Start, Trained
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.simulation.compute import Engine
from p2pl.simulation.engine import OnBegin, OnRound, Result, Running, run
from p2pl.simulation.joined import (
    ANSWER_DEADLINE_S,
    Handle,
    Ray,
    Ref,
    joined,
    put,
    summary,
    translated,
)
from p2pl.simulation.seeds import Seeds
from p2pl.simulation.setup import Setup
from p2pl.simulation.worker import (
    Array,
    Mixing,
    Served,
    Stamp,
    Worker,
    array_of,
    arrays_of,
    brought_by,
    mixed_of,
    scored_of,
    scores_of,
    shared_of,
    stamp,
    trained_of,
)

T = TypeVar("T")

START_DEADLINE_S = 180.0  # for the workers' processes; those that are later are not waited for
STORED_BYTES = 100 << 10  # what is smaller travels with the call, as Ray itself does it

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Names:
    """Under which names tensors of this process lie in the object store."""

    ray: Ray
    known: dict[int, tuple[Tensor, Ref]] = field(default_factory=dict)  # by identity

    def name(self, tensor: Tensor, ref: Ref) -> None:
        """Remembers that a tensor is what `ref` names."""
        self.known[id(tensor)] = (tensor, ref)

    def of(self, tensor: Tensor) -> Ref | Array:
        """Returns what to give to a call: the name of a tensor, or a small one itself."""
        if id(tensor) not in self.known:
            array = array_of(tensor)
            if array.nbytes < STORED_BYTES:
                return array
            self.name(tensor, put(self.ray, array))
        return self.known[id(tensor)][1]

    def alike(self, tensor: Tensor, other: Tensor) -> None:
        """Gives a tensor the name of another one, where the two are equal."""
        if id(tensor) in self.known or id(other) not in self.known:
            return
        if tensor.shape == other.shape and torch.equal(tensor, other):
            self.name(tensor, self.known[id(other)][1])

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Forgets all other tensors."""
        kept = {id(one) for one in tensors}
        self.known = {key: one for key, one in self.known.items() if key in kept}


class Cluster:
    """Workers of a Ray cluster that compute the peers of one simulation after another.

    Attributes:
        device: cpu or cuda, of all workers.
        threads: of each.
    """

    def __init__(self, ray: Ray, workers: Sequence[Handle], device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self._ray, self._workers = ray, list(workers)
        self._names = _Names(ray)
        self._optimizers: dict[int, tuple[OptimizerState, Ref]] = {}
        self._numbers: dict[str, int] = {}

    def close(self) -> None:
        """Ends the workers, whose CPUs others can use then."""
        self._forget()
        for worker in self._workers:
            self._ray.kill(worker)

    def spread(
        self, setups: Sequence[Setup], data: Data | Clients, model: nn.Module | None
    ) -> Running:
        """Returns what runs these seeds, in their order; it is given no other.

        Where there are as many seeds as workers, each worker simulates whole seeds, and nothing is
        exchanged; with fewer seeds, one after the other is divided among all workers.

        Args:
            setups: by seed.
            data: of all peers.
            model: in the place of the session's; None: the session's own.

        Raises:
            InputError: the peers are clients of Flower, which know their state and data themselves.
        """
        if not isinstance(data, Data):
            allowed = "auto or sequential: clients of Flower are trained in this process"
            raise InputError(wrong("--engine", got=setups[0].engine, allowed=allowed))
        shared, *parts = shared_of(data)
        stored = [put(self._ray, part) for part in parts]
        brought = brought_by(setups[0], model)
        self._everybody("take", brought, shared, *stored)
        if len(setups) >= len(self._workers) > 1:
            return Seeds(self._ray, self._workers, setups, model).run
        return self._run

    def _run(  # as `run`
        self,
        setup: Setup,
        data: Data | Clients,
        device: torch.device,
        on_round: OnRound | None = None,
        model: nn.Module | None = None,
        on_begin: OnBegin | None = None,
    ) -> Result:
        """Returns what came of one simulation whose peers are divided among the workers."""

        def choose(wanted: str, learners: Sequence[Learner], threads: int) -> Engine:
            self._forget()
            self._everybody("begin", setup, model)
            self._numbers = {one.peer_id: number for number, one in enumerate(learners)}
            return Engine(wanted.partition(":")[0], self.threads, threads, workers=self)

        result = run(setup, data, device, on_round, model, on_begin, choose)
        # Copies: the object store is gone once the cluster is left.
        return replace(result, vectors=tuple(vector.clone() for vector in result.vectors))

    def train(
        self, learners: Sequence[Learner], starts: Sequence[Start], index: int, *, forgiving: bool
    ) -> list[Trained]:
        """Returns what every peer's local epochs made."""
        by_peer = dict(zip(self._of(learners), starts, strict=True))
        self._names.keep([start.vector for start in starts])

        def send(worker: Handle, block: Sequence[int]) -> list[Ref]:
            states = []
            for peer in block:
                states.append(self._names.of(by_peer[peer].vector))
                states.append(self._optimizer(peer, by_peer[peer].optimizer))
            call = worker.train.options(num_returns=1 + 2 * len(block))
            refs: list[Ref] = call.remote(block, index, forgiving, *states)
            return refs

        def take(block: Sequence[int], refs: Sequence[Ref], answer: Sequence[Any]) -> list[Trained]:
            made = []
            for n, peer in enumerate(block):
                at = 1 + 2 * n
                one = trained_of(answer[0][n], answer[at], answer[at + 1])
                self._names.name(one.vector, refs[at])
                self._optimizers[peer] = (one.optimizer, refs[at + 1])
                made.append(one)
            return made

        return self._ask("train", list(by_peer), send, take)

    def mix(
        self,
        learners: Sequence[Learner],
        vectors: Sequence[Tensor],
        received: Sequence[Mapping[str, PeerModel]],
        before: Sequence[tuple[Tensor, msgspec.Struct | None]],
        index: int,
    ) -> list[Mixed]:
        """Returns what every peer makes of what it received."""
        numbers = self._of(learners)
        place = {peer: at for at, peer in enumerate(numbers)}
        trained = {one.peer_id: vector for one, vector in zip(learners, vectors, strict=True)}
        for offered in received:
            for who, model in offered.items():
                if who in trained:
                    self._names.alike(model.vector, trained[who])

        def send(worker: Handle, block: Sequence[int]) -> list[Ref]:
            parcel = _Parcel()
            mixings = []
            for peer in block:
                at = place[peer]
                start, memory = before[at]
                offered = {who: parcel.served_at(one) for who, one in received[at].items()}
                own, begun = parcel.at(vectors[at]), parcel.at(start)
                mixings.append(Mixing(own, begun, offered, memory))
            beside = map(self._names.of, parcel.vectors)
            call = worker.mix.options(num_returns=1 + len(block))
            refs: Ref | list[Ref] = call.remote(block, index, mixings, parcel.served, *beside)
            return refs

        def take(block: Sequence[int], refs: Sequence[Ref], answer: Sequence[Any]) -> list[Mixed]:
            mixed = [mixed_of(*one) for one in zip(answer[0], answer[1:], strict=True)]
            for one, ref in zip(mixed, refs[1:], strict=True):
                self._names.name(one.vector, ref)
            return mixed

        return self._ask("mix", numbers, send, take)

    def score(
        self, learners: Sequence[Learner], before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> list[Scored]:
        """Returns how good each peer's parameters are, before and after mixing."""
        pairs = dict(zip(self._of(learners), zip(before, after, strict=True), strict=True))

        def send(worker: Handle, block: Sequence[int]) -> list[Ref]:
            vectors = (vector for peer in block for vector in pairs[peer])
            return [worker.score.remote(block, *map(self._names.of, vectors))]

        return self._ask(
            "score", list(pairs), send, lambda _, __, got: list(map(scored_of, got[0]))
        )

    def judge(self, learners: Sequence[Learner], vectors: Sequence[Tensor]) -> list[Scores]:
        """Returns each peer's scores on the test set."""
        whose = dict(zip(self._of(learners), vectors, strict=True))

        def send(worker: Handle, block: Sequence[int]) -> list[Ref]:
            return [worker.judge.remote(block, *(self._names.of(whose[peer]) for peer in block))]

        return self._ask(
            "judge", list(whose), send, lambda _, __, got: list(map(scores_of, got[0]))
        )

    def _everybody(self, what: str, *told: object) -> None:
        """Calls a function of every worker, and waits for all."""

        def send(worker: Handle, block: Sequence[int]) -> list[Ref]:
            return [getattr(worker, what).remote(*told)]

        everybody = range(len(self._workers))  # in the place of peers: one for each
        self._ask(what, everybody, send, lambda block, _, __: [None for _ in block])

    def _ask(
        self,
        what: str,
        peers: Sequence[int],
        send: Callable[[Handle, Sequence[int]], list[Ref]],
        take: Callable[[Sequence[int], Sequence[Ref], Sequence[Any]], list[T]],
    ) -> list[T]:
        """Returns what the workers answer, by peer; each is asked for a block of them.

        Args:
            what: is asked, for messages.
            peers: by number.
            send: asks a worker for a block, and returns the names of its answer.
            take: makes of a block, those names and the answer what there is by peer.

        Raises:
            NetworkError: no worker is left, or one does not answer in time.
            P2PLError: what the workers' own code raised.
        """
        faults = self._ray.exceptions
        answers: dict[int, T] = {}
        todo = list(peers)
        while todo:
            sent = [
                (worker, block, send(worker, block))
                for worker, block in zip(
                    self._workers, blocks(todo, len(self._workers)), strict=False
                )
            ]
            todo = []
            for worker, block, refs in sent:
                try:
                    answer = self._ray.get(refs, timeout=ANSWER_DEADLINE_S)
                except faults.RayActorError as fault:
                    self._lose(worker, fault, len(block))
                    todo += block
                except faults.ObjectLostError:  # parameters that lay at one that died
                    self._forget()
                    todo += block
                except faults.GetTimeoutError as fault:
                    raise NetworkError(
                        f"simulation: a worker was asked to {what} {len(block)} peers and did not "
                        f"answer within {ANSWER_DEADLINE_S / 3600:g} hours"
                    ) from fault
                except faults.RayError as fault:
                    raise translated(fault, f"a worker was asked to {what}") from fault
                else:
                    answers |= zip(block, take(block, refs, answer), strict=True)
        return [answers[peer] for peer in peers]

    def _forget(self) -> None:
        """Forgets the names of what lies in the object store: this process has it too."""
        self._names, self._optimizers = _Names(self._ray), {}

    def _lose(self, worker: Handle, fault: Exception, peers: int) -> None:
        """Goes on without a worker, and without the names of what may have gone with it."""
        self._workers.remove(worker)
        self._forget()
        told = f"a worker is lost ({summary(fault)})"
        if not self._workers:
            raise NetworkError(
                f"simulation: {told}, and no other is left; what the rounds so far came to is lost "
                "with this process: run it again"
            ) from fault
        log.warning("%s; %d peers go to the other %d", told, peers, len(self._workers))

    def _of(self, learners: Sequence[Learner]) -> list[int]:
        return [self._numbers[one.peer_id] for one in learners]

    def _optimizer(self, peer: int, state: OptimizerState) -> Ref | Mapping[str, Array]:
        """Returns what to give to a call: the name of an optimizer's state, or the state."""
        known = self._optimizers.get(peer)
        return known[1] if known and known[0] is state else arrays_of(state)


@dataclass(slots=True)
class _Parcel:
    """What a worker is sent to mix: each vector and each model once."""

    vectors: list[Tensor] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)  # by identity of a vector
    _models: dict[int, int] = field(default_factory=dict)  # by identity of a model

    def at(self, vector: Tensor) -> int:
        """Returns the place of a vector."""
        if id(vector) not in self._places:
            self._places[id(vector)] = len(self.vectors)
            self.vectors.append(vector)
        return self._places[id(vector)]

    def served_at(self, model: PeerModel) -> int:
        """Returns the place of a model."""
        if id(model) not in self._models:
            self._models[id(model)] = len(self.served)
            at = self.at(model.vector)
            self.served.append(Served(model.round, model.samples, model.notes, at))
        return self._models[id(model)]


def blocks(peers: Sequence[int], count: int) -> list[list[int]]:
    """Returns the peers in so many blocks, in order, as even as can be; none of them empty."""
    count = min(count, len(peers))
    cuts = [len(peers) * n // count for n in range(count + 1)]
    return [list(peers[low:high]) for low, high in pairwise(cuts)]


@contextmanager
def opened(setup: Setup, device: str, threads: int | None) -> Iterator[Cluster]:
    """Yields the workers of the cluster that the engine of a simulation names.

    Args:
        setup: of the simulation; of any of its seeds.
        device: auto, cpu or cuda.
        threads: of each worker; None: 1.

    Raises:
        InputError: Ray is not installed, or the cluster has no room.
        NetworkError: the cluster, or a worker of it, could not be reached in time.
    """
    peers = 1 if setup.baseline == "centralised" else setup.peers
    with joined(setup.engine, devices.cores()) as ray:
        cluster = start(ray, peers, device, threads or 1)
        try:
            yield cluster
        finally:
            cluster.close()


def start(ray: Ray, peers: int, device: str, threads: int) -> Cluster:
    """Returns workers, as many as there is room for in the cluster, and no more than peers.

    Args:
        ray: joined.
        peers: of the simulation.
        device: auto, cpu or cuda; auto is cuda where the cluster has a free GPU. Each worker has a
            GPU for itself then.
        threads: of each worker; as many CPUs of the cluster are kept for it.

    Raises:
        InputError: there is no room for any, or a worker computes with other code.
        NetworkError: none was there in time.
    """
    room = ray.available_resources()
    cpus, gpus = int(room.get("CPU", 0)) // threads, int(room.get("GPU", 0))
    where = "cuda" if device == "cuda" or (device == "auto" and gpus) else "cpu"
    count = min(peers, cpus, gpus if where == "cuda" else cpus)
    if not count:
        needs = f"{threads} CPUs{' and a GPU' if where == 'cuda' else ''} that nobody uses"
        got = f"{int(room.get('CPU', 0))} free CPUs and {gpus} free GPUs"
        raise InputError(wrong("--engine ray", got=got, allowed=f"a cluster with {needs}"))
    actor = ray.remote(
        num_cpus=threads, num_gpus=int(where == "cuda"), scheduling_strategy="SPREAD"
    )(Worker)
    asked = {
        one.stamp.remote(): one for one in [actor.remote(threads, where) for _ in range(count)]
    }
    there, late = ray.wait(list(asked), num_returns=count, timeout=START_DEADLINE_S)
    for ref in late:
        ray.kill(asked[ref])
    if not there:
        raise NetworkError(
            f"--engine ray: none of {count} workers was there within {START_DEADLINE_S:g} s; "
            "`ray status` says what the cluster is busy with"
        )
    try:
        check_stamps(ray.get(there, timeout=START_DEADLINE_S), stamp())
    except ray.exceptions.RayError as fault:
        raise translated(fault, "a worker was started") from fault
    return Cluster(ray, [asked[ref] for ref in there], where, threads)


def check_stamps(found: Sequence[Stamp], own: Stamp) -> None:
    """Raises InputError where a worker computes with other code than this process.

    Args:
        found: of the workers.
        own: of this process.
    """
    for one in found:
        if one != own:
            hint = "install the same p2pl, torch and Python on every machine of the cluster"
            raise InputError(wrong("--engine ray: a worker", got=one, allowed=str(own), hint=hint))
