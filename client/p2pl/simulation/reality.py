"""What a simulation has of a real network: absent peers, failing links, late models.

Everything is drawn by name from the seed, so two rules see the same peers away and the same links
fail. Bad peers are no better off than honest ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from p2pl.errors import InputError, wrong
from p2pl.protocol.session import Exchange
from p2pl.seeds import seeded

T = TypeVar("T")

KINDS = ("cohort", "gossip", "braintorrent")  # of exchange; a raft has elections of its own
LATE_KINDS = ("cohort", "gossip")  # braintorrent asks for the newest version, and knows which it is
MAX_DELAY_ROUNDS = 100  # chosen: everybody's models of so many rounds are kept


@dataclass(frozen=True, slots=True)
class Reality:
    """How far a simulated network is from one in which everybody is there and nothing is late.

    Attributes:
        participation: above 0, up to 1; the chance that a peer takes part in a round. One that does
            not trains nothing and mixes nothing, and nobody gets anything from it.
        lost_links: from 0, below 1; the chance that a pull fails, each by itself.
        delay_rounds: 0..`MAX_DELAY_ROUNDS`; what is pulled was trained so many rounds ago at most,
            each number of rounds being equally likely. Where a peer was away then, it is what it
            had trained last before, or else first after.
    """

    participation: float = 1.0
    lost_links: float = 0.0
    delay_rounds: int = 0

    @property
    def is_ideal(self) -> bool:
        """Whether everybody is always there, no link fails and nothing is late."""
        return self == IDEAL

    def check(self, exchange: Exchange, baseline: str | None) -> None:
        """Raises InputError where a number is out of range, or this exchange has no such thing."""
        if not 0 < self.participation <= 1:
            allowed = "above 0, up to 1"
            raise InputError(wrong("--participation", got=self.participation, allowed=allowed))
        if not 0 <= self.lost_links < 1:
            raise InputError(wrong("--lost-links", got=self.lost_links, allowed="0 up to below 1"))
        if not 0 <= self.delay_rounds <= MAX_DELAY_ROUNDS:
            allowed = f"0..{MAX_DELAY_ROUNDS}"
            raise InputError(wrong("--delay-rounds", got=self.delay_rounds, allowed=allowed))
        named = "--participation, --lost-links and --delay-rounds"
        if not self.is_ideal and baseline:
            allowed = "peers that exchange"
            raise InputError(wrong(named, got=f"--baseline {baseline}", allowed=allowed))
        if not self.is_ideal and exchange.kind not in KINDS:
            got = f"exchange.kind {exchange.kind}"
            raise InputError(wrong(named, got=got, allowed=f"exchange.kind {', '.join(KINDS)}"))
        if self.delay_rounds and (exchange.kind not in LATE_KINDS or exchange.lockstep):
            got = "exchange.lockstep" if exchange.lockstep else f"exchange.kind {exchange.kind}"
            allowed = f"exchange.kind {', '.join(LATE_KINDS)}, not in lockstep"
            raise InputError(wrong("--delay-rounds", got=got, allowed=allowed))

    def present(self, name: str, ids: Sequence[str], index: int) -> tuple[int, ...]:
        """Returns the numbers of the peers that take part in a round, in their order.

        Args:
            name: under which randomness is drawn.
            ids: of all peers, by number.
            index: the round.
        """
        if self.participation == 1:
            return tuple(range(len(ids)))
        drawn = torch.rand(len(ids), generator=seeded(name, "", index, "participation"))
        return tuple((drawn < self.participation).nonzero().flatten().tolist())

    def delivered(
        self,
        names: tuple[str, str],
        index: int,
        cohort: Sequence[int],
        present: frozenset[int],
    ) -> tuple[int, ...]:
        """Returns of whom a peer gets something in a round, of those that it asks.

        Args:
            names: under which randomness is drawn, and the peer's id.
            index: the round.
            cohort: the numbers of the peers that it asks.
            present: those of the peers that take part.
        """
        lost: Sequence[bool] = [False] * len(cohort)
        if self.lost_links:
            drawn = torch.rand(len(cohort), generator=seeded(*names, index, "lost links"))
            lost = (drawn < self.lost_links).tolist()
        return tuple(
            other for other, gone in zip(cohort, lost, strict=True) if other in present and not gone
        )

    def delays(self, names: tuple[str, str], index: int, count: int) -> Sequence[int]:
        """Returns how many rounds ago what a peer gets was trained, one number a model.

        Args:
            names: under which randomness is drawn, and the peer's id.
            index: the round.
            count: of the models that it gets.
        """
        if not self.delay_rounds:
            return [0] * count
        order = seeded(*names, index, "delays")
        delays: list[int] = torch.randint(
            0, self.delay_rounds + 1, (count,), generator=order
        ).tolist()
        return delays


IDEAL = Reality()


class Past(Generic[T]):
    """What everybody served in the last rounds, for those to whom it comes late.

    Args:
        delay_rounds: how late something may come.
    """

    def __init__(self, delay_rounds: int) -> None:
        self._delay_rounds = delay_rounds
        self._served: dict[int, Mapping[tuple[int, int | None], T]] = {}  # by round

    def add(self, index: int, served: Mapping[tuple[int, int | None], T]) -> None:
        """Keeps what was served in a round.

        Args:
            index: the round.
            served: by (peer, who asks), or by (peer, None) to all others alike.
        """
        self._served[index] = served

    def forget(self, index: int) -> None:
        """Forgets what is too old for the rounds after `index`."""
        self._served.pop(index - self._delay_rounds, None)

    def served(self, peer: int, asker: int, index: int, delay: int) -> T:
        """Returns what a peer that takes part in round `index` gives to another one.

        Args:
            peer: who serves it.
            asker: who gets it.
            index: the round.
            delay: so many rounds ago it was trained, where the peer took part then; else it is what
                was trained last before, or first after.
        """
        wanted = index - delay
        before = range(wanted, index - self._delay_rounds - 1, -1)
        for when in (*before, *range(wanted + 1, index + 1)):
            of_round = self._served.get(when, {})
            for key in ((peer, asker), (peer, None)):
                if key in of_round:
                    return of_round[key]
        raise LookupError(f"peer {peer} served nothing up to round {index}")
