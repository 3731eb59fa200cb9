"""Examples that the person has in memory already: tensors, arrays, or a map-style data set."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from p2pl.data.examples import Examples, Inputs, each, tensors_of
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

# (inputs, targets); or a data set with a length whose items are (input, target).
Given: TypeAlias = Examples | tuple[Any, Any] | Sized


def examples_of(given: Given, task: Task, what: str = "data") -> Examples:
    """Returns examples as p2pl keeps them, checked against the session's task.

    Where a model takes several inputs, they are a dictionary or a tuple of tensors of N rows each;
    the model is called with them by name or by place. One of them has the shape that the session's
    `task.input` says.

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
        x = _stacked(inputs)
        y = torch.stack([torch.as_tensor(one) for one in targets])
    except (TypeError, ValueError, KeyError, RuntimeError) as fault:
        raise DataError(
            wrong(what, got=str(fault), allowed="items (input, target), all of one shape")
        ) from fault
    return _examples(x, y, what)


def _stacked(inputs: Sequence[Any]) -> Inputs:
    """Returns the inputs of all items as one; an item may have several, in a dictionary or tuple.

    Raises:
        TypeError, ValueError, KeyError, RuntimeError: the items are not of one form.
    """
    first = inputs[0]
    if isinstance(first, Mapping):
        if any(set(one) != set(first) for one in inputs):
            raise ValueError("items whose inputs have different names")
        return {str(name): _rows(one[name] for one in inputs) for name in first}
    if isinstance(first, tuple) and all(isinstance(one, Tensor | np.ndarray) for one in first):
        return tuple(map(_rows, zip(*inputs, strict=True)))
    return _rows(inputs)


def _rows(values: Iterable[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(one) for one in values])


def _examples(inputs: object, targets: object, what: str) -> Examples:
    try:
        y = _tensor(targets)
        x = _inputs(inputs, len(y) if y.dim() else 0)
    except (TypeError, ValueError, RuntimeError) as fault:
        allowed = "numbers: tensors, arrays or lists of one shape"
        raise DataError(wrong(what, got=str(fault), allowed=allowed)) from fault
    for name, one in tensors_of(x).items():
        if one.dim() == 0 or y.dim() == 0 or len(one) != len(y) or not len(one):
            got = f"{name} {list(one.shape)}, targets {list(y.shape)}"
            raise DataError(wrong(what, got=got, allowed="as many targets as inputs, at least one"))
    y = y.float() if y.is_floating_point() else y.long()
    return Examples(x.float() if isinstance(x, Tensor) else each(x, _number), y)


def _inputs(values: object, count: int) -> Inputs:
    """Returns inputs as they are, in one tensor or in several of `count` rows each."""
    if isinstance(values, Mapping) and values:
        return {str(name): _tensor(one) for name, one in values.items()}
    if isinstance(values, tuple) and len(values) != count and _are_columns(values, count):
        return tuple(map(_tensor, values))
    return _tensor(values)


def _are_columns(values: tuple[object, ...], count: int) -> bool:
    """Returns whether these are arrays of so many rows, and not the rows of one."""
    arrays = [one for one in values if isinstance(one, Tensor | np.ndarray) and one.ndim]
    return len(arrays) == len(values) > 0 and all(len(one) == count for one in arrays)


def _number(one: Tensor) -> Tensor:
    """Returns fractions as float32, and whole numbers, such as of a category, as int64."""
    return one.float() if one.is_floating_point() else one.long()


def _tensor(values: object) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))


def _check(examples: Examples, task: Task, what: str) -> None:
    tensors = tensors_of(examples.x)
    shapes = [tuple(one.shape[1:]) for one in tensors.values()]
    if task.input not in shapes:
        raise DataError(
            wrong(
                f"inputs of the {what}",
                got=shapes[0] if len(shapes) == 1 else shapes,
                allowed=f"{task.input}, the session's task.input",
            )
        )
    for name, one in tensors.items():
        if not one.isfinite().all():
            raise DataError(
                wrong(f"{name} of the {what}", got="NaN or infinity", allowed="finite numbers")
            )
    if task.kind != "classification":
        return
    low, high = examples.y.min(), examples.y.max()
    if examples.y.is_floating_point() or examples.y.dim() != 1 or low < 0 or high >= task.classes:
        got = f"{examples.y.dtype} {list(examples.y.shape)}, {float(low):g}..{float(high):g}"
        allowed = f"whole numbers [N], 0..{task.classes - 1}, the session's task.classes"
        raise DataError(wrong(f"targets of the {what}", got=got, allowed=allowed))
