import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.data.partition import MIN_ROWS, Indices, digest, parse
from p2pl.errors import DataError, InputError

LABELS = np.random.RandomState(0).randint(0, 10, 2_000).astype(np.int64)


def split(text: str, peers: int = 6, seed: int = 0, labels: Indices = LABELS) -> list[Indices]:
    return parse(text)(labels, peers, seed)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["iid", "unbalanced", "dirichlet:0.1", "dirichlet:5", "classes:4"]),
    st.integers(3, 12),
    st.integers(0, 2**32 - 1),
    st.integers(300, 900),
)
def test_every_row_belongs_to_exactly_one_peer(text: str, peers: int, seed: int, rows: int) -> None:
    labels = np.random.RandomState(seed).randint(0, 10, rows).astype(np.int64)
    parts = split(text, peers, seed, labels)
    assert len(parts) == peers
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))
    assert min(map(len, parts)) >= MIN_ROWS


@pytest.mark.parametrize("text", ["iid", "unbalanced", "dirichlet:0.5", "classes:2"])
def test_all_peers_draw_the_same_partition_and_another_seed_draws_another(text: str) -> None:
    first, again, other = split(text), split(text), split(text, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_partition_stays_what_it_is() -> None:
    # Peers that draw different ones would train on each other's rows.
    assert split("iid", 3)[0][:5].tolist() == [1, 2, 4, 5, 6]
    assert [len(part) for part in split("dirichlet:0.5", 3)] == [891, 543, 566]


def test_a_partition_is_known_by_its_hash() -> None:
    parts = [np.array([0, 2]), np.array([1])]
    rows = b"".join(number.to_bytes(8, "little") for number in (2, 0, 2, 1, 1))
    assert digest(parts) == hashlib.sha256(rows).hexdigest()
    others = {digest(split(text, peers)) for text in ("iid", "classes:2") for peers in (5, 6)}
    assert len(others) == 4


def test_iid_shares_are_equal() -> None:
    assert sorted(map(len, split("iid"))) == [333] * 4 + [334] * 2


def test_unbalanced_shares_have_the_same_labels_in_different_amounts() -> None:
    sizes = [len(part) for part in split("unbalanced")]
    assert max(sizes) > 2 * min(sizes)
    largest = max(split("unbalanced"), key=len)
    assert np.bincount(LABELS[largest], minlength=10).min() > 0


def test_a_small_dirichlet_number_is_more_skewed_than_a_large_one() -> None:
    def spread(text: str) -> float:
        return float(np.std([np.bincount(LABELS[p], minlength=10) for p in split(text)]))

    assert spread("dirichlet:0.1") > 2 * spread("dirichlet:10") > 0


@pytest.mark.parametrize(("each", "peers"), [(2, 5), (2, 6), (3, 4), (1, 10), (10, 3), (7, 6)])
def test_each_peer_holds_as_many_classes_as_asked(each: int, peers: int) -> None:
    for seed in range(20):
        parts = split(f"classes:{each}", peers, seed)
        assert [len(np.unique(LABELS[part])) for part in parts] == [each] * peers
        assert len(np.concatenate(parts)) == len(LABELS)


def test_too_few_classes_a_peer_would_leave_rows_to_nobody() -> None:
    with pytest.raises(DataError, match=r"1 classes for each of 6 peers.*allowed 2\.\.10"):
        split("classes:1")


def test_more_classes_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match=r"allowed 2\.\.10"):
        split("classes:11")


@pytest.mark.parametrize("text", ["iid", "unbalanced", "dirichlet:0.5", "classes:2"])
def test_too_few_rows_for_so_many_peers_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"2000 rows for 201 peers.*at least 10 rows a peer"):
        split(text, 201)


def test_a_peer_whose_classes_are_too_rare_is_refused() -> None:
    labels = np.array([0] * 100 + [1] * 3)
    with pytest.raises(DataError, match="2 peers with 1 of 2 classes, of which one would have 3"):
        split("classes:1", 2, labels=labels)


def test_a_peer_that_would_get_almost_nothing_is_topped_up() -> None:
    for seed in range(10):
        sizes = [len(part) for part in split("dirichlet:0.001", 12, seed)]
        assert min(sizes) == MIN_ROWS
        assert sum(sizes) == len(LABELS)


def test_the_smallest_dirichlet_number_gives_each_class_to_one_peer() -> None:
    for seed in range(10):  # about a quarter of the draws underflow
        parts = split("dirichlet:0.001", 2, seed)
        owned = sum(len(np.unique(LABELS[part])) for part in parts)
        assert 10 <= owned <= 20
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize(
    "text",
    [
        *("", "iid:1", "unbalanced:2", "random", "IID"),
        *("dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan"),
        *("dirichlet:inf", "dirichlet:x", "classes", "classes:0", "classes:1.5"),
        *("classes:-2", "classes:²", "classes:99999999999"),
    ],
)
def test_an_unknown_partition_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InputError, match="allowed iid, unbalanced, dirichlet:A"):
        parse(text)
