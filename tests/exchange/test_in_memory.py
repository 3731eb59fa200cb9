"""Kinds of exchange between nodes of one process, over a network in memory."""

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from support.nodes import ROUNDS, node, session_file

from p2pl.data.load import load
from p2pl.errors import PullError, TrackerError
from p2pl.events import Event, Events, Merged, RoundEnded, Said
from p2pl.exchange import braintorrent, cohort, gossip, swap
from p2pl.exchange.base import EXCHANGES
from p2pl.exchange.braintorrent import VersionVector, wait_for_news
from p2pl.exchange.node import Node, Worker
from p2pl.exchange.round import run
from p2pl.exchange.swap import announce
from p2pl.learning import models
from p2pl.learning.checkpoint import build
from p2pl.learning.weights import flatten
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import Identity
from p2pl.protocol import session as sessions
from p2pl.protocol.announce import Answer, PeerAddress
from p2pl.protocol.frame import Newest
from p2pl.protocol.session import SessionFile
from p2pl.run.state import PeerState
from p2pl.simulation.engine import run as simulate
from p2pl.simulation.setup import Setup


async def take_part(one: Node) -> PeerState:
    """Returns how a node ends that begins with the session's own numbers."""
    kind = EXCHANGES.find(one.session.exchange.kind)()
    begin = PeerState(round=0, weights=flatten(models.build(one.session)))
    one.learner = one.learner.beginning(begin.weights)
    with closing(one.worker):
        state = await run(one, kind, begin)
        await one.directory.leave()
    return state


async def all_of(nodes: Sequence[Node]) -> list[PeerState]:
    """Returns how all of them end."""
    return list(await asyncio.gather(*map(take_part, nodes)))


@pytest.mark.parametrize("kind", ["cohort", "gossip", "braintorrent"])
def test_three_nodes_of_one_process_learn_from_each_other(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    file, network = session_file(kind), MemoryNetwork()
    told: list[list[Event]] = [[], [], []]
    nodes = [node(file, network, tmp_path, number, told[number]) for number in range(3)]
    states = asyncio.run(all_of(nodes))
    assert [state.round for state in states] == [ROUNDS] * 3
    for events in told:
        entries = [event.entry for event in events if isinstance(event, RoundEnded)]
        assert [entry.round for entry in entries] == [1, 2, 3]
        assert len({peer for entry in entries for peer in entry.received}) == 2
        assert (entries[-1].accuracy or 0) > 60
        assert sum(entry.bytes_in for entry in entries) > 0


@pytest.mark.parametrize("wire", ["float16", "int8", "dither2"])
def test_nodes_and_a_simulation_compute_the_same_from_what_travels(
    wire: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    field = "wire.dtype" if wire == "float16" else "wire.compression"
    in_step = session_file("cohort").session
    wanted = sessions.changed(in_step, ("exchange.lockstep", True), (field, wire))
    file, network = SessionFile("digits", wanted, build(wanted)[1], trackers=()), MemoryNetwork()
    nodes = [node(file, network, tmp_path, number, []) for number in range(3)]
    states = asyncio.run(all_of(nodes))
    ids = tuple(one.peer_id for one in nodes)
    setup = Setup(wanted, file.id, 3, "iid", peer_ids=ids, engine="sequential")
    made = simulate(setup, load("digits", wanted.task), torch.device("cpu"))
    for one, state, vector in zip(nodes, states, made.vectors, strict=True):
        torch.testing.assert_close(state.weights, vector, rtol=0, atol=1e-6)
        assert one.transport.traffic.bytes_in % made.payload_bytes == 0
    exact = build(wanted)[1].size
    assert exact / made.payload_bytes > {"float16": 1.8, "int8": 3.0, "dither2": 5.0}[wire]


def test_a_peer_that_is_cut_off_is_missed_and_the_others_go_on(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    file, network = session_file("cohort"), MemoryNetwork()
    told: list[list[Event]] = [[], [], []]
    nodes = [node(file, network, tmp_path, number, told[number]) for number in range(3)]
    dead = nodes[2]
    asyncio.run(dead.directory.announce("started", numwant=0))
    network.cut_off.add(dead.peer_id)
    for one in nodes:
        one.seeding_s = 0.0  # nobody waits for the dead to come back
    states = asyncio.run(all_of(nodes[:2]))
    assert [state.round for state in states] == [ROUNDS] * 2
    entries = [event.entry for event in told[0] if isinstance(event, RoundEnded)]
    assert nodes[0].directory.known.is_missing(dead.peer_id)
    assert any(nodes[1].peer_id in entry.received for entry in entries)


def test_half_of_a_cohort_is_for_those_who_were_met_once_somebody_is_missing(
    tmp_path: Path,
) -> None:
    file, network = session_file("cohort"), MemoryNetwork()
    asker, *alive = (node(file, network, tmp_path, number, []) for number in range(3))
    dead = [network.join(Identity.generate()) for _ in range(300)]

    async def cohorts() -> list[list[str]]:
        for one in alive:
            await one.directory.announce("started", numwant=0)
            address = one.transport.address  # type: ignore[attr-defined]
            asker.directory.known.learn(address)
        for transport, directory in dead:
            await directory.announce("started", numwant=0)
            network.cut_off.add(transport.identity.peer_id)
        first = await announce(asker, "update", 4)
        asker.directory.known.blame(next(one.id for one in first if one.id not in ids))
        return [[one.id for one in await announce(asker, "update", 4)] for _ in range(20)]

    ids = {one.peer_id for one in alive}
    with contextlib.ExitStack() as stack:
        for one in (asker, *alive):
            stack.enter_context(closing(one.worker))
        for cohort in asyncio.run(cohorts()):
            assert len(set(cohort)) == 4
            assert ids <= set(cohort)


def test_who_waits_for_models_says_for_whose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "TOLD_AFTER_S", 0.05)
    network, told = MemoryNetwork(), list[Event]()
    file = session_file("cohort")
    patient = msgspec.structs.replace(file.session.exchange, wait_s=0.5)
    file = replace(file, session=msgspec.structs.replace(file.session, exchange=patient))
    asker, slow = node(file, network, tmp_path, 0, told), node(file, network, tmp_path, 1, [])

    async def ask() -> swap.Pulls:
        for one in (asker, slow):
            await swap.publish(one, 0, flatten(models.build(file.session)))
        address = slow.transport.address  # type: ignore[attr-defined]
        return await swap.pull_all(asker, [address], 1)  # whose round 1 does not come

    with closing(asker.worker), closing(slow.worker):
        pulls = asyncio.run(ask())
    assert list(pulls.models) == [slow.peer_id]
    said = [event.text for event in told if isinstance(event, Said)]
    assert said == [f"waiting for the models of {slow.peer_id[:8]}"]


def test_the_time_that_a_silent_peer_takes_is_not_that_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, clock_s = MemoryNetwork(), 0.0
    asker, silent, slow = (
        node(session_file("braintorrent"), network, tmp_path, number, []) for number in range(3)
    )
    asker.clock = lambda: clock_s
    answers = iter([0, 0, 1])  # its first version is there a little later

    async def ping(address: PeerAddress, *, deadline_s: float) -> Newest:
        nonlocal clock_s
        if address.id == silent.peer_id:
            clock_s += 2 * asker.session.exchange.wait_s
            raise PullError(f"late: no answer after {deadline_s:g} s")
        return Newest(next(answers), 10, b"0" * 16)

    monkeypatch.setattr(asker.transport, "ping", ping)

    async def ask() -> list[str]:
        for one in (silent, slow):
            await one.directory.announce("started", numwant=0)
        return [one.id for one in (await wait_for_news(asker, VersionVector())).moved]

    assert asyncio.run(ask()) == [slow.peer_id]
    for one in (asker, silent, slow):
        one.worker.close()


def test_a_refusal_that_stays_is_the_end_at_once_and_silence_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "POLL_S", 0.0)
    one = node(session_file("cohort"), MemoryNetwork(), tmp_path, 0, [])
    faults = iter([TrackerError("no answer"), TrackerError("403: taken back", is_final=True)])

    async def announce(event: str, *, numwant: int) -> Answer:
        raise next(faults)

    monkeypatch.setattr(one.directory, "announce", announce)
    with closing(one.worker), pytest.raises(TrackerError, match="403: taken back"):
        asyncio.run(cohort.meet(one, until_s=one.clock() + 3_600))


@pytest.mark.parametrize("kind", ["gossip", "braintorrent"])
def test_who_begins_when_another_is_done_meets_it_and_is_met_outside_of_a_round(
    kind: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    exchange = session_file(kind).session.exchange
    exchange = msgspec.structs.replace(exchange, min_peers=1, wait_s=0.1)
    network, told, file = MemoryNetwork(), (list[Event](), list[Event]()), session_file(kind)
    file = replace(file, session=msgspec.structs.replace(file.session, exchange=exchange))
    fast, slow = (node(file, network, tmp_path, number, told[number]) for number in range(2))
    done = asyncio.Event()

    def last(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.entry.round == ROUNDS:
            done.set()

    fast.events = Events((*fast.events.sinks, last))

    async def later() -> PeerState:
        await done.wait()
        return await take_part(slow)

    async def both() -> None:
        await asyncio.gather(take_part(fast), later())

    asyncio.run(both())
    assert not any(event.entry.received for event in told[0] if isinstance(event, RoundEnded))
    # The last model of a swarm that is done is taken over, but for versions: those are merged.
    merges, other = (fast, slow) if kind == "braintorrent" else (slow, fast)
    events = told[(fast, slow).index(merges)]
    merged = {who for event in events if isinstance(event, Merged) for who in event.peers}
    assert merged == {other.peer_id}
    if kind == "braintorrent":  # a last version is merged in every round of those behind
        entries = [event.entry for event in told[1] if isinstance(event, RoundEnded)]
        assert [entry.received for entry in entries] == [(fast.peer_id,)] * ROUNDS
        assert not any(entry.rejected for entry in entries)
        assert all(entry.bytes_in < 5_000 for entry in entries[1:])  # and sent once


@pytest.mark.parametrize(
    ("version", "used", "moved", "final"),
    [(1, 0, True, False), (2, 2, False, False), (ROUNDS, ROUNDS, False, True)],
)
def test_of_versions_that_were_merged_the_last_one_alone_is_merged_again(
    version: int, used: int, moved: bool, final: bool, tmp_path: Path
) -> None:
    network, file = MemoryNetwork(), session_file("braintorrent")
    asks, other = (node(file, network, tmp_path, number, []) for number in range(2))
    address = other.transport.address  # type: ignore[attr-defined]

    async def ask() -> braintorrent.News:
        await swap.publish(other, version, flatten(models.build(file.session)))
        return await braintorrent.ask_everybody(
            asks, [address], VersionVector({other.peer_id: used})
        )

    with closing(asks.worker), closing(other.worker):
        news = asyncio.run(ask())
    assert news.said == {other.peer_id: version}
    assert (news.moved, news.final) == ((address,) * moved, (address,) * final)


def test_what_is_given_by_whoever_says_that_it_moved_is_merged_once_after_the_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, told = MemoryNetwork(), list[Event]()
    file = session_file("braintorrent")
    done, liar = node(file, network, tmp_path, 0, told), node(file, network, tmp_path, 1, [])
    state = PeerState(round=ROUNDS, weights=flatten(models.build(file.session)))
    said, rests = iter([1, 1, 1]), list[bool]()

    async def ping(address: PeerAddress, *, deadline_s: float) -> Newest:
        return Newest(next(said), 10, b"0" * 16)

    monkeypatch.setattr(done.transport, "ping", ping)

    async def merge() -> list[PeerState]:
        await swap.publish(done, ROUNDS, state.weights)
        states = [state]
        for version in (0, 1, 1):
            await swap.publish(liar, version, state.weights + 0.01)
            done.directory.known.learn(liar.transport.address)  # type: ignore[attr-defined]
            states.append(await braintorrent.merge_news(done, states[-1]))
            rests.append(done.directory.known.rests(liar.peer_id))
        return states

    with closing(done.worker), closing(liar.worker):
        states = asyncio.run(merge())
    assert states[1] is state  # it gave an older version than it said
    assert rests == [True, False, False]  # and is not asked again at once
    assert states[2] is not state
    assert states[3] is states[2]  # a version that was merged
    assert [event.text for event in told if isinstance(event, Merged)] == [
        f"merged version 1 of {liar.peer_id[:8]}"
    ]


def test_what_was_pushed_is_averaged_once_after_the_last_round(tmp_path: Path) -> None:
    network, told, file = MemoryNetwork(), list[Event](), session_file("gossip")
    done, liar = node(file, network, tmp_path, 0, told), node(file, network, tmp_path, 1, [])
    state = PeerState(round=ROUNDS, weights=flatten(models.build(file.session)))
    state = replace(state, memory={"age": ROUNDS})

    merged: dict[str, int] = {}

    async def merge() -> list[PeerState]:
        address = done.transport.address  # type: ignore[attr-defined]
        done.directory.known.learn(liar.transport.address)  # type: ignore[attr-defined]
        await swap.publish(done, ROUNDS, state.weights)
        states = [state]
        ages = (2, 2, ROUNDS + 9, 1, ROUNDS + 10)
        for age, shift in zip(ages, (0.01, 0.02, 0.03, 0.04, 0.05), strict=True):
            await swap.publish(liar, age, state.weights + shift)
            await gossip.push(liar, [address], age)
            states.append(await gossip.merge_pushes(done, states[-1], merged))
        return states

    with closing(done.worker), closing(liar.worker):
        states = asyncio.run(merge())
    changed = [one is not other for one, other in itertools.pairwise(states)]
    assert changed == [
        True,
        False,
        True,
        False,
        False,
    ]  # an age counts for the session's rounds at most


def test_what_is_begun_in_the_worker_ends_before_what_comes_after_it() -> None:
    order: list[str] = []

    async def cancelled() -> None:
        with closing(Worker()) as worker:
            first = asyncio.create_task(worker(lambda: order.append("first")))
            await asyncio.sleep(0)
            first.cancel()
            await worker(lambda: order.append("second"))

    asyncio.run(cancelled())
    assert order == ["first", "second"]
