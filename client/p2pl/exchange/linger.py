"""After the last round: serve, and merge what the others still make of it, until they are done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from p2pl.errors import TrackerError
from p2pl.exchange.cohort import POLL_S, SEEDING_QUIET_S
from p2pl.exchange.node import Peer, announce
from p2pl.run.state import PeerState

LEAVING_S = 2 * POLL_S  # that others who have finished need to notice my last version

MergeNews: TypeAlias = Callable[[Peer, PeerState], Awaitable[PeerState]]


async def linger(peer: Peer, state: PeerState, merge_news: MergeNews) -> PeerState:
    """Returns the state when all are done, or when nobody has needed me for a while.

    Args:
        peer: me, still serving what I trained last.
        state: after my last round.
        merge_news: returns the state after one more merge without training; the very same object
            where there was nothing to merge.
    """
    begun_s = quiet_since_s = peer.clock()
    while (
        peer.clock() - begun_s < peer.seeding_s and peer.clock() - quiet_since_s < SEEDING_QUIET_S
    ):
        served = peer.wire.traffic.transfers_out
        done = await _all_are_done(peer) and peer.clock() - begun_s >= LEAVING_S
        merged = await merge_news(peer, state)
        if merged is not state or peer.wire.traffic.transfers_out != served:
            quiet_since_s = peer.clock()
        state = merged
        if done:
            break
        peer.view.message("done; serving my model and merging what the others make of it")
        await asyncio.sleep(POLL_S)
    return state


async def _all_are_done(peer: Peer) -> bool:
    try:
        # Every time: a tracker that was restarted would count me as training still.
        await announce(peer, "completed", 0)
    except TrackerError:
        return False
    return bool(peer.answer and not peer.answer.training and not peer.directory.known.missing())
