"""Models that hardly get through: what moves is waited for, and the wait for the rest ends."""

import asyncio

import pytest
from support.announces import Clock

from p2pl.errors import PullError, QuorumError
from p2pl.exchange.raft import transfers as module
from p2pl.exchange.raft.transfers import FORGIVEN_AFTER, MAX_TIMES, Transfers

SLOW, OTHER = "a" * 64, "b" * 64
MIB = 1 << 20


@pytest.fixture
def clock() -> Clock:
    """Returns a clock that the tests move."""
    return Clock()


@pytest.fixture
def transfers(clock: Clock) -> Transfers:
    """Returns what is remembered at the start."""
    return Transfers(deadline_s=8.0, patience_s=30.0, longest_s=600.0, now=clock)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no time pass between two looks; the tests' clock alone goes on."""
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    return


def test_what_stood_still_gets_twice_as_long_up_to_the_patience(transfers: Transfers) -> None:
    given = []
    for _ in range(4):
        given.append(transfers.deadline_s(SLOW))
        transfers.late(SLOW, "late")
    assert given == [8.0, 16.0, 30.0, 30.0]
    assert transfers.deadline_s(OTHER) == 8.0
    transfers.came()
    assert transfers.deadline_s(SLOW) == 30.0  # the link is as slow as before


def test_nothing_that_gets_through_for_the_patience_is_the_end(
    clock: Clock, transfers: Transfers
) -> None:
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


def test_a_request_that_nobody_answers_ends_as_well_and_says_whose(
    clock: Clock, transfers: Transfers
) -> None:
    transfers.unanswered(SLOW)
    clock.advance(29)
    transfers.answered()
    clock.advance(29)
    transfers.unanswered(SLOW)
    clock.advance(30)
    transfers.check()
    clock.advance(1)
    with pytest.raises(QuorumError, match=f"31 s, the last from {SLOW[:8]}: no answer to a req"):
        transfers.check()


async def _moving(
    transfers: Transfers, clock: Clock, size: int, bytes_s: float, *, talks_on: bool = False
) -> float:
    """Returns after how many seconds a model of this size came, at this rate."""
    begun_s, came = clock(), 0.0
    is_there = asyncio.Event()

    async def go_on() -> None:
        nonlocal came
        while came < size or talks_on:
            clock.advance(1)
            came += bytes_s
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        is_there.set()

    going = asyncio.create_task(go_on())
    try:
        await transfers.while_moving(SLOW, size, lambda: int(came), is_there.wait())
    finally:
        going.cancel()
    return clock() - begun_s


@pytest.mark.anyio
@pytest.mark.usefixtures("no_pause")
async def test_what_moves_is_waited_for_far_beyond_the_deadline(
    clock: Clock, transfers: Transfers
) -> None:
    took_s = await _moving(transfers, clock, 12 * MIB, bytes_s=250_000)
    assert took_s > 50  # six times the deadline, and more than the patience


@pytest.mark.anyio
@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize(
    ("size", "bytes_s", "said"),
    [
        (12 * MIB, 0.0, "0 of"),
        (12 * MIB, 2_000.0, "late: .* of 12582912 bytes in 8 s"),  # it would take more than a term
        (30_000, 100.0, "late: .* of 30000 bytes in 8 s"),  # what members say beside it is as much
    ],
)
async def test_what_hardly_moves_is_late(
    clock: Clock, transfers: Transfers, size: int, bytes_s: float, said: str
) -> None:
    begun_s = clock()
    with pytest.raises(PullError, match=said):
        await _moving(transfers, clock, size, bytes_s)
    assert clock() - begun_s < 2 * 8.0


@pytest.mark.anyio
@pytest.mark.usefixtures("no_pause")
async def test_no_transfer_lasts_for_ever_however_well_it_moves(
    clock: Clock, transfers: Transfers
) -> None:
    began_s = clock()
    with pytest.raises(PullError, match="not all of"):  # whoever sends talks, and sends nothing
        await _moving(transfers, clock, 12 * MIB, bytes_s=25_000, talks_on=True)
    assert clock() - began_s < 600 + 2 * 8
    transfers.late(SLOW, "late")
    clock.advance(29)
    transfers.check()


@pytest.mark.anyio
@pytest.mark.usefixtures("no_pause")
async def test_patience_does_not_end_while_something_moves(
    clock: Clock, transfers: Transfers
) -> None:
    transfers.interrupted(SLOW, "its model, as another was announced")
    await _moving(transfers, clock, 12 * MIB, bytes_s=250_000)
    transfers.check()
    clock.advance(31)
    with pytest.raises(QuorumError):
        transfers.check()


@pytest.mark.anyio
@pytest.mark.usefixtures("no_pause")
async def test_what_moves_counts_at_once_however_long_a_standstill_would_be_waited_for(
    clock: Clock, transfers: Transfers
) -> None:
    for _ in range(2):
        transfers.late(SLOW, "late")  # from now on, it is looked at each 30 s
    clock.advance(25)
    await _moving(transfers, clock, 5 * MIB, bytes_s=250_000)  # 21 s
    clock.advance(10)
    transfers.check()


def test_a_leader_may_be_silent_for_longer_after_a_transfer_was_cut_off(
    transfers: Transfers,
) -> None:
    assert transfers.times(1.0) == 1.0
    for _ in range(3):
        transfers.interrupted(SLOW, "its model, as another was announced")
    assert transfers.times(2.0) == 7.5  # half of the patience
    assert transfers.times(0.1) == 8.0
    assert transfers.times(100.0) == 1.0
    for _ in range(10):
        transfers.interrupted(SLOW, "its model, as another was announced")
    assert transfers.times(0.1) == MAX_TIMES
    for _ in range(FORGIVEN_AFTER):
        transfers.came()
    assert transfers.times(0.1) == MAX_TIMES / 2
    for _ in range(10 * FORGIVEN_AFTER):
        transfers.came()
    assert transfers.times(0.1) == 1.0
