"""Members of an election in one process: in any order, or on a virtual clock and a bad network."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pl.protocol.raft.election import (
    Action,
    Ballot,
    Event,
    Holds,
    Message,
    MessageReceived,
    ModelId,
    Rules,
    Save,
    State,
    Tick,
    VoteReply,
    VoteRequest,
    begin,
    committed,
    step,
)


def members(count: int) -> tuple[str, ...]:
    """Returns the names of `count` members."""
    return tuple(f"member-{number}" for number in range(count))


def rules_of(me: str, everybody: tuple[str, ...], *, term_s: float = 1e9) -> Rules:
    """Returns the rules of one member; half a second to a second of patience."""
    return Rules(me, frozenset(everybody), 0.15, (0.5, 1.0), term_s)


@dataclass
class Member:
    """One member: what a crash takes, and what it leaves."""

    rules: Rules
    state: State
    ballot: Ballot  # on disk
    held: ModelId  # on disk
    alive: bool = True

    @property
    def name(self) -> str:
        return self.rules.me


@dataclass
class History:
    """What must never happen, checked after every event."""

    led: dict[int, tuple[str, ModelId]] = field(default_factory=dict)  # term -> who, holding what
    votes: dict[tuple[int, str], str] = field(default_factory=dict)  # (term, voter) -> for whom
    committed: set[ModelId] = field(default_factory=set)

    def saved(self, member: str, before: Ballot, after: Ballot) -> None:
        """Takes note of what a member saved: terms only grow, and a vote is never changed."""
        assert after.term >= before.term
        if after.voted_for is not None:
            vote = self.votes.setdefault((after.term, member), after.voted_for)
            assert vote == after.voted_for, "two votes in one term"

    def became(self, member: Member) -> None:
        """Takes note of a state: one leader a term, and it holds all that was decided before."""
        if member.state.role != "leader":
            return
        leader, _ = self.led.setdefault(member.state.term, (member.name, member.state.held))
        assert leader == member.name, f"two leaders in term {member.state.term}"
        decided = committed(member.rules, member.state)
        if decided is not None:
            self.committed.add(decided)
        for model_id in self.committed:
            later = (held for term, (_, held) in self.led.items() if term > model_id.term)
            assert all(held >= model_id for held in later), f"{model_id} was decided and is lost"


@dataclass
class Electorate:
    """Members and what they do, with every action really carried out, or cut short by a crash."""

    names: tuple[str, ...]
    deliver: Callable[[str, str, Message], None]  # from, to, what
    draw: Callable[[], float]
    clock: Callable[[str], float]
    term_s: float = 1e9
    history: History = field(default_factory=History)
    by_name: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            self.restart(name)

    def restart(self, name: str) -> None:
        """Starts a member, with what it had saved."""
        rules = rules_of(name, self.names, term_s=self.term_s)
        old = self.by_name.get(name)
        ballot, held = (old.ballot, old.held) if old else (Ballot(), ModelId())
        state = begin(rules, ballot, held, self.clock(name), self.draw())
        self.by_name[name] = Member(rules, state, ballot, held)

    def happens(self, name: str, event: Event, *, crash_after: int | None = None) -> None:
        """Gives a member an event; with `crash_after`, it dies after so many of its actions."""
        member = self.by_name[name]
        if not member.alive:
            return
        if isinstance(event, Holds):
            member.held = event.model_id
        state, actions = step(member.rules, member.state, event, self.clock(name), self.draw())
        member.state = state
        for action in actions[:crash_after]:
            self._do(member, action)
        if crash_after is not None:
            member.alive = False
        else:
            self.history.became(member)

    def _do(self, member: Member, action: Action) -> None:
        if isinstance(action, Save):
            self.history.saved(member.name, member.ballot, action.ballot)
            member.ballot = action.ballot
        else:
            said = action.message
            pre = isinstance(said, VoteRequest | VoteReply) and said.pre
            assert pre or said.term == member.ballot.term, "said before it was saved"
            self.deliver(member.name, action.to, said)

    def leads(self) -> list[Member]:
        """Returns the living members that think they lead."""
        return [one for one in self.by_name.values() if one.alive and one.state.role == "leader"]


@dataclass
class Weather:
    """What the network does to messages, and the clocks to time; times in seconds."""

    loss: float = 0.0
    duplicates: float = 0.0
    delay_s: tuple[float, float] = (0.001, 0.02)
    skew: float = 0.0  # clocks run at 1 - skew … 1 + skew


class World:
    """An electorate on a virtual clock. Everything is drawn from one seed.

    Attributes:
        now_s: of the world; each member has a clock of its own.
        cut: pairs of members whose messages are lost, in both directions.
    """

    def __init__(self, count: int, seed: int, *, term_s: float = 1e9, skew: float = 0.0) -> None:
        self.now_s = 0.0
        self.random = random.Random(seed)
        self.weather = Weather(skew=skew)
        self.cut: set[frozenset[str]] = set()
        self.log: list[tuple[float, str, str, int]] = []  # when, who, its new role, in which term
        self._agenda: list[tuple[float, int, str, Event | None]] = []
        self._number = itertools.count()
        self._alarm: dict[str, int] = {}  # the number of each member's next waking
        names = members(count)
        self._rate = {name: 1 + self.random.uniform(-skew, skew) for name in names}
        self._offset = {name: self.random.uniform(0, 1e6) for name in names}
        self.people = Electorate(names, self._send, self.random.random, self._clock, term_s=term_s)
        for name in names:
            self._wake(name)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Returns the time that passed: `seconds`, or less when `until()` came true."""
        begun_s, end_s = self.now_s, self.now_s + seconds
        while not until():
            if not self._agenda or self._agenda[0][0] > end_s:
                self.now_s = end_s
                break
            self.now_s, number, name, event = heapq.heappop(self._agenda)
            if event is None and self._alarm[name] != number:
                continue  # it has been set to another time since
            role = self.people.by_name[name].state.role
            self.people.happens(name, event or Tick())
            self._note(name, role)
            self._wake(name)
        return self.now_s - begun_s

    def crash(self, name: str) -> None:
        """Lets a member die."""
        self.people.by_name[name].alive = False

    def restart(self, name: str) -> None:
        """Starts a dead member again."""
        self.people.restart(name)
        self._wake(name)

    def split(self, *groups: tuple[str, ...]) -> None:
        """Cuts the network between the groups; () heals it."""
        pairs = itertools.combinations(groups, 2)
        self.cut = {frozenset({a, b}) for one, other in pairs for a in one for b in other}

    def leader(self) -> str | None:
        """Returns whom a majority follows, itself included, if there is one."""
        for member in self.people.leads():
            state = member.state
            follow = [
                other.name
                for other in self.people.by_name.values()
                if other.alive
                and (other.state.term, other.state.leader) == (state.term, member.name)
            ]
            if len(follow) >= member.rules.majority:
                return member.name
        return None

    def is_led(self) -> bool:
        """Returns whether a majority follows a leader."""
        return self.leader() is not None

    def _clock(self, name: str) -> float:
        return self._offset[name] + self.now_s * self._rate[name]

    def _wake(self, name: str) -> None:
        member = self.people.by_name[name]
        if not member.alive:
            self._alarm[name] = -1
            return
        wait_s = max(0.0, member.state.wake_s - self._clock(name)) / self._rate[name]
        self._alarm[name] = self._put(self.now_s + wait_s + 1e-6, name, None)

    def _send(self, sender: str, to: str, message: Message) -> None:
        weather, copies = self.weather, 1
        if self.random.random() < weather.duplicates:
            copies = 2
        for _ in range(copies):
            if self.random.random() < weather.loss or frozenset({sender, to}) in self.cut:
                continue
            at_s = self.now_s + self.random.uniform(*weather.delay_s)
            self._put(at_s, to, MessageReceived(sender, message))

    def _put(self, at_s: float, name: str, event: Event | None) -> int:
        number = next(self._number)
        heapq.heappush(self._agenda, (at_s, number, name, event))
        return number

    def _note(self, name: str, before: str) -> None:
        state = self.people.by_name[name].state
        if state.role != before:
            self.log.append((self.now_s, name, state.role, state.term))
