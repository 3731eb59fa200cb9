import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rules import mix, own_of, rule_at_work
from torch import Tensor

from p2pl.mixing.base import MIXERS, PeerModel, weighted_mean
from p2pl.mixing.fixed import FixedRow, age_row, sample_row
from p2pl.protocol.session import Mixing

FIXED = ("age", "none", "samples", "uniform")
OWN = torch.tensor([0.0, 4.0])
ONE = torch.tensor([2.0, 0.0])
TWO = torch.tensor([4.0, 8.0])

vectors = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=6
).map(lambda rows: [torch.tensor(row) for row in rows])
counts = st.lists(st.integers(0, 10**9), min_size=6, max_size=6)


def fixed_row(rule: str, own: int, counts: list[int]) -> tuple[float, ...]:
    """Returns the row of a rule, given what each peer says: its samples, which is its age too."""
    mixer = rule_at_work(Mixing(rule=rule))
    assert isinstance(mixer, FixedRow)
    models = {str(at): PeerModel(count, count, ONE) for at, count in enumerate(counts)}
    return mixer.row(own_of(OWN, round=own, samples=own), models)


def test_a_mix_is_the_weighted_mean() -> None:
    assert weighted_mean(OWN, [ONE, TWO], (0.5, 0.25, 0.25)).tolist() == [1.5, 4.0]


def test_a_stack_of_vectors_mixes_like_a_list() -> None:
    stack = list(torch.stack([ONE, TWO]))
    assert torch.equal(
        weighted_mean(OWN, stack, (0.2, 0.3, 0.5)), weighted_mean(OWN, [ONE, TWO], (0.2, 0.3, 0.5))
    )


def test_the_rule_is_applied_to_what_came() -> None:
    mixed = mix(Mixing(rule="uniform"), [0.0, 3.0], {"a": [3.0, 0.0], "b": [0.0, 0.0]})
    assert mixed.vector.tolist() == pytest.approx([1.0, 1.0])
    assert mixed.row == pytest.approx({"me": 1 / 3, "a": 1 / 3, "b": 1 / 3})


def test_mixing_changes_nobody() -> None:
    before = [OWN.clone(), ONE.clone()]
    weighted_mean(OWN, [ONE], (0.5, 0.5))
    assert torch.equal(OWN, before[0])
    assert torch.equal(ONE, before[1])


def test_a_vector_with_no_weight_has_no_say_whatever_is_in_it() -> None:
    bad = torch.tensor([float("nan"), float("inf")])
    assert weighted_mean(OWN, [bad, ONE], (0.5, 0.0, 0.5)).tolist() == [1.0, 2.0]


def test_a_row_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        weighted_mean(OWN, [ONE, TWO], (0.5, 0.5))


def test_every_rule_a_session_may_name_is_there() -> None:
    fixed = [name for name in MIXERS.names() if issubclass(MIXERS.find(name), FixedRow)]
    assert fixed == list(FIXED)


@pytest.mark.parametrize("rule", FIXED)
def test_alone_i_keep_what_i_have(rule: str) -> None:
    assert torch.equal(weighted_mean(OWN, [], fixed_row(rule, 7, [])), OWN)


def test_rules_on_numbers_one_can_check_by_hand() -> None:
    assert fixed_row("none", 100, [100, 200]) == (1, 0, 0)
    assert fixed_row("uniform", 100, [100, 200]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert fixed_row("samples", 100, [100, 200]) == pytest.approx((0.25, 0.25, 0.5))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FIXED), vectors, counts)
def test_every_rule_stays_within_what_was_offered(
    rule: str, offered: list[Tensor], samples: list[int]
) -> None:
    own, *received = offered
    mixed = weighted_mean(own, received, fixed_row(rule, samples[0], samples[1 : len(offered)]))
    stack = torch.stack(offered)
    slack = 1e-5 * (1 + stack.abs().max())
    assert (mixed >= stack.min(0).values - slack).all()
    assert (mixed <= stack.max(0).values + slack).all()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FIXED), vectors, counts)
def test_the_order_in_which_models_arrive_does_not_matter(
    rule: str, offered: list[Tensor], samples: list[int]
) -> None:
    own, received, said = offered[0], offered[1:], samples[1 : len(offered)]
    forward = weighted_mean(own, received, fixed_row(rule, samples[0], said))
    backward = weighted_mean(own, received[::-1], fixed_row(rule, samples[0], said[::-1]))
    assert torch.allclose(forward, backward, rtol=1e-4, atol=1e-2)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**12), max_size=8))
def test_sample_weights_are_a_row(own: int, said: list[int]) -> None:
    row = sample_row(own, said)
    assert sum(row) == pytest.approx(1)
    assert min(row) > 0
    assert max(row) <= 16 * min(row) * (1 + 1e-9)


def test_a_peer_that_claims_a_billion_examples_counts_for_four_medians() -> None:
    assert sample_row(100, (100, 10**9)) == pytest.approx((1 / 6, 1 / 6, 4 / 6))


def test_a_peer_that_claims_none_counts_for_a_quarter_of_the_median() -> None:
    assert sample_row(100, (100, 0)) == pytest.approx((4 / 9, 4 / 9, 1 / 9))


def test_the_age_row_is_in_proportion_to_ages() -> None:
    assert age_row(1, [2, 5]) == (1 / 8, 2 / 8, 5 / 8)
    assert age_row(0, [0]) == (0.5, 0.5)  # nobody has trained yet
    assert age_row(3, []) == (1.0,)


def test_what_is_far_behind_the_oldest_has_no_weight_be_it_my_own() -> None:
    assert age_row(20, [15, 14]) == (20 / 35, 15 / 35, 0)
    assert age_row(4, [10, 10]) == (0, 0.5, 0.5)
