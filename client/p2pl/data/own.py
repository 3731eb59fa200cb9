"""Examples that the person has in memory already: tensors, arrays, or a map-style data set."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from p2pl.data.examples import Examples, Inputs, each, tensors_of
from p2pl.data.load import Data
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

FLOATS = ("multilabel", "regression")  # kinds of task whose targets are [N, outputs] float32
TOKENS = ("language",)  # kinds of task whose inputs are whole numbers

# (inputs, targets); or a data set with a length whose items are (input, target); or a loader of it.
Given: TypeAlias = Examples | tuple[Any, Any] | Sized
ONE, TARGET = -1, -2  # in the place of an input's name: the only one; no input but the target
PAIR = "an item (input, target), both numbers"


def data_of(given: Given, task: Task) -> Data:
    """Returns a peer's data, with the test set that they bring, if any.

    Args:
        given: as for `examples_of`; or two of them, to train on and to score on, each a data set, a
            loader or `Examples`.
        task: the session's.

    Raises:
        DataError: as `examples_of` raises it.
    """
    if isinstance(given, tuple) and len(given) == 2 and all(map(_is_whole, given)):
        train, test = given
        made = examples_of(train, task), examples_of(test, task, "test set")
        return Data(*made, task.labels)
    return Data(examples_of(given, task), None, task.labels)


def _is_whole(given: object) -> bool:
    """Returns whether this holds inputs and targets both."""
    return isinstance(given, Examples | Dataset | DataLoader)


def examples_of(given: Given, task: Task, what: str = "data") -> Examples:
    """Returns examples as p2pl keeps them, their inputs checked against the session's task.

    Whether targets are of the task, the task itself says: `p2pl.learning.task.Task.check`.

    Where a model takes several inputs, they are a dictionary or a tuple of tensors of N rows each;
    the model is called with them by name or by place. One of them has the shape that the session's
    `task.input` says.

    Args:
        given: `Examples`; a pair of tensors or arrays, inputs [N, *input] and targets [N, ...]; a
            data set of N items (input, target), e.g. a `torch.utils.data.Dataset`; or a
            `DataLoader` of one, whose order and whose batches are not looked at.
        task: the session's.
        what: how messages call them.

    Raises:
        DataError: they are none of these, or are of another shape than the session's inputs; where
            it is one item, its number is said.
    """
    if isinstance(given, DataLoader):
        given = _of_loader(given, what)
    if isinstance(given, Examples):
        made = given
    elif isinstance(given, tuple) and len(given) == 2:
        made = _examples(given[0], given[1], task, what)
    elif hasattr(given, "__getitem__") and isinstance(given, Sized):
        made = _of_items(given.__getitem__, len(given), task, what)
    else:
        allowed = (
            "(inputs, targets), or a data set with a length and items (input, target); of an "
            "iterable one, pass list(...)"
        )
        raise DataError(wrong(what, got=type(given).__name__, allowed=allowed))
    _check(made, task, what)
    return made


def _of_loader(loader: DataLoader[Any], what: str) -> Any:  # noqa: ANN401  # a data set
    """Returns the data set behind a loader.

    Its rows are numbered by the data set alone: a peer that comes back must hold the same ones back
    for validation. So a sampler that picks rows cannot be followed.
    """
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset
    if loader.collate_fn not in (default_collate, default_convert):
        raise DataError(
            wrong(
                f"{what}: the loader's collate_fn",
                got=getattr(loader.collate_fn, "__name__", type(loader.collate_fn).__name__),
                allowed="none: batches are put together here",
                hint="let the items of the data set be what the model takes",
            )
        )
    own_batches = type(loader.batch_sampler) not in (BatchSampler, type(None))
    if own_batches or not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        raise DataError(
            wrong(
                f"{what}: the loader's sampler",
                got=type(loader.batch_sampler if own_batches else loader.sampler).__name__,
                allowed="none, or shuffle=True",
                hint="pass torch.utils.data.Subset(dataset, rows) instead",
            )
        )
    return loader.dataset


def _of_items(item: Callable[[int], Any], count: int, task: Task, what: str) -> Examples:
    """Returns `count` items as examples; the first one that is no example is named."""
    if not count:
        raise DataError(wrong(what, got="no items", allowed="at least one"))
    columns: dict[str | int, list[Tensor]] = {}
    for index in range(count):
        values = _values(item, index, what)
        if index and values.keys() != columns.keys():
            got, allowed = ([_called(name) for name in one] for one in (values, columns))
            raise DataError(
                wrong(f"{what}: item {index}", got=got, allowed=f"{allowed}, as of item 0")
            )
        for name, value in values.items():
            made = columns.setdefault(name, [])
            made.append(_value(value, made, f"{what}: item {index}: {_called(name)}"))
    stacked = {name: torch.stack(column) for name, column in columns.items()}
    y = stacked.pop(TARGET)
    if ONE in stacked:
        return _examples(stacked[ONE], y, task, what)
    by_place = all(isinstance(name, int) for name in stacked)
    return _examples(tuple(stacked.values()) if by_place else stacked, y, task, what)


def _values(item: Callable[[int], Any], index: int, what: str) -> dict[str | int, Any]:
    """Returns what an item holds: its inputs by name or by place, and its target."""
    try:
        pair = item(index)
    except Exception as fault:
        place = f"{what}: item {index}"
        raise DataError(f"{place}: {type(fault).__name__}: {fault}") from fault
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(wrong(f"{what}: item {index}", got=_shown(pair), allowed=PAIR))
    return {**_named(pair[0]), TARGET: pair[1]}


def _value(given: object, before: Sequence[Tensor], place: str) -> Tensor:
    """Returns one value of an item, of the shape of those before it."""
    tensor = _tensor(given, place)
    if before and tensor.shape != before[0].shape:
        got, wanted = list(tensor.shape), f"{list(before[0].shape)}, as of item 0"
        raise DataError(wrong(f"{place}: shape", got=got, allowed=wanted))
    if not tensor.isfinite().all():
        raise DataError(wrong(place, got="NaN or infinity", allowed="finite numbers"))
    return tensor


def _named(given: object) -> dict[str | int, Any]:
    """Returns an item's inputs by name or by place: one, or those in a dictionary or a tuple."""
    if isinstance(given, Mapping):
        return {str(name): one for name, one in given.items()}
    if isinstance(given, tuple) and all(isinstance(one, Tensor | np.ndarray) for one in given):
        return dict(enumerate(given))
    return {ONE: given}


def _called(name: str | int) -> str:
    if name == ONE:
        return "input"
    return "target" if name == TARGET else f"input {name}"


def _shown(item: object) -> str:
    length = f" of {len(item)}" if isinstance(item, Sized) else ""
    return f"{type(item).__name__}{length}"


def _examples(inputs: object, targets: object, task: Task, what: str) -> Examples:
    y = _tensor(targets, f"targets of the {what}")
    x = _inputs(inputs, len(y) if y.dim() else 0, what)
    for name, one in tensors_of(x).items():
        if one.dim() == 0 or y.dim() == 0 or len(one) != len(y) or not len(one):
            got = f"{name} {list(one.shape)}, targets {list(y.shape)}"
            raise DataError(wrong(what, got=got, allowed="as many targets as inputs, at least one"))
    y = y.float() if task.kind in FLOATS or y.is_floating_point() else y.long()
    if task.kind in FLOATS and y.dim() == 1 and task.outputs == 1:
        y = y[:, None]  # else a loss would compare each output with each target
    if not isinstance(x, Tensor):
        return Examples(each(x, _number), y)
    are_tokens = task.kind in TOKENS and not x.is_floating_point()
    return Examples(x.long() if are_tokens else x.float(), y)


def _inputs(values: object, count: int, what: str) -> Inputs:
    """Returns inputs in one tensor, or in several of `count` rows each."""
    if isinstance(values, Mapping) and values:
        return {
            str(name): _tensor(one, f"input {name} of the {what}") for name, one in values.items()
        }
    if isinstance(values, tuple) and len(values) != count and _are_columns(values, count):
        return tuple(_tensor(one, f"inputs of the {what}") for one in values)
    return _tensor(values, f"inputs of the {what}")


def _are_columns(values: tuple[object, ...], count: int) -> bool:
    """Returns whether these are arrays of so many rows, and not the rows of one."""
    arrays = [one for one in values if isinstance(one, Tensor | np.ndarray) and one.ndim]
    return len(arrays) == len(values) > 0 and all(len(one) == count for one in arrays)


def _number(one: Tensor) -> Tensor:
    """Returns fractions as float32, and whole numbers, such as of a category, as int64."""
    return one.float() if one.is_floating_point() else one.long()


def _tensor(values: object, what: str) -> Tensor:
    if np.ma.is_masked(values):
        hint = "fill them in (array.filled), or leave these rows out"
        allowed = "an array without masked numbers"
        raise DataError(wrong(what, got="masked numbers", allowed=allowed, hint=hint))
    try:
        made = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
        return _dense(made, what)
    except (TypeError, ValueError, RuntimeError) as fault:
        allowed = "numbers: a tensor, an array or a list of one shape"
        raise DataError(
            wrong(what, got=f"{type(values).__name__} ({fault})", allowed=allowed)
        ) from fault


def _dense(tensor: Tensor, what: str) -> Tensor:
    """Returns the tensor, once it is seen to hold all its numbers, and real ones."""
    if tensor.layout != torch.strided:
        allowed = "a dense tensor"
        raise DataError(wrong(what, got=str(tensor.layout), allowed=allowed, hint="see to_dense()"))
    if tensor.is_complex():
        hint = "pass real and imaginary parts as two numbers (torch.view_as_real)"
        raise DataError(wrong(what, got=str(tensor.dtype), allowed="real numbers", hint=hint))
    return tensor


def _check(examples: Examples, task: Task, what: str) -> None:
    tensors = tensors_of(examples.x)
    for name, one in {**tensors, "targets": examples.y}.items():
        _dense(one, f"{name} of the {what}")
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
    y = examples.y
    if task.kind == "classification" and y.dim() == 1 and not y.is_floating_point():
        for at in ((y < 0) | (y >= task.classes)).nonzero()[:1].flatten().tolist():
            allowed = f"0..{task.classes - 1}, the session's task.classes"
            raise DataError(
                wrong(f"targets of the {what}: item {at}", got=int(y[at]), allowed=allowed)
            )
