"""Peers whose data number their classes otherwise, over real sockets and in whole runs."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.joins import Abreast, Watching, run_with, session_file
from support.processes import Swarm
from support.wires import DEADLINE_S, SESSION, Served, served

from p2pl.data.load import Shard, load
from p2pl.errors import PullError
from p2pl.network.dial import Direct
from p2pl.network.keys import CurveKeys
from p2pl.network.numbering import ANY_NUMBERING, Numbering, digest_of
from p2pl.network.version import Version
from p2pl.network.zmtp import Connection
from p2pl.run.log import Summary

SIZE = 8


def test_the_digest_is_of_names_in_their_order_and_of_the_session() -> None:
    made = digest_of(SESSION, ("cat", "dog"))
    assert made == digest_of(SESSION, ["cat", "dog"])
    others = [("dog", "cat"), ("cat", "dog", "fox"), ("cat",), ("catdog",)]
    assert len({made, *(digest_of(SESSION, one) for one in others)}) == 5
    assert made != digest_of("cd" * 32, ("cat", "dog"))
    assert digest_of(SESSION, ()) == digest_of(SESSION, ("0", "1", "2")) == ""
    assert digest_of(SESSION, ("0", "10", "2")) != ""


def asks(me: Served, other: Served) -> list[Callable[[], Awaitable[object]]]:
    """Returns all that a peer can ask of another, or tell it."""
    wire, at, deadline_s = me.wire, other.address, DEADLINE_S
    return [
        lambda: wire.pull(at, have=None, round=0, wait_s=0, deadline_s=deadline_s, size=SIZE),
        lambda: wire.ping(at, deadline_s=deadline_s),
        lambda: wire.tell(at, b"news", deadline_s=deadline_s),
    ]


@pytest.mark.anyio
async def test_whoever_numbers_classes_otherwise_is_neither_asked_nor_told_anything() -> None:
    told: list[str] = []
    mine = Numbering(digest_of(SESSION, ("cat", "dog")), told.append)
    theirs = {
        "other": Numbering(digest_of(SESSION, ("dog", "cat"))),
        "alike": Numbering(mine.digest),
        "silent": ANY_NUMBERING,
    }
    async with contextlib.AsyncExitStack() as stack:
        me = await stack.enter_async_context(served(numbering=mine))
        there = {
            name: await stack.enter_async_context(served(numbering=one))
            for name, one in theirs.items()
        }
        for one in (me, *there.values()):
            await one.wire.publish(Version(1, 5, memoryview(bytes(SIZE)), b"", None))
        for name in ("alike", "silent"):
            for ask in (*asks(me, there[name]), *asks(there[name], me)):
                await ask()
        assert not told
        for ask in (*asks(me, there["other"]), *asks(there["other"], me)):
            with pytest.raises(PullError, match=r"turned down: .*number them otherwise"):
                await ask()
    assert len(there["other"].wire.inbox.take_all()) == 0
    assert len(told) == 1
    assert there["other"].address.id[:8] in told[0]
    assert "task.labels" in told[0]


@pytest.mark.anyio
async def test_a_listener_whose_data_give_no_names_says_what_it_always_said() -> None:
    said = {}
    for name, one in {"silent": ANY_NUMBERING, "named": Numbering("ab" * 8)}.items():
        async with served(numbering=one) as there:
            connection = await Connection.open(
                Direct(),
                CurveKeys.generate(),
                there.address,
                max_payload_bytes=100,
                deadline_s=DEADLINE_S,
            )
            said[name] = dict(connection.properties)
            connection.close()
    assert set(said["named"]) - set(said["silent"]) == {b"x-p2pl-classes"}
    assert set(said["silent"]) <= {b"socket-type", b"identity", b"x-p2pl"}


def test_two_runs_that_number_otherwise_train_apart_and_say_why(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path)
    swarm.tracker()
    file = session_file(swarm, rounds=2, cohort=1, min_peers=2)
    names = tuple("abcdefghij")
    orders, views, abreast = [names, names[::-1]], [Watching(), Watching()], Abreast(2)

    async def one(number: int) -> Summary:
        run_dir = tmp_path / f"run-{number}"
        run_dir.mkdir()
        data = load("digits", file.session.task, shard=Shard(number, 2, "iid"))
        options = {"labels": orders[number], "on_signals": False, "seeding_s": 0.0}
        sinks = [abreast.sink(number)]
        return await run_with(file, run_dir, data, views[number], sinks=sinks, **options)

    async def both() -> list[Summary]:
        return list(await asyncio.gather(one(0), one(1)))

    try:
        ended = asyncio.run(both())
    finally:
        swarm.end()
    assert [summary.met_nobody for summary in ended] == [True, True]
    for number, summary in enumerate(ended):
        assert (
            f"peer {ended[1 - number].peer_id[:8]} is turned down" in views[number].text.getvalue()
        )
        assert summary.metrics["accuracy"] > 50  # each has learned by itself
