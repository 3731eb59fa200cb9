"""A kind of exchange: who gets whose models in a round, and what comes before and after all rounds.

A kind is one file: a class that names `Exchange` as its base, registered under the name that a
session says. `p2pl.exchange.round` runs the rounds.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

from p2pl.errors import InputError
from p2pl.exchange.node import Node
from p2pl.exchange.swap import Pulls
from p2pl.learning.train import Trained
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.protocol.session import Session
from p2pl.registry import Registry, check_arguments
from p2pl.run.state import PeerState

Memory: TypeAlias = Mapping[str, Any]  # in builtins, for the saved state


def nothing(mixed: Mixed) -> Memory:
    """Returns what a kind remembers of a round that remembers nothing."""
    del mixed
    return {}


@dataclass(frozen=True, slots=True)
class Collected:
    """What a round brought from other peers.

    Attributes:
        pulls: whom the peer asked, what came, and why others gave nothing.
        models: as they are to be mixed, by peer id.
        age: that the peer's own model has among them: its round, or how often it was trained.
        reached: the round that the peer has reached with this one.
        memory: given the mix, what the kind remembers for the next round.
        mixed: what others have decided that the mix is; None: the peer mixes by itself.
    """

    pulls: Pulls
    models: Mapping[str, PeerModel]
    age: int
    reached: int
    memory: Callable[[Mixed], Memory] = field(default=nothing)
    mixed: Mixed | None = None


class Overtaken(Exception):  # no error: the world went on
    """What the peer trained is not needed: the swarm has decided on another model meanwhile.

    Attributes:
        state: to go on from; it is saved already.
    """

    def __init__(self, state: PeerState) -> None:
        super().__init__()
        self.state = state


class Exchange(Protocol):
    """One kind of exchange, for one node in one run; made without arguments.

    A class that names `Exchange` as its base inherits what is written out here; it must say
    `enter`, `collect` and `finish`.

    Attributes:
        arguments: names that the kind reads from the session's `exchange.arguments`.
    """

    arguments: ClassVar[frozenset[str]] = frozenset()

    def running(self, node: Node) -> AbstractAsyncContextManager[None]:
        """Returns what is open around all of a run: before `enter`, and after `finish` or an error.

        A kind that does something beside the rounds starts and ends it here; what goes wrong there
        must end the run.
        """
        del node
        return nullcontext()

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state to begin with, once the others are there.

        Args:
            node: the peer.
            state: as saved, or new.

        Raises:
            TrackerError: no tracker answered, and no peer is known.
            RunDirError: the saved state is of another kind of exchange.
        """
        ...

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Returns what others give in a round, after serving what this peer has trained.

        Args:
            node: the peer.
            state: after the last round.
            trained: what the peer made of it.

        Raises:
            Overtaken: what the peer trained is not needed any more.
        """
        ...

    async def saved(self, node: Node, state: PeerState) -> None:
        """Takes in that the state after a round is on disk: from now on others may know of it.

        Args:
            node: the peer.
            state: that is on disk.
        """
        del node, state

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state in which the peer leaves, after serving others for a while.

        Args:
            node: the peer.
            state: after the last round.
        """
        ...


EXCHANGES: Registry[type[Exchange]] = Registry(
    "exchange.kind", "p2pl.exchanges", "p2pl.exchange", InputError
)


def kind_of(session: Session) -> type[Exchange]:
    """Returns the session's kind of exchange.

    Raises:
        InputError: the kind is not known here, or does not know one of its arguments.
    """
    settings = session.exchange
    kind = EXCHANGES.find(settings.kind)
    check_arguments("exchange.arguments", settings.kind, settings.arguments, kind.arguments)
    return kind
