"""The local training of many peers as one computation, on parameters stacked as [K, P].

The numbers are those of `p2pl.learning.train`, peer by peer: the same batches in the same order,
the same optimizers; only the order of additions inside a sum differs. Peers do not touch each other
here, so the gradient of the sum of their losses is the stack of their gradients.

Peers are taken in groups, small enough that what a step reads and writes stays in a processor's
cache, or in a share of a GPU's memory. On a GPU a step is recorded once and then replayed (CUDA
graphs): issuing its hundred small kernels one by one takes longer than computing them.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.data.examples import Examples, Part
from p2pl.learning.batched.chain import Chain, Given, Parameters
from p2pl.learning.batched.forward import Forward
from p2pl.learning.batched.schedule import Batch, Job, Schedule, schedule
from p2pl.learning.evaluate import BATCH_EXAMPLES
from p2pl.learning.task import Scores
from p2pl.learning.train import ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON, Trained
from p2pl.learning.weights import Layout
from p2pl.protocol.session import Training

T = TypeVar("T")
R = TypeVar("R")

# Inputs and activations of one step, by kind of device: on the CPU they should stay in its cache; a
# GPU wants many.
GROUP_BYTES = {"cpu": 16 << 20, "cuda": 4 << 30}
IGNORED = -100  # the label that cross_entropy takes no notice of
# What the steps of a chain work on at a time. Chosen: with 16 MiB, which leave the cache, logistic
# regression of 100 peers on MNIST takes 1.4 times as long, and with 1 MiB 1.2 times.
CHAIN_BYTES = 4 << 20
# Of one group of a chain. Chosen: memory for the parameters of thousands of peers is new to the
# process in every round, and clearing it takes a tenth of the time; that of a few is used again.
CHAIN_PEERS = 128
MIN_GROUP = 16  # peers; sharing fewer among workers costs more than it saves
STEPS_BEFORE_RECORDING = 3  # libraries choose their kernels and take their memory in the first ones


class Unstackable(Exception):  # no error: there is the other way
    """The model does something that cannot be done for many peers at once."""


class Stack:
    """A model that many peers train together; keeps what the next round can use again."""

    def __init__(self, model: nn.Module, examples: Examples, workers: int = 1) -> None:
        """Takes the model as working space.

        Args:
            model: what the parameters mean, on the device of the examples; its own are left alone.
            examples: of which all peers have parts; their labels may differ.
            workers: groups of peers to compute at the same time, on a CPU.
        """
        self._model, self._x = model, examples.x
        self._forward, self._layout = Forward(model), Layout.of(model)
        self._numbers = examples.x[0].numel() + activations(model, examples)
        self._gpu = examples.x.is_cuda
        self._chain = None if self._gpu else Chain.of(model)
        self._workers = workers
        self._rooms: dict[int, Tensor] = {}  # by thread: for the inputs of one step of a chain
        self._works: dict[int, _Work] = {}
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    @property
    def is_chain(self) -> bool:
        """Whether gradients are computed in closed form, which no other way is faster than."""
        return self._chain is not None

    def train(self, jobs: Sequence[Job], training: Training) -> list[Trained]:
        """Returns what `p2pl.learning.train.train` would return for each job, up to rounding.

        Where that would raise TrainingDiverged, the loss of this one job is NaN.

        Args:
            jobs: at least one.
            training: the settings of the round.

        Raises:
            Unstackable: it cannot be done with this model.
        """
        if any(job.part.whole.x is not self._x for job in jobs):
            raise ValueError("peers of one stack share their inputs")
        self._model.train()
        by_steps = sorted(range(len(jobs)), key=lambda k: -len(jobs[k].part))
        most = _most(self._x.device, training.batch_size * self._numbers)
        if self._chain is not None:  # it takes some peers of the group at a time itself
            most = CHAIN_PEERS
        groups = _groups(by_steps, most, self._workers)

        def work(group: Sequence[int]) -> list[Trained]:
            return self._train([jobs[k] for k in group], training)

        made = _at_once(work, groups, self._workers if self._forward.is_pure else 1)
        trained = dict(zip(by_steps, made, strict=True))
        return [trained[k] for k in range(len(jobs))]

    def _train(self, jobs: Sequence[Job], training: Training) -> list[Trained]:
        """Returns what training made of each job; those with the most examples come first."""
        plan = schedule(jobs, training)
        work = self._begin(jobs, training)
        if self._chain is not None:
            self._chained(self._chain, work, jobs, plan, training)
        else:
            self._stepwise(work, plan, training)
        if self._gpu:
            work = work.copy()  # the next round overwrites it
        epochs, losses, vectors = training.local_epochs, work.losses.tolist(), work.vectors.unbind()
        return [
            Trained(
                vectors[k],
                losses[k] if math.isfinite(losses[k]) else math.nan,
                math.ceil(len(job.part) / training.batch_size) * epochs,
                len(job.part) * epochs,
                {name: tensor[k] for name, tensor in work.state.items()}
                | ({"step": plan.steps[k]} if training.optimizer == "adam" else {}),
            )
            for k, job in enumerate(jobs)
        ]

    def _stepwise(self, work: "_Work", plan: Schedule, training: Training) -> None:
        """Does all steps, each for all peers that have one to do."""
        for batch in plan.batches(even=self._gpu):
            if self._gpu:
                self._record_or_replay(work, batch, training)
            else:
                self._step(work, batch, training)
        _mark_lost(work.vectors, work.losses)

    def _chained(
        self, chain: Chain, work: "_Work", jobs: Sequence[Job], plan: Schedule, training: Training
    ) -> None:
        """Does all steps in closed form: all those of some peers, then those of the next ones."""
        flat = self._x.flatten(1)
        longest = min(training.batch_size, len(jobs[0].part))
        some = max(1, CHAIN_BYTES // (4 * longest * self._numbers + 4 * self._layout.total))
        room = self._room(min(some, len(jobs)) * longest)
        start = _same_start(jobs)
        logs = torch.zeros_like(plan.numbers[:, : training.batch_size])
        with torch.inference_mode():
            for first in range(0, len(jobs), some):
                mine = work.part(first, some)
                steps = _Chained(chain, self._layout, mine, room)
                if start is not None:
                    mine.vectors.copy_(start)
                alike = None if start is None else unflatten(self._layout, start.unsqueeze(0))
                for rows, batch in plan.of_some(first, some):
                    steps.step(flat, batch, (logs[rows, : batch.wide], alike), training)
                    alike = None
                _mark_lost(mine.vectors, mine.losses)
            chances = logs.mul_(plan.numbers[:, : training.batch_size]).sum(1)
            counted = plan.numbers[:, training.batch_size]
            work.losses.index_add_(0, plan.peers, chances.mul_(counted), alpha=-1)

    def _room(self, rows: int) -> Tensor:
        """Returns memory for the inputs of so many rows, which this thread uses again and again."""
        me = threading.get_ident()
        if me not in self._rooms or len(self._rooms[me]) < rows:
            self._rooms[me] = self._x.new_empty(rows, self._x[0].numel())
        return self._rooms[me]

    def _begin(self, jobs: Sequence[Job], training: Training) -> "_Work":
        """Returns where the peers set out from; on a GPU always in the same place."""
        fresh = _Work.of(jobs, training, fill=self._chain is None)
        if not self._gpu:
            return fresh
        kept = self._works.setdefault(len(jobs), fresh)
        if kept is not fresh:
            kept.take(fresh)
        return kept

    def _record_or_replay(self, work: "_Work", batch: Batch, training: Training) -> None:
        """Does one step; from the fourth of its kind on by replaying the record of one."""
        alike = msgspec.structs.replace(training, learning_rate=1.0)  # the rate is in the batch
        kind = (len(work.vectors), len(batch.places), batch.wide, msgspec.json.encode(alike))
        if kind not in self._graphs:
            if self._seen[kind] < STEPS_BEFORE_RECORDING:
                self._seen[kind] += 1
                return self._step(work, batch, training)
            mine = Batch(batch.places.clone(), batch.numbers.clone(), batch.wide)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(work, mine, training)
            self._graphs[kind] = _Graph(graph, mine)
        self._graphs[kind].replay(batch)
        return None

    def _step(self, work: "_Work", batch: Batch, training: Training) -> None:
        """Moves the parameters of the peers that have a step to do, in place."""
        active = len(batch.places)
        at = work.vectors[:active].detach().requires_grad_()
        x = inputs(self._forward, self._x, batch.rows)
        try:
            logits = self._forward(unflatten(self._layout, at), x, shared=False)
        except RuntimeError as fault:  # torch.func.vmap: an operation without a batching rule
            raise Unstackable(str(fault)) from fault
        by_example = functional.cross_entropy(logits, batch.labels, reduction="none")
        loss = (by_example * batch.share).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), at)
        with torch.no_grad():
            work.losses[:active] += loss * batch.counted
            _advance(work, gradient, batch, training)


@dataclass(frozen=True, slots=True)
class _Work:
    """What a group of K peers changes as it trains, in place."""

    vectors: Tensor  # [K, P]
    losses: Tensor  # [K], mean over the last epoch
    state: Mapping[str, Tensor]  # of the optimizer, [K, P] each

    @classmethod
    def of(cls, jobs: Sequence[Job], training: Training, *, fill: bool) -> "_Work":
        """Returns where the peers set out from; an optimizer's state is 0 before its first step.

        Args:
            jobs: of the peers.
            training: the settings of the round.
            fill: write parameters that are the same for all; else whoever trains them does.
        """
        first = _same_start(jobs)
        if first is None:
            vectors = torch.stack([job.start.vector for job in jobs])
        elif fill:
            vectors = first.repeat(len(jobs), 1)
        else:
            vectors = first.new_empty(len(jobs), len(first))
        nothing = torch.zeros_like(vectors[0])
        state = {
            name: torch.stack([job.start.optimizer.get(name, nothing) for job in jobs])
            for name in _state_of(training)
        }
        return cls(vectors, vectors.new_zeros(len(jobs)), state)

    def part(self, first: int, count: int) -> "_Work":
        """Returns the part of some peers that stand together, in the same place."""
        here = slice(first, first + count)
        state = {name: tensor[here] for name, tensor in self.state.items()}
        return _Work(self.vectors[here], self.losses[here], state)

    def take(self, other: "_Work") -> None:
        """Copies another's numbers into this one's place."""
        self.vectors.copy_(other.vectors)
        self.losses.copy_(other.losses)
        for name, tensor in other.state.items():
            self.state[name].copy_(tensor)

    def copy(self) -> "_Work":
        """Returns the same numbers in another place."""
        state = {name: tensor.clone() for name, tensor in self.state.items()}
        return _Work(self.vectors.clone(), self.losses.clone(), state)


class _Chained:
    """The steps of a group of peers whose model is a chain of linear layers."""

    def __init__(self, chain: Chain, layout: Layout, work: _Work, room: Tensor) -> None:
        """Takes what the steps need.

        Args:
            chain: the model.
            layout: of the model.
            work: of the group, changed in place.
            room: [n, F], for the inputs of any one step.
        """
        self._chain, self._layout, self._work, self._room = chain, layout, work, room
        self._active = 0
        self._parameters: Mapping[str, Tensor] = {}

    def step(
        self, x: Tensor, batch: Batch, also: tuple[Tensor, Parameters | None], training: Training
    ) -> None:
        """Moves the parameters of the peers that have a step to do, in place.

        Args:
            x: [N, F], all examples, flat.
            batch: of the step.
            also: `logs` and `alike` of `Given`.
            training: the settings of the round.
        """
        work, active = self._work, len(batch.places)
        if active != self._active:
            self._active = active
            self._parameters = unflatten(self._layout, work.vectors[:active])
        given = Given(self._taken(x, batch.rows), batch.labels, batch.share, *also)
        if _is_plain(training):
            self._chain.descend(self._parameters, training.learning_rate, given)
        else:
            gradient = torch.empty_like(work.vectors[:active])
            self._chain.gradient(self._parameters, unflatten(self._layout, gradient), given)
            _advance(work, gradient, batch, training)

    def _taken(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns the examples at `rows`, [K, B, F], in memory that the next step uses again.

        The system clears new memory before it is used, which takes longer than the copy.
        """
        room = self._room[: rows.numel()]
        torch.index_select(x, 0, rows.reshape(-1), out=room)
        return room.view(*rows.shape, -1)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recorded step, and the place from which it reads what it needs."""

    graph: torch.cuda.CUDAGraph
    batch: Batch

    def replay(self, batch: Batch) -> None:
        """Does the step once more, with another batch."""
        self.batch.places.copy_(batch.places)
        self.batch.numbers.copy_(batch.numbers)
        self.graph.replay()


def _same_start(jobs: Sequence[Job]) -> Tensor | None:
    """Returns the one vector, [P], from which all set out; None where there are several."""
    first = jobs[0].start.vector
    return first if all(job.start.vector is first for job in jobs) else None


def _mark_lost(vectors: Tensor, losses: Tensor) -> None:
    """Makes the loss NaN of each peer, [K], whose parameters are no longer finite, [K, P]."""
    if not vectors.sum().isfinite():  # most often without memory for a look at each
        losses[~vectors.isfinite().all(1)] = math.nan


def _is_plain(training: Training) -> bool:
    """Returns whether a step is the gradient times the rate, and nothing else."""
    return not (_state_of(training) or training.weight_decay)


def _state_of(training: Training) -> tuple[str, ...]:
    """Returns the names of what the optimizer keeps from step to step, [P] each."""
    if training.optimizer == "adam":
        return "mean", "square"
    if training.quasi_global:
        return ("quasi_global",)
    return ("momentum",) if training.momentum else ()


def _advance(work: _Work, gradient: Tensor, batch: Batch, training: Training) -> None:
    """Does the step of `p2pl.learning.train.advance` for the first peers, all at once.

    Args:
        work: of all peers.
        gradient: [K, P], of those that have a step to do; overwritten.
        batch: of the step.
        training: the session's settings; the learning rate is the batch's.
    """
    vectors = work.vectors[: len(gradient)]
    state = {name: tensor[: len(gradient)] for name, tensor in work.state.items()}
    if training.weight_decay:
        gradient.add_(vectors, alpha=training.weight_decay)
    if training.optimizer == "adam":
        mean = state["mean"].lerp_(gradient, 1 - ADAM_BETA_1)
        square = state["square"].lerp_(gradient.square_(), 1 - ADAM_BETA_2)
        spread = (square / batch.spread).sqrt_().add_(ADAM_EPSILON)
        gradient = mean / spread
    elif training.quasi_global:
        beta = training.momentum
        gradient.mul_(1 + beta).add_(state["quasi_global"], alpha=beta * beta)
    elif training.momentum:
        gradient = state["momentum"].mul_(training.momentum).add_(gradient)
    vectors.addcmul_(gradient, batch.rate, value=-1)


def evaluate(
    model: nn.Module,
    vectors: Sequence[Tensor],
    examples: Examples,
    classes: int,
    workers: int = 1,
) -> list[Scores]:
    """Returns each peer's scores on the same examples, as `p2pl.learning.evaluate` gives them.

    Args:
        model: what the parameters mean, on the device of the examples; its own are left alone.
        vectors: K of [P].
        examples: at least one.
        classes: C.
        workers: groups of peers to compute at the same time, on a CPU.
    """
    model.eval()
    forward, layout = Forward(model), Layout.of(model)
    most = _most(examples.x.device, BATCH_EXAMPLES * activations(model, examples))

    def work(group: Sequence[Tensor]) -> list[Scores]:
        parameters = unflatten(layout, torch.stack(list(group)))
        loss = group[0].new_zeros(len(group))
        guesses = []
        with torch.inference_mode():
            for batch in examples.batches(BATCH_EXAMPLES):
                logits = forward(parameters, batch.x, shared=True)
                labels = batch.y.expand(len(group), -1)
                loss += functional.cross_entropy(logits, labels, reduction="none").sum(1)
                guesses.append(logits.max(1).indices)  # five times as fast as argmax on the CPU
            pairs = examples.y * classes + torch.cat(guesses, 1)
        return _scores(pairs, loss, classes)

    groups = _groups(vectors, most, workers)
    return _at_once(work, groups, workers if forward.is_pure else 1)


def evaluate_own(
    model: nn.Module, vectors: Sequence[Tensor], parts: Sequence[Part], classes: int
) -> list[Scores]:
    """Returns each peer's scores on its own examples, as `p2pl.learning.evaluate` gives them.

    Args:
        model: what the parameters mean, on the device of the examples; its own are left alone.
        vectors: K of [P].
        parts: K, of examples with the same inputs.
        classes: C.
    """
    model.eval()
    forward, layout = Forward(model), Layout.of(model)
    whole = parts[0].whole
    batch = min(BATCH_EXAMPLES, max(len(part) for part in parts))
    most = _most(whole.x.device, batch * (whole.x[0].numel() + activations(model, whole)))
    scores: list[Scores] = []
    for pairs in _groups(list(zip(vectors, parts, strict=True)), most, 1):
        group = [part for _, part in pairs]
        parameters = unflatten(layout, torch.stack([vector for vector, _ in pairs]))
        rows = nn.utils.rnn.pad_sequence([part.rows for part in group], batch_first=True)
        labels = nn.utils.rnn.pad_sequence(
            [part.whole.y[part.rows] for part in group], batch_first=True, padding_value=IGNORED
        )
        loss = vectors[0].new_zeros(len(group))
        guesses = []
        with torch.inference_mode():
            for some, true in zip(
                torch.split(rows, batch, 1), torch.split(labels, batch, 1), strict=True
            ):
                logits = forward(parameters, inputs(forward, whole.x, some), shared=False)
                by_example = functional.cross_entropy(
                    logits, true, reduction="none", ignore_index=IGNORED
                )
                loss += by_example.sum(1)
                guesses.append(logits.max(1).indices)
            cells = torch.where(labels < 0, -1, labels * classes + torch.cat(guesses, 1))
        scores += _scores(cells, loss, classes)
    return scores


def _scores(pairs: Tensor, loss: Tensor, classes: int) -> list[Scores]:
    """Returns the scores of K peers.

    Args:
        pairs: [K, n], true class * C + predicted class; -1 where a peer has fewer examples.
        loss: [K], summed over the examples.
        classes: C.
    """
    kinds = classes * classes
    peers = torch.arange(len(pairs), device=pairs.device).unsqueeze(1)
    cells = (peers * kinds + pairs)[pairs >= 0]
    confusion = torch.bincount(cells, minlength=len(pairs) * kinds).view(-1, classes, classes).cpu()
    return [
        Scores(total / int(one.sum()), {"accuracy": 100 * int(one.trace()) / int(one.sum())}, one)
        for one, total in zip(confusion, loss.tolist(), strict=True)
    ]


def inputs(forward: Forward, x: Tensor, rows: Tensor) -> Tensor:
    """Returns the examples at `rows`, [K, B], in the order that the forward pass wants.

    Args:
        forward: says which order that is.
        x: [n, ...], all examples.
        rows: [K, B] int64, of K peers.
    """
    if forward.by_example:
        rows = rows.t()
    # Twice as fast as x[rows] on the CPU.
    return x.index_select(0, rows.reshape(-1)).view(*rows.shape, *x.shape[1:])


def _most(device: torch.device, numbers: int) -> int:
    """Returns how many peers to compute together: as many as fit `GROUP_BYTES`, at least one.

    Args:
        device: to compute on.
        numbers: float32 that one peer works on at a time.
    """
    return max(1, GROUP_BYTES[device.type] // (4 * numbers))


def _groups(items: Sequence[T], most: int, workers: int) -> list[Sequence[T]]:
    """Returns the items in groups of at most `most`, enough of them to keep the workers busy."""
    if len(items) >= MIN_GROUP * workers:
        most = min(most, math.ceil(len(items) / workers))
    return [items[at : at + most] for at in range(0, len(items), most)]


def _at_once(
    work: Callable[[Sequence[T]], list[R]], groups: Sequence[Sequence[T]], workers: int
) -> list[R]:
    """Returns what the work makes of all groups, in order, some of them at the same time."""
    if workers == 1 or len(groups) == 1:
        return [one for group in groups for one in work(group)]
    with ThreadPoolExecutor(workers) as pool:
        return [one for made in pool.map(work, groups) for one in made]


def activations(model: nn.Module, examples: Examples) -> int:
    """Returns how many numbers the layers make of one example, views of the input left out.

    Args:
        model: any; it is called once, without gradients.
        examples: at least one, on the model's device.
    """
    total = 0

    def count(layer: nn.Module, given: tuple[object, ...], out: object) -> None:
        del layer
        nonlocal total
        first = given[0] if given else None
        if isinstance(out, Tensor) and isinstance(first, Tensor):
            total += out.numel() if out.data_ptr() != first.data_ptr() else 0

    leaves = [layer for layer in model.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with torch.inference_mode():
            model(examples.x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return total


def unflatten(layout: Layout, vectors: Tensor) -> Mapping[str, Tensor]:
    """Returns each parameter of K peers as a view into their vectors, by name: [K, *shape].

    Args:
        layout: of the model.
        vectors: [K, P].
    """
    parts = torch.split(vectors, list(layout.sizes), dim=1)
    return {
        name: part.view(len(vectors), *shape)
        for name, part, shape in zip(layout.names, parts, layout.shapes, strict=True)
    }
