"""The door `events`: what happens in a run, as values, for whoever wants to know.

A sink is a function of one event. A run has any number of sinks: the run log, the terminal, and
what the person passes in. `Step` comes from the thread that trains, all others from the thread of
the event loop. What a sink raises ends the run, after the state of the last round was saved.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pl.metric import ACCURACY, Metric
from p2pl.run.log import RoundEntry, RunLog, Summary


@dataclass(frozen=True, slots=True)
class Started:
    """A peer is about to take part.

    Attributes:
        name: of the session.
        session_id: 64 hex digits.
        peer_id: 64 hex digits.
        round: the last round that the peer has completed; 0 at the very beginning.
        rounds: to do in all.
        metrics: what is measured in each round, the primary metric first.
        loss_unit: what follows a loss, e.g. `nats`; "" where it has none.
        epsilon_budget: that training may spend; None: it is not private.
        settings: of the session, by path: {"exchange.rounds": 30, …}; for programs that keep them.
    """

    name: str
    session_id: str
    peer_id: str
    round: int
    rounds: int
    metrics: tuple[Metric, ...] = (ACCURACY,)
    loss_unit: str = ""
    epsilon_budget: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """Local training has done one more step.

    Attributes:
        round: the round that is being trained, from 1.
        step: steps done in this round.
        steps: of this round in all.
    """

    round: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Said:
    """Something that a person would want to know between two rounds.

    Attributes:
        text: one plain sentence, e.g. "waiting for peers: 3 of 6".
    """

    text: str


@dataclass(frozen=True, slots=True)
class Reachable:
    """A tracker has tried whether others can dial this peer.

    Attributes:
        where: `HOST:PORT` that it dialled.
        is_dialled: whether it could.
        text: what that means, in one line, e.g. "others can dial this peer at 192.0.2.1:4000".
    """

    where: str
    is_dialled: bool
    text: str


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round is over, and its state is on disk.

    Attributes:
        entry: all that is known of it; it has the units of the run log.
    """

    entry: RoundEntry


@dataclass(frozen=True, slots=True)
class Merged:
    """Models of others were taken outside of a round: before the first one, or after the last.

    Attributes:
        peers: whose, by id.
        text: what was done with them, in one line.
    """

    peers: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Undone:
    """The swarm has decided on another model: later rounds than this one are to be done again.

    Attributes:
        round: the last one that counts.
    """

    round: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over: after its last round, or because the person stopped it.

    Attributes:
        summary: how it ended.
    """

    summary: Summary


class Stop(Exception):  # no error: the person asked for it
    """The run is to end now: raised by a sink. What was reached is saved, and the swarm is left."""


Event: TypeAlias = Started | Step | Said | Reachable | RoundEnded | Merged | Undone | Ended
Sink: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Events:
    """Tells every sink, in their order."""

    sinks: tuple[Sink, ...] = ()

    def __call__(self, event: Event) -> None:
        """Tells every sink of one event."""
        for sink in self.sinks:
            sink(event)

    def said(self, text: str) -> None:
        """Tells a person something."""
        self(Said(text))


def into(log: RunLog, clock: Callable[[], float] = time.time) -> Sink:
    """Returns the sink that writes rounds, messages and the summary into a run directory.

    Args:
        log: of the run directory.
        clock: seconds since 1970.
    """

    def write(event: Event) -> None:
        if isinstance(event, Started):
            log.describe(
                event.metrics,
                event.loss_unit,
                rounds=event.rounds,
                epsilon_budget=event.epsilon_budget,
            )
        elif isinstance(event, Said):
            log.say(event.text, clock())
        elif isinstance(event, Reachable):
            log.take_reach(event.text)
            log.say(event.text, clock())
        elif isinstance(event, RoundEnded):
            log.append(event.entry)
        elif isinstance(event, Merged):
            log.take_merged(event.peers)
        elif isinstance(event, Undone):
            log.drop_after(event.round)
        elif isinstance(event, Ended):
            log.finish(event.summary)

    return write
