"""Models that are finite and out of all proportion enter no mean."""

import pytest
import torch
from torch import Tensor

from p2pl.mixing.size import too_large


def sized(norm: float) -> Tensor:
    return torch.tensor([0.0, norm])


def rejected(own: float, *others: float) -> list[int]:
    found = too_large(sized(own), {str(at): sized(norm) for at, norm in enumerate(others)})
    assert all("size: got a norm of" in why for why in found.values())
    return [int(who) for who in found]


def test_ten_times_the_usual_is_allowed_and_more_is_not() -> None:
    assert rejected(1.0, 1.0, 10.0) == []
    assert rejected(1.0, 1.0, 10.1) == [1]


def test_who_has_just_begun_takes_the_models_that_most_have() -> None:
    assert rejected(0.01, 5.0, 6.0, 7.0) == []
    assert rejected(0.01, 5.0, 6.0, 7.0, 3e38) == [3]


def test_fewer_than_half_set_no_scale_and_all_of_them_not_above_a_thousand_times_mine() -> None:
    assert rejected(1.0, 1e30, 1e30, 1.0, 1.0) == [0, 1]
    assert rejected(1.0, 1e30, 1e30) == [0, 1]
    assert rejected(1.0, 999.0, 1e3 + 1) == [1]


def test_the_only_other_one_may_be_further_on_than_that() -> None:
    assert rejected(1.0, 99.0) == []
    assert rejected(1.0, 101.0) == [0]


@pytest.mark.parametrize("norm", [1e20, 3e38])
def test_a_norm_that_overflows_is_too_large(norm: float) -> None:
    assert rejected(1.0, norm) == [0]
    assert rejected(0.0, 1.0, norm) == [1]


def test_models_of_zeros_are_not_too_large() -> None:
    assert rejected(0.0, 0.0, 0.0) == []
    assert rejected(0.0, 1.0) == []
