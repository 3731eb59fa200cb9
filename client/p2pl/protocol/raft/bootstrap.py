"""Who may vote, agreed once and for ever, as pure functions.

An election is safe only where all go by the same set of members. Where the session names none, the
first peers agree on one: a configuration of exactly N peers is valid once every one of them has
accepted it. What a peer accepts is saved before it says so, and given up only where it can never
become valid, because one of its members refuses it: who refuses a configuration has never accepted
it and never will. So no peer is ever in two valid configurations, whatever is lost, late or dead;
two valid ones can exist only where 2 N peers meet in two halves that know nothing of each other.

The peer with the lowest id proposes; the others wait a little before they do. All N must be there
while they agree, which takes a moment; afterwards a majority is enough.

Whoever is named and never accepts must not hold the others up for ever. So a peer that has waited
for long takes its acceptance back (`Withdrawal`): from then on it does not count what it has
accepted as valid, and it is free for another one once so many of the members have withdrawn that
those who are left are no majority. Whoever of them holds it to be valid can then elect nobody by
it, so there are never two configurations that work. Where a majority says that it is valid, nobody
is ever set free, and who had withdrawn comes back.

Against peers that lie when they withdraw, or one peer with many ids, name the members in the
session.
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


class Withdrawal(
    msgspec.Struct,
    frozen=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag=10,
):
    """Says that its sender had accepted this one, and has waited for the others for too long."""

    configuration: Configuration


Message: TypeAlias = Acceptance | Refusal | Withdrawal


@dataclass(frozen=True, slots=True)
class Agreement:
    """A peer's part in the agreement.

    Attributes:
        me: the peer's own id.
        accepted: what it has accepted and what may still become valid. To be saved.
        dead: what it has refused or withdrawn from, or knows to be refused. To be saved.
        valid: whether all members of what it has accepted have accepted it. To be saved.
        heard: who has accepted what.
        sure: who has said that which one is valid.
        left: who has said that it will have no part, or no part any more, in that.
        newest: the highest number seen.
    """

    me: str
    accepted: Configuration | None = None
    dead: frozenset[Configuration] = frozenset()
    valid: bool = False
    heard: Mapping[Configuration, frozenset[str]] = field(default_factory=dict)
    sure: Mapping[Configuration, frozenset[str]] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    newest: int = 0

    @property
    def withdrew(self) -> bool:
        """Whether it has taken back what it had accepted, and is not free yet."""
        return self.accepted in self.dead

    @property
    def silent(self) -> frozenset[str]:
        """The other members of what it has accepted that have not, as far as it knows."""
        if self.accepted is None:
            return frozenset()
        return self.accepted.members - self.heard.get(self.accepted, frozenset()) - {self.me}

    @property
    def saved(self) -> tuple[Configuration | None, frozenset[Configuration], bool]:
        """What must survive a crash before anything is said."""
        return self.accepted, self.dead, self.valid


Answers: TypeAlias = tuple[tuple[str, Message], ...]  # to whom, what
MAX_REMEMBERED = 1_024  # configurations; chosen: a handful of attempts settles it
MAX_FROM_ONE = 16  # that one peer brings up; more are made up


def propose(
    state: Agreement, present: Collection[str], size: int, strikes: Mapping[str, int] | None = None
) -> Agreement:
    """Returns the state of a peer that proposes a configuration, if it is free to.

    Args:
        state: before.
        present: ids of the peers that are there; its own may be among them.
        size: how many members there shall be.
        strikes: by peer id, how often it let others down; those with the fewest are named first.
    """
    known = strikes or {}
    others = sorted(set(present) - {state.me}, key=lambda one: (known.get(one, 0), one))
    if state.accepted is not None or len(others) + 1 < size:
        return state
    configuration = configuration_of(state.newest + 1, [state.me, *others[: size - 1]])
    return _accept(state, configuration)


def say(state: Agreement) -> Answers:
    """Returns what to tell the other members now, and again until all have accepted it."""
    if state.accepted is None:
        return ()
    said: Message = Acceptance(state.accepted, state.valid)
    if state.withdrew:
        said = Withdrawal(state.accepted)
    return tuple((other, said) for other in sorted(state.accepted.members - {state.me}))


def hear(
    state: Agreement,
    sender: str,
    message: Message,
    size: int,
    present: Collection[str] | None = None,
) -> tuple[Agreement, Answers]:
    """Returns the next state, and what to answer once it is saved.

    Args:
        state: before.
        sender: a peer that has proved to be it.
        message: what it said.
        size: how many members there shall be; other sizes are ignored.
        present: ids of the peers that were heard of; one that names others is not accepted, for
            they may be made up. None: everybody is.
    """
    configuration = message.configuration
    if sender not in configuration.members or not _is_proper(configuration, size):
        return state, ()
    known = configuration == state.accepted or configuration in state.heard
    if not known and _is_made_up(state, sender):
        return state, ()
    state = replace(state, newest=max(state.newest, configuration.number))
    if isinstance(message, Refusal):
        return _on_refusal(state, sender, configuration), ()
    if isinstance(message, Withdrawal):
        return _on_withdrawal(state, sender, configuration)
    signed = state.heard.get(configuration, frozenset()) | {sender}
    state = _count(replace(state, heard={**state.heard, configuration: signed}))
    if state.me not in configuration.members:
        return state, ()
    if message.valid:
        state = _come_back(state, sender, configuration)
    return _on_acceptance(state, sender, message, present)


def _on_acceptance(
    state: Agreement, sender: str, message: Acceptance, present: Collection[str] | None
) -> tuple[Agreement, Answers]:
    configuration = message.configuration
    if state.accepted is None and configuration not in state.dead:
        if present is not None and configuration.members - {state.me, sender, *present}:
            return state, ()  # and it will be said again
        state = _accept(state, configuration)
        return state, say(state)
    if state.accepted != configuration:
        state = replace(state, dead=state.dead | {configuration})
        return state, ((sender, Refusal(configuration)),)
    # Two who know that it is valid have nothing to tell each other.
    if message.valid or not (state.valid or state.withdrew):
        return state, ()
    said = Withdrawal(configuration) if state.withdrew else Acceptance(configuration, valid=True)
    return state, ((sender, said),)


def _is_made_up(state: Agreement, sender: str) -> bool:
    """Returns whether a peer has brought up too many, or all of them together have."""
    own = sum(sender in signed for signed in state.heard.values())
    return own >= MAX_FROM_ONE or len(state.heard) + len(state.dead) > MAX_REMEMBERED


def withdraw(state: Agreement) -> tuple[Agreement, Answers]:
    """Returns the state of a peer that has waited for long enough, and what it tells the others.

    It changes nothing where all have accepted, or there is nothing to take back.
    """
    if state.accepted is None or state.valid or state.withdrew:
        return state, ()
    state = replace(state, dead=state.dead | {state.accepted})
    told = say(state)
    return _free(state), told


def give_up(state: Agreement) -> Agreement:
    """Returns the state of a peer that has no part in anything, however long it waited in vain."""
    if state.accepted is None or state.valid:
        return state
    return replace(state, accepted=None, dead=state.dead | {state.accepted})


def _accept(state: Agreement, configuration: Configuration) -> Agreement:
    state = replace(
        state,
        accepted=configuration,
        left=frozenset(),
        newest=max(state.newest, configuration.number),
    )
    return _count(state)


def _count(state: Agreement) -> Agreement:
    """Returns the state, valid if all members of what it has accepted have said so."""
    if state.accepted is None or state.withdrew:
        return state
    return replace(state, valid=state.valid or not state.silent)


def _on_refusal(state: Agreement, sender: str, configuration: Configuration) -> Agreement:
    if state.accepted == configuration and (state.valid or state.withdrew):
        # Valid: nobody who has accepted it can refuse it. But who is free of it may.
        return _free(replace(state, left=state.left | {sender}))
    if state.accepted != configuration and configuration not in state.heard:
        return state
    accepted = None if state.accepted == configuration else state.accepted
    return replace(state, accepted=accepted, dead=state.dead | {configuration})


def _on_withdrawal(
    state: Agreement, sender: str, configuration: Configuration
) -> tuple[Agreement, Answers]:
    if state.accepted != configuration:
        if state.me not in configuration.members:
            return state, ()
        state = replace(state, dead=state.dead | {configuration})
        return state, ((sender, Refusal(configuration)),)
    state = _free(replace(state, left=state.left | {sender}))
    told = Acceptance(configuration, valid=True)
    return state, ((sender, told),) if state.valid else ()


def _come_back(state: Agreement, sender: str, configuration: Configuration) -> Agreement:
    """Returns the state, in what it is free of or had withdrawn from if a majority says: valid."""
    sure = state.sure.get(configuration, frozenset()) | {sender}
    state = replace(state, sure={**state.sure, configuration: sure})
    gone = configuration in state.dead and state.accepted in (None, configuration)
    if not gone or len(sure) <= len(configuration.ids) // 2:
        return state
    return replace(state, accepted=configuration, dead=state.dead - {configuration}, valid=True)


def _free(state: Agreement) -> Agreement:
    """Returns the state, free where those who have not left what it accepted are no majority."""
    configuration = state.accepted
    if configuration is None or not (state.valid or state.withdrew):
        return state
    left = state.left | ({state.me} if state.withdrew else frozenset())
    if len(configuration.ids) - len(left) > len(configuration.ids) // 2:
        return state
    return replace(
        state,
        accepted=None,
        valid=False,
        dead=state.dead | {configuration},
        left=frozenset(),
    )


def _is_proper(configuration: Configuration, size: int) -> bool:
    ids = configuration.ids
    return len(ids) == size and list(ids) == sorted(set(ids))
