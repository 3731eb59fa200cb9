"""What came out of the runs of one session, in numbers."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pl.errors import RunDirError, wrong
from p2pl.metric import ACCURACY, Metric
from p2pl.report.classes import ClassScore, class_scores, macro_score
from p2pl.run.log import LoggedRun, PeerId, RoundEntry, ScoredOn
from p2pl.run.presence import PeerChurn, churn_of


class PeerScore(msgspec.Struct, frozen=True, kw_only=True):
    """One run in numbers; scores are of the primary metric, in its unit, accuracies in percent."""

    peer_id: PeerId
    directory: str
    state: str  # finished, interrupted or unfinished
    rounds: int  # number of the last round
    score: float | None  # of the final model where the run has ended, else of the last round
    score_of_last_round: float | None  # as logged; a peer may have merged on after it
    best_score: float | None  # of all rounds and the final model
    best_round: int | None  # the first one that had it; None: only the final model has, or nobody
    score_before_mix: float | None  # in the last round, after training
    metrics: dict[str, float]  # all of them, of the same model as `score`
    accuracy: float | None = None  # the four, where the primary metric is the accuracy
    accuracy_of_last_round: float | None = None
    best_accuracy: float | None = None
    accuracy_before_mix: float | None = None
    train_loss: float | None  # mean over the last round
    samples: int | None  # of its own, to train on; known once it has ended
    epsilon: float | None  # of privacy, spent so far; None: training is not private
    bytes_in: int  # sums over the rounds, like all that follow
    bytes_out: int
    tracker_bytes: int
    tracker_seconds: float  # spent waiting for the tracker's answers
    seconds: float


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A metric over the peers that finished, or over all where none did."""

    peers: int  # of which it is known
    mean: float
    std: float  # of these peers, not an estimate for others
    worst: float
    best: float


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why a peer did without another."""

    by: PeerId
    peer_id: PeerId
    rounds: int  # in how many
    last_round: int
    last_reason: str


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of a report."""

    session_id: str
    name: str
    peers: tuple[PeerScore, ...]
    metric: Metric  # the primary one
    metrics: tuple[Metric, ...]  # all of them, the primary one first
    score: Spread | None  # of the primary metric
    accuracy: Spread | None  # likewise, where that is the accuracy
    spreads: dict[str, Spread]  # of all metrics, by name
    classes: tuple[ClassScore, ...]  # () when no run has a confusion matrix
    macro: ClassScore | None  # unweighted mean over the classes
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]  # summed over the runs
    trust: dict[PeerId, dict[PeerId, float]]  # [by][given to], when last met
    rejections: tuple[Rejection, ...]
    churn: tuple[PeerChurn, ...]  # who came and went, the least steady first
    test_sets: tuple[ScoredOn, ...]  # what the models were scored on, each different one once
    pictures: dict[str, str]  # kind -> file name


def numbers_of(runs: Sequence[LoggedRun]) -> Numbers:
    """Returns the numbers of the runs; no picture is named in them yet.

    Args:
        runs: of one session, at least one.

    Raises:
        RunDirError: their confusion matrices are of different sizes.
    """
    metrics = runs[0].metrics
    metric, is_accuracy = metrics[0], metrics[0] == ACCURACY
    peers = tuple(_peer_score(run, metric) for run in runs)
    spreads = {one.name: _spread(peers, one) for one in metrics}
    labels, confusion = summed_confusion(runs)
    classes = class_scores(confusion, labels)
    return Numbers(
        session_id=runs[0].session_id,
        name=next((run.name for run in runs if run.name), ""),
        peers=peers,
        metric=metric,
        metrics=metrics,
        score=spreads[metric.name],
        accuracy=spreads[metric.name] if is_accuracy else None,
        spreads={name: spread for name, spread in spreads.items() if spread},
        classes=classes,
        macro=macro_score(classes),
        labels=labels,
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        trust={run.peer_id: row for run in runs if (row := trust_when_last_met(run.rounds))},
        rejections=tuple(found for run in runs for found in _rejections(run)),
        churn=churn_of(runs),
        test_sets=_test_sets(runs),
        pictures={},
    )


def _test_sets(runs: Sequence[LoggedRun]) -> tuple[ScoredOn, ...]:
    """Returns what the runs were scored on, each different one once."""
    known = [run.summary.test_set for run in runs if run.summary and run.summary.test_set]
    return tuple(dict.fromkeys(known))


def final_score(run: LoggedRun, metric: Metric) -> float | None:
    """Returns a metric of the model that a run ended with.

    A run that is under way, or was killed, has no such model: then it is that of the last round
    that has one. None where it is not known.
    """
    ended = run.summary.value(metric) if run.summary is not None else None
    return _newest(entry.value(metric) for entry in run.rounds) if ended is None else ended


def summed_confusion(runs: Sequence[LoggedRun]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Returns the names of the classes and the sum of the runs' confusion matrices, [C, C].

    Classes are added up by name. Those of runs that do not name them are named by their numbers; C
    is 0 where no run has a confusion matrix.

    Raises:
        RunDirError: the matrices are of different sizes, one is not a square, or two runs have
            other classes.
    """
    total: NDArray[np.float64] = np.zeros((0, 0))
    labels: tuple[str, ...] = ()
    for run in runs:
        if run.summary is None or not run.summary.confusion:
            continue
        rows, names = run.summary.confusion, run.summary.labels
        size = len(total) or len(rows)
        if len(rows) != size or any(len(row) != size for row in rows):
            raise RunDirError(
                wrong(
                    f"{run.directory}: confusion matrix",
                    got=f"rows of {sorted({len(row) for row in rows})} in {len(rows)} rows",
                    allowed=f"{size} rows of {size}",
                )
            )
        names = names if len(names) == size else ()
        labels = labels or names
        if set(names or labels) != set(labels):
            allowed = f"{', '.join(labels)}, as in the runs before it"
            hint = "their peers gave one number to different classes: name them in task.labels"
            what = f"{run.directory}: classes"
            raise RunDirError(wrong(what, got=", ".join(names), allowed=allowed, hint=hint))
        order = [names.index(label) for label in labels] if names else list(range(size))
        matrix = np.asarray(rows, dtype=np.float64)[np.ix_(order, order)]
        total = matrix + (total if len(total) else 0)
    return labels or tuple(str(index) for index in range(len(total))), total


def trust_when_last_met(rounds: Sequence[RoundEntry]) -> dict[PeerId, float]:
    """Returns the weight, 0..1, given to each peer in the last round that asked for it.

    A peer that was rejected in that round has 0. With a random cohort no round's row has every peer
    in it, but this row has. Where the cohort is everybody, it is the last round's row.
    """
    row: dict[PeerId, float] = {}
    for entry in rounds:
        row.update(dict.fromkeys(entry.rejected, 0.0))
        row.update(entry.trust)
    return row


def rejected_when_last_met(rounds: Sequence[RoundEntry]) -> set[PeerId]:
    """Returns the peers that were turned down in the last round that asked for them."""
    turned_down: set[PeerId] = set()
    for entry in rounds:
        turned_down -= set(entry.trust)
        turned_down |= set(entry.rejected)
    return turned_down


def _peer_score(run: LoggedRun, metric: Metric) -> PeerScore:
    summary, final = run.summary, final_score(run, metric)
    rounds = {entry.round: entry.value(metric) for entry in run.rounds}
    best = metric.best([*rounds.values(), final])
    of_all = {one.name: final_score(run, one) for one in run.metrics}
    scores = {
        "score": final,
        "score_of_last_round": _newest(rounds.values()),
        "best_score": best,
        "score_before_mix": _newest(entry.value_before_mix(metric) for entry in run.rounds),
    }
    accuracies = {name.replace("score", "accuracy"): value for name, value in scores.items()}
    return PeerScore(
        peer_id=run.peer_id,
        directory=str(run.directory),
        state=run.state,
        rounds=run.rounds[-1].round if run.rounds else 0,
        **scores,
        **(accuracies if metric == ACCURACY else {}),
        best_round=None if best is None else _first(rounds, best),
        metrics={name: value for name, value in of_all.items() if value is not None},
        train_loss=_newest(entry.train_loss for entry in run.rounds),
        samples=summary.samples if summary else None,
        epsilon=_newest(entry.epsilon for entry in run.rounds),
        bytes_in=sum(entry.bytes_in for entry in run.rounds),
        bytes_out=sum(entry.bytes_out for entry in run.rounds),
        tracker_bytes=sum(entry.tracker_bytes for entry in run.rounds),
        tracker_seconds=sum(entry.tracker_seconds or 0.0 for entry in run.rounds),
        seconds=sum(entry.seconds for entry in run.rounds),
    )


def _first(rounds: Mapping[int, float | None], wanted: float) -> int | None:
    """Returns the first round that has this value; None where none has."""
    return next((place for place, value in rounds.items() if value == wanted), None)


def _newest(values: Iterable[float | None]) -> float | None:
    """Returns the last value that is known; None where none is."""
    known = [value for value in values if value is not None]
    return known[-1] if known else None


def _spread(peers: Sequence[PeerScore], metric: Metric) -> Spread | None:
    ended = [peer for peer in peers if peer.state == "finished"]
    known = [peer.metrics[metric.name] for peer in ended or peers if metric.name in peer.metrics]
    worst, best = metric.worst(known), metric.best(known)
    if worst is None or best is None:
        return None
    return Spread(
        peers=len(known),
        mean=float(np.mean(known)),
        std=float(np.std(known)),
        worst=worst,
        best=best,
    )


def _rejections(run: LoggedRun) -> list[Rejection]:
    found: dict[PeerId, Rejection] = {}
    for entry in run.rounds:
        for peer, reason in entry.rejected.items():
            found[peer] = Rejection(
                by=run.peer_id,
                peer_id=peer,
                rounds=(found[peer].rounds if peer in found else 0) + 1,
                last_round=entry.round,
                last_reason=reason,
            )
    return list(found.values())
