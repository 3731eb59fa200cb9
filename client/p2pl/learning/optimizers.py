"""Optimizers of `torch.optim` on the one vector, and how the learning rate goes over the rounds.

What an optimizer remembers (means, squares, its number of steps) is the peer's own: it is kept from
round to round and over a restart, it does not travel, and it is not mixed. So after a mix the state
is still that of the steps that the peer itself has made.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import torch
from torch import Tensor, nn

from p2pl.errors import InputError
from p2pl.protocol.session import Training

State: TypeAlias = Mapping[str, Tensor]

# Of the one-cycle schedule, as torch's OneCycleLR has them (Smith and Topin 2017,
# arXiv:1708.07120): the share of the rounds in which the rate rises, and what it begins and ends
# with beside the greatest one.
CYCLE_RISE, CYCLE_BEGIN, CYCLE_END = 0.3, 1 / 25, 1 / 25e4


def of_round(training: Training, index: int, rounds: int) -> Training:
    """Returns the settings of round `index` of `rounds`: those of the session, at its rate.

    A rate that falls to almost nothing lets the peers of a session come to rest together: with
    skewed labels each round pulls a peer towards its own labels in proportion to the rate. Within a
    round the rate stays.

    Args:
        training: the session's settings.
        index: the round, 1..`rounds`.
        rounds: of the session.
    """
    share = share_of_rate(training, index, rounds)
    if share == 1:
        return training
    return msgspec.structs.replace(training, learning_rate=training.learning_rate * share)


def share_of_rate(training: Training, index: int, rounds: int) -> float:
    """Returns which part of the session's learning rate round `index` of `rounds` has, 0..1.

    `cosine` is the schedule of Loshchilov and Hutter 2017 (arXiv:1608.03983), one period, no
    restart. A warm-up comes before any schedule, which begins in the round after it.
    """
    warm = training.rate_warmup_rounds
    if index <= warm:
        return index / (warm + 1)
    return _scheduled(training, index - warm - 1, max(1, rounds - warm))


def _scheduled(training: Training, passed: int, rounds: int) -> float:
    """Returns the part of the rate once so many of the schedule's rounds have passed."""
    passed = min(passed, rounds - 1)
    match training.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * (passed / rounds))) / 2
        case "linear":
            return 1 - passed / rounds
        case "step":
            return training.step_factor ** (passed // training.step_rounds)
        case "one-cycle":
            return _cycle(passed, rounds)
        case "constant":
            return 1.0


def _cycle(passed: int, rounds: int) -> float:
    top = max(0.0, CYCLE_RISE * rounds - 1)
    if passed <= top:
        return _between(CYCLE_BEGIN, 1.0, passed / top if top else 1.0)
    return _between(1.0, CYCLE_END, (passed - top) / (rounds - 1 - top))


def _between(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def by_torch(
    vector: Tensor, gradient: Tensor, state: State, training: Training
) -> tuple[Tensor, State]:
    """Returns the next parameters and state; the vector given is overwritten.

    Args:
        vector: [T], what is trained.
        gradient: [T].
        state: of the optimizer, from the step before; {} before the first.
        training: the settings of the round; its optimizer is one of torch's.
    """
    parameter = nn.Parameter(vector)  # shares the vector's memory
    parameter.grad = gradient
    optimizer = _made(parameter, training)
    if state:
        optimizer.state[parameter] = {
            name: one.to(vector.device) if one.dim() else one for name, one in state.items()
        }
    optimizer.step()
    return vector, dict(optimizer.state[parameter])


def _made(parameter: nn.Parameter, training: Training) -> torch.optim.Optimizer:
    given: dict[str, Any] = dict(training.arguments)
    betas = [given.pop(name, default) for name, default in (("beta1", 0.9), ("beta2", 0.999))]
    if {"beta1", "beta2"} & set(training.arguments):
        given["betas"] = tuple(betas)
    for name in ("amsgrad", "nesterov", "centered"):
        if name in given:
            given[name] = bool(given[name])
    # Imported here: it loads torch's compiler, which takes over a second.
    make = getattr(torch.optim, training.optimizer)  # the session's check knows the names
    made: torch.optim.Optimizer = make(
        [parameter], lr=training.learning_rate, weight_decay=training.weight_decay, **given
    )
    return made


def clipped(gradient: Tensor, norm: float | None) -> Tensor:
    """Returns a gradient of at most this length, scaled in place; None: as it is."""
    if norm is None:
        return gradient
    length = gradient.norm()
    return gradient.mul_((norm / (length + 1e-6)).clamp(max=1.0))  # as torch's clip_grad_norm_


def is_simple(training: Training) -> bool:
    """Returns whether each batch is a step of an optimizer of p2pl's own, with its gradient."""
    plain = training.clip_norm is None and training.accumulate == 1
    return plain and training.optimizer in ("sgd", "adam")


def check_private(training: Training) -> None:
    """Raises InputError where private training would not do what the session says."""
    if training.clip_norm is not None or training.accumulate > 1:
        raise InputError(
            "--dp-epsilon: not allowed where a session sets training.clip_norm or "
            "training.accumulate; private training clips each example, and draws its own batches"
        )
