"""Who made a model: from its entry in an update log back through mixes to where it all began.

A *share* says how much of a version went into the model: the product of the weights along a way,
summed over all ways. A peer's *influence* is the share of its trained versions, of those of all:
how much of the training that is in the model was done by that peer. Both are what logs say of
mixes; what was trained, and on what, nobody can see.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from p2pl.api.ledger import Log
from p2pl.errors import RunDirError, wrong
from p2pl.protocol.updates.entry import PPM, Entry, Stage

Key: TypeAlias = tuple[str, int]  # (peer id, index of the entry)


@dataclass(frozen=True, slots=True)
class Made:
    """A version that is in the model.

    Attributes:
        peer_id: of the peer that made it.
        round: that it is of.
        stage: `trained`, `mixed` or `final`.
        share: of it in the model; more than 1 where the same training came in by several versions.
        parts: what it was made of: (peer id, index of its entry) and the weight.
        row: the weight of each peer in its mix, whether its log is there or not; {} = it has none.
    """

    peer_id: str
    round: int
    stage: Stage
    share: float
    parts: Mapping[Key, float]
    row: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Provenance:
    """All that is known of who made a model.

    Attributes:
        log: of the peer whose model it is.
        versions: by peer id and index of the entry, the model first.
        influence: of each peer on the model, 0..1; the sum is 1.
        unknown: versions in mixes whose authors' logs are not there, or have no such entry.
    """

    log: Log
    versions: Mapping[Key, Made]
    influence: Mapping[str, float]
    unknown: int

    @property
    def last_mix(self) -> dict[str, float]:
        """Returns the weight of each peer in the last mix before the model, by peer id."""
        mixed = (one.row for one in self.versions.values() if len(one.row) > 1)
        return dict(next(mixed, {}))


class _Logs:
    """Logs of one session, to look versions up in."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._entries = {log.peer_id: log.records for log in logs}
        self._places = {
            (log.peer_id, record.signed.entry.digest): record.signed.entry.index
            for log in logs
            for record in reversed(log.records)
        }
        self.unknown: set[tuple[str, bytes]] = set()

    def entry(self, key: Key) -> Entry:
        return self._entries[key[0]][key[1]].signed.entry

    def parts(self, key: Key) -> dict[Key, float]:
        """Returns what a version was made of; without a mix of its own, of the entry before it."""
        peer_id, index = key
        mix = self._entries[peer_id][index].mix
        if mix is None:
            return {(peer_id, index - 1): 1.0} if index else {}
        found: dict[Key, float] = defaultdict(float)
        for part in mix.parts:
            at = self._places.get((part.peer.hex(), part.digest))
            if at is None or (part.peer.hex() == peer_id and at >= index):
                self.unknown.add((part.peer.hex(), part.digest))
            else:
                found[part.peer.hex(), at] += part.weight_ppm / PPM
        return dict(found)

    def row(self, key: Key) -> dict[str, float]:
        """Returns the weight of each peer in the mix of a version; {} where it has none."""
        mix = self._entries[key[0]][key[1]].mix
        row: dict[str, float] = defaultdict(float)
        for part in mix.parts if mix else ():
            row[part.peer.hex()] += part.weight_ppm / PPM
        return dict(row)


def provenance(log: Log, others: Sequence[Log] = (), *, index: int | None = None) -> Provenance:
    """Returns who made a model.

    Args:
        log: of the peer whose model it is.
        others: logs of other peers of the session.
        index: of the model's entry; None: the last one.

    Raises:
        RunDirError: there is no such entry.
    """
    count = len(log.records)
    at = count - 1 if index is None else index
    if not 0 <= at < count:
        raise RunDirError(wrong(f"{log.source}: entry", got=at, allowed=f"0..{count - 1}"))
    same = [
        one for one in others if one.session_id == log.session_id and one.peer_id != log.peer_id
    ]
    logs = _Logs([log, *same])
    first = log.peer_id, at
    parts = dict(_reached(logs, first))
    shares: dict[Key, float] = defaultdict(float, {first: 1.0})
    versions: dict[Key, Made] = {}
    for key, made_of in parts.items():
        entry = logs.entry(key)
        versions[key] = Made(key[0], entry.round, entry.stage, shares[key], made_of, logs.row(key))
        for part, weight in made_of.items():
            shares[part] += shares[key] * weight
    trained: dict[str, float] = defaultdict(float)
    for one in versions.values():
        if one.stage == "trained":
            trained[one.peer_id] += one.share
    total = sum(trained.values()) or 1.0
    influence = {who: share / total for who, share in sorted(trained.items())}
    return Provenance(log, versions, influence, len(logs.unknown))


def _reached(logs: _Logs, first: Key) -> Iterator[tuple[Key, dict[Key, float]]]:
    """Yields all versions that a model was made of, each before those that it was made of itself.

    No hash can be in what it was made of, so there are no circles; what says so is left out.
    """
    found: dict[Key, dict[Key, float]] = {}
    within: set[Key] = set()  # of which the parts are being looked at
    done: list[Key] = []
    stack: list[tuple[Key, Iterator[Key]]] = []

    def enter(key: Key) -> None:
        within.add(key)
        found[key] = {one: share for one, share in logs.parts(key).items() if one not in within}
        stack.append((key, iter(found[key])))

    enter(first)
    while stack:
        key, left = stack[-1]
        part = next((one for one in left if one not in found), None)
        if part is not None:
            enter(part)
            continue
        stack.pop()
        within.discard(key)
        done.append(key)
    for key in reversed(done):
        yield key, found[key]


def picture(made: Provenance, names: Mapping[str, str]) -> bytes:
    """Returns a PNG: versions by peer and round, and how much of each went into which.

    Args:
        made: who made a model.
        names: of peers, by id.
    """
    from p2pl.report.plots.provenance import draw_provenance

    peers = sorted({who for who, _ in made.versions})
    rows = {who: row for row, who in enumerate(peers)}
    dots = [(one.round, rows[one.peer_id], one.share) for one in made.versions.values()]
    lines = [
        ((made.versions[part].round, rows[part[0]]), (one.round, rows[one.peer_id]), weight)
        for one in made.versions.values()
        for part, weight in one.parts.items()
        if part in made.versions
    ]
    return draw_provenance(dots, lines, [names.get(who, who[:8]) for who in peers])
