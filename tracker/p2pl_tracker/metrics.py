"""Counters for Prometheus: few series, never one by session, peer or address."""

import bisect
import itertools
import math
from collections import Counter as Counts
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from p2pl_tracker.swarm import Pool, Totals

EVENTS = ("started", "update", "stopped", "completed")
# Ed25519 takes 0.1 ms; 50 ms is the slowest that one in a hundred announces may be.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class _Answers(Collector):
    """Announces answered, in plain numbers: those of the library take locks."""

    def __init__(self) -> None:
        self.by_event = dict.fromkeys(EVENTS, 0)
        self._in_bucket = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def count(self, event: str, seconds: float) -> None:
        self.by_event[event] += 1
        self._in_bucket[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        announces = CounterMetricFamily(
            "p2pl_tracker_announces", "Announces answered, by event.", labels=["event"]
        )
        for event, count in self.by_event.items():
            announces.add_metric([event], count)
        yield announces
        bounds = map(floatToGoString, (*BUCKETS_S, math.inf))
        yield HistogramMetricFamily(
            "p2pl_tracker_announce_seconds",
            "From the announce's last byte to its answer, waiting not included.",
            buckets=list(zip(bounds, itertools.accumulate(self._in_bucket), strict=True)),
            sum_value=self._sum_s,
        )


class Metrics:
    """What the tracker counts, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = _Answers()
        self.registry.register(self._answers)
        self._torrents = Counter(
            "p2pl_tracker_torrent_announces",
            "Announces of BitTorrent clients answered.",
            registry=self.registry,
        )
        self._refused = Counter(
            "p2pl_tracker_refusals",
            "Requests refused, by HTTP status.",
            ["status"],
            registry=self.registry,
        )
        self._checked = Counter(
            "p2pl_tracker_checks",
            "Peers dialled, or called by a relay, by what was found of them.",
            ["found"],
            registry=self.registry,
        )
        for found in Pool:
            self._checked.labels(found.name.lower())
        self._sessions = Gauge(
            "p2pl_tracker_sessions", "Sessions with a peer in them.", registry=self.registry
        )
        self._peers = Gauge("p2pl_tracker_peers", "Peers alive.", registry=self.registry)
        self._store_up = Gauge(
            "p2pl_tracker_store_up", "1 while the store answers, else 0.", registry=self.registry
        )
        self.refusals: Counts[int] = Counts()  # by status
        self.refused = 0

    @property
    def answered(self) -> int:
        """How many announces were answered."""
        return sum(self._answers.by_event.values())

    def count_answer(self, event: str, seconds: float) -> None:
        """Counts one announce that was answered after `seconds` of work.

        Args:
            event: that was announced.
            seconds: of work.
        """
        self._answers.count(event, seconds)

    def count_torrent(self) -> None:
        """Counts one announce of a BitTorrent client that was answered."""
        self._torrents.inc()

    def count_refusal(self, status: int) -> None:
        """Counts one request that was refused with an HTTP `status`."""
        self.refused += 1
        self.refusals[status] += 1
        self._refused.labels(str(status)).inc()

    def count_check(self, found: Pool) -> None:
        """Counts one peer of which was found if it answers."""
        self._checked.labels(found.name.lower()).inc()

    def text(self, totals: Totals | None) -> bytes:
        """Returns everything in Prometheus' text format.

        Args:
            totals: how full the store is; None: it does not answer.
        """
        self._store_up.set(totals is not None)
        self._sessions.set(totals.sessions if totals else math.nan)
        self._peers.set(totals.peers if totals else math.nan)
        return generate_latest(self.registry)
