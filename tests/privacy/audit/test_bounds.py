"""From right guesses to a bound on epsilon: the figures of the paper, and what can never be."""

import math

import pytest

from p2pl.privacy.audit.bounds import clopper_pearson, epsilon_of_guesses, epsilon_of_rates, p_value


def test_the_p_value_is_that_of_the_papers_example() -> None:
    assert p_value(100, 100, 75, math.log(3), 0.0) == pytest.approx(0.5535, abs=1e-4)


def test_all_right_or_all_wrong_are_what_a_coin_makes_of_them() -> None:
    assert p_value(10, 10, 10, 0.0, 0.0) == pytest.approx(0.5**10)
    assert p_value(10, 10, 0, 0.0, 0.0) == 1.0
    # Guessing right with chance 3/4 each, ten times.
    assert p_value(10, 10, 10, math.log(3), 0.0) == pytest.approx(0.75**10)


@pytest.mark.parametrize(
    ("right", "bound"), [(50, 0.0), (60, 0.05), (70, 0.47), (80, 0.96), (90, 1.63), (100, 3.49)]
)
def test_more_right_guesses_need_a_larger_epsilon(right: int, bound: float) -> None:
    assert epsilon_of_guesses(100, 100, right, 1e-5, 0.95) == pytest.approx(bound, abs=0.01)


def test_delta_takes_from_the_bound_and_more_so_with_more_canaries() -> None:
    sharp = epsilon_of_guesses(1000, 100, 90, 0.0, 0.95)
    blunt = epsilon_of_guesses(1000, 100, 90, 1e-4, 0.95)
    blunter = epsilon_of_guesses(5000, 100, 90, 1e-4, 0.95)
    assert sharp > blunt > blunter > 0


def test_intervals_are_exact() -> None:
    assert clopper_pearson(0, 10, 0.95).low == 0.0
    assert clopper_pearson(10, 10, 0.95).high == 1.0
    # 1 - 0.025 ** (1/10), from the definition.
    assert clopper_pearson(0, 10, 0.95).high == pytest.approx(1 - 0.025**0.1)
    assert clopper_pearson(0, 10, 0.95).high == pytest.approx(1 - clopper_pearson(10, 10, 0.95).low)


def test_rates_that_chance_can_make_need_no_epsilon() -> None:
    assert epsilon_of_rates((10, 1000), (10, 1000), 1e-5, 0.95) == 0.0
    found = epsilon_of_rates((500, 1000), (10, 1000), 1e-5, 0.95)
    assert 2.5 < found < math.log(0.5 / 0.01)
    mirrored = epsilon_of_rates((990, 1000), (500, 1000), 1e-5, 0.95)
    assert mirrored == pytest.approx(found, abs=0.05)
