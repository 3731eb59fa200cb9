"""Who comes and goes, as one peer sees it: joins, leaves, and how long the others stayed.

The answers and silences that an exchange meets anyway are all that is looked at; nobody is asked
for this. A peer counts as gone when it could not be reached, not when it was merely not asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_WATCHED = 1_024  # chosen: as many as are known; strangers can make ids for nothing


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since the last look."""

    joined: tuple[str, ...]  # peer ids
    left: dict[str, float]  # peer id -> seconds between the first and the last sign of life


@dataclass(slots=True)
class _Stay:
    since_s: float
    until_s: float  # of the last sign of life


class Presence:
    """The peers that are there."""

    def __init__(self) -> None:
        self._stays: dict[str, _Stay] = {}

    def look(self, now_s: float, here: Iterable[str], gone: Iterable[str]) -> Changes:
        """Returns what changed.

        Args:
            now_s: of a clock that never steps back.
            here: ids of peers that have given a sign of life.
            gone: ids of peers that could not be reached.
        """
        joined = []
        for peer_id in here:
            stay = self._stays.get(peer_id)
            if stay:
                stay.until_s = now_s
            elif len(self._stays) < MAX_WATCHED:
                self._stays[peer_id] = _Stay(now_s, now_s)
                joined.append(peer_id)
        ended = {peer_id: self._stays.pop(peer_id, None) for peer_id in gone}
        left = {peer_id: stay.until_s - stay.since_s for peer_id, stay in ended.items() if stay}
        return Changes(tuple(joined), left)
