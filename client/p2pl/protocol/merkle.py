"""The hash tree of BitTorrent v2 (BEP 52): SHA-256 over 16 KiB blocks, padded to a power of two."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

BLOCK_BYTES = 16_384
HASH_BYTES = 32
MIN_PIECE_BYTES = 1 << 18
MAX_PIECE_BYTES = 1 << 22
TARGET_PIECES = 1_024  # chosen: keeps the piece layer of a 1 GiB checkpoint at 32 KiB

_ZERO = bytes(HASH_BYTES)


def piece_bytes(length: int) -> int:
    """Returns the piece length for a file of `length` bytes: a power of two, 256 KiB to 4 MiB."""
    size = MIN_PIECE_BYTES
    while size < MAX_PIECE_BYTES and length > size * TARGET_PIECES:
        size *= 2
    return size


def blocks(source: BinaryIO) -> Iterator[bytes]:
    """Yields `source` in blocks of 16 KiB; the last may be shorter."""
    while block := source.read(BLOCK_BYTES):
        yield block


def blocks_of(payload: bytes | memoryview) -> Iterator[memoryview]:
    """Yields bytes in blocks of 16 KiB, without a copy; the last may be shorter."""
    view = memoryview(payload)
    for begin in range(0, len(view), BLOCK_BYTES):
        yield view[begin : begin + BLOCK_BYTES]


def tree(source: Iterable[bytes | memoryview], length: int) -> tuple[bytes, tuple[bytes, ...]]:
    """Returns the root of a file's hash tree and its piece layer (empty when one piece holds it).

    Args:
        source: the file in blocks of 16 KiB.
        length: the file's length in bytes; decides the piece length.
    """
    leaves = [hashlib.sha256(block).digest() for block in source]
    if length <= piece_bytes(length):
        return _root(leaves, _ZERO), ()
    per_piece = piece_bytes(length) // BLOCK_BYTES
    pieces = tuple(
        _root(_padded(leaves[at : at + per_piece], per_piece, _ZERO), _ZERO)
        for at in range(0, len(leaves), per_piece)
    )
    return _root(list(pieces), _root([_ZERO] * per_piece, _ZERO)), pieces


def is_layer_of(root: bytes, layer: Sequence[bytes], length: int) -> bool:
    """Returns whether `layer` is the piece layer under `root` of a file of `length` bytes.

    Args:
        root: SHA-256, 32 bytes.
        layer: hashes of the pieces, 32 bytes each; () where the file fits one piece.
        length: in bytes, at least 1.
    """
    size = piece_bytes(length)
    if length <= size:
        return not layer
    if len(layer) != -(-length // size) or any(len(piece) != HASH_BYTES for piece in layer):
        return False
    return _root(list(layer), _root([_ZERO] * (size // BLOCK_BYTES), _ZERO)) == root


def _padded(hashes: list[bytes], count: int, pad: bytes) -> list[bytes]:
    return hashes + [pad] * (count - len(hashes))


def _root(hashes: list[bytes], pad: bytes) -> bytes:
    """Returns the root over `hashes`, padded with `pad` to a power of two."""
    level = _padded(hashes, 1 << max(0, len(hashes) - 1).bit_length(), pad)
    while len(level) > 1:
        level = [
            hashlib.sha256(a + b).digest() for a, b in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0] if level else _ZERO
