"""Inputs with targets, and a part of them: many peers of one process share one copy of the data."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

# What a model takes: one tensor, or several of N rows each, passed by place or by name.
Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def each(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Returns inputs of the same form, each tensor changed."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, tuple):
        return tuple(map(change, x))
    return {name: change(one) for name, one in x.items()}


def tensors_of(x: Inputs) -> dict[str, Tensor]:
    """Returns the tensors of inputs by what messages call them."""
    if isinstance(x, Tensor):
        return {"inputs": x}
    named = x.items() if isinstance(x, Mapping) else enumerate(x)
    return {f"input {name}": one for name, one in named}


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and their targets, on one device."""

    x: Any  # Inputs: [N, *input] float32, or int64 where they are tokens; or several such
    y: Tensor  # [N, ...], as the task has them: classes are [N] int64

    def __len__(self) -> int:
        return self.y.shape[0]  # len(tensor) takes three times as long

    @property
    def labels(self) -> Tensor:
        """The target of each example, [N, ...]; its class, [N] int64, where there are classes."""
        return self.y

    def take(self, rows: Tensor) -> "Examples":
        """Returns a copy of the examples at `rows`, [n] int64 on any device."""
        at = rows.to(self.y.device)
        # Five times as fast as x[at] on the CPU.
        x = each(self.x, lambda one: one.index_select(0, at))
        return Examples(x, self.y.index_select(0, at))

    def part(self, rows: Tensor) -> "Part":
        """Returns the examples at `rows`, [n] int64, without a copy of them."""
        return Part(self, rows.to(self.y.device))

    def batches(self, size: int) -> Iterator["Examples"]:
        """Yields all examples in order, at most `size` at a time."""
        for begin in range(0, max(1, len(self)), size):
            rows = slice(begin, begin + size)
            yield Examples(each(self.x, itemgetter(rows)), self.y[rows])

    def to(self, device: torch.device) -> "Examples":
        """Returns the same examples on `device`."""
        return Examples(each(self.x, lambda one: one.to(device)), self.y.to(device))


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of examples that others use too; each row is copied only while it is worked on."""

    whole: Examples
    rows: Tensor  # [n] int64, on the device of the examples

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def labels(self) -> Tensor:
        """The target of each example of this part, [n, ...]."""
        return self.whole.y[self.rows]

    def take(self, rows: Tensor) -> Examples:
        """Returns a copy of the examples at `rows` of this part, [n] int64 on any device."""
        return self.whole.take(self.rows[rows.to(self.rows.device)])

    def part(self, rows: Tensor) -> "Part":
        """Returns the examples at `rows` of this part, without a copy of them."""
        return Part(self.whole, self.rows[rows.to(self.rows.device)])

    def batches(self, size: int) -> Iterator[Examples]:
        """Yields all examples of this part in order, at most `size` at a time."""
        for rows in torch.split(self.rows, size):
            yield self.whole.take(rows)


Source: TypeAlias = Examples | Part
