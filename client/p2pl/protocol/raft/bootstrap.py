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


class Configuration(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True
):
    """A set of members; the number tells apart two attempts at the same set."""

    number: Number
    ids: Annotated[tuple[RawId, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]  # ascending

    @property
    def members(self) -> frozenset[str]:
        """The ids of the members, as they are written elsewhere."""
        return frozenset(one.hex() for one in self.ids)


def configuration_of(number: int, members: Collection[str]) -> Configuration:
    """Returns the configuration of these members.

    Args:
        number: tells apart two attempts at the same set; from 1 on.
        members: peer ids, 64 hex digits each.
    """
    return Configuration(number, tuple(sorted(bytes.fromhex(member) for member in members)))


class Acceptance(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag=5,
):
    """Says that its sender accepts this one, and no other while it can become valid."""

    configuration: Configuration
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

    configuration: Configuration


Message: TypeAlias = Acceptance | Refusal


@dataclass(frozen=True, slots=True)
class Agreement:
    """A peer's part in the agreement.

    Attributes:
        me: the peer's own id.
        accepted: what it has accepted and what may still become valid. To be saved.
        dead: what it has refused, or knows to be refused. To be saved.
        valid: whether all members of what it has accepted have accepted it. To be saved.
        heard: who has accepted what.
        newest: the highest number seen.
    """

    me: str
    accepted: Configuration | None = None
    dead: frozenset[Configuration] = frozenset()
    valid: bool = False
    heard: Mapping[Configuration, frozenset[str]] = field(default_factory=dict)
    newest: int = 0

    @property
    def saved(self) -> tuple[Configuration | None, frozenset[Configuration], bool]:
        """What must survive a crash before anything is said."""
        return self.accepted, self.dead, self.valid


Answers: TypeAlias = tuple[tuple[str, Message], ...]  # to whom, what
MAX_REMEMBERED = 256  # configurations; chosen: a handful of attempts settles it


def propose(state: Agreement, present: Collection[str], size: int) -> Agreement:
    """Returns the state of a peer that proposes a configuration, if it is free to.

    Args:
        state: before.
        present: ids of the peers that are there; its own may be among them.
        size: how many members there shall be.
    """
    others = sorted(set(present) - {state.me})
    if state.accepted is not None or len(others) + 1 < size:
        return state
    configuration = configuration_of(state.newest + 1, [state.me, *others[: size - 1]])
    return _accept(state, configuration)


def say(state: Agreement) -> Answers:
    """Returns what to tell the other members now, and again until all have accepted it."""
    if state.accepted is None:
        return ()
    said = Acceptance(state.accepted, state.valid)
    return tuple((other, said) for other in sorted(state.accepted.members - {state.me}))


def hear(state: Agreement, sender: str, message: Message, size: int) -> tuple[Agreement, Answers]:
    """Returns the next state, and what to answer once it is saved.

    Args:
        state: before.
        sender: a peer that has proved to be it.
        message: what it said.
        size: how many members there shall be; other sizes are ignored.
    """
    configuration = message.configuration
    if sender not in configuration.members or not _is_proper(configuration, size):
        return state, ()
    if len(state.heard) + len(state.dead) > MAX_REMEMBERED and configuration not in state.heard:
        return state, ()  # somebody makes them up
    state = replace(state, newest=max(state.newest, configuration.number))
    if isinstance(message, Refusal):
        return _on_refusal(state, configuration), ()
    signed = state.heard.get(configuration, frozenset()) | {sender}
    state = _count(replace(state, heard={**state.heard, configuration: signed}))
    if state.me not in configuration.members:
        return state, ()
    if state.accepted is None and configuration not in state.dead:
        state = _accept(state, configuration)
        return state, say(state)
    if state.accepted != configuration:
        state = replace(state, dead=state.dead | {configuration})
        return state, ((sender, Refusal(configuration)),)
    # Two who know that it is valid have nothing to tell each other.
    if message.valid or not state.valid:
        return state, ()
    return state, ((sender, Acceptance(configuration, valid=True)),)


def _accept(state: Agreement, configuration: Configuration) -> Agreement:
    state = replace(state, accepted=configuration, newest=max(state.newest, configuration.number))
    return _count(state)


def _count(state: Agreement) -> Agreement:
    """Returns the state, valid if all members of what it has accepted have said so."""
    configuration = state.accepted
    if configuration is None:
        return state
    missing = configuration.members - state.heard.get(configuration, frozenset()) - {state.me}
    return replace(state, valid=state.valid or not missing)


def _on_refusal(state: Agreement, configuration: Configuration) -> Agreement:
    if state.valid and state.accepted == configuration:
        return state  # it is valid, so nobody can have refused it: the sender lies
    accepted = None if state.accepted == configuration else state.accepted
    return replace(state, accepted=accepted, dead=state.dead | {configuration})


def _is_proper(configuration: Configuration, size: int) -> bool:
    ids = configuration.ids
    return len(ids) == size and list(ids) == sorted(set(ids))
