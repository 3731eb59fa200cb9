"""What the page is told, as plain values for JSON: short, for there may be many of them.

Peers are numbers there: their place in the list of ids that the page is sent. Weights have four
digits. Whatever a stranger may have written is on one line, and cut.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from p2pl import reasons
from p2pl.errors import visible
from p2pl.metric import Metric
from p2pl.run.log import Marker, Message, RoundEntry, Summary

MAX_PEERS = 2_048  # chosen: who makes ids for nothing cannot fill the page's memory
MAX_TEXT_CHARS = 500  # of a message, or a name

Told: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Peers:
    """The numbers of peers, in the order in which they were met.

    Attributes:
        ids: by number.
    """

    ids: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, peer_id: str) -> int | None:
        """Returns a peer's number, a new one where it is new; None: there are too many."""
        known = self._numbers.get(peer_id)
        if known is None and len(self.ids) < MAX_PEERS:
            known = self._numbers[peer_id] = len(self.ids)
            self.ids.append(text(peer_id, 64))
        return known

    def pairs(self, by_peer: Mapping[str, Any], tell: Callable[[Any], Any]) -> list[list[Any]]:
        """Returns [number, what is told of it] for each peer that has a number."""
        numbered = ((self.number(peer), value) for peer, value in by_peer.items())
        return [[number, tell(value)] for number, value in numbered if number is not None]

    def weights(self, row: Mapping[str, float]) -> list[float]:
        """Returns a row as number, weight, number, weight, …: one list, for there are many."""
        return [value for pair in self.pairs(row, weight) for value in pair]

    def all(self, ids: Iterable[str]) -> list[int]:
        """Returns the numbers of these peers, without those that have none."""
        return [number for number in map(self.number, ids) if number is not None]


def text(said: str, most: int = MAX_TEXT_CHARS) -> str:
    """Returns a stranger's text on one line, and not too long."""
    one_line = visible(said[: most + 1])
    return one_line if len(one_line) <= most else one_line[: most - 1] + "…"


def weight(share: float) -> float:
    """Returns a weight with four digits, which is more than a screen shows."""
    return float(f"{share:.4g}")


def of_round(entry: RoundEntry, metrics: tuple[Metric, ...], peers: Peers) -> Told:
    """Returns what the page is told of a round.

    Args:
        entry: of the run log.
        metrics: what the run measures, the primary one first.
        peers: who has which number; new ones get one.
    """
    first = metrics[0]
    told = {
        "round": entry.round,
        "time": entry.time,
        "seconds": entry.seconds,
        "score": entry.value(first),
        "before": entry.value_before_mix(first),
        "others": [entry.value(one) for one in metrics[1:]],
        "loss": entry.train_loss,
        "validation": entry.validation_loss,
        "personal": entry.personal_score,
        "trust": peers.weights(entry.trust),
        "received": peers.all(entry.received),
        "rejected": peers.pairs(entry.rejected, _why),
        "resting": peers.pairs(entry.resting, _why),
        "joined": peers.all(entry.joined),
        "left": peers.pairs(entry.left, lambda stay_s: round(stay_s, 1)),
        "in": entry.bytes_in,
        "out": entry.bytes_out,
        "relayed": entry.bytes_relayed,
        "tracker": entry.tracker_bytes,
        "bytes": peers.pairs(entry.bytes_by_peer, list),
        "waits": peers.pairs(entry.seconds_by_peer, lambda waited_s: round(waited_s, 4)),
        "epsilon": entry.epsilon,
        "trust_epsilon": entry.trust_epsilon,
    }
    return {name: value for name, value in told.items() if value is not None and value != []}


def _why(reason: str) -> list[str]:
    return [reasons.plain(reason), reasons.shown(reason)]


def of_message(message: Message) -> Told:
    """Returns what the page is told of a message."""
    return {"time": message.time, "text": text(message.text)}


def of_metric(metric: Metric) -> Told:
    """Returns what the page is told of a metric."""
    return {
        "name": text(metric.name, 64),
        "title": text(metric.title, 64),
        "unit": text(metric.unit, 32),
        "axis": text(metric.axis, 120),
        "higher": metric.higher_is_better,
    }


def of_run(marker: Marker | None, summary: Summary | None, peers: Peers) -> Told:
    """Returns what the page is told of a run beside its rounds.

    Args:
        marker: whose it is; None: not known yet.
        summary: how it ended; None: it has not.
        peers: who has which number.
    """
    told: Told = {}
    if marker:
        told |= {
            "session": text(marker.session_id, 64),
            "name": text(marker.name),
            "peer": peers.number(marker.peer_id),
            "alone": bool(marker.alone),
            "attack": text(marker.attack, 64),
            "reach": text(marker.reach),
            "rounds": marker.rounds,
            "budget": marker.epsilon_budget,
            "loss_unit": text(marker.loss_unit, 32),
        }
    if summary:
        told |= {
            "ended": summary.state,
            "delta": summary.delta,
            "test_set": summary.test_set.said if summary.test_set else "",
            "met_nobody": summary.met_nobody,
            "samples": summary.samples,
        }
    return told
