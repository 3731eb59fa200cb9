"""Examples that the person has in memory already: tensors, arrays, or a map-style data set."""

from collections.abc import Iterable, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from p2pl.data.examples import Examples
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

# (inputs, targets); or a data set with a length whose items are (input, target).
Given: TypeAlias = Examples | tuple[Any, Any] | Sized


def examples_of(given: Given, task: Task, what: str = "data") -> Examples:
    """Returns examples as p2pl keeps them, checked against the session's task.

    Args:
        given: `Examples`; a pair of tensors or arrays, inputs [N, *input] and targets [N, ...]; or
            a data set of N items (input, target), e.g. a `torch.utils.data.Dataset`.
        task: the session's.
        what: how messages call them.

    Raises:
        DataError: they are none of these, are of another shape than the session's inputs, or hold
            classes that the session does not have.
    """
    if isinstance(given, Examples):
        made = given
    elif isinstance(given, tuple) and len(given) == 2:
        made = _examples(given[0], given[1], what)
    elif hasattr(given, "__getitem__") and isinstance(given, Sized):
        items = [given[index] for index in range(len(given))]
        made = _of_items(items, what)
    else:
        allowed = "(inputs, targets), or a data set with a length and items (input, target)"
        raise DataError(wrong(what, got=type(given).__name__, allowed=allowed))
    _check(made, task, what)
    return made


def _of_items(items: Iterable[Any], what: str) -> Examples:
    try:
        inputs, targets = zip(*items, strict=True)
        x = torch.stack([torch.as_tensor(one) for one in inputs])
        y = torch.stack([torch.as_tensor(one) for one in targets])
    except (TypeError, ValueError, RuntimeError) as fault:
        raise DataError(
            wrong(what, got=str(fault), allowed="items (input, target), all of one shape")
        ) from fault
    return _examples(x, y, what)


def _examples(inputs: object, targets: object, what: str) -> Examples:
    try:
        x, y = _tensor(inputs), _tensor(targets)
    except (TypeError, ValueError, RuntimeError) as fault:
        allowed = "numbers: tensors, arrays or lists of one shape"
        raise DataError(wrong(what, got=str(fault), allowed=allowed)) from fault
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or not len(x):
        got = f"inputs {list(x.shape)}, targets {list(y.shape)}"
        raise DataError(wrong(what, got=got, allowed="as many targets as inputs, at least one"))
    y = y.float() if y.is_floating_point() else y.long()
    return Examples(x.float(), y)


def _tensor(values: object) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))


def _check(examples: Examples, task: Task, what: str) -> None:
    if tuple(examples.x.shape[1:]) != task.input:
        raise DataError(
            wrong(
                f"inputs of the {what}",
                got=tuple(examples.x.shape[1:]),
                allowed=f"{task.input}, the session's task.input",
            )
        )
    if not examples.x.isfinite().all():
        raise DataError(
            wrong(f"inputs of the {what}", got="NaN or infinity", allowed="finite numbers")
        )
    if task.kind != "classification":
        return
    low, high = examples.y.min(), examples.y.max()
    if examples.y.is_floating_point() or examples.y.dim() != 1 or low < 0 or high >= task.classes:
        got = f"{examples.y.dtype} {list(examples.y.shape)}, {float(low):g}..{float(high):g}"
        allowed = f"whole numbers [N], 0..{task.classes - 1}, the session's task.classes"
        raise DataError(wrong(f"targets of the {what}", got=got, allowed=allowed))
