"""Examples that the person has in memory already: tensors, arrays, or a map-style data set."""

from collections.abc import Callable, Sized
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from p2pl.data.examples import Examples
from p2pl.data.load import Data
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

FLOATS = ("multilabel", "regression")  # kinds of task whose targets are [N, outputs] float32
TOKENS = ("language",)  # kinds of task whose inputs are whole numbers

# (inputs, targets); or a data set with a length whose items are (input, target); or a loader of it.
Given: TypeAlias = Examples | tuple[Any, Any] | Sized
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
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler):
        raise DataError(
            wrong(
                f"{what}: the loader's sampler",
                got=type(loader.sampler).__name__,
                allowed="none, or shuffle=True",
                hint="pass torch.utils.data.Subset(dataset, rows) instead",
            )
        )
    return loader.dataset


def _of_items(item: Callable[[int], Any], count: int, task: Task, what: str) -> Examples:
    """Returns `count` items as examples; the first one that is no example is named."""
    x: list[Tensor] = []
    y: list[Tensor] = []
    for index in range(count):
        try:
            pair = item(index)
        except Exception as fault:
            place = f"{what}: item {index}"
            raise DataError(f"{place}: {type(fault).__name__}: {fault}") from fault
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(wrong(f"{what}: item {index}", got=_shown(pair), allowed=PAIR))
        for name, value, made in zip(("input", "target"), pair, (x, y), strict=True):
            place = f"{what}: item {index}: {name}"
            tensor = _tensor(value, place)
            if made and tensor.shape != made[0].shape:
                got, allowed = list(tensor.shape), f"{list(made[0].shape)}, as of item 0"
                raise DataError(wrong(f"{place}: shape", got=got, allowed=allowed))
            if not tensor.isfinite().all():
                raise DataError(wrong(place, got="NaN or infinity", allowed="finite numbers"))
            made.append(tensor)
    if not count:
        raise DataError(wrong(what, got="no items", allowed="at least one"))
    return _examples(torch.stack(x), torch.stack(y), task, what)


def _shown(item: object) -> str:
    length = f" of {len(item)}" if isinstance(item, Sized) else ""
    return f"{type(item).__name__}{length}"


def _examples(inputs: object, targets: object, task: Task, what: str) -> Examples:
    x, y = _tensor(inputs, f"inputs of the {what}"), _tensor(targets, f"targets of the {what}")
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or not len(x):
        got = f"inputs {list(x.shape)}, targets {list(y.shape)}"
        raise DataError(wrong(what, got=got, allowed="as many targets as inputs, at least one"))
    y = y.float() if task.kind in FLOATS or y.is_floating_point() else y.long()
    if task.kind in FLOATS and y.dim() == 1 and task.outputs == 1:
        y = y[:, None]  # else a loss would compare each output with each target
    are_tokens = task.kind in TOKENS and not x.is_floating_point()
    return Examples(x.long() if are_tokens else x.float(), y)


def _tensor(values: object, what: str) -> Tensor:
    try:
        return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as fault:
        allowed = "numbers: a tensor, an array or a list of one shape"
        raise DataError(
            wrong(what, got=f"{type(values).__name__} ({fault})", allowed=allowed)
        ) from fault


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
    y = examples.y
    if task.kind == "classification" and y.dim() == 1 and not y.is_floating_point():
        for at in ((y < 0) | (y >= task.classes)).nonzero()[:1].flatten().tolist():
            allowed = f"0..{task.classes - 1}, the session's task.classes"
            raise DataError(
                wrong(f"targets of the {what}: item {at}", got=int(y[at]), allowed=allowed)
            )
