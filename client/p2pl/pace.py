"""How often something may happen, and how long something that failed is left alone.

One rate limiter and one back-off for the tracker and the peers. No library fits: `limits` 5.8 and
`pyrate-limiter` 4.5 remember every event and sweep in threads, by clocks of their own;
`aiolimiter` 1.3 needs an event loop; `throttled-py` 3.5, the nearest, reads one clock for the whole
process; and `tenacity` 9.2 and `backoff` 2.2 wrap a call and wait inside it, where a peer does
other things meanwhile and remembers the failure.
"""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events in a row, and then one in each interval (GCRA, ITU-T I.371).

    All that it needs to know of the past is when the events so far would be due, were they an
    interval apart: one number, which whoever counts keeps.
    """

    interval_s: float  # between events, in the long run; 0 = no limit
    burst: int  # events in a row before the interval counts; at least 1

    @classmethod
    def per_second(cls, events: float, burst: int) -> Self:
        """Returns the rate of so many events a second; 0 events mean no limit.

        Args:
            events: a second in the long run, at least 0.
            burst: events in a row, at least 1.
        """
        return cls(1 / events if events else 0.0, burst)

    def wait_s(self, due_s: float, now_s: float) -> float:
        """Returns the seconds until one more event is allowed; 0 where it is allowed now.

        Args:
            due_s: when the events so far would be due.
            now_s: the time, on the same clock.
        """
        return max(0.0, due_s - now_s - (self.burst - 1) * self.interval_s)

    def count(self, due_s: float, now_s: float) -> float:
        """Returns when the events would be due once one more has happened now.

        Args:
            due_s: when the events so far would be due.
            now_s: the time, on the same clock.
        """
        return max(due_s, now_s) + self.interval_s


class RateLimiter(Generic[K]):
    """A rate for each key, in bounded memory; a call costs the same, however many keys there are.

    Keys may be made up by strangers. One whose rate is unused again is forgotten in passing; beyond
    `max_keys`, the one that asked the longest time ago is.
    """

    def __init__(self, rate: Rate, *, now: Callable[[], float], max_keys: int) -> None:
        """Knows no key yet.

        Args:
            rate: of each key.
            now: a clock that never steps back, in seconds.
            max_keys: how many keys are remembered, at least 1.
        """
        self._rate, self._now, self._max_keys = rate, now, max_keys
        self._due_s: OrderedDict[K, float] = OrderedDict()  # the key that asked last stands last

    def __len__(self) -> int:
        return len(self._due_s)

    def take(self, key: K) -> float:
        """Returns 0 and counts an event of `key`; or the seconds to wait, and counts nothing."""
        if not self._rate.interval_s:
            return 0.0
        now_s = self._now()
        due_s = self._due_s.get(key, -math.inf)
        wait_s = self._rate.wait_s(due_s, now_s)
        self._due_s[key] = due_s if wait_s else self._rate.count(due_s, now_s)
        self._due_s.move_to_end(key)
        self._forget(now_s)
        return wait_s

    def _forget(self, now_s: float) -> None:
        for _ in range(2):  # two out for one in: what has been unused for long goes in the end
            oldest = next(iter(self._due_s))
            if self._due_s[oldest] > now_s and len(self._due_s) <= self._max_keys:
                break
            del self._due_s[oldest]


@dataclass(frozen=True, slots=True)
class Rest:
    """Something that failed some times in a row, and until when it is left alone."""

    failures: int = 0
    until_s: float = -math.inf


NO_REST = Rest()


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to leave alone what failed: twice as long after each failure, up to a limit.

    The last half of each rest is drawn at random, so that those who failed together do not come
    back together.
    """

    first_s: float  # after one failure
    max_s: float  # after however many

    def after_failure(self, rest: Rest, now_s: float, rng: random.Random) -> Rest:
        """Returns the rest that follows `rest` when it has failed once more, now.

        Args:
            rest: the one before; `NO_REST` before the first failure.
            now_s: the time, on a clock that never steps back.
            rng: draws the last half of the rest.
        """
        whole_s = min(self.max_s, self.first_s * 2.0 ** min(rest.failures, 30))
        return Rest(rest.failures + 1, now_s + whole_s * rng.uniform(0.5, 1.0))
