"""Local work between two swaps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from p2pl import pages
from p2pl.data.examples import Source
from p2pl.errors import TrainingDiverged, wrong
from p2pl.learning.channels import are_convolved, channels_last
from p2pl.learning.objective import Objective
from p2pl.learning.optimizers import by_torch, clipped, of_round
from p2pl.learning.parts import LARGE, is_finite, lend
from p2pl.protocol.session import Training

__all__ = ["OnStep", "OptimizerState", "Start", "Trained", "advance", "follow", "of_round", "train"]

OptimizerState: TypeAlias = Mapping[str, Tensor]  # of [P] or a single number; {} before round 1
OnStep: TypeAlias = Callable[[int, int], None]  # (steps done, steps in all)

# The values that the paper recommends.
ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Start:
    """Where training sets out from."""

    vector: Tensor  # [P]
    optimizer: OptimizerState = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training made."""

    vector: Tensor  # [P]
    loss: float  # mean over the last epoch, before each step; NaN: not known
    steps: int  # batches; `training.accumulate` of them move the parameters once
    samples: int  # examples seen, counting repetitions
    optimizer: OptimizerState


def train(
    objective: Objective,
    start: Start,
    examples: Source,
    training: Training,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> Trained:
    """Returns the parameters after `training.local_epochs` over the examples.

    Args:
        objective: the model and its task.
        start: parameters and optimizer state of the previous round.
        examples: at least one, on the model's device.
        training: the session's settings.
        generator: orders the batches; on the CPU.
        on_step: called between two steps. What it raises ends training at once and is passed on.

    Raises:
        TrainingDiverged: the loss is no longer finite.
    """
    objective.model.train()
    objective.take_counts(start.optimizer)
    images = are_convolved(examples, objective.model)
    vector = start.vector.clone()
    if len(vector) > LARGE:  # what the module was lent before is not kept for it any longer
        lend(objective.model, start.vector, objective.layout)
    pages.rest(start.vector)
    trained = vector[: objective.layout.trained]  # a view: what follows are buffers
    state = start.optimizer
    together = 2 if objective.layout.buffers else 1  # BatchNorm has no variance of one example
    total_steps = _batch_count(len(examples), training, together) * training.local_epochs
    steps, loss, gathered = 0, 0.0, _Gathered()
    for _ in range(training.local_epochs):
        total = torch.zeros((), device=vector.device)
        for rows in _batches(len(examples), training.batch_size, generator, together):
            batch = examples.take(rows)
            if images:
                batch = channels_last(batch)
            batch_loss, gradient = objective.gradient(vector, batch)
            total += batch_loss * len(batch)
            steps += 1
            gathered.add(gradient, len(batch))
            if steps % training.accumulate == 0 or steps == total_steps:
                gradient = clipped(gathered.take(), training.clip_norm)
                _, state = advance(trained, gradient, state, training)
            if on_step is not None:
                on_step(steps, total_steps)
        loss = float(total) / len(examples)
        if not math.isfinite(loss):
            break
    if not math.isfinite(loss) or not is_finite(vector):
        found = objective.where_not_finite(start.vector, examples)
        raise TrainingDiverged(found) if found else diverged(loss, training)
    state = objective.with_counts(state)
    return Trained(vector, loss, steps, len(examples) * training.local_epochs, state)


@dataclass(slots=True)
class _Gathered:
    """The gradients of the batches of one step."""

    total: Tensor | None = None  # [T], weighted by examples
    examples: int = 0

    def add(self, gradient: Tensor, examples: int) -> None:
        """Takes in the mean gradient of one batch."""
        if self.total is None:
            self.total, self.examples = gradient, examples
            return
        both = self.examples + examples
        self.total.lerp_(gradient, examples / both)
        self.examples = both

    def take(self) -> Tensor:
        """Returns the mean over all their examples, [T], and begins anew."""
        assert self.total is not None
        mean, self.total = self.total, None
        return mean


def diverged(loss: float, training: Training) -> TrainingDiverged:
    """Returns the error to raise when numbers are no longer finite."""
    return TrainingDiverged(
        wrong(
            "training loss",
            got=loss,
            allowed="a finite number",
            hint=f"training.learning_rate {training.learning_rate} is too high for this data",
        )
    )


def _batch_count(count: int, training: Training, together: int) -> int:
    full, rest = divmod(count, training.batch_size)
    return full + (rest >= together if full else rest > 0)


def _batches(
    count: int, batch_size: int, generator: torch.Generator, together: int
) -> tuple[Tensor, ...]:
    """Returns the rows of each batch; a last one of fewer than `together` joins the one before."""
    rows = torch.split(torch.randperm(count, generator=generator), batch_size)
    if len(rows) > 1 and len(rows[-1]) < together:
        return (*rows[:-2], torch.cat(rows[-2:]))
    return rows


def advance(
    vector: Tensor, gradient: Tensor, state: OptimizerState, training: Training
) -> tuple[Tensor, OptimizerState]:
    """Returns the next parameters and state; the vector and the gradient given are overwritten.

    Args:
        vector: [P] float32.
        gradient: [P] float32, of the loss at `vector`.
        state: of the optimizer; {} before the first step.
        training: the session's settings.
    """
    if training.optimizer == "adam":
        step = _adam
    elif training.optimizer != "sgd":
        step = by_torch
    else:
        step = _quasi_global if training.quasi_global else _sgd
    return step(vector, gradient, state, training)


# The two own optimizers, as functions on the one vector. They are those of torch.optim (a test
# holds them to it), whose classes load the compiler of torch on first use: over a second, and 800
# modules, in every peer.


def _sgd(
    vector: Tensor, gradient: Tensor, state: OptimizerState, training: Training
) -> tuple[Tensor, OptimizerState]:
    """Returns the next parameters and state: SGD with momentum, as in Sutskever et al. 2013."""
    gradient.add_(vector, alpha=training.weight_decay)
    if training.momentum:
        if "momentum" in state:
            gradient.add_(state["momentum"], alpha=training.momentum)
        state = {"momentum": gradient}
    return vector.sub_(gradient, alpha=training.learning_rate), state


def _quasi_global(
    vector: Tensor, gradient: Tensor, state: OptimizerState, training: Training
) -> tuple[Tensor, OptimizerState]:
    """Returns the next parameters: Nesterov's momentum on a buffer that stays as it is meanwhile.

    Lin et al. 2021 (arXiv:2102.04761), QG-DSGDm-N. The buffer moves once a round, in `follow`.
    """
    beta = training.momentum
    gradient.add_(vector, alpha=training.weight_decay).mul_(1 + beta)
    if "quasi_global" in state:
        gradient.add_(state["quasi_global"], alpha=beta * beta)
    return vector.sub_(gradient, alpha=training.learning_rate), state


def follow(start: Start, trained: Trained, mixed: Tensor, training: Training) -> OptimizerState:
    """Returns the optimizer state for the next round, once this one is mixed.

    Quasi-global momentum (Lin et al. 2021, arXiv:2102.04761): the buffer follows the way that the
    parameters went in the round with mixing, which is nearly the same for all peers, and not the
    gradients of the peer's own labels. It costs no bytes.

    Args:
        start: of the round.
        trained: by the round's local steps.
        mixed: [P], what the round ended with.
        training: the session's settings.
    """
    if not training.quasi_global or not trained.steps:
        return trained.optimizer
    beta = training.momentum
    moves = math.ceil(trained.steps / training.accumulate)
    moved = (start.vector - mixed).mul_((1 - beta) / (training.learning_rate * moves))
    if "quasi_global" in start.optimizer:
        moved.add_(start.optimizer["quasi_global"], alpha=beta)
    return {"quasi_global": moved}


def _adam(
    vector: Tensor, gradient: Tensor, state: OptimizerState, training: Training
) -> tuple[Tensor, OptimizerState]:
    """Returns the next parameters and state: Kingma and Ba 2015, algorithm 1."""
    gradient.add_(vector, alpha=training.weight_decay)
    zero = torch.zeros(())
    step = state.get("step", zero) + 1
    mean = state.get("mean", zero.to(vector)).lerp(gradient, 1 - ADAM_BETA_1)
    square = state.get("square", zero.to(vector)).lerp(gradient.square_(), 1 - ADAM_BETA_2)
    rate = training.learning_rate / (1 - ADAM_BETA_1 ** float(step))
    spread = (square / (1 - ADAM_BETA_2 ** float(step))).sqrt_().add_(ADAM_EPSILON)
    state = {"step": step, "mean": mean, "square": square}
    return vector.addcdiv_(mean, spread, value=-rate), state
