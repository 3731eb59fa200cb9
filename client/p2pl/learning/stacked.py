"""The local training of many peers as one computation, on parameters stacked as [K, P].

The numbers are those of `p2pl.learning.train`, peer by peer: the same batches in the same order,
the same optimizers; only the order of additions inside a sum differs. Peers do not touch each other
here, so the gradient of the sum of their losses is the stack of their gradients.

In every step, the peers that still have one to do are the first ones: they are sorted by their
number of steps, and nobody is computed for nothing. They are taken in groups, small enough that
what a step reads and writes stays in a processor's cache, or in a share of a GPU's memory. What
examples each step needs is drawn before the first one, so a GPU is never waited for in between.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.learning.evaluate import BATCH_EXAMPLES, Scores
from p2pl.learning.examples import Examples, Part
from p2pl.learning.forward import Forward
from p2pl.learning.train import (
    ADAM_BETA_1,
    ADAM_BETA_2,
    ADAM_EPSILON,
    Start,
    Trained,
)
from p2pl.learning.weights import Layout
from p2pl.protocol.session import Training

# Inputs and activations of one step, by kind of device. Chosen: logistic regression on MNIST, 16
# peers at a time, takes half the time of 100 on the CPU, whose cache they leave; a GPU wants many.
GROUP_BYTES = {"cpu": 16 << 20, "cuda": 4 << 30}
IGNORED = -100  # the label that cross_entropy takes no notice of


@dataclass(frozen=True, slots=True)
class Job:
    """One peer's local training in one round."""

    start: Start
    part: Part  # with the same inputs for all peers; labels may differ
    order: torch.Generator  # of the batches


def train(model: nn.Module, jobs: Sequence[Job], training: Training) -> list[Trained]:
    """Returns what `p2pl.learning.train.train` would return for each job, up to rounding.

    Where that would raise TrainingDiverged, the loss of this one job is NaN.

    Args:
        model: what the parameters mean, on the device of the data; its own are left alone.
        jobs: at least one.
        training: the session's settings.
    """
    model.train()
    stack = _Stack(Forward(model), Layout.of(model), training)
    by_steps = sorted(range(len(jobs)), key=lambda k: -len(jobs[k].part))
    whole = jobs[0].part.whole
    numbers = whole.x[0].numel() + activations(model, whole)
    size = _group(whole, training.batch_size * numbers)
    done: dict[int, Trained] = {}
    for at in range(0, len(jobs), size):
        group = by_steps[at : at + size]
        done |= zip(group, stack.train([jobs[k] for k in group]), strict=True)
    return [done[k] for k in range(len(jobs))]


def evaluate(
    model: nn.Module, vectors: Sequence[Tensor], examples: Examples, classes: int
) -> list[Scores]:
    """Returns each peer's scores on the same examples, as `p2pl.learning.evaluate` gives them.

    Args:
        model: what the parameters mean, on the device of the examples; its own are left alone.
        vectors: K of [P].
        examples: at least one.
        classes: C.
    """
    model.eval()
    forward, layout = Forward(model), Layout.of(model)
    size = _group(examples, BATCH_EXAMPLES * activations(model, examples))
    scores: list[Scores] = []
    for group in _groups(vectors, size):
        parameters = unflatten(layout, torch.stack(group))
        loss = vectors[0].new_zeros(len(group))
        guesses = []
        with torch.inference_mode():
            for batch in examples.batches(BATCH_EXAMPLES):
                logits = forward(parameters, batch.x, shared=True)
                labels = batch.y.expand(len(group), -1)
                loss += functional.cross_entropy(logits, labels, reduction="none").sum(1)
                guesses.append(logits.max(1).indices)  # five times as fast as argmax on the CPU
            pairs = examples.y * classes + torch.cat(guesses, 1)
        scores += _scores(pairs, loss, classes)
    return scores


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
    size = _group(whole, batch * (whole.x[0].numel() + activations(model, whole)))
    scores: list[Scores] = []
    for at in range(0, len(vectors), size):
        group = parts[at : at + size]
        parameters = unflatten(layout, torch.stack(list(vectors[at : at + size])))
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
            pairs = torch.where(labels < 0, -1, labels * classes + torch.cat(guesses, 1))
        scores += _scores(pairs, loss, classes)
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
        Scores(100 * int(one.trace()) / int(one.sum()), total / int(one.sum()), one)
        for one, total in zip(confusion, loss.tolist(), strict=True)
    ]


def inputs(forward: Forward, x: Tensor, rows: Tensor) -> Tensor:
    """Returns the examples at `rows`, [K, B], in the order that the forward pass wants."""
    if forward.by_example:
        rows = rows.t()
    # Twice as fast as x[rows] on the CPU.
    return x.index_select(0, rows.reshape(-1)).view(*rows.shape, *x.shape[1:])


def _group(examples: Examples, numbers: int) -> int:
    """Returns how many peers to compute together: as many as fit `GROUP_BYTES`, at least one.

    Args:
        examples: on the device to compute on.
        numbers: float32 that one peer works on at a time.
    """
    return max(1, GROUP_BYTES[examples.x.device.type] // (4 * numbers))


def _groups(items: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    return [list(items[at : at + size]) for at in range(0, len(items), size)]


def activations(model: nn.Module, examples: Examples) -> int:
    """Returns how many numbers the layers make of one example, views of the input left out."""
    total = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        del layer
        nonlocal total
        total += out.numel() if out.data_ptr() != given[0].data_ptr() else 0

    leaves = [layer for layer in model.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with torch.inference_mode():
            model(examples.x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return total


@dataclass(frozen=True, slots=True)
class _Schedule:
    """Which examples the peers of a group take in each step.

    The rows of a step stand together, those of the first peer first: `begins[s]` is where step s
    begins, for the `active[s]` peers that still have a step to do.
    """

    begins: Sequence[int]
    active: Sequence[int]
    widest: Sequence[int]  # examples in the longest batch of each step
    rows: Tensor  # [R, B] int64, into the shared examples; anything where `share` is 0
    labels: Tensor  # [R, B] int64
    share: Tensor  # [R, B] float32: of an example in its batch's mean; 0 pads a shorter batch
    counted: Tensor  # [R] float32: of the batch's loss in the last epoch's mean; 0 before it


@dataclass(frozen=True, slots=True)
class _Stack:
    """What all groups of peers have in common."""

    forward: Forward
    layout: Layout
    training: Training

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        """Returns what training made of each job; those with the most examples come first."""
        x = jobs[0].part.whole.x
        plan = _schedule(jobs, self.training)
        vectors = torch.stack([job.start.vector for job in jobs])
        advance = _Adam(jobs, plan, self.training) if self._adam else _SGD(jobs, self.training)
        losses = vectors.new_zeros(len(jobs))
        for step, (begin, active, wide) in enumerate(
            zip(plan.begins, plan.active, plan.widest, strict=True)
        ):
            here = slice(begin, begin + active)
            rows, labels = plan.rows[here, :wide], plan.labels[here, :wide]
            at = vectors[:active].detach().requires_grad_()
            by_example = self._losses(at, inputs(self.forward, x, rows), labels)
            loss = (by_example * plan.share[here, :wide]).sum(1)
            (gradient,) = torch.autograd.grad(loss.sum(), at)
            with torch.no_grad():
                losses[:active] += loss * plan.counted[here]
                advance(step, vectors[:active], gradient)
        losses[~vectors.isfinite().all(1)] = math.nan
        return self._results(jobs, vectors, losses.tolist(), advance)

    @property
    def _adam(self) -> bool:
        return self.training.optimizer == "adam"

    def _losses(self, vectors: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Returns each example's cross-entropy, [K, B]."""
        logits = self.forward(unflatten(self.layout, vectors), x, shared=False)
        return functional.cross_entropy(logits, labels, reduction="none")

    def _results(
        self,
        jobs: Sequence[Job],
        vectors: Tensor,
        losses: Sequence[float],
        advance: "_SGD | _Adam",
    ) -> list[Trained]:
        epochs, batch = self.training.local_epochs, self.training.batch_size
        return [
            Trained(
                vectors[k],
                losses[k] if math.isfinite(losses[k]) else math.nan,
                math.ceil(len(job.part) / batch) * epochs,
                len(job.part) * epochs,
                advance.state(k),
            )
            for k, job in enumerate(jobs)
        ]


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


def _schedule(jobs: Sequence[Job], training: Training) -> _Schedule:
    """Returns the plan of one round, from the same draws as `train` makes, in the same order."""
    size, epochs = training.batch_size, training.local_epochs
    counts = [len(job.part) for job in jobs]
    steps = [math.ceil(count / size) * epochs for count in counts]
    active = [sum(one > step for one in steps) for step in range(steps[0])]
    begins = [0, *accumulate(active)]
    first_row = [0, *accumulate(counts)]
    starts = torch.tensor(begins[:-1])
    places = torch.full((begins[-1], size), -1)
    for k, job in enumerate(jobs):
        padded = torch.full((epochs, math.ceil(counts[k] / size) * size), -1)
        for epoch in range(epochs):
            order = torch.randperm(counts[k], generator=job.order)
            padded[epoch, : counts[k]] = order + first_row[k]
        places[starts[: steps[k]] + k] = padded.view(-1, size)
    there = places >= 0
    taken = there.sum(1)
    peers = torch.cat([torch.arange(one) for one in active])
    step_of = torch.repeat_interleave(torch.arange(len(active)), torch.tensor(active))
    last = step_of >= (torch.tensor(steps) // epochs * (epochs - 1))[peers]
    counted = torch.where(last, taken / torch.tensor(counts)[peers], 0.0)
    wide = [int(part.max()) for part in torch.split(taken, active)]
    device = jobs[0].part.rows.device
    at = places.clamp_(min=0).to(device)
    return _Schedule(
        begins=begins[:-1],
        active=active,
        widest=wide,
        rows=torch.cat([job.part.rows for job in jobs])[at],
        labels=torch.cat([job.part.whole.y[job.part.rows] for job in jobs])[at],
        share=(there / taken.unsqueeze(1)).to(device),
        counted=counted.to(device),
    )


class _SGD:
    """The step of `p2pl.learning.train` for SGD, on stacked vectors."""

    def __init__(self, jobs: Sequence[Job], training: Training) -> None:
        self._training = training
        self._name = "quasi_global" if training.quasi_global else "momentum"
        self._momentum = _stacked(jobs, self._name) if training.momentum else None

    def __call__(self, step: int, vectors: Tensor, gradient: Tensor) -> None:
        """Moves the first K vectors, [K, P], in place; the gradient is overwritten."""
        del step
        training = self._training
        if training.weight_decay:
            gradient.add_(vectors, alpha=training.weight_decay)
        if training.quasi_global and self._momentum is not None:
            beta = training.momentum
            gradient.mul_(1 + beta).add_(self._momentum[: len(vectors)], alpha=beta * beta)
        elif self._momentum is not None:
            gradient = self._momentum[: len(vectors)].mul_(training.momentum).add_(gradient)
        vectors.sub_(gradient, alpha=training.learning_rate)

    def state(self, k: int) -> dict[str, Tensor]:
        """Returns the optimizer state of one peer."""
        return {} if self._momentum is None else {self._name: self._momentum[k]}


class _Adam:
    """The step of `p2pl.learning.train` for Adam, on stacked vectors."""

    def __init__(self, jobs: Sequence[Job], plan: _Schedule, training: Training) -> None:
        self._training, self._plan = training, plan
        self._mean, self._square = _stacked(jobs, "mean"), _stacked(jobs, "square")
        zero = torch.zeros(())
        before = torch.stack([job.start.optimizer.get("step", zero) for job in jobs]).double()
        mine = torch.tensor([sum(k < a for a in plan.active) for k in range(len(jobs))])
        self._steps = (before + mine).float()
        # Every peer counts its own steps, so the corrections differ; all are made beforehand.
        count = torch.cat([before[:a] + step + 1 for step, a in enumerate(plan.active)])
        rate = training.learning_rate / (1 - ADAM_BETA_1**count)
        device = self._mean.device
        self._rate = rate.float().to(device).unsqueeze(1)
        self._spread = (1 - ADAM_BETA_2**count).float().to(device).unsqueeze(1)

    def __call__(self, step: int, vectors: Tensor, gradient: Tensor) -> None:
        """Moves the first K vectors, [K, P], in place; the gradient is overwritten."""
        count, begin = len(vectors), self._plan.begins[step]
        here = slice(begin, begin + count)
        if self._training.weight_decay:
            gradient.add_(vectors, alpha=self._training.weight_decay)
        mean = self._mean[:count].lerp_(gradient, 1 - ADAM_BETA_1)
        square = self._square[:count].lerp_(gradient.square_(), 1 - ADAM_BETA_2)
        spread = (square / self._spread[here]).sqrt_().add_(ADAM_EPSILON)
        vectors.sub_(spread.reciprocal_().mul_(mean).mul_(self._rate[here]))

    def state(self, k: int) -> dict[str, Tensor]:
        """Returns the optimizer state of one peer."""
        return {"step": self._steps[k], "mean": self._mean[k], "square": self._square[k]}


def _stacked(jobs: Sequence[Job], name: str) -> Tensor:
    """Returns a part of the peers' optimizer states, [K, P]; zeros before the first step."""
    return torch.stack(
        [job.start.optimizer.get(name, torch.zeros_like(job.start.vector)) for job in jobs]
    )
