"""The peers a peer has heard of: whom to ask when no tracker answers, and whom to leave alone."""

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from p2pl.pace import NO_REST, BackOff, Rest
from p2pl.protocol.announce import PeerAddress

# Chosen: four of the largest cohorts. The longest unheard of that was never met is dropped first.
MAX_KNOWN = 1_024
# Chosen: a peer that comes back is tried again within two minutes.
BACK_OFF = BackOff(first_s=2.0, max_s=120.0)


@dataclass(slots=True)
class _Known:
    address: PeerAddress
    is_met: bool = False  # it has answered, at this address
    is_missing: bool = False  # it did not answer the last time
    why: str = ""  # it rests
    rest: Rest = NO_REST


class KnownPeers:
    """Addresses by peer id, with a rest for those that could not be reached.

    Args:
        me: this peer's own id, which is never kept.
        now: a clock that never steps back, in seconds.
        rng: jitters rests and draws samples.
        is_invited: whether a peer is of the session, where that is private; others are neither
            kept nor drawn. None: it is open.
    """

    def __init__(
        self,
        me: str,
        *,
        now: Callable[[], float],
        rng: random.Random,
        is_invited: Callable[[PeerAddress], bool] | None = None,
    ) -> None:
        self._me, self._now, self._rng = me, now, rng
        self._is_invited = is_invited
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._known

    def find(self, peer_id: str) -> PeerAddress | None:
        """Returns where a peer was last heard to be; None if it is not known."""
        known = self._known.get(peer_id)
        return known.address if known else None

    def addresses(self) -> list[PeerAddress]:
        """Returns all addresses, the most recently heard of last."""
        return [known.address for known in self._known.values()]

    def hear(self, addresses: Iterable[PeerAddress]) -> None:
        """Takes in what somebody else says; a peer that rests goes on resting, unless it moved."""
        for address in addresses:
            before = self._known.get(address.id)
            if before and (before.address == address or _says_more(before.address, address)):
                self._put(replace(before))
            else:
                self._put(_Known(address))

    def learn(self, address: PeerAddress) -> None:
        """Takes in a peer that was met, just now, at `address`: its failures are forgiven."""
        self._put(_Known(address, is_met=True))

    def blame(self, peer_id: str, *, answered: bool = False, why: str = "") -> None:
        """Lets a peer that failed rest, longer each time; strangers are not kept.

        Args:
            peer_id: whose fault it was.
            answered: whether it is there, and what it said is of no use.
            why: what is told of it while it rests.
        """
        known = self._known.get(peer_id)
        if known:
            known.is_missing, known.why = not answered, why
            known.rest = BACK_OFF.after_failure(known.rest, self._now(), self._rng)

    def forget(self, peer_id: str) -> None:
        """Drops a peer, for example one that said it leaves."""
        self._known.pop(peer_id, None)

    def rests(self, peer_id: str) -> bool:
        """Returns whether a peer failed so recently that it should not be tried now."""
        known = self._known.get(peer_id)
        return known is not None and known.rest.until_s > self._now()

    def resting(self) -> dict[str, str]:
        """Returns who is left alone for now, of those that were met, and why, by peer id."""
        return {
            peer_id: known.why
            for peer_id, known in self._known.items()
            if known.is_met and self.rests(peer_id)
        }

    def missing(self) -> int:
        """Returns how many peers could not be reached when they were last tried."""
        return sum(known.is_missing for known in self._known.values())

    def is_missing(self, peer_id: str) -> bool:
        """Returns whether a peer could not be reached when it was last tried."""
        known = self._known.get(peer_id)
        return known is not None and known.is_missing

    def sample(
        self, count: int, *, without: Collection[str] = (), met: bool = False
    ) -> list[PeerAddress]:
        """Returns up to `count` peers that do not rest, uniform without replacement.

        Args:
            count: how many are wanted.
            without: ids of peers that are not to be drawn.
            met: whether only those are drawn that have answered before.
        """
        awake = [
            known.address
            for peer_id, known in self._known.items()
            if peer_id not in without
            and not self.rests(peer_id)
            and (known.is_met or not met)
            and (self._is_invited is None or self._is_invited(known.address))
        ]
        return self._rng.sample(awake, min(count, len(awake)))

    def _put(self, known: _Known) -> None:
        peer_id = known.address.id
        if peer_id == self._me:
            return
        if self._is_invited is not None and not self._is_invited(known.address):
            return
        self._known.pop(peer_id, None)  # the dictionary's order is that of being heard of
        self._known[peer_id] = known
        if len(self._known) > MAX_KNOWN:  # names that nobody answers to drive out nobody who has
            never_met = (one for one, known in self._known.items() if not known.is_met)
            del self._known[next(never_met, next(iter(self._known)))]


def _says_more(before: PeerAddress, now: PeerAddress) -> bool:
    """Returns whether what a peer said of itself is known, and now only where it was seen."""
    return before.version > now.version and before.curve_key == now.curve_key
