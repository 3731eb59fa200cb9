"""No exchange at all: what a peer would reach on its own data, with the same budget of training.

A cohort of nobody: nothing is sent and nobody is asked. It answers the first question of whoever is
invited: is it worth joining?
"""

from p2pl.exchange.base import Collected, Exchange
from p2pl.exchange.node import Node
from p2pl.exchange.swap import Pulls
from p2pl.learning.train import Trained
from p2pl.run.state import PeerState


class Alone(Exchange):
    """Rounds in which nobody else takes part."""

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state as it is."""
        del node
        return state

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Returns that nobody was asked, and nothing came."""
        del node, trained
        index = state.round + 1
        return Collected(Pulls((), {}, {}), {}, age=index, reached=index)

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state as it is."""
        del node
        return state
