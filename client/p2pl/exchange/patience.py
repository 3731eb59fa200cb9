"""How long a transfer of another peer's model may take, by what that peer's transfers took.

As TCP's retransmission timer (RFC 6298): a typical time and four deviations from it, twice as long
after each failure. The typical time here is the median of the last few, because one transfer beside
four others takes five times as long and says little of the next one.
"""

import statistics
from collections import OrderedDict, deque
from dataclasses import dataclass, field

KEPT = 8  # transfers of a peer that are remembered; chosen: a line that changed is known in four
DEVIATIONS = 4.0  # K of RFC 6298
MAX_UNWAITED_ROUNDS = 32  # between two waits for a peer; chosen: 2, 4, 8, … up to this
MAX_PEERS = 1_024  # remembered; as many as are known at most


@dataclass(slots=True)
class _Seen:
    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    failures: int = 0  # in a row


class Patience:
    """Remembers how long each peer's transfers took; in bounded memory.

    Args:
        least_s: of a transfer, however fast the peer was so far.
        most_s: of a transfer, however slow it was; also of the first one.
    """

    def __init__(self, *, least_s: float, most_s: float) -> None:
        self._least_s, self._most_s = least_s, max(least_s, most_s)
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # whoever was seen last stands last

    def deadline_s(self, peer_id: str) -> float:
        """Returns how long the next transfer from this peer may take, seconds."""
        seen = self._seen.get(peer_id)
        if seen is None or not seen.took_s:
            return self._most_s
        typical_s = statistics.median(seen.took_s)
        apart_s = statistics.fmean(abs(took_s - typical_s) for took_s in seen.took_s)
        if len(seen.took_s) == 1:
            apart_s = typical_s / 2  # RFC 6298, 2.2
        wanted_s = (typical_s + DEVIATIONS * apart_s) * 2.0 ** min(seen.failures, 30)
        return min(self._most_s, max(self._least_s, wanted_s))

    def came(self, peer_id: str, took_s: float) -> None:
        """Takes in that a model came whole.

        Args:
            peer_id: whose.
            took_s: from the question to its last byte, seconds.
        """
        seen = self._look(peer_id)
        seen.took_s.append(took_s)
        seen.failures = 0

    def failed(self, peer_id: str, after_s: float) -> None:
        """Takes in that a model had not come whole after so many seconds.

        Args:
            peer_id: whose.
            after_s: how long it was waited for; it would have taken longer than that.
        """
        seen = self._look(peer_id)
        seen.took_s.append(after_s)
        seen.failures += 1

    def _look(self, peer_id: str) -> _Seen:
        seen = self._seen.setdefault(peer_id, _Seen())
        self._seen.move_to_end(peer_id)
        if len(self._seen) > MAX_PEERS:
            self._seen.popitem(last=False)
        return seen


class Waits:
    """Remembers for whose rounds a peer has waited in vain, so that it does so ever more seldom.

    A peer that trains much slower than the others would else cost them the session's `wait_s` in
    each round in which it is only a little behind.
    """

    def __init__(self) -> None:
        self._vain: OrderedDict[str, tuple[int, int]] = (
            OrderedDict()
        )  # how often; until which round

    def is_worth(self, peer_id: str, index: int) -> bool:
        """Returns whether to wait in round `index` until this peer has reached it."""
        return index > self._vain.get(peer_id, (0, -1))[1]

    def ended(self, peer_id: str, index: int, *, in_vain: bool) -> None:
        """Takes in how a wait has ended.

        Args:
            peer_id: for whom.
            index: the round that was waited for.
            in_vain: whether the other peer had not reached it by then; else it has caught up.
        """
        times, _ = self._vain.pop(peer_id, (0, 0))
        if not in_vain:
            return
        rounds = min(MAX_UNWAITED_ROUNDS, 2 ** (min(times, 30) + 1))
        self._vain[peer_id] = times + 1, index + rounds
        if len(self._vain) > MAX_PEERS:
            self._vain.popitem(last=False)
