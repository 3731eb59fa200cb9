"""Who comes and goes, as one peer sees it: joins, leaves, and how long the others stayed.

The answers and silences that an exchange meets anyway are all that is looked at; nobody is asked
for this. A peer counts as gone when it could not be reached, not when it was merely not asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import msgspec

from p2pl.run.log import LoggedRun, PeerId, RoundEntry

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


class PeerChurn(msgspec.Struct, frozen=True, kw_only=True):
    """How a peer came and went, as the others saw it."""

    peer_id: PeerId
    seen_by: int  # how many others
    joins: int  # most that one of them saw
    leaves: int  # likewise
    median_stay_s: float  # of all stays that the others saw, the one under way included
    longest_stay_s: float
    there: float  # share of the time since it was first seen, mean over those who saw it; 0..1


@dataclass(slots=True)
class _Seen:
    """What one peer saw of another."""

    first_s: float
    since_s: float | None = None  # None: gone
    joins: int = 0
    stays: list[float] = field(default_factory=list)


def churn_of(runs: Sequence[LoggedRun]) -> tuple[PeerChurn, ...]:
    """Returns how each peer came and went, the least steady first; () where nobody looked."""
    seen: dict[PeerId, list[tuple[_Seen, float]]] = {}
    for run in runs:
        for peer_id, one in _seen_in(run.rounds).items():
            seen.setdefault(peer_id, []).append((one, _last_s(run.rounds) - one.first_s))
    return tuple(sorted((_churn(*one) for one in seen.items()), key=lambda one: one.there))


def _seen_in(rounds: Sequence[RoundEntry]) -> dict[PeerId, _Seen]:
    seen: dict[PeerId, _Seen] = {}
    for entry in rounds:
        if entry.time is None:
            continue
        for peer_id, stay_s in entry.left.items():
            if one := seen.get(peer_id):
                one.stays.append(stay_s)
                one.since_s = None
        for peer_id in entry.joined:
            one = seen.setdefault(peer_id, _Seen(entry.time))
            if one.since_s is None:  # else it was there all along, and it is this peer that was not
                one.joins += 1
                one.since_s = entry.time
    last_s = _last_s(rounds)
    for one in seen.values():
        if one.since_s is not None:
            one.stays.append(last_s - one.since_s)
    return seen


def _last_s(rounds: Sequence[RoundEntry]) -> float:
    return max((entry.time for entry in rounds if entry.time is not None), default=0.0)


def _churn(peer_id: PeerId, seen: Sequence[tuple[_Seen, float]]) -> PeerChurn:
    stays = [stay_s for one, _ in seen for stay_s in one.stays]
    shares = [min(1.0, sum(one.stays) / span_s) if span_s > 0 else 1.0 for one, span_s in seen]
    return PeerChurn(
        peer_id=peer_id,
        seen_by=len(seen),
        joins=max(one.joins for one, _ in seen),
        leaves=max(len(one.stays) - (one.since_s is not None) for one, _ in seen),
        median_stay_s=median(stays),
        longest_stay_s=max(stays),
        there=fmean(shares),
    )
