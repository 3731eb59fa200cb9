"""A model is tried on a few examples before the first round: what fails is said, layer by layer."""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pl.data.examples import Inputs, Source
from p2pl.errors import ModelError, P2PLError, wrong
from p2pl.learning.objective import Objective
from p2pl.learning.weights import flatten

TRIED = 2  # examples at once; then one alone, as in the last batch of an epoch


def check_on(objective: Objective, examples: Source) -> None:
    """Checks that a model takes the examples, and gives what the task expects and can learn from.

    Args:
        objective: the model and its task; the model is in evaluation mode afterwards.
        examples: at least one, on the model's device.

    Raises:
        ModelError: a layer fails, or the outputs are not of the task; it names the layer and the
            shapes, got and expected.
    """
    batch = examples.take(torch.arange(min(TRIED, len(examples))))
    vector = flatten(objective.model, objective.layout)
    objective.model.eval()
    with _explained(objective.model, batch.x):
        with torch.no_grad():
            outputs = objective.outputs(vector, batch.x)
        if not isinstance(outputs, Tensor):
            got = f"{type(outputs).__name__}{_keys(outputs)}"
            what = f"outputs of {type(objective.model).__name__}"
            raise ModelError(
                wrong(what, got=got, allowed="one tensor", hint="return it from `forward`")
            )
        objective.checked(outputs, batch.y)
        if objective.device.type == "cpu":  # recurrent layers on a GPU have no gradient here
            objective.gradient(vector, batch)
        with torch.no_grad():
            objective.losses(vector, batch.take(torch.tensor([0])))


def _keys(outputs: object) -> str:
    return f" of {', '.join(map(str, outputs))}" if isinstance(outputs, dict) else ""


@dataclass(slots=True)
class _Inside:
    """Which layers of a model are being computed, the innermost last, and what they were given."""

    names: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _explained(model: nn.Module, x: Inputs) -> Iterator[None]:
    """Turns whatever the model raises into a ModelError that names the layer."""
    inside, hooks = _Inside(), []
    for name, layer in model.named_modules():
        hooks += _watch(name, layer, inside)
    try:
        yield
    except P2PLError:
        raise
    except Exception as fault:  # whatever somebody's model may raise
        raise ModelError(_told(model, inside, x, fault)) from fault
    finally:
        for hook in hooks:
            hook.remove()


def _watch(name: str, layer: nn.Module, inside: _Inside) -> list[Any]:
    called = f"{name} ({type(layer).__name__})" if name else type(layer).__name__

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        inside.names.append(called)
        inside.shapes.append(", ".join(_shape(one) for one in args))

    def leave(_: nn.Module, args: tuple[Any, ...], made: Any) -> None:  # noqa: ANN401  # a layer's
        inside.names.pop()
        inside.shapes.pop()

    return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]


def _shape(one: object) -> str:
    return str(list(one.shape)) if isinstance(one, Tensor) else type(one).__name__


def _told(model: nn.Module, inside: _Inside, x: Inputs, fault: Exception) -> str:
    """Returns which layer failed, on what, why and where."""
    kinds = x if isinstance(x, tuple) else x.values() if isinstance(x, dict) else (x,)
    given = ", ".join(_shape(one) for one in kinds)
    if inside.names:
        where = f"layer {inside.names[-1]}" if len(inside.names) > 1 else inside.names[-1]
        got = f"inputs {inside.shapes[-1]}"
    else:
        where, got = f"the gradient of {type(model).__name__}", f"inputs {given}"
    return (
        f"model: {where}, given {got}: {place_of(fault)}; allowed: a module whose forward takes "
        f"{given} and gives one tensor that depends on what is trained"
    )


def place_of(fault: BaseException) -> str:
    """Returns what was raised, and in which line of which file."""
    at = traceback.extract_tb(fault.__traceback__)[-1]
    said = " ".join(str(fault).split())
    return f"{type(fault).__name__}: {said} ({Path(at.filename).name}, line {at.lineno})"
