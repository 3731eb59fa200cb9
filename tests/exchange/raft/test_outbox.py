"""Short messages: how long the next may take follows from how long the last one took."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from support.announces import Clock
from support.wires import until

from p2pl.errors import PullError
from p2pl.exchange.node import Node
from p2pl.exchange.raft.outbox import MAX_TELL_S, TELL_S, TELL_TIMES, Post
from p2pl.protocol.announce import PeerAddress

OTHER = "b" * 64
WHERE = PeerAddress(id=OTHER, host="192.0.2.1", port=4000, curve_key="k" * 40)


class Line:
    """A transport on which each message takes a time of its own; None: longer than it may."""

    def __init__(self, clock: Clock, times_s: list[float | None]) -> None:
        self.clock, self.times_s = clock, iter(times_s)
        self.deadlines_s: list[float] = []

    async def tell(self, address: PeerAddress, payload: bytes, *, deadline_s: float) -> None:
        """Takes its time, and remembers how much it was given."""
        self.deadlines_s.append(deadline_s)
        took_s = next(self.times_s)
        self.clock.advance(deadline_s if took_s is None else took_s)
        if took_s is None:
            raise PullError("late")


def deadlines_s(times_s: list[float | None]) -> list[float]:
    """Returns how long each of some messages may take, given how long they take."""
    clock = Clock()
    line = Line(clock, times_s)
    known = SimpleNamespace(hear=lambda _: None, find=lambda _: WHERE)
    node = SimpleNamespace(
        directory=SimpleNamespace(known=known), newly_met=list, transport=line, clock=clock
    )

    async def send() -> None:
        post = Post(cast("Node", node))
        for _ in times_s:
            post.send([OTHER], b"beat")
        await until(lambda: post.sent + post.lost == len(times_s))

    asyncio.run(send())
    return line.deadlines_s


def test_on_a_quick_line_a_message_has_the_usual_time() -> None:
    assert deadlines_s([0.01, 0.02, 0.01]) == [TELL_S] * 3


def test_what_took_long_may_take_longer_before_its_connection_is_given_up() -> None:
    assert deadlines_s([0.5, 0.6, 0.01, 0.01]) == pytest.approx(
        [TELL_S, TELL_TIMES * 0.5, TELL_TIMES * 0.6, TELL_TIMES * 0.6 / 2]
    )


def test_who_is_late_gets_twice_as_long_up_to_a_bound() -> None:
    given = deadlines_s([None, None, None, None, 0.01, 0.01, 0.01])
    assert given == [TELL_S, 2.0, 4.0, MAX_TELL_S, MAX_TELL_S, 2.0, TELL_S]
