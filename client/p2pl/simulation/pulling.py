"""Who pulls from whom in a round, by the kind of exchange.

In a simulation everybody is equally fast, so rounds are in step. `cohort`: each peer pulls from a
random few, but not from those whom it has found to do much harm. `gossip`: the random few are
neighbours; pulling from them, telling them to pull, or both, for as many rounds as a list is kept.
Whether the tracker or the peer itself draws the list is the same here. `braintorrent`: everybody
has moved since everybody last looked, so each peer pulls from all others; that is the most that it
ever takes. `raft`: the leader gets everybody's model, and everybody the leader's.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from p2pl.simulation import raft
from p2pl.simulation.setup import Setup, draw_cohort


def sources(
    setup: Setup, index: int, shunned: Mapping[int, Collection[str]] = MappingProxyType({})
) -> Sequence[Sequence[int]]:
    """Returns the numbers of the peers that each peer pulls from in round `index`, by peer.

    Args:
        setup: of the simulation.
        index: the round.
        shunned: by peer, the ids of those whom it does not ask, where the kind lets it choose.
    """
    everybody = range(setup.peers)
    if setup.baseline:
        return [() for _ in everybody]
    exchange = setup.session.exchange
    if exchange.kind == "raft":
        return raft.sources(setup, index)
    if exchange.kind == "braintorrent":
        return [draw_cohort(setup, peer, index) for peer in everybody]
    if exchange.kind == "cohort":
        return [draw_cohort(setup, peer, index, shunned.get(peer, ())) for peer in everybody]
    keep = exchange.gossip.keep_rounds
    first = (index - 1) // keep * keep + 1  # of the rounds that share a list
    drawn = [draw_cohort(setup, peer, first) for peer in everybody]
    if exchange.gossip.mode == "pull":
        return drawn
    told: list[list[int]] = [[] for _ in everybody]
    for peer, neighbours in enumerate(drawn):
        for neighbour in neighbours:
            told[neighbour].append(peer)
    if exchange.gossip.mode == "push":
        return [tuple(pushers) for pushers in told]
    return [
        (*mine, *(peer for peer in pushers if peer not in mine))
        for mine, pushers in zip(drawn, told, strict=True)
    ]
