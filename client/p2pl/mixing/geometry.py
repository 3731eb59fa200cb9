"""Lengths and angles of vectors [P], of large ones piece by piece.

A norm of a difference in one expression needs the memory of another vector, a cosine that of three.
Small vectors are one piece, computed as PyTorch does it.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

PIECE = 1 << 20  # numbers; chosen: 4 MiB, nothing beside a large model, and it stays in the cache
WHOLE = 1 << 22  # numbers up to which a vector is one piece
EPSILON = 1e-8  # of a norm, as in PyTorch's cosine


def pieces(count: int) -> Iterator[slice]:
    """Yields the places of the pieces of a vector of so many numbers, one at least."""
    step = PIECE if count > WHOLE else max(1, count)
    for begin in range(0, max(1, count), step):
        yield slice(begin, begin + step)


def distance(one: Tensor, other: Tensor) -> float:
    """Returns the norm of the difference of two vectors [P]."""
    parts = [float((one[at] - other[at]).norm()) for at in pieces(len(one))]
    return parts[0] if len(parts) == 1 else math.hypot(*parts)


def cosine(count: int, pair: Callable[[slice], tuple[Tensor, Tensor]]) -> float:
    """Returns the cosine between two vectors, 0 where one of them is zero.

    Args:
        count: P.
        pair: returns the numbers of both at a place.
    """
    if count <= WHOLE:
        return float(functional.cosine_similarity(*pair(slice(0, count)), dim=0))
    both, ones, others = 0.0, [], []
    for at in pieces(count):
        one, other = pair(at)
        both += float(one @ other)
        ones.append(float(one.norm()))
        others.append(float(other.norm()))
    return both / (max(EPSILON, math.hypot(*ones)) * max(EPSILON, math.hypot(*others)))


def combined(count: int, part: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """Returns a vector [P] that is computed piece by piece.

    Args:
        count: P.
        part: returns the numbers at a place.
        like: a vector of the same type on the same device.
    """
    if count <= WHOLE:
        return part(slice(0, count))
    made = torch.empty_like(like)
    for at in pieces(count):
        made[at] = part(at)
    return made
