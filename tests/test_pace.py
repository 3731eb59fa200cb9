"""How often something may happen, and how long what failed is left alone: by a clock of our own."""

import random

import pytest
from support.announces import Clock

from p2pl.pace import NO_REST, BackOff, Rate, RateLimiter

RATE = Rate(interval_s=0.5, burst=3)


def limiter(clock: Clock, rate: Rate = RATE, max_keys: int = 1_000) -> RateLimiter[object]:
    return RateLimiter(rate, now=clock, max_keys=max_keys)


def test_a_key_gets_its_burst_and_then_one_event_an_interval() -> None:
    clock = Clock()
    limit = limiter(clock)
    assert [limit.take("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert limit.take("b") == 0
    clock.advance(0.25)
    assert limit.take("a") == 0.25
    clock.advance(0.25)
    assert [limit.take("a") for _ in range(2)] == [0, 0.5]


def test_an_event_an_interval_is_allowed_for_ever() -> None:
    clock = Clock()
    limit = limiter(clock, Rate(interval_s=0.5, burst=1))
    for _ in range(100):
        assert limit.take("a") == 0
        clock.advance(0.5)


def test_a_long_silence_earns_no_more_than_the_burst() -> None:
    clock = Clock()
    limit = limiter(clock)
    limit.take("a")
    clock.advance(1_000)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_who_asks_too_often_does_not_put_off_its_next_event() -> None:
    clock = Clock()
    limit = limiter(clock)
    for _ in range(1_000):
        limit.take("a")
    clock.advance(0.5)
    assert limit.take("a") == 0


@pytest.mark.parametrize("rate", [Rate(0.0, 1), Rate.per_second(0, 1)])
def test_a_rate_of_nothing_is_no_limit_and_remembers_nobody(rate: Rate) -> None:
    limit = limiter(Clock(), rate)
    assert {limit.take("a") for _ in range(100)} == {0}
    assert len(limit) == 0


def test_a_rate_is_written_in_events_a_second() -> None:
    assert Rate.per_second(50, 100) == Rate(0.02, 100)


def test_a_million_made_up_keys_take_bounded_memory() -> None:
    limit = limiter(Clock(), max_keys=100)
    for number in range(1_000_000):
        limit.take(number)
    assert len(limit) == 100


def test_keys_that_are_idle_again_are_forgotten_as_others_come() -> None:
    clock = Clock()
    limit = limiter(clock)
    for number in range(100):
        limit.take(number)
    clock.advance(1)
    for number in range(100, 160):
        limit.take(number)
    assert len(limit) == 60


def test_beyond_the_limit_the_key_that_asked_the_longest_ago_goes() -> None:
    limit = limiter(Clock(), Rate(0.5, 2), max_keys=2)
    for key in "abaa":
        limit.take(key)
    assert limit.take("c") == 0  # pushes out b
    assert limit.take("a") == 0.5
    assert [limit.take("b") for _ in range(3)] == [0, 0, 0.5]


def test_rests_double_up_to_the_limit_and_their_last_half_is_drawn() -> None:
    rng, rest, lengths = random.Random(1), NO_REST, []
    for _ in range(1_100):
        rest = BackOff(first_s=2.0, max_s=120.0).after_failure(rest, 50.0, rng)
        lengths.append(rest.until_s - 50.0)
    for length, whole in zip(lengths, (2, 4, 8, 16, 32, 64, 120, 120), strict=False):
        assert whole / 2 <= length <= whole
    assert max(lengths) > 118
    assert min(lengths[6:]) < 62
    assert rest.failures == 1_100


def test_what_never_failed_does_not_rest() -> None:
    assert NO_REST.until_s < 0
