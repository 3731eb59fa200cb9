"""Shows a tracker the peer's update log, and looks there at those of others.

Two parts of a swarm that never meet find an author with two histories as long as both ask one
tracker. A tracker can say nothing, or show a head that is old; it can make up none.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from p2pl.errors import LogError, TrackerError
from p2pl.updates.keeper import Keeper

log = logging.getLogger(__name__)

EVERY_S = 10.0  # chosen: what a tracker keeps is as old as that at most
TRIES = 2  # the first answer says from which size on it wants to see that the log has grown


class Tracker(Protocol):
    """A tracker that may be a witness."""

    async def show_checkpoint(self, shown: bytes) -> bytes | None:
        """Returns what it keeps of the peer's own log; None: it is no witness."""
        ...

    async def checkpoint(self, peer_id: str) -> bytes | None:
        """Returns what it keeps of a peer's log; None: nothing."""
        ...


class Witnessed:
    """A peer's update log before a tracker.

    Args:
        keeper: of the log.
        tracker: the witness.
        said: is told what a person should know, once.
    """

    def __init__(self, keeper: Keeper, tracker: Tracker, said: Callable[[str], None]) -> None:
        self._keeper, self._tracker, self._said = keeper, tracker, said
        self._before = 0  # entries that the tracker keeps a head of
        self._told: set[str] = set()
        self._is_failing = False  # since a person was told that the tracker does not answer

    async def show(self) -> None:
        """Shows the tracker the newest head of the peer's own log, and keeps its cosignature."""
        if not len(self._keeper.log):
            return
        try:
            for _ in range(TRIES):
                head, shown = self._keeper.shown(self._before)
                kept = await self._tracker.show_checkpoint(shown)
                if kept is None:
                    self._tell("no tracker of this session is a witness of update logs")
                    return
                self._before = self._keeper.take_cosigned(head, kept)
                if self._before == head.size:
                    self._is_failing = False
                    return
            self._tell("the tracker does not cosign this peer's update log, though it has grown")
        except (TrackerError, LogError) as fault:
            self._failed(fault)

    async def look(self, peers: Iterable[str]) -> None:
        """Takes in what the tracker keeps of the logs of others.

        Args:
            peers: their ids.
        """
        for peer_id in peers:
            try:
                kept = await self._tracker.checkpoint(peer_id)
                if kept is not None:
                    self._keeper.take_kept(peer_id, kept)
            except (TrackerError, LogError) as fault:
                self._failed(fault)

    def _failed(self, fault: TrackerError | LogError) -> None:
        if isinstance(fault, LogError):
            self._tell(f"the tracker, as a witness of update logs: {fault}")
        elif not self._is_failing:
            self._tell(f"the tracker does not cosign this peer's update log now: {fault}")
        self._is_failing = isinstance(fault, TrackerError)
        log.info("the tracker as a witness: %s", fault)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._said(text)
