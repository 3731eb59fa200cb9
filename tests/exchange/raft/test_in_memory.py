"""Raft peers on a network in memory: a lead that is lost in a mix, and what ends a run."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import torch
from support.logs import ended, keeper_of, records_of
from support.processes import ROOT
from torch import Tensor

from p2pl.api.ledger import verified
from p2pl.api.trainer import Computing, trainer_for
from p2pl.data.load import Shard, load
from p2pl.errors import PullError, QuorumError, RunDirError
from p2pl.events import Event, Events, RoundEnded, Said, Undone
from p2pl.exchange.base import EXCHANGES
from p2pl.exchange.node import Node, Worker
from p2pl.exchange.raft.kind import RaftExchange
from p2pl.exchange.raft.leadership import EVENTS_FILE, Bell, EventLog
from p2pl.exchange.raft.participant import Participant
from p2pl.exchange.raft.term import Term
from p2pl.exchange.raft.transfers import Transfers
from p2pl.exchange.round import run
from p2pl.learner import Learner
from p2pl.learning.checkpoint import build
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.network.in_memory import MemoryNetwork, MemoryTransport
from p2pl.network.keys import Identity
from p2pl.protocol.raft import election
from p2pl.protocol.session import Mixing, SessionFile, read_spec
from p2pl.protocol.session import Raft as Settings
from p2pl.protocol.updates.fault import TwoHeads
from p2pl.protocol.updates.head import sign_head
from p2pl.run.state import STATE_FILE, PeerState, load_state

T = TypeVar("T")
SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
UNTIL_SEEN_S = 1.0  # for a second computation to begin, where nothing keeps it from that


def session_file(members: tuple[str, ...], rounds: int = 2) -> tuple[SessionFile, bytes]:
    """Returns a short raft session with these members, and its initial checkpoint."""
    digits = read_spec(SPEC).session()
    exchange = msgspec.structs.replace(
        digits.exchange,
        kind="raft",
        rounds=rounds,
        cohort=1,
        min_peers=len(members),
        wait_s=5.0,
        raft=Settings(term_s=600.0, members=members),
    )
    session = msgspec.structs.replace(digits, exchange=exchange, mixing=Mixing(rule="samples"))
    payload, promised = build(session)
    return SessionFile("digits", session, promised, trackers=(("http://127.0.0.1:1",),)), payload


class Watched(Worker):
    """A worker that says how much was asked of it, and whether two works ever met.

    Attributes:
        count: works asked for so far.
        changed: notified with each.
        met: set when a work began before another was done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.changed = threading.Condition()
        self.met = threading.Event()
        self._busy = threading.Lock()

    async def __call__(self, work: Callable[[], T]) -> T:
        with self.changed:
            self.count += 1
            self.changed.notify_all()

        def watched() -> T:
            if not self._busy.acquire(blocking=False):
                self.met.set()
                return work()
            try:
                return work()
            finally:
                self._busy.release()

        return await super().__call__(watched)

    def hold_up(self) -> None:
        """Returns when the next work was asked for, and could begin where nothing forbids it."""
        count = self.count
        with self.changed:
            self.changed.wait_for(lambda: self.count > count)
        self.met.wait(UNTIL_SEEN_S)


@dataclass
class Place:
    """One peer: its node, its kind of exchange, and what its run told."""

    node: Node
    kind: RaftExchange
    state: PeerState
    worker: Watched
    told: list[Event] = field(default_factory=list)

    async def run(self) -> PeerState:
        """Returns the state after the last round."""
        return await run(self.node, self.kind, self.state)

    @property
    def rounds(self) -> list[int]:
        """The rounds that count, as a run log would have them."""
        kept: list[int] = []
        for event in self.told:
            if isinstance(event, RoundEnded):
                kept.append(event.entry.round)
            if isinstance(event, Undone):
                kept = [one for one in kept if one <= event.round]
        return kept


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def places(tmp_path: Path, network: MemoryNetwork) -> Iterator[list[Place]]:
    """Returns three members that have not begun yet."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_closing(one)) for one in made(tmp_path, network, 3)]


@contextlib.contextmanager
def _closing(place: Place) -> Iterator[Place]:
    with closing(place.node.worker):
        yield place


def made(
    folder: Path,
    network: MemoryNetwork,
    count: int,
    *,
    ledger: bool = False,
    identities: Sequence[Identity] = (),
) -> list[Place]:
    """Returns peers that are the members of one session; those that come back have their keys."""
    identities = identities or [Identity.generate() for _ in range(count)]
    file, payload = session_file(tuple(one.peer_id for one in identities))
    file = replace(file, session=msgspec.structs.replace(file.session, ledger=ledger))
    places = []
    for number, identity in enumerate(identities):
        run_dir = folder / f"peer-{number}"
        run_dir.mkdir(exist_ok=True)
        data = load("digits", file.session.task, shard=Shard(number, 3, "iid"))
        trainer = trainer_for(file, None, data, Computing(torch.device("cpu")))(identity.peer_id)
        learner = Learner.around(file.session, (file.id, identity.peer_id), trainer)
        transport, directory = network.join(identity)
        told: list[Event] = []
        worker = Watched()
        node = Node(
            file=file,
            learner=learner,
            transport=transport,
            directory=directory,
            events=Events((told.append,)),
            run_dir=run_dir,
            rounds=file.session.exchange.rounds,
            seeding_s=10.0,
            worker=worker,
        )
        if ledger:
            network.committed, node.keeper = True, keeper_of(node, identity)
        kind = EXCHANGES.find("raft")()
        assert isinstance(kind, RaftExchange)
        state = PeerState(0, learner.decode_checkpoint(payload))
        places.append(Place(node, kind, state, worker, told))
    return places


@dataclass
class HeldUp:
    """The first mix of a run, which lasts until its peer goes on to something else."""

    begun: threading.Event = field(default_factory=threading.Event)
    peer_id: str = ""


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch, places: list[Place]) -> HeldUp:
    """Holds up the first mix."""
    first = HeldUp()
    workers = {place.node.peer_id: place.worker for place in places}
    mix = Learner.mix

    def mixing(  # as the learner's own
        one: Learner,
        own: Tensor,
        models: Mapping[str, PeerModel],
        index: int,
        memory: msgspec.Struct | None,
        start: Tensor | None,
    ) -> Mixed:
        if not first.peer_id:
            first.peer_id = one.peer_id
            first.begun.set()
            workers[one.peer_id].hold_up()
        return mix(one, own, models, index, memory, start)

    monkeypatch.setattr(Learner, "mix", mixing)
    return first


@pytest.mark.anyio
async def test_a_leader_that_loses_its_lead_in_a_mix_computes_one_thing_at_a_time(
    network: MemoryNetwork, places: list[Place], held_up: HeldUp
) -> None:
    runs = [asyncio.create_task(place.run()) for place in places]
    await asyncio.to_thread(held_up.begun.wait)
    deposed = next(one for one in places if one.node.peer_id == held_up.peer_id)
    network.cut_off.add(held_up.peer_id)
    while deposed.kind._peer.term is not None:
        await deposed.kind._peer.bell.wait(1.0)
    network.cut_off.clear()
    states = await asyncio.gather(*runs)
    assert not deposed.worker.met.is_set()
    assert all(torch.equal(state.weights, states[0].weights) for state in states)
    for place, state in zip(places, states, strict=True):
        # What was decided while a peer was cut off is no round of its own.
        assert place.rounds == sorted(set(place.rounds))
        saved = saved_by(place)
        assert (saved.round, saved.memory) == (2, state.memory)
        assert torch.equal(saved.weights, state.weights)


def saved_by(place: Place) -> PeerState:
    """Returns what a restart of this peer would go on with."""
    node = place.node
    memory = type(node.learner.memory(None))
    saved = load_state(node.run_dir, node.file.id, len(place.state.weights), memory)
    assert saved is not None
    return saved


@pytest.mark.anyio
async def test_what_goes_wrong_beside_the_rounds_ends_the_run(
    tmp_path: Path, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(_: Participant) -> None:
        raise RunDirError("the disk is full")

    monkeypatch.setattr(Participant, "repeat", failing)
    (place,), before = made(tmp_path, network, 1), asyncio.all_tasks()
    with closing(place.node.worker), pytest.raises(RunDirError, match="disk is full"):
        await place.run()
    assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_a_run_that_is_cancelled_leaves_nothing_running(
    tmp_path: Path, network: MemoryNetwork
) -> None:
    (place,), before = made(tmp_path, network, 1), asyncio.all_tasks()
    with closing(place.node.worker):
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def notice(_: Event) -> None:
            loop.call_soon_threadsafe(begun.set)

        place.node.events = Events((notice,))
        running = asyncio.create_task(place.run())
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_nobody_hears_of_a_model_before_it_is_on_disk(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Participant.hold
    held: list[tuple[int, int]] = []

    async def holding(peer: Participant, state: PeerState, pulled: Mapping[str, PeerModel]) -> None:
        place = next(one for one in places if one.node is peer.node)
        held.append((saved_by(place).round, state.round))
        assert not peer.at_rest.is_set()
        await hold(peer, state, pulled)

    monkeypatch.setattr(Participant, "hold", holding)
    await asyncio.gather(*(place.run() for place in places))
    assert len(held) >= 2 * len(places)
    assert all(on_disk == index for on_disk, index in held)


@pytest.mark.anyio
async def test_members_whose_models_never_get_through_end_and_say_for_whom_they_waited(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(*_: object, deadline_s: float, **__: object) -> memoryview:
        await asyncio.sleep(0.1)
        raise PullError(f"late: 5 % after {deadline_s:g} s")

    monkeypatch.setattr(MemoryTransport, "fetch_blob", late)
    for place in places:
        exchange = place.node.session.exchange
        raft = msgspec.structs.replace(exchange.raft, patience_s=2.0)
        short = msgspec.structs.replace(exchange, raft=raft, pull_deadline_s=0.5)
        session = msgspec.structs.replace(place.node.session, exchange=short)
        place.node.file = replace(place.node.file, session=session)
    ends = await asyncio.gather(*(place.run() for place in places), return_exceptions=True)
    assert all(isinstance(end, QuorumError) for end in ends)
    said = " ".join(str(end) for end in ends)
    assert "none that got through for 2 s" in said
    assert any(f"the last from {place.node.peer_id[:8]}: late" in said for place in places)


@pytest.mark.anyio
async def test_every_model_of_raft_was_committed_to_before_it_was_given(
    tmp_path: Path, network: MemoryNetwork
) -> None:
    with contextlib.ExitStack() as stack:
        made_here = made(tmp_path, network, 3, ledger=True)
        places = [stack.enter_context(_closing(one)) for one in made_here]
        nodes = [place.node for place in places]
        stack.enter_context(ended(nodes))
        await asyncio.gather(*(place.run() for place in places))
    logs = {one.peer_id: records_of(one) for one in nodes}
    digests = {who: {one.signed.entry.digest for one in log} for who, log in logs.items()}
    stages = {one.signed.entry.stage for log in logs.values() for one in log}
    assert stages == {"trained", "mixed"}
    mixes = [one.mix for log in logs.values() for one in log if one.mix]
    assert max(len(mix.parts) for mix in mixes) >= 2  # what a leader has made
    for mix in mixes:
        assert all(part.digest in digests[part.peer.hex()] for part in mix.parts)
    assert not any(one.keeper.watch.faults for one in nodes if one.keeper)


@pytest.mark.anyio
async def test_logs_of_raft_go_on_after_a_restart_and_a_member_that_comes_late_checks_them(
    tmp_path: Path,
) -> None:
    identities = [Identity.generate() for _ in range(3)]

    async def all_of(count: int, rounds: int) -> list[Node]:
        """Returns the nodes of the first members, once they have done so many rounds."""
        with contextlib.ExitStack() as stack:
            network = MemoryNetwork()
            given = made(tmp_path, network, 3, ledger=True, identities=identities)
            places = [stack.enter_context(_closing(one)) for one in given][:count]
            stack.enter_context(ended([one.node for one in given]))
            for place in places:
                place.node.rounds = rounds
                if (place.node.run_dir / STATE_FILE).exists():
                    place.state = saved_by(place)
            states = await asyncio.gather(*(place.run() for place in places))
            assert [state.round for state in states] == [rounds] * count
            for place in places:
                assert place.node.keeper is not None
                assert not place.node.keeper.watch.faults
                place.node.keeper.save()
        return [place.node for place in places]

    before = [records_of(one) for one in await all_of(2, 2)]
    nodes = await all_of(3, 4)
    for one, records in zip(nodes, before, strict=False):
        assert len(records_of(one)) > len(records) > 0
        assert records_of(one)[: len(records)] == records
    late = nodes[2].keeper
    assert late is not None
    proven = [seen.proven.size for seen in late.watch._seen.values() if seen.proven]
    assert max(proven) > min(len(records) for records in before)
    findings = verified([tmp_path], every=True)
    assert [one.text for one in findings if not one.holds] == []
    assert len(findings) == 3


def two_histories(liar: Node) -> TwoHeads:
    """Returns the proof that a node has two histories."""
    identity, session_id = liar.transport.identity, liar.file.id
    heads = [sign_head(identity.private_key, session_id, 1, bytes([at] * 32)) for at in (1, 2)]
    return TwoHeads(bytes.fromhex(session_id), identity.public_key, heads[0], heads[1])


@pytest.mark.anyio
async def test_a_leader_with_two_histories_loses_its_lead_and_its_vote(
    tmp_path: Path, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    elected, begin, note = asyncio.Event(), election.begin, EventLog.note

    def beginning(rules: election.Rules, *others: Any) -> election.State:  # noqa: ANN401
        state = begin(rules, *others)
        if rules.me == liar.node.peer_id:
            return state
        return replace(state, wake_s=state.wake_s + 3_600)  # the liar leads first

    def noting(log: EventLog, what: str, **details: object) -> None:
        note(log, what, **details)
        if details.get("leader") == liar.node.peer_id and log._me == first.node.peer_id:
            assert first.node.keeper is not None
            first.node.keeper.watch.take_fault(two_histories(liar.node))
            elected.set()

    with contextlib.ExitStack() as stack:
        made_here = made(tmp_path, network, 3, ledger=True)
        liar, first, second = (stack.enter_context(_closing(one)) for one in made_here)
        stack.enter_context(ended([place.node for place in made_here]))
        monkeypatch.setattr(election, "begin", beginning)
        monkeypatch.setattr(EventLog, "note", noting)
        running = [asyncio.create_task(one.run()) for one in (first, second)]
        lying = asyncio.create_task(liar.run())  # the last one hears of all others
        states = await asyncio.gather(*running)
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)
    assert elected.is_set()
    assert [state.round for state in states] == [2, 2]
    honest = {first.node.peer_id, second.node.peer_id}
    for place in (first, second):
        assert place.node.keeper is not None
        assert set(place.node.keeper.watch.faults) == {liar.node.peer_id}
        lines = (place.node.run_dir / EVENTS_FILE).read_text().splitlines()
        events = [json.loads(line) for line in lines]
        leaders = [one["leader"] for one in events if one["event"] == "role" and one["leader"]]
        assert leaders[0] == liar.node.peer_id
        assert leaders[-1] in honest
        mixes = [one["received"] for one in events if one["event"] == "aggregated"]
        assert all(set(mix) <= honest for mix in mixes)


@pytest.mark.anyio
async def test_an_elected_leader_s_enormous_model_is_taken_by_nobody(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    liar, *others = places
    begin, mix = election.begin, Learner.mix

    def beginning(rules: election.Rules, *more: Any) -> election.State:  # noqa: ANN401
        state = begin(rules, *more)
        if rules.me == liar.node.peer_id:
            return state
        return replace(state, wake_s=state.wake_s + 3_600)  # the liar leads first

    def mixing(one: Learner, *given: Any, **named: Any) -> Mixed:  # noqa: ANN401
        mixed = mix(one, *given, **named)
        return replace(mixed, vector=1e9 * mixed.vector) if one is liar.node.learner else mixed

    monkeypatch.setattr(election, "begin", beginning)
    monkeypatch.setattr(Learner, "mix", mixing)
    running = [asyncio.create_task(one.run()) for one in (*others, liar)]  # it hears of all others
    refused = [asyncio.create_task(_said(one, "the leader's model is not taken")) for one in others]
    done, _ = await asyncio.wait([*running, *refused], return_when=asyncio.FIRST_COMPLETED)
    assert not done & set(running)
    await asyncio.wait(refused)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert [one.rounds for one in others] == [[], []]


async def _said(place: Place, what: str) -> None:
    """Returns once a peer was told something that begins so."""
    while not any(isinstance(one, Said) and one.text.startswith(what) for one in place.told):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


class Waiting(Bell):
    """A bell with a clock: to wait for it moves the clock, and takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    async def wait(self, timeout_s: float) -> None:
        """Returns at once, so many seconds later."""
        self.now_s += timeout_s


@dataclass
class Leader:
    """A member that leads, on a clock of its own; the other members give their results at once."""

    place: Place
    bell: Waiting
    term: Term
    members: frozenset[str]

    @classmethod
    def of(cls, places: Sequence[Place]) -> "Leader":
        """Returns the first of these as the leader of all of them."""
        node, bell = places[0].node, Waiting()
        node.clock = lambda: bell.now_s
        moving = Transfers(deadline_s=60.0, patience_s=60.0, longest_s=60.0, now=node.clock)
        members = frozenset(place.node.peer_id for place in places)
        return cls(places[0], bell, Term(node, 1, lambda *_: None, bell, moving), members)

    async def waits(
        self, index: int, givers: Sequence[str], guests: Sequence[str], slow: frozenset[str]
    ) -> bool:
        """Returns whether it waited for others in this round.

        Args:
            index: the round.
            givers: guests that give a result at once.
            guests: those that are there, and give nothing.
            slow: members that are there, and give nothing.
        """
        quick = self.members - slow
        base = election.ModelId(1, index - 1)
        for guest in (*givers, *guests):
            self.term.welcome(guest)
        for one in (*quick, *givers):
            self.term.give(one, base, PeerModel(index, 1, self.place.state.weights))
        begun_s = self.bell.now_s
        given = await self.term.gather(base, self.members, lambda: set(self.members))
        assert given.keys() == quick | set(givers)
        waited_s = self.bell.now_s - begun_s
        assert waited_s == 0 or waited_s == pytest.approx(5.0, abs=0.2), "no wait, or all of wait_s"
        return waited_s > 0


SELDOM = [1, 4, 9, 18, 35, 68]  # of a hundred rounds: between two of them 2, 4, 8, 16, 32 others


@pytest.mark.anyio
async def test_guests_that_give_nothing_are_waited_for_ever_more_seldom(
    places: list[Place],
) -> None:
    leader = Leader.of(places)
    waited = [
        index
        for index in range(1, 101)  # another name in each round, which costs it nothing
        if await leader.waits(index, [], [f"stranger {index}"], frozenset())
    ]
    assert waited == SELDOM


@pytest.mark.anyio
async def test_a_member_too_slow_is_waited_for_ever_more_seldom_until_it_has_caught_up(
    places: list[Place],
) -> None:
    leader, slow = Leader.of(places), frozenset({places[2].node.peer_id})
    waited = [index for index in range(1, 69) if await leader.waits(index, [], [], slow)]
    assert waited == SELDOM
    assert not await leader.waits(69, [], [], frozenset())
    assert await leader.waits(70, [], [], slow)


@pytest.mark.anyio
async def test_in_lockstep_a_slow_member_is_waited_for_in_every_round(places: list[Place]) -> None:
    node, slow = places[0].node, frozenset({places[2].node.peer_id})
    exchange = msgspec.structs.replace(node.session.exchange, lockstep=True)
    session = msgspec.structs.replace(node.session, exchange=exchange)
    node.file = replace(node.file, session=session)
    leader = Leader.of(places)
    assert all([await leader.waits(index, [], [], slow) for index in range(1, 6)])


@pytest.mark.anyio
async def test_a_guest_that_has_given_something_is_waited_for_whoever_else_listens(
    places: list[Place],
) -> None:
    leader = Leader.of(places)
    assert await leader.waits(1, ["guest"], ["stranger"], frozenset())
    assert not await leader.waits(2, ["guest"], ["stranger"], frozenset())
    assert await leader.waits(3, [], ["guest", "stranger"], frozenset())
