import functools
import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pl.mixing import robust
from p2pl.mixing.robust import RULES, Anchor, Combined, combine
from p2pl.protocol.session import Mixing

OWN = torch.tensor([0.0, 0.0])
# Three honest models around (1, 1), mine among them in the tests that need it, and two liars.
CLUSTER = [torch.tensor(xy) for xy in ([1.0, 1.0], [1.2, 0.8], [0.8, 1.1], [1.1, 1.2])]
LIARS = [torch.tensor([-30.0, 40.0]), torch.tensor([-31.0, 40.0])]
MINE = Anchor(progress=0.5, loss=lambda vector: float((vector - 1).abs().sum()))

finite = st.floats(-1e3, 1e3, width=32)
offers = st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=8).map(
    lambda rows: [torch.tensor(row) for row in rows]
)


def mixed(rule: str, own: Tensor, received: list[Tensor], bad: int | None = None) -> Combined:
    return combine(rule, own, received, Mixing(byzantine=bad), MINE)


# --- by hand -------------------------------------------------------------------------------------


def test_the_median_of_an_odd_and_of_an_even_number() -> None:
    three = [torch.tensor([9.0, 1.0]), torch.tensor([2.0, 5.0])]
    assert mixed("median", OWN, three).vector.tolist() == [2.0, 1.0]
    four = [*three, torch.tensor([4.0, 3.0])]
    assert mixed("median", OWN, four).vector.tolist() == [3.0, 2.0]


def test_the_shares_of_a_median_say_how_often_each_model_was_the_middle_one() -> None:
    combined = mixed("median", OWN, [torch.tensor([9.0, 1.0]), torch.tensor([2.0, 5.0])])
    assert combined.row == (0, 0.5, 0.5)


def test_a_trimmed_mean_leaves_out_the_ends_of_each_coordinate() -> None:
    received = [torch.tensor([x, -x]) for x in (1.0, 2.0, 3.0, 100.0)]
    assert mixed("trimmed-mean", OWN, received, 1).vector.tolist() == [2.0, -2.0]
    assert mixed("trimmed-mean", OWN, received, 0).vector.tolist() == pytest.approx([21.2, -21.2])


def test_krum_takes_the_model_in_the_middle_of_the_crowd() -> None:
    combined = mixed("krum", CLUSTER[0], [*CLUSTER[1:], *LIARS], 2)
    assert combined.vector.tolist() == [1.0, 1.0]
    assert combined.row == (1, 0, 0, 0, 0, 0)
    assert set(combined.rejected) == {0, 1, 2, 3, 4}


def test_multi_krum_takes_the_mean_of_the_crowd() -> None:
    combined = mixed("multi-krum", CLUSTER[0], [*CLUSTER[1:], *LIARS], 2)
    assert combined.vector.tolist() == pytest.approx([1.025, 1.025])
    assert combined.row == (0.25, 0.25, 0.25, 0.25, 0, 0)
    assert set(combined.rejected) == {3, 4}


def test_nearest_neighbour_mixing_replaces_a_liar_by_those_it_is_near() -> None:
    line = [torch.tensor([x]) for x in (1.0, 2.0, 100.0)]
    # The nearest 2 of 3, itself included: of 0 and 1 their mean, of 2 that with 1, of 100 with 2.
    combined = mixed("nnm-median", torch.tensor([0.0]), line, 2)  # at most 1 of 4 is tolerated
    assert robust.assumed_bad(Mixing(byzantine=2), 4) == 1
    # With b = 1 the nearest 3 of 4: 1, 1, 1 and 103/3; the median is 1.
    assert combined.vector.tolist() == [1.0]
    assert combined.row == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))


def test_clipped_gossip_cuts_each_difference_to_the_radius() -> None:
    received = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0]), torch.tensor([300.0, 400.0])]
    # m = 4, b = 1: the radius is sqrt(5^2 + 5^2), and the third counts with 7.07 of its 500.
    combined = mixed("clipped-gossip", OWN, received, 1)
    cut = 50**0.5 / 500
    assert combined.row == pytest.approx((1 - (2 + cut) / 4, 1 / 4, 1 / 4, cut / 4))
    assert combined.vector.tolist() == pytest.approx([(3 + 300 * cut) / 4, (9 + 400 * cut) / 4])


def test_balance_takes_those_near_mine_and_less_far_as_time_goes_on() -> None:
    own, near, far = (torch.tensor([x, 0.0]) for x in (10.0, 12.0, 14.0))
    early = combine("balance", own, [near, far], Mixing(), Anchor(0.0, MINE.loss))
    assert early.row == (0.5, 0.5, 0)  # 0.3 of 10
    assert early.vector.tolist() == [11.0, 0.0]
    assert list(early.rejected) == [1]
    late = combine("balance", own, [near, far], Mixing(), Anchor(1.0, MINE.loss))
    assert late.row == (1, 0, 0)  # 0.3 / e of 10
    wide = combine("balance", own, [near, far], Mixing(balance_gamma=0.5), Anchor(0.0, MINE.loss))
    assert wide.row == (0.5, 0.25, 0.25)


def test_ubar_takes_the_near_ones_that_fit_my_data() -> None:
    own = torch.tensor([1.5, 1.5])
    combined = mixed("ubar", own, [CLUSTER[0], torch.tensor([2.0, 2.0]), *LIARS], 2)
    assert combined.row == (0.5, 0.5, 0, 0, 0)  # the second is near, but its loss is above mine
    assert "loss" in combined.rejected[1]
    assert "nearer" in combined.rejected[2]


def test_ubar_takes_the_best_where_none_is_as_good_as_mine() -> None:
    own = torch.tensor([1.0, 1.0])
    combined = mixed("ubar", own, [torch.tensor([2.0, 2.0]), torch.tensor([1.5, 1.0])], 0)
    assert combined.row == (0.5, 0, 0.5)


# --- what they are for ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "lie", [LIARS[0], OWN, torch.tensor([1e6, -1e6]), torch.tensor([3e38] * 2)]
)
def test_two_liars_of_six_do_not_move_the_mix_far(rule: str, lie: Tensor) -> None:
    received = [*CLUSTER[1:], lie, lie * 1.01]
    vector = mixed(rule, CLUSTER[0], received, 2).vector
    # clipped-gossip lets b/m of the radius through, the others nothing.
    assert float((vector - 1).norm()) < 0.6


def test_equal_sharing_would_have_been_moved() -> None:
    assert float((torch.stack([*CLUSTER, *LIARS]).mean(0) - 1).norm()) > 10


@pytest.mark.parametrize("rule", RULES)
def test_alone_i_keep_what_i_have(rule: str) -> None:
    combined = mixed(rule, OWN, [])
    assert torch.equal(combined.vector, OWN)
    assert combined.row == (1,)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"balance", "ubar"}))
def test_one_stranger_cannot_be_outvoted_and_has_no_weight(rule: str) -> None:
    combined = mixed(rule, CLUSTER[0], [CLUSTER[1]])
    assert torch.equal(combined.vector, CLUSTER[0])
    assert combined.row == (1, 0)
    assert "outvoted" in combined.rejected[0]


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"krum", "nnm-krum"}))
def test_one_peer_is_shared_with_where_nobody_is_assumed_bad(rule: str) -> None:
    assert mixed(rule, CLUSTER[0] * 1.1, [CLUSTER[0]], 0).row == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("rule", RULES)
def test_two_strangers_are_enough_to_go_by(rule: str) -> None:
    combined = mixed(rule, CLUSTER[0], [CLUSTER[1], LIARS[0]])
    assert float((combined.vector - 1).norm()) < 0.6


@pytest.mark.parametrize("rule", RULES)
def test_a_mix_that_overflows_leaves_me_with_mine(rule: str) -> None:
    lies = [torch.tensor([3e38, 3e38]), torch.tensor([3.4e38, 3e38]), torch.tensor([-3e38, 3e38])]
    assert mixed(rule, OWN, lies).vector.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RULES), offers, st.none() | st.integers(0, 9))
def test_every_mix_is_finite_in_the_hull_and_its_row_a_row(
    rule: str, vectors: list[Tensor], bad: int | None
) -> None:
    own, *received = vectors
    before = [vector.clone() for vector in vectors]
    combined = mixed(rule, own, received, bad)
    assert len(combined.row) == len(vectors)
    assert sum(combined.row) == pytest.approx(1)
    assert min(combined.row) >= -1e-12
    assert all(combined.row[k + 1] == 0 for k in combined.rejected)
    stack = torch.stack(vectors)
    slack = 1e-5 * (1 + stack.abs().max())
    assert (combined.vector >= stack.min(0).values - slack).all()
    assert (combined.vector <= stack.max(0).values + slack).all()
    assert all(torch.equal(now, then) for now, then in zip(vectors, before, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_models_too_large_to_copy_at_once_give_the_same(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = list(torch.randn(6, 50, generator=torch.Generator().manual_seed(1)))
    whole = mixed(rule, vectors[0], vectors[1:], 2)
    monkeypatch.setattr(robust, "CHUNK_NUMBERS", 42)  # seven coordinates at a time
    parts = mixed(rule, vectors[0], vectors[1:], 2)
    assert torch.allclose(parts.vector, whole.vector)
    assert parts.row == pytest.approx(whole.row)


# --- against another implementation --------------------------------------------------------------

# What byzfl 0.0.11 makes of `SIX` with f = 1 and f = 2, to 4 digits: it is compared with itself
# where it is installed (without its requirements: it pulls torchvision, for its benchmark).
SIX = [
    [0.1, 1.0, -2.0],
    [0.3, 1.2, -1.8],
    [-0.2, 0.7, -2.3],
    [0.2, 1.1, -2.1],
    [5.0, -4.0, 0.0],
    [-9.0, 8.0, 7.0],
]
REFERENCE: dict[tuple[str, int], list[float]] = {
    ("median", 1): [0.15, 1.05, -1.9],
    ("trimmed-mean", 1): [0.1, 1.0, -1.475],
    ("krum", 1): [0.3, 1.2, -1.8],
    ("multi-krum", 1): [1.08, 0.0, -1.64],
    ("nnm-median", 1): [1.08, 0.0, -1.64],
    ("nnm-trimmed-mean", 1): [1.08, 0.0, -1.64],
    ("nnm-krum", 1): [1.08, 0.0, -1.64],
    ("nnm-multi-krum", 1): [1.08, 0.0, -1.64],
    ("median", 2): [0.15, 1.05, -1.9],
    ("trimmed-mean", 2): [0.15, 1.05, -1.9],
    ("krum", 2): [0.1, 1.0, -2.0],
    ("multi-krum", 2): [0.1, 1.0, -2.05],
    ("nnm-median", 2): [0.1, 1.0, -2.05],
    ("nnm-trimmed-mean", 2): [0.1, 1.0, -2.05],
    ("nnm-krum", 2): [0.1, 1.0, -2.05],
    ("nnm-multi-krum", 2): [0.1, 1.0, -2.05],
}


@functools.cache
def byzfl() -> Any:  # noqa: ANN401  # a module
    """Returns byzfl's aggregators, without its benchmark, which needs torchvision."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None:
        pytest.skip("byzfl is not installed: pip install --no-deps byzfl")
    parent = types.ModuleType("byzfl")
    parent.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["byzfl"] = parent
    return importlib.import_module("byzfl.aggregators")


def oracle(rule: str, bad: int, vectors: Tensor) -> Tensor:
    """Returns what byzfl makes of the vectors."""
    names = {
        "median": "Median",
        "trimmed-mean": "TrMean",
        "krum": "Krum",
        "multi-krum": "MultiKrum",
    }
    there = byzfl()
    if rule.startswith(robust.NEAREST):
        vectors = there.NNM(bad)(vectors)
    name = names[rule.removeprefix(robust.NEAREST)]
    aggregate = there.Median() if name == "Median" else getattr(there, name)(bad)
    made: Tensor = aggregate(vectors)
    return made


@pytest.mark.parametrize(("rule", "bad"), REFERENCE)
def test_a_rule_agrees_with_another_implementation(rule: str, bad: int) -> None:
    own, *received = torch.tensor(SIX)
    expected = torch.tensor(REFERENCE[rule, bad])
    assert torch.allclose(mixed(rule, own, received, bad).vector, expected, atol=1e-4)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in robust.ANCHORED])
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_rule_agrees_with_byzfl_on_random_models(rule: str, bad: int) -> None:
    generator = torch.Generator().manual_seed(bad)
    for count in (7, 9, 20):
        vectors = torch.randn(count, 30, generator=generator)
        got = mixed(rule, vectors[0], list(vectors[1:]), bad).vector
        assert torch.allclose(got, oracle(rule, bad, vectors), atol=1e-5)
