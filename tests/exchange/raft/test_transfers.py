"""Models that do not get through: each gets longer, and the wait for them ends."""

import pytest
from support.announces import Clock

from p2pl.errors import QuorumError
from p2pl.exchange.raft.transfers import Transfers

SLOW, OTHER = "a" * 64, "b" * 64


def test_what_was_late_gets_twice_as_long_up_to_the_patience() -> None:
    clock = Clock()
    transfers = Transfers(deadline_s=8.0, patience_s=30.0, now=clock)
    given = []
    for _ in range(4):
        given.append(transfers.deadline_s(SLOW))
        transfers.late(SLOW, "late")
    assert given == [8.0, 16.0, 30.0, 30.0]
    assert transfers.deadline_s(OTHER) == 8.0
    transfers.came()
    assert transfers.deadline_s(SLOW) == 30.0  # the link is as slow as before


def test_nothing_that_gets_through_for_the_patience_is_the_end() -> None:
    clock = Clock()
    transfers = Transfers(deadline_s=8.0, patience_s=30.0, now=clock)
    clock.advance(1_000)
    transfers.check()  # nothing failed: who trains for long is waited for
    transfers.late(SLOW, "late")
    clock.advance(20)
    transfers.came()
    transfers.interrupted(OTHER, "its result, as the term ended")
    clock.advance(30)
    transfers.check()
    clock.advance(1)
    with pytest.raises(QuorumError, match=f"last from {OTHER[:8]}: its result, as the term ended"):
        transfers.check()
