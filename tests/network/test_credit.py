"""What a sender is allowed follows its line, and never runs out while the line is full."""

import pytest

from p2pl.network.credit import CREDIT_S, Allowance, window
from p2pl.protocol.frame import MAX_CREDIT, MAX_OUTSTANDING

MIB = 1 << 20
SMALL = 16_384


def ended(
    chunks: int, *, chunk_bytes: int, line_bytes_s: float, trip_s: float, can_hold_more: bool
) -> tuple[float, int]:
    """Returns when a transfer over a line ends, and how many credits were sent.

    The line is one of whole chunks, which leave as soon as there is credit, one after the other.
    """
    granted = min(window(chunk_bytes), chunks)
    allowance = Allowance(
        chunks, granted, chunk_bytes=chunk_bytes, can_hold_more=can_hold_more, now_s=0.0
    )
    news: list[tuple[float, int]] = [(0.0, granted)]  # when the sender learns of how much credit
    credit, free_s, said, now_s = 0, 0.0, 0, 0.0
    for _ in range(chunks):
        while not credit:
            when_s, more = news.pop(0)
            credit, free_s = credit + more, max(free_s, when_s)
        credit -= 1
        free_s += chunk_bytes / line_bytes_s
        now_s = free_s + trip_s / 2
        for more in allowance.arrived(now_s):
            assert 1 <= more <= MAX_CREDIT
            news.append((now_s + trip_s / 2, more))
            said += 1
    return now_s, said


@pytest.mark.parametrize(("trip_s", "mbit"), [(0.1, 20), (0.2, 100), (0.3, 50), (0.3, 200)])
@pytest.mark.parametrize("chunk_bytes", [SMALL, 65_536, MIB, 16 * MIB])
def test_a_long_line_is_full_from_beginning_to_end(
    trip_s: float, mbit: float, chunk_bytes: int
) -> None:
    size = 200 * MIB
    line = mbit * 1e6 / 8
    took_s, _ = ended(
        size // chunk_bytes,
        chunk_bytes=chunk_bytes,
        line_bytes_s=line,
        trip_s=trip_s,
        can_hold_more=True,
    )
    assert took_s <= 1.02 * size / line + trip_s


def test_a_peer_of_before_is_never_allowed_more_than_it_holds() -> None:
    old = Allowance(10_000, 64, chunk_bytes=SMALL, can_hold_more=False, now_s=0.0)
    allowed = 64
    for came in range(1, 5_000):
        allowed += sum(old.arrived(came * 1e-5))
        assert allowed - came <= MAX_CREDIT
    new = Allowance(10_000, 64, chunk_bytes=SMALL, can_hold_more=True, now_s=0.0)
    allowed = 64
    for came in range(1, 5_000):
        allowed += sum(new.arrived(came * 1e-5))
        assert allowed - came <= MAX_OUTSTANDING
    assert allowed - came > MAX_CREDIT


def test_on_a_slow_line_no_more_is_allowed_than_it_brings_in_a_while() -> None:
    slow = Allowance(1_000, 60, chunk_bytes=MIB, can_hold_more=True, now_s=0.0)
    allowed = 60
    for came in range(1, 500):  # a chunk each half second: eight in the window
        allowed += sum(slow.arrived(came * 0.5))
    assert allowed - came <= 8


def test_a_puller_is_heard_at_least_each_second_while_it_wants_more() -> None:
    slow = Allowance(1_000, 60, chunk_bytes=MIB, can_hold_more=True, now_s=0.0)
    assert [sum(slow.arrived(came * 1.01 * CREDIT_S)) for came in range(1, 50)] == [1] * 49


def test_nothing_is_said_to_whoever_may_send_all_that_is_left() -> None:
    for can_hold_more in (False, True):
        some = Allowance(70, 60, chunk_bytes=MIB, can_hold_more=can_hold_more, now_s=0.0)
        given = [sum(some.arrived(came * 0.001)) for came in range(1, 71)]
        assert sum(given) == 10
        assert len([one for one in given if one]) <= 2
