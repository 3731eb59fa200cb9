"""Run directories of a swarm that never was, for the live page: as many peers and rounds as wanted.

The figures are made up, and alike each time: peers learn, the last ones are turned down.
"""

import hashlib
import math
from pathlib import Path
from random import Random

from p2pl.metric import ACCURACY
from p2pl.run.log import Marker, RoundEntry, RunLog

BEGIN_S = 1_795_000_000.0  # of the first round, seconds since 1970
BAD_SHARE = 0.05


def made_id(text: str) -> str:
    """Returns 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


class Swarm:
    """A swarm's logs, written round by round.

    Args:
        out: a folder to write the run directories into.
        peers: how many.
        cohort: how many others each of them meets in a round.
        rounds: that it is to have in all.
    """

    def __init__(self, out: Path, peers: int, cohort: int, rounds: int) -> None:
        self.ids = [made_id(f"peer {number}") for number in range(peers)]
        self._cohort, self._random = cohort, Random(7)
        self._good = peers - max(1, round(BAD_SHARE * peers))
        digits = len(str(peers - 1))
        self._logs = [
            RunLog(out / f"peer-{number:0{digits}}", self._marker(number, rounds))
            for number in range(peers)
        ]

    def close(self) -> None:
        """Lets other processes use the directories."""
        for log in self._logs:
            log.close()

    def round(self, index: int) -> None:
        """Writes one round of every peer."""
        for number, log in enumerate(self._logs):
            log.append(self._entry(number, index))

    def _marker(self, number: int, rounds: int) -> Marker:
        return Marker(
            session_id=made_id("session"),
            peer_id=self.ids[number],
            name="made-up",
            alone=False,
            metrics=(ACCURACY,),
            rounds=rounds,
            attack="" if number < self._good else "sign-flip",
        )

    def _entry(self, number: int, index: int) -> RoundEntry:
        chance = self._random
        others = [other for other in range(len(self.ids)) if other != number]
        met = sorted(chance.sample(others, min(self._cohort, len(others))))
        good = [other for other in met if other < self._good]
        shares = [chance.uniform(0.5, 1.5) for _ in [number, *good]]
        row = [share / sum(shares) for share in shares]
        score = 96 - 60 * math.exp(-index / 25) + chance.gauss(0, 0.6)
        names = [self.ids[other] for other in good]
        return RoundEntry(
            round=index,
            train_loss=2 * math.exp(-index / 30),
            validation_loss=2.1 * math.exp(-index / 28) + 0.1,
            accuracy=min(100.0, score),
            accuracy_before_mix=min(100.0, score - 3 * chance.random()),
            trust=dict(zip([self.ids[number], *names], row, strict=True)),
            cohort=tuple(self.ids[other] for other in met),
            received=tuple(self.ids[other] for other in met),
            rejected={
                self.ids[other]: "direction: got cosine -0.98 to the own, allowed above -0.3"
                for other in met
                if other >= self._good
            },
            bytes_in=20_000 * len(met),
            bytes_out=20_000 * len(met),
            bytes_by_peer={self.ids[other]: (20_000, 20_000) for other in met},
            seconds=0.2,
            time=BEGIN_S + 0.2 * index,
        )
