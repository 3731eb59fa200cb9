"""Who may vote, agreed once and for ever, as pure functions.

An election is safe only where all go by the same set of members. Where the session names none, the
first peers agree on one: a configuration of exactly N peers is valid once every one of them has
accepted it. What a peer accepts is saved before it says so, and given up only where it can never
become valid, because one of its members refuses it: who refuses a configuration has never accepted
it and never will. So no peer is ever in two valid configurations, whatever is lost, late or dead;
two valid ones can exist only where 2 N peers meet in two halves that know nothing of each other.

The peer with the lowest id proposes; the others wait a little before they do. All N must be there
while they agree, which takes a moment; afterwards a majority is enough. Against peers that lie, or
one peer with many ids, name the members in the session.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

MAX_MEMBERS = 32  # chosen: their ids fit a short message; more voters make nothing safer
ID_BYTES = 32
Number = Annotated[int, Meta(ge=1, lt=1 << 53)]
RawId = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]


class Roll(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """A set of members; the number tells apart two attempts at the same set."""

    number: Number
    ids: Annotated[tuple[RawId, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]  # ascending

    @property
    def members(self) -> frozenset[str]:
        """The ids of the members, as they are written elsewhere."""
        return frozenset(one.hex() for one in self.ids)


def roll_of(number: int, members: Collection[str]) -> Roll:
    """Returns the configuration of these members.

    Args:
        number: tells apart two attempts at the same set; from 1 on.
        members: peer ids, 64 hex digits each.
    """
    return Roll(number, tuple(sorted(bytes.fromhex(member) for member in members)))


class Pledge(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag=5,
):
    """Says that its sender accepts this one, and no other while it can become valid."""

    roll: Roll
    valid: bool  # whether its sender knows that all its members accept it


class Refusal(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag=6,
):
    """Says that this one can never become valid."""

    roll: Roll


Message: TypeAlias = Pledge | Refusal


@dataclass(frozen=True, slots=True)
class State:
    """A peer's part in the agreement.

    Attributes:
        me: the peer's own id.
        pledge: what it has accepted and what may still become valid. To be saved.
        dead: what it has refused, or knows to be refused. To be saved.
        valid: whether all members of what it has accepted have accepted it. To be saved.
        heard: who has accepted what.
        newest: the highest number seen.
    """

    me: str
    pledge: Roll | None = None
    dead: frozenset[Roll] = frozenset()
    valid: bool = False
    heard: Mapping[Roll, frozenset[str]] = field(default_factory=dict)
    newest: int = 0

    @property
    def saved(self) -> tuple[Roll | None, frozenset[Roll], bool]:
        """What must survive a crash before anything is said."""
        return self.pledge, self.dead, self.valid


Answers: TypeAlias = tuple[tuple[str, Message], ...]  # to whom, what
MAX_REMEMBERED = 256  # configurations; chosen: a handful of attempts settles it


def propose(state: State, present: Collection[str], size: int) -> State:
    """Returns the state of a peer that proposes a configuration, if it is free to.

    Args:
        state: before.
        present: ids of the peers that are there; its own may be among them.
        size: how many members there shall be.
    """
    others = sorted(set(present) - {state.me})
    if state.pledge is not None or len(others) + 1 < size:
        return state
    roll = roll_of(state.newest + 1, [state.me, *others[: size - 1]])
    return _pledged(state, roll)


def say(state: State) -> Answers:
    """Returns what to tell the other members now, and again until all have accepted it."""
    if state.pledge is None:
        return ()
    pledge = Pledge(state.pledge, state.valid)
    return tuple((other, pledge) for other in sorted(state.pledge.members - {state.me}))


def hear(state: State, sender: str, message: Message, size: int) -> tuple[State, Answers]:
    """Returns the next state, and what to answer once it is saved.

    Args:
        state: before.
        sender: a peer that has proved to be it.
        message: what it said.
        size: how many members there shall be; other sizes are ignored.
    """
    roll = message.roll
    if sender not in roll.members or not _is_proper(roll, size):
        return state, ()
    if len(state.heard) + len(state.dead) > MAX_REMEMBERED and roll not in state.heard:
        return state, ()  # somebody makes them up
    state = replace(state, newest=max(state.newest, roll.number))
    if isinstance(message, Refusal):
        return _on_refusal(state, roll), ()
    signed = state.heard.get(roll, frozenset()) | {sender}
    state = _count(replace(state, heard={**state.heard, roll: signed}))
    if state.me not in roll.members:
        return state, ()
    if state.pledge is None and roll not in state.dead:
        state = _pledged(state, roll)
        return state, say(state)
    if state.pledge != roll:
        state = replace(state, dead=state.dead | {roll})
        return state, ((sender, Refusal(roll)),)
    # Two who know that it is valid have nothing to tell each other.
    return state, () if message.valid else ((sender, Pledge(roll, state.valid)),) * state.valid


def _pledged(state: State, roll: Roll) -> State:
    state = replace(state, pledge=roll, newest=max(state.newest, roll.number))
    return _count(state)


def _count(state: State) -> State:
    """Returns the state, valid if all members of what it has accepted have said so."""
    roll = state.pledge
    if roll is None:
        return state
    missing = roll.members - state.heard.get(roll, frozenset()) - {state.me}
    return replace(state, valid=state.valid or not missing)


def _on_refusal(state: State, roll: Roll) -> State:
    if state.valid and state.pledge == roll:
        return state  # it is valid, so nobody can have refused it: the sender lies
    pledge = None if state.pledge == roll else state.pledge
    return replace(state, pledge=pledge, dead=state.dead | {roll})


def _is_proper(roll: Roll, size: int) -> bool:
    return len(roll.ids) == size and list(roll.ids) == sorted(set(roll.ids))
