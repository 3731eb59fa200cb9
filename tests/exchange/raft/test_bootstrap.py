"""What is told of a founding is on disk before."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2pl.exchange.raft.bootstrap import Founders
from p2pl.exchange.raft.leadership import Bell, EventLog, Seat, SeatFile
from p2pl.protocol.raft import bootstrap as founding
from p2pl.protocol.raft import messages as raft
from p2pl.protocol.raft.bootstrap import Acceptance, configuration_of

ME, *OTHERS = (bytes([number] * 32).hex() for number in range(1, 4))
CONFIGURATION = configuration_of(1, [ME, *OTHERS])


class SlowSeat(SeatFile):
    """A seat whose disk takes as long as it is told to."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, "ab")
        self.may_write = asyncio.Event()

    async def change(self, change: Callable[[Seat], Seat]) -> None:
        await self.may_write.wait()
        await super().change(change)


class Told:
    """A post that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, raft.Clear]] = []

    def send(self, receivers: list[str], payload: bytes) -> None:
        self.messages += [(to, raft.decode(payload)) for to in receivers]


def founders(folder: Path, seat: SeatFile, told: Told) -> Founders:
    """Returns my part in a founding of three."""
    exchange = SimpleNamespace(raft=SimpleNamespace(members=()), min_peers=3)
    peer: Any = SimpleNamespace(
        session=SimpleNamespace(exchange=exchange),
        clock=lambda: 0.0,
        transport=SimpleNamespace(identity=SimpleNamespace(peer_id=ME)),
    )
    post: Any = told
    return Founders(peer, seat=seat, post=post, bell=Bell(), events=EventLog(folder, ME))


@pytest.mark.anyio
async def test_nobody_hears_of_a_pledge_that_a_crash_could_undo(tmp_path: Path) -> None:
    seat, told = SlowSeat(tmp_path), Told()
    mine = founders(tmp_path, seat, told)
    for other in OTHERS:
        mine.notice(other)
    hearing = asyncio.create_task(mine.hear(OTHERS[0], Acceptance(CONFIGURATION, valid=False)))
    await asyncio.sleep(0)
    # Meanwhile it is time to say again what I have pledged myself to.
    saying = asyncio.create_task(mine._step(lambda state: (state, founding.say(state))))
    for _ in range(10):
        await asyncio.sleep(0)
    assert told.messages == []
    assert seat.seat.pledge is None
    seat.may_write.set()
    await asyncio.gather(hearing, saying)
    assert seat.seat.pledge == CONFIGURATION
    assert set(told.messages) == {
        (other, Acceptance(CONFIGURATION, valid=False)) for other in OTHERS
    }
