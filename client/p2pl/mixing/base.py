"""The door `Mixer`: what a peer makes of its own model and of those that it received.

A rule is one file: a class that names `Mixer` as its base, registered under the name that a session
says. Everything that others must know of a rule stands in the class.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar, Protocol, TypeAlias

import msgspec
from torch import Tensor

from p2pl.errors import ClientError, InputError, P2PLError, wrong
from p2pl.learning import faults
from p2pl.learning.parts import is_finite
from p2pl.learning.trainer import Trainer
from p2pl.protocol.session import Session
from p2pl.registry import Registry, check_arguments

Row: TypeAlias = tuple[float, ...]
ROW_SLACK = 1e-3  # chosen: far more than rounding in float32 makes of a sum of shares


@dataclass(frozen=True, slots=True)
class PeerModel:
    """A model that was received from another peer, decoded.

    Attributes:
        round: that the peer says it is of; in `gossip`, its age.
        samples: that the peer says it trained on.
        vector: [P] float32, finite.
        notes: what the peer says of others, as bytes that only its mixing rule reads.
    """

    round: int
    samples: int
    vector: Tensor
    notes: bytes = b""


@dataclass(frozen=True, slots=True)
class Own:
    """What a peer has of its own when it mixes.

    Attributes:
        vector: [P] float32, as trained in this round.
        round: of the peer; in `gossip`, the age of its model.
        samples: that the peer says it trains on.
        trainer: what can judge parameters on the peer's own examples.
        start: [P], from where the peer trained; None where that is not known.
    """

    vector: Tensor
    round: int
    samples: int
    trainer: Trainer
    start: Tensor | None = None


class NoMemory(msgspec.Struct, frozen=True):
    """What a rule remembers that remembers nothing."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a peer made of what it received.

    Attributes:
        vector: [P] float32.
        row: peer id -> its share in the mix, 0..1, the peer's own included; the sum is 1. Of a rule
            that weighs each coordinate by itself, the mean share over the coordinates.
        rejected: peer id -> why its model has no share.
        memory: what the rule remembers for the next round.
    """

    vector: Tensor
    row: Mapping[str, float]
    rejected: Mapping[str, str] = field(default_factory=dict)
    memory: msgspec.Struct = field(default_factory=NoMemory)


class Mixer(Protocol):
    """One mixing rule, at work for one peer in one session.

    Attributes:
        Memory: the type of what the rule remembers from round to round: a msgspec struct with
            defaults, saved in the peer's state.
        keeps_privacy: whether the rule may be used with private training: it learns of the peer's
            examples nothing but what `trainer.judge()` answers. A rule is refused until it says so.
        bounds_sizes: whether the rule copes with models of any size; else those that are out of all
            proportion (`p2pl.mixing.size`) are rejected before it.
        asks_judge: whether the rule asks `trainer.judge()`: private training must pay for answers.
        arguments: names that the rule reads from the session's `mixing.arguments`.
    """

    Memory: ClassVar[type[msgspec.Struct]] = NoMemory
    keeps_privacy: ClassVar[bool] = False
    bounds_sizes: ClassVar[bool] = False
    asks_judge: ClassVar[bool] = False
    arguments: ClassVar[frozenset[str]] = frozenset()
    session: Session
    peer_id: str

    def __init__(self, session: Session, peer_id: str) -> None:
        """Makes the rule ready for one peer.

        Args:
            session: what all peers agreed on; `session.mixing` has the settings.
            peer_id: of the peer that mixes, 64 hex digits.
        """
        self.session, self.peer_id = session, peer_id

    def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
        """Returns the mix of the peer's own model and those received.

        Args:
            own: the peer's own.
            received: K models by peer id, in the order of the ids; K may be 0.
            memory: what the last round left; `Memory()` before the first.
        """
        ...

    def notes(self, memory: msgspec.Struct) -> bytes:
        """Returns what to tell others with the peer's next model, at most 1,024 bytes."""
        del memory
        return b""

    def blocked(self, memory: msgspec.Struct) -> frozenset[str]:
        """Returns the ids of peers whose models would be rejected, and need not be asked for."""
        del memory
        return frozenset()


MIXERS: Registry[type[Mixer]] = Registry("mixing.rule", "p2pl.mixing", "p2pl.mixing", InputError)


def rule_of(session: Session) -> type[Mixer]:
    """Returns the session's mixing rule.

    Raises:
        InputError: the rule is not known here, or does not know one of its arguments.
    """
    mixing = session.mixing
    rule = MIXERS.find(mixing.rule)
    check_arguments("mixing.arguments", mixing.rule, mixing.arguments, rule.arguments)
    return rule


def mixed_by(
    mixer: Mixer, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct
) -> Mixed:
    """Returns what a rule makes of models, once it is seen to be a mix.

    Args:
        mixer: the rule; maybe one that a person brought.
        own: the peer's own.
        received: K models by peer id.
        memory: what the last round left.

    Raises:
        ClientError: the rule's code failed, or what it gives is no mix of these.
    """
    rule = f"mixing.rule {mixer.session.mixing.rule}"
    try:
        mixed = mixer.mix(own, received, memory)
    except Exception as fault:
        if isinstance(fault, P2PLError) or type(mixer).__module__.startswith("p2pl."):
            raise
        at = f" at {place}" if (place := faults.place_of(fault)) else ""
        raise ClientError(f"{rule}: its mix failed{at}: {faults.summary(fault)}") from fault
    if not isinstance(mixed, Mixed):
        raise ClientError(wrong(rule, got=type(mixed).__name__, allowed="p2pl.Mixed, by its mix"))
    _check_vector(rule, mixed.vector, own.vector)
    _check_row(rule, mixed.row, {mixer.peer_id, *received})
    return mixed


def _check_vector(rule: str, vector: object, own: Tensor) -> None:
    """Raises ClientError where a mixed vector is none of the model's."""
    if (
        not isinstance(vector, Tensor)
        or vector.shape != own.shape
        or vector.dtype != own.dtype
        or vector.device != own.device
    ):
        allowed = f"{faults.described(own)}, the shape and type of own.vector"
        raise ClientError(
            wrong(f"{rule}: its mixed vector", got=faults.described(vector), allowed=allowed)
        )
    if not is_finite(vector):
        raise ClientError(
            wrong(f"{rule}: its mixed vector", got="NaN or infinity", allowed="finite numbers")
        )


def _check_row(rule: str, row: object, known: Collection[str]) -> None:
    """Raises ClientError where shares are not of these peers, or are no shares."""
    if not isinstance(row, Mapping):
        allowed = "a dictionary of shares by peer id"
        raise ClientError(wrong(f"{rule}: its row", got=row, allowed=allowed))
    for who, share in row.items():
        if who not in known:
            allowed = "the ids of the peer itself and of those received"
            raise ClientError(wrong(f"{rule}: its row", got=who, allowed=allowed))
        if not isinstance(share, Real) or not -ROW_SLACK <= float(share) <= 1 + ROW_SLACK:
            allowed = "a share, 0..1"
            raise ClientError(wrong(f"{rule}: its row, of {who[:8]}…", got=share, allowed=allowed))
    total = sum(map(float, row.values()))
    if not abs(total - 1) <= ROW_SLACK:
        allowed = "1, the peer's own share included"
        raise ClientError(wrong(f"{rule}: the sum of its row", got=total, allowed=allowed))


def weighted_mean(own: Tensor, received: Sequence[Tensor], row: Sequence[float]) -> Tensor:
    """Returns the weighted mean of the peer's own parameters and those received, [P].

    Needs one more vector of memory, however many were received.

    Args:
        own: [P] float32.
        received: K vectors of [P]; K may be 0. Those with weight 0 are not read.
        row: K + 1 weights, non-negative, sum 1; row[0] is the peer's own.
    """
    mixed = own * row[0]
    for vector, weight in zip(received, row[1:], strict=True):
        if weight != 0:
            mixed.add_(vector, alpha=weight)
    return mixed


def by_row(peer_id: str, own: Own, received: Mapping[str, PeerModel], row: Row) -> Mixed:
    """Returns the weighted mean of the peer's own model and those received, named by peer.

    Args:
        peer_id: of the peer that mixes.
        own: its own.
        received: K models by peer id.
        row: K + 1 weights, non-negative, sum 1; row[0] is the peer's own.
    """
    vector = weighted_mean(own.vector, [model.vector for model in received.values()], row)
    return Mixed(vector, dict(zip((peer_id, *received), row, strict=True)))
