"""After the last round: serve, and merge what the others still make of it, until they are done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from p2pl.errors import TrackerError
from p2pl.exchange.cohort import POLL_S, SEEDING_QUIET_S
from p2pl.exchange.node import Node
from p2pl.exchange.swap import announce
from p2pl.run.state import PeerState

LEAVING_S = 2 * POLL_S  # that others who have finished need to notice a peer's last version

MergeNews: TypeAlias = Callable[[Node, PeerState], Awaitable[PeerState]]


async def linger(node: Node, state: PeerState, merge_news: MergeNews) -> PeerState:
    """Returns the state when all are done, or when nobody has needed the peer for a while.

    Args:
        node: the peer, still serving what it trained last.
        state: after its last round.
        merge_news: returns the state after one more merge without training; the very same object
            where there was nothing to merge.
    """
    begun_s = quiet_since_s = node.clock()
    while (
        node.clock() - begun_s < node.seeding_s and node.clock() - quiet_since_s < SEEDING_QUIET_S
    ):
        served = node.transport.traffic.transfers_out
        done = await _all_are_done(node) and node.clock() - begun_s >= LEAVING_S
        merged = await merge_news(node, state)
        if merged is not state or node.transport.traffic.transfers_out != served:
            quiet_since_s = node.clock()
        state = merged
        if done:
            break
        node.events.said("done; serving the model and merging what the others make of it")
        await asyncio.sleep(POLL_S)
    return state


async def _all_are_done(node: Node) -> bool:
    try:
        # Every time: a tracker that was restarted would count this peer as training still.
        await announce(node, "completed", 0)
    except TrackerError:
        return False
    return bool(node.answer and not node.answer.training and not node.directory.known.missing())
