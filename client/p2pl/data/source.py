"""What data are before they are examples: labels at once, inputs row by row, and class names."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pl.data.partition import Indices
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

Pixels: TypeAlias = NDArray[np.float32]  # [n, *input], 0..1
# [N] int64 class numbers, in the session's numbering; or [N, ...] float32, or int64 tokens.
Targets: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Split:
    """The labels of a split, and a way to read some of its rows; nobody decodes another's rows."""

    labels: Targets
    read: Callable[[Indices], Pixels]  # rows -> [n, *input]


@dataclass(frozen=True, slots=True)
class Source:
    """Data as they were found, whole."""

    train: Split
    test: Split | None  # None: there is none
    names: tuple[str, ...]  # of the classes, in the data's own order; () where nobody gave any


def in_memory(inputs: NDArray[Any], labels: Targets) -> Split:
    """Returns the split of inputs [N, *input] that have been read, with their labels [N, ...]."""
    return Split(labels, lambda rows: inputs[rows])


def number_names(names: Sequence[str], task: Task, *, all_there: bool) -> dict[str, int]:
    """Returns each class name's number in the session.

    Args:
        names: of the data, in the order of the data's own numbers.
        task: the session's.
        all_there: whether the data must have every class of the session.

    Raises:
        DataError: a name is none of the session's, or stands twice in the data, or a class that
            must be there is missing.
    """
    # One name may be written in two ways that look the same: an accent beside its letter or in it.
    spelt = {name: unicodedata.normalize("NFC", name) for name in names}
    known = tuple(unicodedata.normalize("NFC", one) for one in task.labels or names)
    check_each_once(tuple(spelt[name] for name in names))
    strange = sorted(name for name in names if spelt[name] not in known)
    if strange or len(known) != task.classes or (all_there and len(names) != task.classes):
        raise DataError(
            wrong(
                "classes of the data",
                got=f"{', '.join(strange)}, which the session does not name"
                if strange
                else f"{len(names)}: {', '.join(names)}".removesuffix(": "),
                allowed=f"{task.classes}: {', '.join(task.labels) or 'any names'}",
            )
        )
    return {name: known.index(spelt[name]) for name in names}


def check_each_once(names: Sequence[str]) -> None:
    """Raises DataError where a class name stands twice: nobody could tell the two classes apart."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                wrong(
                    "classes of the data",
                    got=f"{name} {count} times",
                    allowed="each name once, for classes are told apart by their names",
                    hint="of two folders whose names are spelt in two ways, make one",
                )
            )
