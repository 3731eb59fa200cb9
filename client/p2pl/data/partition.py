"""Which peer holds which rows of a shared dataset: for experiments, and for the demo.

Every partition covers each row exactly once. Machines that never met must agree on it, so it is
drawn with numpy's `RandomState`, whose stream is frozen for all versions (NEP 19). It needs nothing
but numpy: libraries that partition datasets bring hundreds of megabytes that every peer would pay.

Compared once with flwr-datasets 0.6.1 (10 peers, 12,000 rows, mean of 10 seeds): `iid` is its
IidPartitioner, `dirichlet:A` its DirichletPartitioner without self-balancing (spread of sizes 0.25
v 0.28 at A = 1, 0.70 v 0.62 at 0.1; mean entropy of a peer's labels 1.96 v 1.97, 0.95 v 1.02), and
`classes:2` its PathologicalPartitioner with deterministic assignment. With its default, random
assignment, that one leaves a class to nobody now and then, and 6 % of the rows with it.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from p2pl.errors import DataError, InputError, wrong

Indices: TypeAlias = NDArray[np.int64]
# (labels [N], peers, seed in 0..2**32-1) -> the rows of each peer
Partition: TypeAlias = Callable[[Indices, int, int], list[Indices]]

# So that training and validation each have a few. Chosen: what Hsu et al. 2019
# (arXiv:1909.06335) draws are re-drawn for in common practice.
MIN_ROWS = 10
SIZE_SPREAD = 2.0  # Dirichlet parameter of unequal sizes; chosen: largest/smallest is 5-20 at N=6
BY_CLASS = ("classes", "dirichlet")  # names of those that look at the labels
FORMS = "iid, unbalanced, dirichlet:A (A in 0.001..1000000), classes:K (K a whole number >= 1)"


def parse(text: str) -> Partition:
    """Returns the partition called `text`.

    Raises:
        InputError: there is none of that name, or its number is out of range.
    """
    name, colon, number = text.partition(":")
    if not colon and name == "iid":
        return iid
    if not colon and name == "unbalanced":
        return unbalanced
    if name == "classes" and number.isascii() and number.isdigit() and 1 <= int(number) < 1 << 31:
        return partial(classes, each=int(number))
    if name == "dirichlet":
        try:
            alpha = float(number)
        except ValueError:
            alpha = math.nan
        if 1e-3 <= alpha <= 1e6:  # outside it the draw degenerates to zeros or to equal shares
            return partial(dirichlet, alpha=alpha)
    raise InputError(wrong("--partition", got=text, allowed=FORMS))


def digest(parts: Sequence[Indices]) -> str:
    """Returns the SHA-256 of a partition, 64 hex digits: two that give it deal the same rows.

    Over each peer's rows in order: how many, then their numbers, all as 8 bytes little-endian.
    """
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part.astype("<i8").tobytes())
    return hashed.hexdigest()


def iid(labels: Indices, peers: int, seed: int) -> list[Indices]:
    """Returns random shares of equal size, up to one row.

    Args:
        labels: [N], the class of each row.
        peers: how many shares, 1..N.
        seed: of the draw, 0..2^32 - 1.

    Raises:
        DataError: there are fewer rows than peers need.
    """
    _check_size(len(labels), peers)
    order = RandomState(seed).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, peers)]


def unbalanced(labels: Indices, peers: int, seed: int) -> list[Indices]:
    """Returns random shares of unequal size: same labels, different amounts.

    Args:
        labels: [N], the class of each row.
        peers: how many shares, 1..N.
        seed: of the draw, 0..2^32 - 1.

    Raises:
        DataError: there are fewer rows than peers need.
    """
    _check_size(len(labels), peers)
    random = RandomState(seed)
    order = random.permutation(len(labels))
    spare = len(labels) - peers * MIN_ROWS
    sizes = MIN_ROWS + _shares(random, SIZE_SPREAD, peers, spare)
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def dirichlet(labels: Indices, peers: int, seed: int, *, alpha: float) -> list[Indices]:
    """Returns shares in which each class is spread over the peers by its own Dirichlet draw.

    Hsu et al. 2019 (arXiv:1909.06335), in the by-class form of Yurochkin et al. 2019. A peer that
    drew fewer than `MIN_ROWS` rows is topped up from the largest.

    Args:
        labels: [N].
        peers: at least 1.
        seed: 0..2**32-1.
        alpha: small is skewed: 0.1 leaves a peer a few classes, 100 is nearly iid.

    Raises:
        DataError: there are fewer rows than peers need.
    """
    _check_size(len(labels), peers)
    random = RandomState(seed)
    held: list[list[Indices]] = [[] for _ in range(peers)]
    for rows in _by_class(labels, random):
        sizes = _shares(random, alpha, peers, len(rows))
        for peer, part in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
            held[peer].append(part)
    return [np.sort(part) for part in _top_up([np.concatenate(parts) for parts in held], random)]


def classes(labels: Indices, peers: int, seed: int, *, each: int) -> list[Indices]:
    """Returns shares with rows of exactly `each` classes; owners of a class share it equally.

    Classes are dealt like cards, from one shuffled deck after another, so none is left out.

    Args:
        labels: [N], the class of each row.
        peers: how many shares, 1..N.
        seed: of the draw, 0..2^32 - 1.
        each: how many classes a peer holds.

    Raises:
        DataError: so few classes a peer that some class would be nobody's, or more than there are.
    """
    _check_size(len(labels), peers)
    random = RandomState(seed)
    by_class = _by_class(labels, random)
    kinds = len(by_class)
    if not math.ceil(kinds / peers) <= each <= kinds:
        raise DataError(
            wrong(
                f"--partition classes:{each}",
                got=f"{each} classes for each of {peers} peers",
                allowed=f"{math.ceil(kinds / peers)}..{kinds}, so that no class is left out",
            )
        )
    owners: list[list[int]] = [[] for _ in range(kinds)]
    deck: deque[int] = deque()
    for peer in range(peers):
        for kind in _deal(deck, each, kinds, random):
            owners[kind].append(peer)
    held: list[list[Indices]] = [[] for _ in range(peers)]
    for rows, own in zip(by_class, owners, strict=True):
        for peer, part in zip(own, np.array_split(rows, len(own)), strict=True):
            held[peer].append(part)
    parts = [np.sort(np.concatenate(rows)) for rows in held]
    least = min(map(len, parts))
    if least < MIN_ROWS:
        got = f"{peers} peers with {each} of {kinds} classes, of which one would have {least} rows"
        raise DataError(
            wrong(
                f"--partition classes:{each}",
                got=got,
                allowed=f"at least {MIN_ROWS} rows a peer",
                hint="give each more classes, or take fewer peers",
            )
        )
    return parts


def _deal(deck: deque[int], each: int, kinds: int, random: RandomState) -> list[int]:
    """Returns `each` different cards from the front of the deck, adding new decks behind it."""
    hand: list[int] = []
    passed: list[int] = []
    while len(hand) < each:
        if not deck:
            deck.extend(random.permutation(kinds).tolist())
        card = deck.popleft()
        (passed if card in hand else hand).append(card)
    deck.extendleft(reversed(passed))
    return hand


def _by_class(labels: Indices, random: RandomState) -> list[Indices]:
    if labels.ndim != 1 or labels.dtype.kind == "f":
        allowed = "iid or unbalanced: the targets of these data are not one class each"
        raise DataError(wrong("--partition", got="one by classes", allowed=allowed))
    return [random.permutation(np.flatnonzero(labels == kind)) for kind in np.unique(labels)]


def _shares(random: RandomState, alpha: float, peers: int, rows: int) -> Indices:
    """Returns `rows` cut into `peers` whole numbers, in Dirichlet(alpha) proportion."""
    parts = random.dirichlet([alpha] * peers)
    if not np.isfinite(parts).all():  # every gamma draw underflowed: one peer takes all, the limit
        parts = np.eye(peers)[random.randint(peers)]
    ends = np.floor(np.cumsum(parts) * rows + 0.5).astype(np.int64)
    return np.diff(np.minimum(ends, rows), prepend=0)


def _top_up(parts: list[Indices], random: RandomState) -> list[Indices]:
    """Returns the parts, each with at least `MIN_ROWS`, taken at random from the largest."""
    parts = [random.permutation(part) for part in parts]
    for poor in range(len(parts)):
        while (missing := MIN_ROWS - len(parts[poor])) > 0:
            rich = int(np.argmax([len(other) for other in parts]))
            take = min(missing, len(parts[rich]) - MIN_ROWS)
            parts[poor] = np.concatenate([parts[poor], parts[rich][:take]])
            parts[rich] = parts[rich][take:]
    return parts


def _check_size(rows: int, peers: int) -> None:
    if rows < peers * MIN_ROWS:
        raise DataError(
            wrong(
                "--partition",
                got=f"{rows} rows for {peers} peers",
                allowed=f"at least {MIN_ROWS} rows a peer",
            )
        )
