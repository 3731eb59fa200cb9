"""The exchange kind `raft` in a simulation: who leads in which round, on a virtual clock.

The election is that of a network (`p2pl.protocol.raft.election`), its messages late by a drawn
time, its clock one that jumps from event to event: a term of ten minutes costs no ten
minutes. A round takes a second of that clock. Nobody trains while there is no leader.
"""

import heapq
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from torch import Tensor

from p2pl.learner import Learner
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.protocol.raft.bootstrap import MAX_MEMBERS
from p2pl.protocol.raft.election import (
    Ballot,
    Event,
    MessageReceived,
    ModelId,
    Rules,
    Send,
    State,
    Tick,
    begin,
    step,
)
from p2pl.protocol.session import Raft
from p2pl.simulation.setup import Setup

ROUND_S = 1.0  # chosen: what five small peers take for a round on loopback
DELAY_S = (0.001, 0.03)  # of a message; chosen: from one rack to one country
TICK_S = 1e-6  # later than the very moment of a timer, so that rounding cannot miss it


@dataclass(frozen=True, slots=True)
class Lead:
    """Who led when a round ended."""

    peer: int
    term: int
    at_s: float  # of the virtual clock


@dataclass(frozen=True, slots=True)
class Change:
    """A member changed its role."""

    at_s: float
    member: str
    role: str
    term: int


class VirtualElection:
    """Members that elect a leader on a virtual clock; everything is drawn from one seed.

    Attributes:
        now_s: of the clock.
        changes: of roles, so far.
    """

    def __init__(self, members: Sequence[str], settings: Raft, seed: str) -> None:
        self.now_s = 0.0
        self.changes: list[Change] = []
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._agenda: list[tuple[float, int, str, Event]] = []
        self._rules = {
            me: Rules(
                me=me,
                members=frozenset(members),
                heartbeat_s=settings.heartbeat_s,
                timeout_s=(settings.shortest_timeout_s, settings.longest_timeout_s),
                term_s=settings.term_s,
            )
            for me in members
        }
        self._states: dict[str, State] = {}
        for me, rules in self._rules.items():
            self._states[me] = begin(rules, Ballot(), ModelId(), 0.0, self._random.random())
            self._wake(me)

    def run_until(self, at_s: float) -> None:
        """Lets the clock go on to `at_s`."""
        while self._agenda[0][0] <= at_s:
            self._next()
        self.now_s = at_s

    def wait_for_leader(self) -> tuple[str, int]:
        """Returns whom a majority follows and in which term, letting time pass until it does."""
        while (found := self._leader()) is None:
            self._next()
        return found

    def _leader(self) -> tuple[str, int] | None:
        for me, state in self._states.items():
            seen = ((other.leader, other.term) for other in self._states.values())
            if state.role == "leader" and (
                sum(one == (me, state.term) for one in seen) >= self._rules[me].majority
            ):
                return me, state.term
        return None

    def _next(self) -> None:
        self.now_s, _, me, event = heapq.heappop(self._agenda)
        before = self._states[me]
        after, actions = step(self._rules[me], before, event, self.now_s, self._random.random())
        self._states[me] = after
        if (after.role, after.term) != (before.role, before.term):
            self.changes.append(Change(self.now_s, me, after.role, after.term))
        for action in actions:
            if isinstance(action, Send):
                at_s = self.now_s + self._random.uniform(*DELAY_S)
                self._put(at_s, action.to, MessageReceived(me, action.message))
        if after.wake_s != before.wake_s:
            self._wake(me)

    def _wake(self, me: str) -> None:
        self._put(self._states[me].wake_s + TICK_S, me, Tick())

    def _put(self, at_s: float, to: str, event: Event) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), to, event))


def leads(setup: Setup) -> tuple[Lead, ...]:
    """Returns who leads, by round; the first peers are the members, as many as a session needs."""
    exchange = setup.session.exchange
    count = min(setup.peers, exchange.min_peers, MAX_MEMBERS)
    return _leads(setup.ids[:count], exchange.raft, f"{setup.name}/election", exchange.rounds)


@lru_cache(maxsize=8)
def _leads(members: tuple[str, ...], settings: Raft, seed: str, rounds: int) -> tuple[Lead, ...]:
    virtual = VirtualElection(members, settings, seed)
    found = []
    for index in range(1, rounds + 1):
        virtual.run_until(max(virtual.now_s, index * ROUND_S))
        leader, term = virtual.wait_for_leader()
        found.append(Lead(members.index(leader), term, virtual.now_s))
    return tuple(found)


def sources(setup: Setup, index: int) -> list[tuple[int, ...]]:
    """Returns whose models each peer gets in round `index`: the leader all, the others its.

    Args:
        setup: of the simulation.
        index: the round, from 1 on.
    """
    leader = leads(setup)[index - 1].peer
    absent = setup.attack is not None and setup.attack.served.kind == "absent"
    there = range(setup.honest if absent else setup.peers)
    others = tuple(peer for peer in there if peer != leader)
    return [others if peer == leader else (leader,) for peer in range(setup.peers)]


def mix_at_the_leader(
    setup: Setup,
    learners: Sequence[Learner],
    vectors: Sequence[Tensor],
    received: Sequence[Mapping[str, PeerModel]],
    before: Sequence[tuple[Tensor, msgspec.Struct | None]],
    index: int,
) -> list[Mixed]:
    """Returns what everybody holds after a round: the leader's mix, as it travels.

    All that a follower mixes is the leader's model, as in a network; what that is made of stands in
    the leader's row. From a leader that lies they get its lie, and who gets nothing usable keeps
    its own.

    Args:
        setup: of the simulation.
        learners: by peer.
        vectors: by peer, [P], as trained.
        received: by peer, what it got, by peer id.
        before: by peer, from where it trained, [P], and what it remembers of the others.
        index: the round.
    """
    leader = leads(setup)[index - 1].peer
    start, trust = before[leader]
    chief = learners[leader]
    made = chief.mix(vectors[leader], received[leader], index, trust, start=start)
    travelled = chief.codec.decode(chief.codec.encode(made.vector))
    mixed = []
    for peer, (_, saved) in enumerate(before):
        remembered = learners[peer].memory(saved)
        lie = next(iter(received[peer].values()), None)
        if peer == leader:
            mixed.append(made)
        elif leader < setup.honest:
            whole = learners[peer].at_home(travelled, vectors[peer])
            mixed.append(Mixed(whole, {chief.peer_id: 1.0}, {}, remembered))
        elif lie is not None:
            whole = learners[peer].at_home(lie.vector, vectors[peer])
            mixed.append(Mixed(whole, {chief.peer_id: 1.0}, {}, remembered))
        else:
            mixed.append(Mixed(vectors[peer], {learners[peer].peer_id: 1.0}, {}, remembered))
    return mixed


def rows_behind(setup: Setup, mixed: Sequence[Mixed], index: int) -> list[Mapping[str, float]]:
    """Returns whose models are in what each peer holds, by peer: of a leader's model, all in it.

    A peer that takes over a leader's model gives its whole weight to the leader (`Mixed.row`); what
    is in that model says how much of it is from bad peers.

    Args:
        setup: of the simulation.
        mixed: by peer.
        index: the round.
    """
    leader = leads(setup)[index - 1].peer
    if leader < setup.honest:
        return [mixed[leader].row for _ in mixed]
    return [one.row for one in mixed]
