"""What a raft leader does besides taking part: it serves the newest model, and makes the next."""

import asyncio

from p2pl.exchange.cohort import POLL_S
from p2pl.exchange.raft.leadership import Leadership
from p2pl.exchange.raft.participant import Came, Participant
from p2pl.exchange.raft.term import PATIENCES, TRAININGS, Term, commits_to
from p2pl.exchange.swap import Pulls
from p2pl.mixing.base import PeerModel
from p2pl.protocol.raft.election import ModelId
from p2pl.run.state import PeerState


class Aggregator:
    """The work of a leader, for a peer that may be elected.

    Args:
        peer: what it does as a participant; its `term` is set while it leads.
    """

    def __init__(self, peer: Participant) -> None:
        self._peer = peer

    async def lead_when_elected(self, leadership: Leadership) -> None:
        """Leads each term that the peer is elected for, until cancelled."""
        while True:
            number = leadership.state.term
            if leadership.leads(number):
                await self._lead(leadership, number)
            else:
                await self._peer.bell.wait(POLL_S)

    async def make_next(self, term: Term, state: PeerState, own: PeerModel) -> Came:
        """Returns the mix of what a majority at least has made of the model that is held.

        Args:
            term: the one that the peer leads.
            state: after the last round.
            own: what the peer itself gives, of the round that is made.

        Raises:
            QuorumError: a majority's results do not get through.
        """
        peer, base = self._peer, self._peer.held
        if peer.node.keeper:  # nobody is served what the leader itself gives; its log names it
            payload = await asyncio.to_thread(peer.node.learner.codec.encode, own.vector)
            await commits_to(peer.node, "trained", ModelId(base.term, own.round), payload)
        term.give(peer.me, base, own)
        patience_s = PATIENCES * peer.settings.patience_s
        until_s = peer.held_s + max(patience_s, TRAININGS * peer.trained_s)
        received = await term.gather(base, peer.founders.members, self.present, until_s)
        own = received.pop(peer.me)
        mixed = await peer.node.mix(state, own.vector, received, own.round, state.weights)
        made = ModelId(term.number, base.round + 1)
        return Came(made, mixed, Pulls(tuple(received), received, {}))

    def present(self) -> set[str]:
        """Returns the members that answer heartbeats, or have not had the time to."""
        peer = self._peer
        if peer.leadership is None or peer.term is None:
            return set()
        longest_s = peer.settings.longest_timeout_s
        since_s = peer.node.clock() - longest_s * peer.transfers.times(longest_s)
        if peer.term.began_s > since_s:
            return set(peer.founders.members)
        acks = peer.leadership.state.acks
        return {one for one, (at_s, _) in acks.items() if at_s > since_s}

    async def _lead(self, leadership: Leadership, number: int) -> None:
        """Returns when the peer does not lead this term any more."""
        peer = self._peer
        term = peer.term = Term(peer.node, number, peer.broadcast, peer.bell, peer.transfers)
        serving = asyncio.create_task(self._serve(term))
        try:
            while leadership.leads(number):
                if serving.done():
                    serving.result()  # raises what went wrong
                await peer.bell.wait(POLL_S)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await term.close()
            peer.term = None

    async def _serve(self, term: Term) -> None:
        """Gives out the model that is held, and the next one as soon as that is on disk."""
        peer, served = self._peer, None
        while True:
            await peer.at_rest.wait()
            if peer.held == served:
                await peer.bell.wait(POLL_S)
                continue
            served, vector = peer.held, peer.state.weights
            if served.term == term.number:  # else it was decided before: not this peer's to change
                vector = await peer.to_serve(served.round, vector)
            await term.serve(served, vector)
