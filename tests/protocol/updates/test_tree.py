"""The hash tree over a log: as RFC 9162 defines it, and nothing false is taken for proven."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pl.protocol.updates.tree import Tree, is_consistent, is_included, leaf_hash

# Of the tests of Certificate Transparency: eight leaves, and the roots of the trees they make.
LEAVES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")
LAST = "606162636465666768696a6b6c6d6e6f"
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def naive_root(leaves: list[bytes]) -> bytes:
    """Returns the root by the definition (RFC 9162, 2.1.1), from the leaves themselves."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    both = naive_root(leaves[:half]) + naive_root(leaves[half:])
    return hashlib.sha256(b"\1" + both).digest()


def tree_of(leaves: list[bytes]) -> Tree:
    """Returns a tree with these leaves."""
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    return tree


def numbered(count: int) -> list[bytes]:
    """Returns so many different leaves."""
    return [str(number).encode() for number in range(count)]


def test_roots_are_those_that_certificate_transparency_has() -> None:
    tree = tree_of([bytes.fromhex(one) for one in (*LEAVES, LAST)])
    assert {size: tree.root(size).hex() for size in range(1, 9)} == ROOTS
    assert Tree().root() == hashlib.sha256().digest()


def test_a_consistency_proof_is_the_one_of_the_rfc_s_example() -> None:
    # RFC 9162, 2.1.5, seven leaves: PROOF(3) = [c, d, g, l], PROOF(4) = [l], PROOF(6) = [i, j, k].
    leaves = numbered(7)
    hashes = [leaf_hash(one) for one in leaves]
    tree = tree_of(leaves)
    g, k, l = naive_root(leaves[:2]), naive_root(leaves[:4]), naive_root(leaves[4:])  # noqa: E741
    i, j = naive_root(leaves[4:6]), hashes[6]
    assert tree.consistency(3, 7) == (hashes[2], hashes[3], g, l)
    assert tree.consistency(4, 7) == (l,)
    assert tree.consistency(6, 7) == (i, j, k)
    assert tree.inclusion(3, 7) == (hashes[2], g, l)


@given(st.integers(1, 70), st.data())
def test_every_root_and_proof_is_as_the_definition_has_it(size: int, data: st.DataObject) -> None:
    leaves = numbered(size)
    tree = tree_of(leaves)
    before, index = data.draw(st.integers(1, size)), data.draw(st.integers(0, size - 1))
    root = naive_root(leaves)
    assert tree.root() == root
    assert tree.root(before) == naive_root(leaves[:before])
    included = tree.inclusion(index, size)
    assert is_included(leaf_hash(leaves[index]), index, size, included, root)
    grown = tree.consistency(before, size)
    assert is_consistent(before, size, grown, naive_root(leaves[:before]), root)


@given(st.integers(2, 40), st.data())
def test_what_is_not_in_the_log_is_never_proven(size: int, data: st.DataObject) -> None:
    leaves = numbered(size)
    tree, root = tree_of(leaves), naive_root(leaves)
    index, before = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    included, grown = tree.inclusion(index, size), tree.consistency(before, size)
    assert not is_included(leaf_hash(b"another"), index, size, included, root)
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert not is_included(leaf_hash(leaves[index]), other, size, included, root)
    forked = naive_root([*leaves[: before - 1], b"another"])
    assert not is_consistent(before, size, grown, forked, root)
    for proof in (included[:-1], (*included, root), (*included[:-1], bytes(32))):
        if proof != included:
            assert not is_included(leaf_hash(leaves[index]), index, size, proof, root)
    for proof in (grown[:-1], (*grown, root), (*grown[:-1], bytes(32))):
        assert not is_consistent(before, size, proof, naive_root(leaves[:before]), root)


@pytest.mark.parametrize(("before", "size"), [(0, 3), (4, 3), (3, 3)])
def test_sizes_that_cannot_be_prove_nothing(before: int, size: int) -> None:
    root = naive_root(numbered(3))
    assert is_consistent(before, size, (), root, root) is (before == size)
    assert not is_included(leaf_hash(b"0"), 3, 3, (), root)
