"""Examples that the person has in memory already: tensors, arrays, or a map-style data set."""

from collections.abc import Iterable, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from p2pl.data.examples import Examples
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

FLOATS = ("multilabel", "regression")  # kinds of task whose targets are [N, outputs] float32
TOKENS = ("language",)  # kinds of task whose inputs are whole numbers

# (inputs, targets); or a data set with a length whose items are (input, target).
Given: TypeAlias = Examples | tuple[Any, Any] | Sized


def examples_of(given: Given, task: Task, what: str = "data") -> Examples:
    """Returns examples as p2pl keeps them, their inputs checked against the session's task.

    Whether targets are of the task, the task itself says: `p2pl.learning.task.Task.check`.

    Args:
        given: `Examples`; a pair of tensors or arrays, inputs [N, *input] and targets [N, ...]; or
            a data set of N items (input, target), e.g. a `torch.utils.data.Dataset`.
        task: the session's.
        what: how messages call them.

    Raises:
        DataError: they are none of these, or are of another shape than the session's inputs.
    """
    if isinstance(given, Examples):
        made = given
    elif isinstance(given, tuple) and len(given) == 2:
        made = _examples(given[0], given[1], task, what)
    elif hasattr(given, "__getitem__") and isinstance(given, Sized):
        items = [given[index] for index in range(len(given))]
        made = _of_items(items, task, what)
    else:
        allowed = "(inputs, targets), or a data set with a length and items (input, target)"
        raise DataError(wrong(what, got=type(given).__name__, allowed=allowed))
    _check(made, task, what)
    return made


def _of_items(items: Iterable[Any], task: Task, what: str) -> Examples:
    try:
        inputs, targets = zip(*items, strict=True)
        x = torch.stack([torch.as_tensor(one) for one in inputs])
        y = torch.stack([torch.as_tensor(one) for one in targets])
    except (TypeError, ValueError, RuntimeError) as fault:
        raise DataError(
            wrong(what, got=str(fault), allowed="items (input, target), all of one shape")
        ) from fault
    return _examples(x, y, task, what)


def _examples(inputs: object, targets: object, task: Task, what: str) -> Examples:
    try:
        x, y = _tensor(inputs), _tensor(targets)
    except (TypeError, ValueError, RuntimeError) as fault:
        allowed = "numbers: tensors, arrays or lists of one shape"
        raise DataError(wrong(what, got=str(fault), allowed=allowed)) from fault
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or not len(x):
        got = f"inputs {list(x.shape)}, targets {list(y.shape)}"
        raise DataError(wrong(what, got=got, allowed="as many targets as inputs, at least one"))
    y = y.float() if task.kind in FLOATS or y.is_floating_point() else y.long()
    if task.kind in FLOATS and y.dim() == 1 and task.outputs == 1:
        y = y[:, None]  # else a loss would compare each output with each target
    are_tokens = task.kind in TOKENS and not x.is_floating_point()
    return Examples(x.long() if are_tokens else x.float(), y)


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
