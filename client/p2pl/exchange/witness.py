"""Which rounds of others are believed: those that were seen to be reached, or could have been.

A round is what a stranger says of itself, and who believes it skips its own. So a peer that comes
watches the others take a step before it goes where they say they are; and one that runs believes
no round that is further than the swarm can have come since it began.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from p2pl.exchange.node import Held
from p2pl.mixing.base import PeerModel

MAX_ROUNDS_PER_S = 200.0  # chosen: ten times what the smallest session does on a fast machine
# The most that others are believed to be faster than the peer at its best. Chosen: a site that is
# ten times slower still finds where the others are; twice that is room for what it does beside.
FASTER = 20.0
SLACK_ROUNDS = 2.0  # where both have just begun


@dataclass(frozen=True, slots=True)
class _Sighting:
    round: int
    digest: bytes
    at_s: float


class Watch:
    """Who was seen to take a step: another round, not too many at once, and another model."""

    def __init__(self) -> None:
        self._seen: dict[str, _Sighting] = {}
        self._stepped: dict[str, PeerModel] = {}

    def look(self, now_s: float, held: Mapping[str, Held]) -> dict[str, PeerModel]:
        """Returns the models of all that have taken a step so far, as they were seen last.

        Args:
            now_s: of a clock that never steps back.
            held: what each peer has given now, by peer id.
        """
        for who, one in held.items():
            now = _Sighting(one.model.round, one.digest, now_s)
            before = self._seen.setdefault(who, now)
            most = 1 + MAX_ROUNDS_PER_S * (now_s - before.at_s)
            steps = now.round - before.round
            if now.digest != before.digest and 1 <= steps <= most:
                self._seen[who] = now
                self._stepped[who] = one.model
        return self._stepped


class Envelope:
    """How far the swarm can have come since this peer began, by the pace of this peer itself."""

    def __init__(self) -> None:
        self._began: tuple[int, float] | None = None
        self._last_s = 0.0
        self._fastest_s = math.inf

    def limit(self, index: int, now_s: float) -> float:
        """Returns the highest round that is believed now; to be asked once a round.

        Args:
            index: of the peer's round.
            now_s: of a clock that never steps back.
        """
        if self._began is None:
            self._began = index, now_s
        else:
            self._fastest_s = min(self._fastest_s, max(1 / MAX_ROUNDS_PER_S, now_s - self._last_s))
        self._last_s = now_s
        first, since_s = self._began
        return max(index, first + FASTER * (now_s - since_s) / self._fastest_s) + SLACK_ROUNDS

    def believed(
        self, index: int, now_s: float, models: Mapping[str, PeerModel]
    ) -> dict[str, PeerModel]:
        """Returns the models whose rounds are believed; see `limit`."""
        limit = self.limit(index, now_s)
        return {who: model for who, model in models.items() if model.round <= limit}
