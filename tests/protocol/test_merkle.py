"""The hash tree of BEP 52, on blocks few enough to hash by hand."""

import hashlib
import io

import pytest

from p2pl.protocol import merkle


def sha(*parts: bytes) -> bytes:
    """Returns SHA-256 of the parts joined."""
    return hashlib.sha256(b"".join(parts)).digest()


def test_one_short_block_is_its_own_root() -> None:
    assert merkle.tree([b"abc"], 3) == (sha(b"abc"), ())


def test_three_blocks_are_padded_with_a_zero_hash() -> None:
    blocks = [b"a" * merkle.BLOCK_BYTES, b"b" * merkle.BLOCK_BYTES, b"c"]
    a, b, c = map(sha, blocks)
    expected = sha(sha(a, b), sha(c, bytes(32)))
    assert merkle.tree(blocks, 2 * merkle.BLOCK_BYTES + 1) == (expected, ())


def test_blocks_cuts_a_file_into_16_kib() -> None:
    data = io.BytesIO(bytes(merkle.BLOCK_BYTES + 1))
    assert [len(block) for block in merkle.blocks(data)] == [merkle.BLOCK_BYTES, 1]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 1 << 18), (1 << 28, 1 << 18), ((1 << 28) + 1, 1 << 19), (1 << 40, 1 << 22)],
)
def test_piece_length_grows_with_the_file_up_to_4_mib(length: int, expected: int) -> None:
    assert merkle.piece_bytes(length) == expected


def test_a_layer_belongs_to_its_root_and_to_no_other() -> None:
    length = 3 * merkle.MIN_PIECE_BYTES - 5
    root, layer = merkle.tree(merkle.blocks(io.BytesIO(bytes(length))), length)
    assert len(layer) == 3
    assert merkle.is_layer_of(root, layer, length)
    assert not merkle.is_layer_of(root, layer[::-1], length)
    assert not merkle.is_layer_of(root, layer[:2], length)
    assert not merkle.is_layer_of(root, [*layer[:2], b"short"], length)
    assert not merkle.is_layer_of(root, layer, merkle.MIN_PIECE_BYTES)
