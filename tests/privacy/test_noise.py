"""Secret randomness has the right shape and cannot be repeated."""

import math

import pytest
import torch
from scipy import stats

from p2pl.privacy.noise import gaussian, poisson_sample

CHANCE = 1e-6  # of failing though all is well


def test_the_noise_is_normal_and_independent() -> None:
    drawn = gaussian(200_001)
    assert drawn.dtype == torch.float64
    assert drawn.shape == (200_001,)
    assert stats.kstest(drawn.numpy(), "norm").pvalue > CHANCE
    assert abs(float(drawn.mean())) < 5 / math.sqrt(len(drawn))
    assert abs(float(drawn.var()) - 1) < 5 * math.sqrt(2 / len(drawn))
    halves = drawn[:100_000], drawn[100_001:]  # both halves come from the same random bits
    for one, other in ((drawn[:-1], drawn[1:]), halves, (halves[0].square(), halves[1].square())):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / math.sqrt(99_999)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_there_are_as_many_numbers_as_asked_for(count: int) -> None:
    assert gaussian(count).shape == (count,)


def test_no_seed_repeats_it() -> None:
    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return gaussian(4), poisson_sample(1000, 0.5)

    (one, rows), (other, other_rows) = draw(), draw()
    assert not torch.equal(one, other)
    assert rows.tolist() != other_rows.tolist()


def test_every_example_is_drawn_with_the_same_chance_by_itself() -> None:
    rate, count, rounds = 0.03, 2_000, 400
    drawn = torch.zeros(count)
    sizes = []
    for _ in range(rounds):
        rows = poisson_sample(count, rate)
        drawn[rows] += 1
        sizes.append(len(rows))
    expected = rate * rounds
    assert stats.binomtest(int(sum(sizes)), count * rounds, rate).pvalue > CHANCE
    chi = float(((drawn - expected) ** 2).sum() / (expected * (1 - rate)))
    assert stats.chi2.sf(chi, count) > CHANCE  # not some more often than others
    spread = torch.tensor(sizes, dtype=torch.float64).var() / (count * rate * (1 - rate))
    assert 0.7 < float(spread) < 1.4  # a fixed batch size would have none


def test_a_rate_of_one_draws_everybody_and_of_zero_nobody() -> None:
    assert poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(5, 0.0).tolist() == []
