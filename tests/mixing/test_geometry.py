"""Lengths and angles of large vectors, piece by piece: what the whole expression gives."""

import pytest
import torch
from torch.nn import functional

from p2pl.mixing import geometry


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "PIECE", 7)
    monkeypatch.setattr(geometry, "WHOLE", 10)


def vectors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(count, generator=made), torch.randn(count, generator=made)


@pytest.mark.parametrize("count", [1, 10, 11, 14, 50])
def test_a_distance_and_a_cosine_are_those_of_the_whole_vectors(count: int) -> None:
    one, other = vectors(count)
    assert geometry.distance(one, other) == pytest.approx(float((one - other).norm()), rel=1e-5)
    found = geometry.cosine(count, lambda at: (one[at], other[at]))
    whole = float(functional.cosine_similarity(one, other, dim=0))
    assert found == pytest.approx(whole, abs=1e-6)


def test_the_cosine_to_nothing_is_0() -> None:
    one, _ = vectors(30)
    assert geometry.cosine(30, lambda at: (one[at], torch.zeros(30)[at])) == 0


@pytest.mark.parametrize("count", [3, 30])
def test_a_combination_is_the_whole_expression_to_the_last_bit(count: int) -> None:
    one, other = vectors(count)
    made = geometry.combined(count, lambda at: one[at] * 0.3 + other[at] * 0.7, one)
    assert torch.equal(made, one * 0.3 + other * 0.7)
