"""The hash tree over a log, and proofs on it, as in Certificate Transparency (RFC 9162, 2.1).

Hashes of complete subtrees are kept, so that a root or a proof takes a few dozen hashes, for the
log as it is now and as it was at any size before.
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
MAX_PROOF = 53  # hashes: sizes are below 2**53
_LEAF, _NODE = b"\0", b"\1"


def leaf_hash(data: bytes) -> bytes:
    """Returns the hash of what one leaf holds, 32 bytes."""
    return hashlib.sha256(_LEAF + data).digest()


def _joined(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _split(count: int) -> int:
    """Returns the largest power of two below `count`, which is at least 2."""
    return 1 << (count - 1).bit_length() - 1


class Tree:
    """A tree that only grows."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]  # [k][i]: of the leaves i * 2**k and on, 2**k many

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Adds a leaf.

        Args:
            leaf: its hash, 32 bytes; see `leaf_hash`.
        """
        self._levels[0].append(leaf)
        for level, hashes in enumerate(self._levels):
            if len(hashes) % 2:
                return
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(_joined(hashes[-2], hashes[-1]))

    def leaf(self, index: int) -> bytes:
        """Returns the hash of a leaf that was added, counted from 0."""
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """Returns the hash of the first `size` leaves; None: of all. Of none, that of nothing."""
        size = len(self) if size is None else size
        return self._range(0, size) if size else hashlib.sha256().digest()

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Returns the proof that a leaf is in the tree.

        Args:
            index: of the leaf, from 0.
            size: of the tree, above `index`.
        """
        proof: list[bytes] = []
        begin, end = 0, size
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if index < middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(begin, middle))
                begin = middle
        return tuple(reversed(proof))

    def consistency(self, before: int, size: int) -> tuple[bytes, ...]:
        """Returns the proof that the tree has only grown.

        Args:
            before: its size at first, at least 1.
            size: its size now, at least `before`.
        """
        proof: list[bytes] = []
        begin, end, whole = 0, size, True  # whether the first tree begins where this one does
        while begin + before != end:
            middle = begin + _split(end - begin)
            if begin + before <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(begin, middle))
                before -= middle - begin
                begin, whole = middle, False
        if not whole:
            proof.append(self._range(begin, end))
        return tuple(reversed(proof))

    def _range(self, begin: int, end: int) -> bytes:
        """Returns the hash of the leaves from `begin` on, before `end`; as the RFC splits them."""
        count = end - begin
        level = count.bit_length() - 1
        if count == 1 << level:
            return self._levels[level][begin >> level]
        middle = begin + _split(count)
        return _joined(self._range(begin, middle), self._range(middle, end))


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Returns whether a leaf is in the tree with this root (RFC 9162, 2.1.3.2).

    Args:
        leaf: its hash.
        index: where it stands, from 0.
        size: of the tree.
        proof: of anybody.
        root: of the tree.
    """
    if not 0 <= index < size:
        return False
    at, last, made = index, size - 1, leaf
    for one in proof:
        if not last:
            return False
        if at & 1 or at == last:
            made = _joined(one, made)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            made = _joined(made, one)
        at, last = at >> 1, last >> 1
    return not last and made == root


def is_consistent(
    before: int, size: int, proof: Sequence[bytes], root_before: bytes, root: bytes
) -> bool:
    """Returns whether a tree of `size` leaves begins with the leaves of another (2.1.4.2).

    Args:
        before: size of the other one, at least 1.
        size: of the tree.
        proof: of anybody.
        root_before: of the other one.
        root: of the tree.
    """
    if not 0 < before <= size:
        return False
    if before == size:
        return not proof and root_before == root
    path = list(proof)
    if before & (before - 1) == 0:
        path.insert(0, root_before)
    if not path:
        return False
    at, last = before - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = path[0]
    for one in path[1:]:
        if not last:
            return False
        if at & 1 or at == last:
            old, new = _joined(one, old), _joined(one, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = _joined(new, one)
        at, last = at >> 1, last >> 1
    return not last and old == root_before and new == root
