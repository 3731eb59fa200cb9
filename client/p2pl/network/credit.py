"""How many chunks a peer may send before it is allowed more: what its line brings in a while.

Too little, and the line stands still until word of more credit has gone all the way. Too much, and
a peer holds for a slow puller what nobody will read for minutes. So what is allowed follows the
rate at which chunks arrive, between bounds.
"""

from p2pl.protocol.frame import MAX_CREDIT, MAX_OUTSTANDING

WINDOW_S = 4.0  # of the line; chosen: more than ten round trips around the world
WINDOW_BYTES = 60 << 20  # at most; chosen: a smaller one stalls the sender on two cores
MIN_WINDOW_BYTES = 4 << 20  # whatever the rate: it is not known yet, or the line is a slow start
MIN_WINDOW = 2  # chunks: one on its way while one is taken in
CREDIT_STEPS = 4  # credit goes back each quarter of the window: each message wakes three threads…
CREDIT_S = 1.0  # …but at least so often, or the sender takes this peer for a slow loris


def window(chunk_bytes: int, most: int = MAX_CREDIT) -> int:
    """Returns how many chunks may be on their way at most.

    Args:
        chunk_bytes: of the session.
        most: that the sender holds for one puller.
    """
    return min(most, max(MIN_WINDOW, WINDOW_BYTES // chunk_bytes))


class Allowance:
    """What one sender may still send.

    Args:
        chunks: that are to come in all.
        granted: of them, with the question.
        chunk_bytes: of the session.
        can_hold_more: whether the sender holds `MAX_OUTSTANDING` chunks, not just `MAX_CREDIT`.
        now_s: a clock that never steps back.
    """

    def __init__(
        self, chunks: int, granted: int, *, chunk_bytes: int, can_hold_more: bool, now_s: float
    ) -> None:
        most = MAX_OUTSTANDING if can_hold_more else MAX_CREDIT
        self._most = window(chunk_bytes, most)
        self._least = min(self._most, max(MIN_WINDOW, MIN_WINDOW_BYTES // chunk_bytes))
        self._chunks, self._granted, self._came = chunks, granted, 0
        self._began_s = self._said_s = now_s

    def arrived(self, now_s: float) -> list[int]:
        """Takes one chunk in; returns the credits to give now, each in a message of its own.

        To whoever may send everything that is left, nothing more is said: it may be gone, and what
        is under way from there would be lost.
        """
        self._came += 1
        lacking = self._chunks - self._granted
        if lacking <= 0:
            return []
        rate = self._came / max(now_s - self._began_s, 1e-3)
        target = max(self._least, min(self._most, int(rate * WINDOW_S)))
        missing = target - (self._granted - self._came)
        if missing < max(1, target // CREDIT_STEPS):
            missing = 1 if now_s - self._said_s > CREDIT_S else 0
        given = min(missing, lacking)
        if given:
            self._granted += given
            self._said_s = now_s
        return [MAX_CREDIT] * (given // MAX_CREDIT) + [given % MAX_CREDIT] * (
            given % MAX_CREDIT > 0
        )
