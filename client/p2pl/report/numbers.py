"""What came out of the runs of one session, in numbers."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pl.errors import RunDirError, wrong
from p2pl.report.classes import ClassScore, class_scores, macro_score
from p2pl.run.log import LoggedRun, PeerId, RoundEntry, ScoredOn
from p2pl.run.presence import PeerChurn, churn_of


class PeerScore(msgspec.Struct, frozen=True, kw_only=True):
    """One run in numbers; accuracies in percent."""

    peer_id: PeerId
    directory: str
    state: str  # finished, interrupted or unfinished
    rounds: int  # number of the last round
    accuracy: float | None  # of the final model where the run has ended, else of the last round
    accuracy_of_last_round: float | None  # as logged; a peer may have merged on after it
    best_accuracy: float | None  # of all rounds and the final model
    accuracy_before_mix: float | None  # in the last round, after training
    train_loss: float | None  # mean over the last round, nats
    samples: int | None  # of its own, to train on; known once it has ended
    epsilon: float | None  # of privacy, spent so far; None: training is not private
    bytes_in: int  # sums over the rounds, like all that follow
    bytes_out: int
    tracker_bytes: int
    tracker_seconds: float  # spent waiting for the tracker's answers
    seconds: float


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy in percent over the peers that finished, or over all where none did."""

    peers: int  # that have an accuracy
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
    accuracy: Spread | None
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
    peers = tuple(_peer_score(run) for run in runs)
    labels, confusion = summed_confusion(runs)
    classes = class_scores(confusion, labels)
    return Numbers(
        session_id=runs[0].session_id,
        name=next((run.name for run in runs if run.name), ""),
        peers=peers,
        accuracy=_spread(peers),
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


def final_accuracy(run: LoggedRun) -> float | None:
    """Returns the accuracy, in percent, of the model that a run ended with.

    A run that is under way, or was killed, has no such model: then it is that of the last round
    that has one. None where no accuracy is known.
    """
    if run.summary is not None and run.summary.accuracy is not None:
        return run.summary.accuracy
    return _last(run.rounds, "accuracy")


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


def _peer_score(run: LoggedRun) -> PeerScore:
    summary, final = run.summary, final_accuracy(run)
    known = [entry.accuracy for entry in run.rounds] + [final]
    return PeerScore(
        peer_id=run.peer_id,
        directory=str(run.directory),
        state=run.state,
        rounds=run.rounds[-1].round if run.rounds else 0,
        accuracy=final,
        accuracy_of_last_round=_last(run.rounds, "accuracy"),
        best_accuracy=max((value for value in known if value is not None), default=None),
        accuracy_before_mix=_last(run.rounds, "accuracy_before_mix"),
        train_loss=_last(run.rounds, "train_loss"),
        samples=summary.samples if summary else None,
        epsilon=_last(run.rounds, "epsilon"),
        bytes_in=sum(entry.bytes_in for entry in run.rounds),
        bytes_out=sum(entry.bytes_out for entry in run.rounds),
        tracker_bytes=sum(entry.tracker_bytes for entry in run.rounds),
        tracker_seconds=sum(entry.tracker_seconds or 0.0 for entry in run.rounds),
        seconds=sum(entry.seconds for entry in run.rounds),
    )


def _last(rounds: Sequence[RoundEntry], field: str) -> float | None:
    """Returns the field's newest value that is known."""
    for entry in reversed(rounds):
        value: float | None = getattr(entry, field)
        if value is not None:
            return value
    return None


def _spread(peers: Sequence[PeerScore]) -> Spread | None:
    ended = [score for score in peers if score.state == "finished"]
    known = [score.accuracy for score in ended or peers if score.accuracy is not None]
    if not known:
        return None
    return Spread(
        peers=len(known),
        mean=float(np.mean(known)),
        std=float(np.std(known)),
        worst=min(known),
        best=max(known),
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
