"""RPEL: a robust mean of what was pulled, that allows for as many bad models as may ever be drawn.

El Mrini, Farhadkhani and Guerraoui 2025 (arXiv:2510.08311). Of n peers b are bad, and each peer
pulls from s random ones in each of T rounds. How many of the s are bad changes from draw to draw;
the rule allows for the most that any honest peer draws in any round, but for a small chance.
What is robust to that many is chosen here: a mean by coordinate, trimmed by that number, after
nearest-neighbour mixing (`nnm-trimmed-mean` in `p2pl.mixing.robust`).
"""

import math
from typing import ClassVar

import msgspec

from p2pl.errors import InputError, wrong
from p2pl.mixing.base import MIXERS
from p2pl.mixing.robust import Robust
from p2pl.protocol.session import Session
from p2pl.registry import whole_number

CHANCE = 0.01  # that any draw of all holds more; chosen
MAX_SWARM = 100_000  # peers


@MIXERS.builtin("rpel")
class Rpel(Robust):
    """Expects as many bad models as random draws from a swarm of known size may hold."""

    arguments: ClassVar[frozenset[str]] = frozenset({"peers", "bad"})

    def __init__(self, session: Session, peer_id: str) -> None:
        """Makes the rule ready for one peer.

        Raises:
            InputError: `mixing.arguments` lack how many peers there are, or how many lie.
        """
        super().__init__(session, peer_id)
        given, field = session.mixing.arguments, "mixing.arguments"
        for name in sorted(self.arguments - set(given)):
            allowed = "both peers, of the whole swarm, and bad, how many of them lie"
            raise InputError(wrong(f"{field} of rpel", got=f"no {name}", allowed=allowed))
        peers = whole_number(f"{field}.peers", given, default=2, low=2, high=MAX_SWARM)
        bad = whole_number(f"{field}.bad", given, default=0, low=0, high=(peers - 1) // 2)
        drawn = min(session.exchange.cohort, peers - 1)
        draws = (peers - bad) * session.exchange.rounds
        expected = most_bad((peers, bad), drawn, draws)
        changed = {"rule": "nnm-trimmed-mean", "byzantine": expected}
        self.settings = msgspec.structs.replace(session.mixing, **changed)


def most_bad(swarm: tuple[int, int], drawn: int, draws: int, chance: float = CHANCE) -> int:
    """Returns the most bad peers that any of many random cohorts holds, but for a small chance.

    The least number k with draws x P(more than k of a cohort are bad) <= chance, by the
    hypergeometric distribution: the union bound over all cohorts.

    Args:
        swarm: n peers, of whom b are bad.
        drawn: s, in each cohort, of the n - 1 others.
        draws: cohorts that honest peers draw, all together.
        chance: above 0, below 1.
    """
    peers, bad = swarm
    ways = math.comb(peers - 1, drawn)
    more = 0.0  # P(more than k)
    for k in range(min(bad, drawn), 0, -1):
        more += math.comb(bad, k) * math.comb(peers - 1 - bad, drawn - k) / ways
        if draws * more > chance:
            return k
    return 0
