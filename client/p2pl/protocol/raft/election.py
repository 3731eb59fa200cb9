"""Who leads: Raft's leader election as pure functions, without sockets, clock, threads or dice.

Ongaro and Ousterhout 2014 (USENIX ATC), section 5.2 (terms, one vote a term, random timeouts) and
5.4.1 (nobody votes for a peer that holds less than it does); Ongaro's dissertation (2014), 9.6
(pre-vote: a peer asks first whether it would win, so who was cut off does not unseat a leader when
it comes back) and 6.2 (a leader that no majority answers steps down). After `term_s` a leader
resigns, so that the work is shared (Behera et al. 2021), and who has led least goes first.

What the log is to Raft, the newest global model is here: one value, named by its `ModelId`. That
the election is safe rests on nothing but `members` being the same set for all of them, on `Save`
being done before what stands after it, and on what a peer says it `Holds` surviving a crash.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

Term = Annotated[int, Meta(ge=0, lt=1 << 53)]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
PeerId: TypeAlias = str
Role: TypeAlias = Literal["follower", "pre-candidate", "candidate", "leader"]
MAX_TERM_STEP = 1 << 20  # chosen: 12 days of an election a second; more is made up, not missed


class ModelId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """Which global model: the term of the leader that made it, then its round."""

    term: Term = 0
    round: Count = 0


class _Message(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag_field="type"
):
    """What members say to each other; travels as an array that begins with its tag."""

    term: Term


class VoteRequest(_Message, frozen=True, tag=1):
    """Asks for a vote in this term; or, with `pre`, whether it would be given."""

    held: ModelId
    pre: bool


class VoteReply(_Message, frozen=True, tag=2):
    """Says whether the vote is given in this term; or, with `pre`, would be."""

    granted: bool
    pre: bool


class Heartbeat(_Message, frozen=True, tag=3):
    """Says that its sender leads this term; or, when it resigns, no longer does."""

    held: ModelId
    resigned: bool = False


class HeartbeatReply(_Message, frozen=True, tag=4):
    """Says that its sender follows in this term, and which model it holds."""

    held: ModelId


Message: TypeAlias = VoteRequest | VoteReply | Heartbeat | HeartbeatReply


@dataclass(frozen=True, slots=True)
class Rules:
    """What does not change while a peer runs.

    Attributes:
        me: the peer's own id, one of `members`.
        members: who may vote and lead; the same set for all of them, for ever.
        heartbeat_s: between two heartbeats of a leader.
        timeout_s: shortest and longest silence of a leader before somebody else stands.
        term_s: a leader resigns after so long.
    """

    me: PeerId
    members: frozenset[PeerId]
    heartbeat_s: float
    timeout_s: tuple[float, float]
    term_s: float

    @property
    def majority(self) -> int:
        """How many of the members decide."""
        return len(self.members) // 2 + 1

    @property
    def others(self) -> tuple[PeerId, ...]:
        """The other members, in a fixed order."""
        return tuple(sorted(self.members - {self.me}))


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a peer must not forget in a crash: its term, its one vote in it, and who led how often.

    The last is for sharing the work alone; safety does not rest on it.
    """

    term: int = 0
    voted_for: PeerId | None = None
    led: Mapping[PeerId, int] = field(default_factory=dict)
    counted: int = 0  # the newest term that `led` counts


@dataclass(frozen=True, slots=True)
class State:
    """A member between two events."""

    ballot: Ballot
    held: ModelId
    role: Role
    leader: PeerId | None  # of this term, as far as is known
    wake_s: float  # when a `Tick` is due
    until_s: float  # the end of its patience as a follower or candidate, of its term as leader
    heard_s: float  # when a leader that it follows was last heard; -inf: never
    votes: frozenset[PeerId] = frozenset()  # granted to it, its own included
    acks: Mapping[PeerId, tuple[float, ModelId]] = field(default_factory=dict)  # of its heartbeats

    @property
    def term(self) -> int:
        """The term that the peer is in."""
        return self.ballot.term


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that a state asked to be woken at has come."""


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A message came, from a peer that has proved to be `sender`."""

    sender: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Holds:
    """The peer holds this model now, and will after a crash."""

    model_id: ModelId


@dataclass(frozen=True, slots=True)
class Moves:
    """A part of a model has just come from this member, or it has just taken one.

    It is as good a sign of life as a heartbeat, which may come late on a link that models fill.
    """

    sender: PeerId


@dataclass(frozen=True, slots=True)
class Save:
    """This must survive a crash before anything that stands after it is done."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Send:
    """A member is to be told something; it may be lost."""

    to: PeerId
    message: Message


Event: TypeAlias = Tick | MessageReceived | Holds | Moves
Action: TypeAlias = Save | Send
Step: TypeAlias = tuple[State, tuple[Action, ...]]


def begin(rules: Rules, ballot: Ballot, held: ModelId, now_s: float, draw: float) -> State:
    """Returns the state of a member that has just started, or started again.

    Args:
        rules: of this member.
        ballot: as last saved.
        held: the model it has on disk.
        now_s: its own clock, which never steps back; nobody else's is compared with it.
        draw: a fresh random number, 0 <= draw < 1.
    """
    until_s = now_s + _patience_s(rules, ballot, draw)
    return State(ballot, held, "follower", None, until_s, until_s, heard_s=float("-inf"))


def step(rules: Rules, state: State, event: Event, now_s: float, draw: float) -> Step:
    """Returns the next state of a member and what it is to do, in this order.

    Args:
        rules: of this member.
        state: before the event.
        event: what happened. Messages of strangers, of the past and of no meaning change nothing.
        now_s: this member's clock.
        draw: a fresh random number, 0 <= draw < 1.
    """
    if isinstance(event, Tick):
        after, sends = _on_tick(rules, state, now_s, draw)
    elif isinstance(event, Holds):
        return replace(state, held=event.model_id), ()
    elif isinstance(event, Moves):
        return _on_moves(rules, state, event.sender, now_s, draw), ()
    elif _is_absurd(rules, state, event):
        return state, ()
    else:
        current = _catch_up(rules, state, event.message, now_s, draw)
        after, sends = _on_message(rules, current, event, now_s, draw)
    saves = (Save(after.ballot),) if after.ballot != state.ballot else ()
    return after, (*saves, *sends)


def _is_absurd(rules: Rules, state: State, event: MessageReceived) -> bool:
    stranger = event.sender not in rules.members or event.sender == rules.me
    return stranger or event.message.term > state.term + MAX_TERM_STEP


def committed(rules: Rules, state: State) -> ModelId | None:
    """Returns the newest model of the leader's term that a majority holds; nobody can lose it.

    None where the peer does not lead. Only of its own term: see section 5.4.2 of the paper for how
    an older one can still be replaced.
    """
    if state.role != "leader":
        return None
    held = [state.held, *(model_id for _, model_id in state.acks.values())]
    held = sorted((model_id for model_id in held if model_id.term == state.term), reverse=True)
    return held[rules.majority - 1] if len(held) >= rules.majority else None


def _on_tick(rules: Rules, state: State, now_s: float, draw: float) -> Step:
    if now_s < state.wake_s:
        return state, ()
    if state.role != "leader":
        return _stand(rules, state, now_s, draw)
    if now_s >= state.until_s:
        return _resign(rules, state, now_s, draw)
    fresh = sum(now_s - at_s < rules.timeout_s[1] for at_s, _ in state.acks.values())
    if fresh + 1 < rules.majority:
        return _follow(rules, state, None, now_s, draw), ()
    return _beat(rules, state, now_s)


def _stand(rules: Rules, state: State, now_s: float, draw: float) -> Step:
    """Returns the step of a member out of patience: it asks whether it would win."""
    until_s = now_s + _patience_s(rules, state.ballot, draw)
    state = replace(
        state,
        role="pre-candidate",
        leader=None,
        votes=frozenset({rules.me}),
        wake_s=until_s,
        until_s=until_s,
    )
    if len(state.votes) >= rules.majority:
        return _campaign(rules, state, now_s)
    question = VoteRequest(state.term + 1, state.held, pre=True)
    return state, tuple(Send(other, question) for other in rules.others)


def _campaign(rules: Rules, state: State, now_s: float) -> Step:
    """Returns the step of a member that would win: a new term, and its own vote in it."""
    ballot = replace(state.ballot, term=state.term + 1, voted_for=rules.me)
    state = replace(state, ballot=ballot, role="candidate", votes=frozenset({rules.me}))
    if len(state.votes) >= rules.majority:
        return _lead(rules, state, now_s)
    question = VoteRequest(ballot.term, state.held, pre=False)
    return state, tuple(Send(other, question) for other in rules.others)


def _lead(rules: Rules, state: State, now_s: float) -> Step:
    """Returns the step of a member that has won."""
    state = replace(
        state,
        ballot=_count_term(state.ballot, rules.me),
        role="leader",
        leader=rules.me,
        until_s=now_s + rules.term_s,
        # Whoever has just voted for this peer counts as heard from.
        acks={voter: (now_s, ModelId()) for voter in state.votes - {rules.me}},
    )
    return _beat(rules, state, now_s)


def _beat(rules: Rules, state: State, now_s: float) -> Step:
    beat = Heartbeat(state.term, state.held)
    wake_s = min(now_s + rules.heartbeat_s, state.until_s)
    return replace(state, wake_s=wake_s), tuple(Send(other, beat) for other in rules.others)


def _resign(rules: Rules, state: State, now_s: float, draw: float) -> Step:
    """Returns the step of a leader whose time is up: it tells the others, and follows."""
    farewell = Heartbeat(state.term, state.held, resigned=True)
    after = _follow(rules, state, None, now_s, draw)
    return after, tuple(Send(other, farewell) for other in rules.others)


def _follow(rules: Rules, state: State, leader: PeerId | None, now_s: float, draw: float) -> State:
    """Returns the state of a follower whose patience begins now."""
    until_s = now_s + _patience_s(rules, state.ballot, draw)
    return replace(
        state,
        role="follower",
        leader=leader,
        votes=frozenset(),
        acks={},
        wake_s=until_s,
        until_s=until_s,
    )


def _catch_up(rules: Rules, state: State, message: Message, now_s: float, draw: float) -> State:
    """Returns the state in the message's term, where that is later than the peer's.

    A pre-vote names a term that nobody is in yet: asking for one, or granting it, moves nobody.
    """
    asks = isinstance(message, VoteRequest) and message.pre
    grants = isinstance(message, VoteReply) and message.pre and message.granted
    if message.term <= state.term or asks or grants:
        return state
    ballot = replace(state.ballot, term=message.term, voted_for=None)
    state = replace(state, ballot=ballot)
    if state.role == "follower":
        return replace(state, leader=None)  # and its patience goes on
    return _follow(rules, state, None, now_s, draw)


def _on_message(
    rules: Rules, state: State, event: MessageReceived, now_s: float, draw: float
) -> Step:
    message, sender = event.message, event.sender
    if isinstance(message, VoteRequest):
        return _on_vote_request(rules, state, sender, message, (now_s, draw))
    if isinstance(message, VoteReply):
        return _on_vote_reply(rules, state, sender, message, now_s)
    if message.term < state.term:
        # Whoever leads an old term learns of the new one from this, and steps down.
        late = isinstance(message, Heartbeat)
        return state, (Send(sender, HeartbeatReply(state.term, state.held)),) if late else ()
    if isinstance(message, Heartbeat):
        return _on_heartbeat(rules, state, sender, message, (now_s, draw))
    if state.role != "leader":
        return state, ()
    return replace(state, acks={**state.acks, sender: (now_s, message.held)}), ()


def _on_moves(rules: Rules, state: State, sender: PeerId, now_s: float, draw: float) -> State:
    """Returns the state after a sign of life: of the leader that is followed, or of a follower.

    It says nothing of who leads: who has none, or stands, goes on as before.
    """
    if state.role == "leader" and sender in state.acks:
        _, held = state.acks[sender]
        return replace(state, acks={**state.acks, sender: (now_s, held)})
    if state.role == "follower" and state.leader == sender:
        return replace(_follow(rules, state, sender, now_s, draw), heard_s=now_s)
    return state


def _on_vote_request(
    rules: Rules, state: State, sender: PeerId, message: VoteRequest, chance: tuple[float, float]
) -> Step:
    now_s, draw = chance
    enough = message.held >= state.held
    if message.pre:
        served = state.role == "leader" or (
            state.leader is not None and now_s - state.heard_s < rules.timeout_s[0]
        )
        granted = message.term > state.term and enough and not served
        reply = VoteReply(message.term if granted else state.term, granted, pre=True)
        return state, (Send(sender, reply),)
    free = state.ballot.voted_for in (None, sender)
    granted = message.term == state.term and enough and free
    if granted:
        state = replace(state, ballot=replace(state.ballot, voted_for=sender))
        state = _follow(rules, state, None, now_s, draw)
    return state, (Send(sender, VoteReply(state.term, granted, pre=False)),)


def _on_vote_reply(
    rules: Rules, state: State, sender: PeerId, message: VoteReply, now_s: float
) -> Step:
    standing = state.role == ("pre-candidate" if message.pre else "candidate")
    term = state.term + 1 if message.pre else state.term
    if not standing or not message.granted or message.term != term:
        return state, ()
    state = replace(state, votes=state.votes | {sender})
    if len(state.votes) < rules.majority:
        return state, ()
    return _campaign(rules, state, now_s) if message.pre else _lead(rules, state, now_s)


def _on_heartbeat(
    rules: Rules, state: State, sender: PeerId, message: Heartbeat, chance: tuple[float, float]
) -> Step:
    now_s, draw = chance
    state = replace(state, ballot=_count_term(state.ballot, sender))
    state = _follow(rules, state, sender, now_s, draw)
    if message.resigned:
        # Nobody leads: patience is no longer needed, only a draw of who goes first.
        until_s = state.until_s - rules.timeout_s[0]
        return replace(state, leader=None, wake_s=until_s, until_s=until_s), ()
    reply = HeartbeatReply(state.term, state.held)
    return replace(state, heard_s=now_s), (Send(sender, reply),)


def _count_term(ballot: Ballot, leader: PeerId) -> Ballot:
    """Returns the ballot with this term counted as led by `leader`, once."""
    if ballot.counted == ballot.term:
        return ballot
    led = {**ballot.led, leader: ballot.led.get(leader, 0) + 1}
    return replace(ballot, led=led, counted=ballot.term)


def _patience_s(rules: Rules, ballot: Ballot, draw: float) -> float:
    """Returns how long to wait for a leader; longer for those who have led more than others.

    One more span for a peer that has led more often than the least, so that all of those stand
    before it does; one and no more, so that nobody is without a leader for long where those are
    gone.
    """
    shortest, longest = rules.timeout_s
    least = min(ballot.led.get(member, 0) for member in rules.members)
    rank = 1 if ballot.led.get(rules.me, 0) > least else 0
    return shortest + (rank + draw) * (longest - shortest)
