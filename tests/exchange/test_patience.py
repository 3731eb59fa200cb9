"""How long a peer waits for another's transfer, and for its round."""

import pytest

from p2pl.exchange.patience import KEPT, MAX_PEERS, MAX_UNWAITED_ROUNDS, Patience, Waits

LEAST_S, MOST_S = 30.0, 240.0


def patience() -> Patience:
    """Returns one that knows nobody."""
    return Patience(least_s=LEAST_S, most_s=MOST_S)


def test_a_peer_that_nobody_knows_gets_as_long_as_the_session_allows() -> None:
    assert patience().deadline_s("a") == MOST_S


def test_the_first_transfer_allows_three_times_its_time() -> None:
    known = patience()
    known.came("a", 20.0)
    assert known.deadline_s("a") == 60.0  # 20 and 4 * 20 / 2: RFC 6298, 2.2
    assert known.deadline_s("b") == MOST_S


def test_later_ones_allow_the_median_and_four_deviations() -> None:
    known = patience()
    for took_s in (38.0, 40.0, 42.0, 40.0, 60.0):
        known.came("a", took_s)
    assert known.deadline_s("a") == pytest.approx(40 + 4 * (2 + 0 + 2 + 0 + 20) / 5)


def test_no_deadline_leaves_the_bounds_of_the_session() -> None:
    known = patience()
    known.came("fast", 0.1)
    known.came("slow", 200.0)
    assert known.deadline_s("fast") == LEAST_S
    assert known.deadline_s("slow") == MOST_S


def test_each_failure_doubles_the_deadline_until_a_transfer_comes() -> None:
    known = patience()
    for _ in range(KEPT):
        known.came("a", 20.0)
    assert known.deadline_s("a") == LEAST_S
    known.failed("a", 30.0)
    once_s = known.deadline_s("a")
    assert once_s == pytest.approx(2 * (20 + 4 * 10 / 8))
    known.failed("a", once_s)
    assert known.deadline_s("a") > 2 * once_s
    known.came("a", 25.0)
    assert known.deadline_s("a") < 2 * once_s


def test_a_line_that_changed_is_known_after_some_transfers() -> None:
    known = patience()
    for took_s in (100.0,) * KEPT + (20.0,) * KEPT:
        known.came("a", took_s)
    assert known.deadline_s("a") == LEAST_S


def test_whoever_was_seen_longest_ago_is_forgotten_first() -> None:
    known = patience()
    for number in range(MAX_PEERS + 1):
        known.came(str(number), 20.0)
    assert known.deadline_s("0") == MOST_S
    assert known.deadline_s("1") == 60.0


def test_a_peer_that_was_waited_for_in_vain_is_waited_for_ever_more_seldom() -> None:
    waits = Waits()
    waited = []
    for index in range(1, 100):
        if waits.is_worth("a", index):
            waited.append(index)
            waits.ended("a", index, in_vain=True)
    assert waited == [1, 4, 9, 18, 35, 68]
    assert waits.is_worth("b", 1)
    assert not waits.is_worth("a", 68 + MAX_UNWAITED_ROUNDS)
    assert waits.is_worth("a", 69 + MAX_UNWAITED_ROUNDS)


def test_a_peer_that_has_caught_up_is_waited_for_again() -> None:
    waits = Waits()
    waits.ended("a", 1, in_vain=True)
    assert not waits.is_worth("a", 2)
    waits.ended("a", 2, in_vain=False)
    assert waits.is_worth("a", 2)
