"""Transfers that take longer than a round waits, and peers that train longer than others do."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nodes import node, session_file

from p2pl.exchange import swap
from p2pl.exchange.cohort import Cohort
from p2pl.exchange.node import Node
from p2pl.exchange.swap import pull_all
from p2pl.learning import models
from p2pl.learning.weights import flatten
from p2pl.network.connections import AcceptedConnections, Inbox
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.pull import Pulled, Unchanged
from p2pl.protocol import session as sessions
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import Newest, Ping, issue_credential
from p2pl.run.log import LeftOut, RoundEntry, Totals
from p2pl.run.state import PeerState


class Line:
    """A line to one peer that brings some bytes, then nothing until it is told to go on."""

    def __init__(self, one: Node, slow: Node, first_bytes: int) -> None:
        self.goes_on, self.asked = asyncio.Event(), 0
        self._pull, self._slow, self._first = one.transport.pull, slow.peer_id, first_bytes
        self._traffic = one.transport.traffic
        one.transport.pull = self.pull  # type: ignore[method-assign]

    async def pull(self, address: PeerAddress, **how: Any) -> Pulled | Unchanged:  # noqa: ANN401
        if address.id == self._slow:
            self.asked += 1
            self._traffic.came(address.id, self._first)
            await self.goes_on.wait()
        return await self._pull(address, **how)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """Three nodes whose rounds wait a tenth of a second for transfers."""
    torch.set_num_threads(1)
    file = session_file("cohort")
    hasty = sessions.changed(
        file.session, ("exchange.pull_deadline_s", 0.1), ("exchange.wait_s", 0.0)
    )
    file, network = replace(file, session=hasty), MemoryNetwork()
    made = [node(file, network, tmp_path, number, []) for number in range(3)]
    with contextlib.ExitStack() as stack:
        for one in made:
            stack.enter_context(closing(one.worker))
        yield made


def addresses(of: Sequence[Node]) -> list[PeerAddress]:
    """Returns where these nodes are."""
    return [one.transport.address for one in of]  # type: ignore[attr-defined]


async def serve(of: Sequence[Node]) -> None:
    """Has nodes serve what the session begins with, as their first version."""
    for number, one in enumerate(of):
        begin = flatten(models.build(one.session)) + number
        await swap.publish(one, 1, begin)


def test_a_transfer_that_a_round_cannot_wait_for_is_there_in_a_later_one(
    nodes: list[Node],
) -> None:
    me, slow, other = nodes

    async def rounds() -> list[swap.Pulls]:
        await serve(nodes)
        line = Line(me, slow, first_bytes=10_000)
        first = await pull_all(me, addresses([slow, other]), 1)
        second = await pull_all(me, addresses([other]), 2)
        assert line.asked == 1
        line.goes_on.set()
        await me.coming[slow.peer_id].task
        return [first, second, await pull_all(me, addresses([other]), 3)]

    first, second, third = asyncio.run(rounds())
    for late in (first, second):  # named in each round that goes by without it
        assert list(late.models) == [other.peer_id]
        assert late.rejected[slow.peer_id].startswith("late: 0.00954 of 0.0186 MiB after ")
        assert late.rejected[slow.peer_id].endswith("s, and going on")
        assert slow.peer_id in late.cohort
    assert set(third.models) == {slow.peer_id, other.peer_id}
    assert not third.rejected
    assert not me.directory.known.rests(slow.peer_id)
    assert not me.coming


def test_a_transfer_of_which_nothing_came_is_ended_and_its_peer_rests_with_a_reason(
    nodes: list[Node],
) -> None:
    me, silent, other = nodes

    async def one_round() -> swap.Pulls:
        await serve(nodes)
        me.directory.known.learn(addresses([silent])[0])
        Line(me, silent, first_bytes=100)
        return await pull_all(me, addresses([silent, other]), 1)

    pulls = asyncio.run(one_round())
    assert list(pulls.models) == [other.peer_id]
    assert pulls.rejected[silent.peer_id].startswith("late: no answer after")
    assert me.directory.known.resting() == {silent.peer_id: pulls.rejected[silent.peer_id]}
    assert not me.coming


def test_a_transfer_that_does_not_end_when_it_is_told_to_holds_no_round_up(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pl.exchange.node.ENDING_S", 0.01)
    me, deaf, other = nodes
    line = Line(me, deaf, first_bytes=0)

    async def never(address: PeerAddress, **how: Any) -> Pulled | Unchanged:  # noqa: ANN401
        while not line.goes_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                return await line.pull(address, **how)
        raise asyncio.CancelledError

    async def one_round() -> swap.Pulls:
        await serve(nodes)
        me.transport.pull = never  # type: ignore[method-assign]
        pulls = await pull_all(me, addresses([deaf, other]), 1)
        line.goes_on.set()  # else nothing ends it, not even the end of the loop
        return pulls

    pulls = asyncio.run(one_round())
    assert list(pulls.models) == [other.peer_id]
    assert pulls.rejected[deaf.peer_id].startswith("late: no answer after")


def test_a_transfer_that_moves_no_more_is_ended_after_a_deadline(nodes: list[Node]) -> None:
    me, stuck, other = nodes
    now_s = [0.0]

    async def rounds() -> list[str]:
        await serve(nodes)
        me.clock = lambda: now_s[0]
        Line(me, stuck, first_bytes=10_000)
        said = []
        for at_s in (0.0, 0.05, 0.2):  # the deadline is 0.1
            now_s[0] = at_s
            asked = [stuck, other] if not at_s else [other]
            said.append((await pull_all(me, addresses(asked), 1)).rejected[stuck.peer_id])
        return said

    said = asyncio.run(rounds())
    assert [one.endswith("going on") for one in said] == [True, True, False]
    assert not me.coming


def test_what_is_coming_still_ends_with_the_run(nodes: list[Node]) -> None:
    me, slow, _ = nodes

    async def stopped() -> bool:
        await serve(nodes)
        Line(me, slow, first_bytes=10_000)
        await pull_all(me, addresses([slow]), 1)
        task = me.coming[slow.peer_id].task
        await me.stop_coming()
        return task.cancelled()

    assert asyncio.run(stopped())
    assert not me.coming


def test_how_long_transfers_took_sets_the_deadline_of_the_next(nodes: list[Node]) -> None:
    me, other, _ = nodes

    async def one_round() -> float:
        await serve(nodes)
        came = me.transport.traffic.bytes_in_by_peer
        me.clock = lambda: 30.0 if came.get(other.peer_id) else 0.0  # before and after it came
        await pull_all(me, addresses([other]), 1)
        return me.patience.deadline_s(other.peer_id)

    deadline_s = asyncio.run(one_round())
    assert deadline_s == 90.0  # the first transfer allows three times its time


@pytest.mark.parametrize(("reached", "served"), [(2, 2), (9, 9), (3, 3)])
def test_a_peer_that_was_overtaken_serves_its_mix_as_of_the_round_it_has_reached(
    nodes: list[Node], reached: int, served: int
) -> None:
    me, kind = nodes[0], Cohort()
    me.rounds, kind._index = 10, 2
    begin = flatten(models.build(me.session))

    async def saved() -> Newest:
        await swap.publish(me, 2, begin)
        await kind.saved(me, PeerState(round=reached, weights=begin + 1))
        at = addresses([me])[0]
        return await nodes[1].transport.ping(at, deadline_s=5.0)

    assert asyncio.run(saved()).round == served


def test_a_summary_names_who_was_left_out_of_which_rounds_and_why() -> None:
    totals = Totals()
    for entry in (
        RoundEntry(round=1, received=("b",)),
        RoundEntry(round=3, rejected={"a": "late: 12 of 20 MiB after 30 s"}, resting={"c": "gone"}),
        RoundEntry(round=4, received=("a",)),
        RoundEntry(round=5, rejected={"a": "stale"}),
    ):
        totals = totals.plus(entry)
    assert totals.left_out == {
        "a": LeftOut(rounds=(3, 5), times=2, why="stale"),
        "c": LeftOut(rounds=(3,), times=1, why="gone"),
    }


def test_a_kept_connection_is_as_good_after_an_hour_of_training() -> None:
    now, identity, keys = [0.0], Identity.generate(), CurveKeys.generate()
    credential = issue_credential(
        identity.private_key, session_id="ab" * 32, curve_key=keys.public, port=1
    )
    accepted = AcceptedConnections(credential, lambda: None, Inbox(), lambda: now[0])
    accepted.greet(b"route", "peer")
    now[0] = 3_600.0
    assert accepted.peer_on(b"route") == "peer"
    assert isinstance(accepted.answer(b"route", Ping()), Newest)
