"""What came out of one or many runs: pictures, a page that shows them, and the numbers.

`write_report` reads run directories of one session and writes into another directory:

    report.md      a page for people, with every picture and table
    report.json    the same numbers for programs
    *.png          the pictures; one is left out where no run has its numbers
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pl.errors import InputError, RunDirError, wrong
from p2pl.report import plots as pictures
from p2pl.run.files import write_atomically
from p2pl.run.log import PeerId, RoundEntry, Run, read_run
from p2pl.run.presence import PeerChurn, churn_of
from p2pl.terminal import SHORT_ID_CHARS, duration, figure, human_bytes, percent, visible

PAGE_FILE = "report.md"
NUMBERS_FILE = "report.json"
TERMINAL_COLUMNS = ("peer", "state", "rounds", "accuracy", "before mixing", "received", "sent")
CAPTIONS = {
    "accuracy": "Accuracy on the test set after mixing, by round. The last point of a run that has "
    "ended is its final model. A cross: the run stopped early.",
    "loss": "Training loss by round.",
    "trust": "The weight that a row's peer gave to a column's peer the last time it asked for it; "
    "0 when it was rejected then. Grey: the two never met.",
    "confusion": "What the models took for what; each row is coloured by its shares.",
    "bytes": "Parameters received and sent, with their headers.",
}

ACCURACY_CAPTION = (
    "The accuracy of a run that has ended is of the model that it ended with. It can differ from "
    "that of the last round in the log: a peer may go on merging while it serves the others. The "
    "accuracy of a run that is under way, or was killed, is of its last round."
)
CHURN_CAPTION = (
    "As the others saw it, between the first and the last round in which they talked to it: how "
    "often a peer came, could no longer be reached, how long it stayed, and the share of the time."
)


class PeerScore(msgspec.Struct, frozen=True, kw_only=True):
    """One run in numbers; accuracies in percent."""

    peer_id: PeerId
    directory: str
    state: str
    rounds: int  # number of the last round
    accuracy: float | None  # of the final model where the run has ended, else of the last round
    accuracy_of_last_round: float | None  # as logged; a peer may have merged on after it
    best_accuracy: float | None
    accuracy_before_mix: float | None
    train_loss: float | None
    samples: int | None  # of its own, to train on; known once it has ended
    epsilon: float | None
    bytes_in: int
    bytes_out: int
    tracker_bytes: int
    tracker_seconds: float  # spent waiting for the tracker's answers
    seconds: float


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy in percent over the peers that finished, or over all where none did."""

    peers: int
    mean: float
    std: float  # of these peers, not an estimate for others
    worst: float
    best: float


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class against all others, in 0..1; 0 where a ratio has nothing below the line."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # test samples of this class, over all runs


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
    pictures: dict[str, str]  # kind -> file name


@dataclass(frozen=True, slots=True)
class Report:
    """What `write_report` wrote, and where."""

    page: Path
    numbers_file: Path
    pictures: Mapping[str, Path]  # by kind: accuracy, loss, trust, confusion, bytes
    numbers: Numbers


def write_report(run_dirs: Sequence[Path], out: Path) -> Report:
    """Returns the report on these runs, written into the directory `out`.

    Raises:
        RunDirError: a run directory is missing or damaged, or two of them do not belong together.
        InputError: no round was completed, or `out` cannot be written.
    """
    runs = _related_runs(run_dirs)
    names = display_names([run.peer_id for run in runs] + _peers_met(runs))
    numbers = _numbers(runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(
            wrong("--out", got=str(out), allowed=f"a directory ({fault.strerror})")
        ) from fault
    drawn = _draw(runs, names)
    numbers = msgspec.structs.replace(numbers, pictures={kind: f"{kind}.png" for kind in drawn})
    for kind in CAPTIONS:
        if kind in drawn:
            write_atomically(out / f"{kind}.png", drawn[kind])
        else:
            (out / f"{kind}.png").unlink(missing_ok=True)  # of an earlier report
    raw = msgspec.json.format(msgspec.json.encode(numbers), indent=2)
    write_atomically(out / NUMBERS_FILE, raw + b"\n")
    write_atomically(out / PAGE_FILE, _page(numbers, names).encode())
    return Report(
        page=out / PAGE_FILE,
        numbers_file=out / NUMBERS_FILE,
        pictures={kind: out / f"{kind}.png" for kind in drawn},
        numbers=numbers,
    )


def report_tables(report: Report) -> RenderableType:
    """Returns the report's tables for a terminal: accuracy by peer, and scores by class."""
    numbers = report.numbers
    names = display_names([score.peer_id for score in numbers.peers])
    title = f"{numbers.name or 'session'} {numbers.session_id[:SHORT_ID_CHARS]}".strip()
    head, rows = _peer_rows(numbers, names)
    kept = [head.index(name) for name in TERMINAL_COLUMNS]
    narrow = [[row[index] for index in kept] for row in rows]
    parts = [terminal_table(visible(title), TERMINAL_COLUMNS, narrow)]
    if numbers.classes:
        parts.append(terminal_table("By class", *class_rows(numbers.classes, numbers.macro)))
    return Group(*parts)


def comparison_table(alone: Mapping[str, float], together: Mapping[str, float]) -> Table:
    """Returns a table for a terminal: each peer's accuracy alone and after mixing, in percent.

    Args:
        alone: by the peer's name.
        together: the same peers.
    """
    names = _compared(alone, together)
    rows = [
        (
            name,
            percent(alone[name]),
            percent(together[name]),
            f"{together[name] - alone[name]:+.1f}",
        )
        for name in names
    ]
    one = float(np.mean([alone[name] for name in names]))
    two = float(np.mean([together[name] for name in names]))
    rows.append(("mean", percent(one), percent(two), f"{two - one:+.1f}"))
    return terminal_table("Accuracy", ("peer", "alone", "together", "gain"), rows)


def draw_alone_versus_together(
    alone: Mapping[str, float], together: Mapping[str, float], out: Path
) -> None:
    """Writes a picture of each peer's accuracy alone and after mixing.

    Args:
        alone: accuracy in percent, by the peer's name.
        together: the same peers.
        out: the PNG file.

    Raises:
        InputError: the file cannot be written, or the two are not of the same peers.
    """
    _compared(alone, together)
    write_atomically(out, pictures.draw_comparison(alone, together))


def display_names(peer_ids: Sequence[PeerId]) -> dict[PeerId, str]:
    """Returns the shortest starts of the ids, of at least 8 characters, that tell them apart."""
    ids = list(dict.fromkeys(peer_ids))
    longest = max((len(peer_id) for peer_id in ids), default=0)
    for chars in range(SHORT_ID_CHARS, longest):
        if len({peer_id[:chars] for peer_id in ids}) == len(ids):
            return {peer_id: visible(peer_id[:chars]) for peer_id in ids}
    return {peer_id: visible(peer_id) for peer_id in ids}


def _related_runs(run_dirs: Sequence[Path]) -> list[Run]:
    """Returns the runs, each of another peer in the same session, at least one with a round."""
    if not run_dirs:
        raise InputError(wrong("run directories", got="none", allowed="at least one"))
    runs = [read_run(directory) for directory in run_dirs]
    seen: dict[PeerId, Path] = {}
    for run in runs:
        if run.session_id != runs[0].session_id:
            raise RunDirError(
                wrong(
                    f"run directory {run.directory}",
                    got=f"session {run.session_id or 'unknown'}",
                    allowed=f"session {runs[0].session_id or 'unknown'}, as the first one",
                    hint="write a report for each session",
                )
            )
        if run.peer_id in seen:
            raise RunDirError(
                wrong(
                    f"run directory {run.directory}",
                    got=f"another run of peer {run.peer_id}",
                    allowed="one run a peer",
                    hint=f"its other run is {seen[run.peer_id]}",
                )
            )
        seen[run.peer_id] = run.directory
    if not any(run.rounds for run in runs):
        raise InputError(
            wrong(
                "run directories",
                got=f"{len(runs)} without a completed round",
                allowed="at least one completed round",
                hint="wait for the first round to be over",
            )
        )
    return runs


def _numbers(runs: Sequence[Run]) -> Numbers:
    peers = tuple(_peer_score(run) for run in runs)
    labels, confusion = _confusion(runs)
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
        pictures={},
    )


def _peer_score(run: Run) -> PeerScore:
    summary, final = run.summary, _final_accuracy(run)
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


def _final_accuracy(run: Run) -> float | None:
    """Returns the accuracy of the model that a run ended with; of its last round without one."""
    if run.summary is not None and run.summary.accuracy is not None:
        return run.summary.accuracy
    return _last(run.rounds, "accuracy")


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


def _confusion(runs: Sequence[Run]) -> tuple[tuple[str, ...], pictures.Matrix]:
    """Returns the names of the classes and the sum of the runs' confusion matrices."""
    total: pictures.Matrix = np.zeros((0, 0))
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
        total = np.asarray(rows, dtype=np.float64) + (total if len(total) else 0)
        labels = labels or (names if len(names) == size else ())
    return labels or tuple(str(index) for index in range(len(total))), total


def class_scores(confusion: pictures.Matrix, labels: Sequence[str]) -> tuple[ClassScore, ...]:
    """Returns precision, recall and F1 of each class.

    Args:
        confusion: [classes, classes], counts; row: true class, column: predicted.
        labels: names of the classes.
    """
    right, predicted, true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(predicted + true, 1)
    return tuple(
        ClassScore(
            label=label,
            precision=float(precision[index]),
            recall=float(recall[index]),
            f1=float(f1[index]),
            support=int(true[index]),
        )
        for index, label in enumerate(labels)
    )


def macro_score(classes: Sequence[ClassScore]) -> ClassScore | None:
    """Returns the unweighted mean over the classes; None where there are none."""
    if not classes:
        return None
    return ClassScore(
        label="macro mean",
        precision=float(np.mean([score.precision for score in classes])),
        recall=float(np.mean([score.recall for score in classes])),
        f1=float(np.mean([score.f1 for score in classes])),
        support=sum(score.support for score in classes),
    )


def trust_when_last_met(rounds: Sequence[RoundEntry]) -> dict[PeerId, float]:
    """Returns the weight given to each peer in the last round that asked for it.

    With a random cohort no round's row has every peer in it; this has, and where the cohort is
    everybody it is the last round's row.
    """
    row: dict[PeerId, float] = {}
    for entry in rounds:
        row.update(dict.fromkeys(entry.rejected, 0.0))
        row.update(entry.trust)
    return row


def _rejections(run: Run) -> list[Rejection]:
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


def _peers_met(runs: Sequence[Run]) -> list[PeerId]:
    """Returns everybody the runs speak of, those with a run of their own first."""
    met: dict[PeerId, None] = dict.fromkeys(run.peer_id for run in runs)
    for run in runs:
        for entry in run.rounds:
            met.update(dict.fromkeys((*entry.trust, *entry.rejected, *entry.bytes_by_peer)))
            met.update(dict.fromkeys((*entry.joined, *entry.left)))
    return list(met)


def _draw(runs: Sequence[Run], names: Mapping[PeerId, str]) -> dict[str, bytes]:
    """Returns the pictures that the runs have numbers for, by kind."""
    drawn: dict[str, bytes] = {}
    for kind, field, title, unit in (
        ("accuracy", "accuracy", "Accuracy after mixing", "accuracy on the test set (%)"),
        ("loss", "train_loss", "Training loss", "mean loss of the round (nats)"),
    ):
        curves = {names[run.peer_id]: _curve(run, field) for run in runs}
        if any(curves.values()):
            drawn[kind] = pictures.draw_curves(curves, title=title, unit=unit)
    rows = {run.peer_id: row for run in runs if (row := trust_when_last_met(run.rounds))}
    if rows:
        drawn["trust"] = _draw_trust(rows, names)
    labels, confusion = _confusion(runs)
    if len(confusion):
        drawn["confusion"] = pictures.draw_confusion(
            confusion, [visible(label) for label in labels], title=_confusion_title(runs, confusion)
        )
    title, traffic = _traffic(runs, names)
    if any(map(any, traffic.values())):
        drawn["bytes"] = pictures.draw_bytes(traffic, title=title)
    return drawn


def _curve(run: Run, field: str) -> list[tuple[int, float]]:
    """Returns (round, value) where the value is known; accuracy ends in the final model."""
    points = [(entry.round, getattr(entry, field)) for entry in run.rounds]
    known = [(place, value) for place, value in points if value is not None]
    final = _final_accuracy(run)
    if field == "accuracy" and known and final is not None:
        known[-1] = (known[-1][0], final)
    return known


def _draw_trust(
    rows: Mapping[PeerId, Mapping[PeerId, float]], names: Mapping[PeerId, str]
) -> bytes:
    columns = list(dict.fromkeys([*rows, *(peer for row in rows.values() for peer in row)]))
    weights = np.array([[row.get(peer, np.nan) for peer in columns] for row in rows.values()])
    return pictures.draw_trust(
        [names[peer] for peer in rows], [names[peer] for peer in columns], weights
    )


def _confusion_title(runs: Sequence[Run], confusion: pictures.Matrix) -> str:
    count = sum(1 for run in runs if run.summary is not None and run.summary.confusion)
    right = percent(100 * float(confusion.trace() / max(1.0, confusion.sum())))
    over = f"summed over {count} peers" if count > 1 else "of one peer"
    return f"Confusion {over}: {right} right"


def _traffic(
    runs: Sequence[Run], names: Mapping[PeerId, str]
) -> tuple[str, dict[str, tuple[int, int]]]:
    """Returns bytes (received, sent): of each run, or of one run with each of its peers."""
    if len(runs) > 1:
        return "Bytes by peer", {
            names[run.peer_id]: (
                sum(entry.bytes_in for entry in run.rounds),
                sum(entry.bytes_out for entry in run.rounds),
            )
            for run in runs
        }
    (run,) = runs
    by_peer: dict[str, tuple[int, int]] = {}
    for entry in run.rounds:
        for peer, (received, sent) in entry.bytes_by_peer.items():
            before = by_peer.get(names[peer], (0, 0))
            by_peer[names[peer]] = (before[0] + received, before[1] + sent)
    if not by_peer:
        total = [(entry.bytes_in, entry.bytes_out) for entry in run.rounds]
        by_peer["all peers"] = (sum(one for one, _ in total), sum(two for _, two in total))
    return f"Bytes between {names[run.peer_id]} and each peer", by_peer


def _page(numbers: Numbers, names: Mapping[PeerId, str]) -> str:
    """Returns the report as a Markdown page."""
    title = numbers.name or "session"
    parts = [f"# {_cell(title)}", f"Session `{_cell(numbers.session_id or 'unknown')}`."]
    if numbers.accuracy is not None:
        spread = numbers.accuracy
        parts.append(
            f"**Accuracy {percent(spread.mean)}**, the mean over {_count(spread)} "
            f"(standard deviation {spread.std:.1f}, worst {percent(spread.worst)}, "
            f"best {percent(spread.best)})."
        )
    parts += ["## Peers", markdown_table(*_peer_rows(numbers, names)), ACCURACY_CAPTION]
    parts += _merged_on(numbers, names)
    for kind, file in numbers.pictures.items():
        parts += [f"## {kind.capitalize()}", f"![{kind}]({file})", CAPTIONS[kind]]
        if kind == "confusion":
            parts.append(markdown_table(*class_rows(numbers.classes, numbers.macro)))
    if numbers.rejections:
        parts += ["## Rejections", markdown_table(*_rejection_rows(numbers, names))]
    if numbers.churn:
        coming = markdown_table(*_churn_rows(numbers, names))
        parts += ["## Coming and going", coming, CHURN_CAPTION]
    return "\n\n".join(parts) + "\n"


def _merged_on(numbers: Numbers, names: Mapping[PeerId, str]) -> list[str]:
    """Returns a line for each peer whose final model is another than that of its last round."""
    return [
        f"{names[score.peer_id]} had {percent(score.accuracy_of_last_round)} after its last round "
        f"and ended with {percent(score.accuracy)}."
        for score in numbers.peers
        if score.accuracy_of_last_round not in (None, score.accuracy)
    ]


def _peer_rows(
    numbers: Numbers, names: Mapping[PeerId, str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("peer", "state", "rounds", "accuracy", "best", "before mixing", "loss", "samples")
    rows: list[tuple[str, ...]] = [
        (
            names[score.peer_id],
            score.state,
            str(score.rounds),
            percent(score.accuracy),
            percent(score.best_accuracy),
            percent(score.accuracy_before_mix),
            figure(score.train_loss),
            "-" if score.samples is None else str(score.samples),
            human_bytes(score.bytes_in),
            human_bytes(score.bytes_out),
            duration(score.seconds),
            f"{1_000 * score.tracker_seconds:.0f} ms, {human_bytes(score.tracker_bytes)}",
        )
        for score in numbers.peers
    ]
    if numbers.accuracy is not None and len(rows) > 1:
        mean = f"{numbers.accuracy.mean:.1f} ± {numbers.accuracy.std:.1f} %"
        rows.append(("mean ± std", "", "", mean, *[""] * 8))
    return (*head, "received", "sent", "time", "with the tracker"), rows


def class_rows(
    classes: Sequence[ClassScore], macro: ClassScore | None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns head and rows of a table of scores by class."""
    scores = [*classes, *([macro] if macro else [])]
    return ("class", "precision", "recall", "F1", "samples"), [
        (
            visible(score.label),
            f"{score.precision:.3f}",
            f"{score.recall:.3f}",
            f"{score.f1:.3f}",
            str(score.support),
        )
        for score in scores
    ]


def _count(spread: Spread) -> str:
    return "1 peer" if spread.peers == 1 else f"{spread.peers} peers"


def _rejection_rows(
    numbers: Numbers, names: Mapping[PeerId, str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return ("peer", "did without", "rounds", "last in round", "because"), [
        (
            names[found.by],
            names[found.peer_id],
            str(found.rounds),
            str(found.last_round),
            visible(found.last_reason),
        )
        for found in numbers.rejections
    ]


def _churn_rows(
    numbers: Numbers, names: Mapping[PeerId, str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("peer", "seen by", "joins", "leaves", "median stay", "longest stay", "there")
    return head, [
        (
            names[one.peer_id],
            str(one.seen_by),
            str(one.joins),
            str(one.leaves),
            duration(one.median_stay_s),
            duration(one.longest_stay_s),
            percent(100 * one.there),
        )
        for one in numbers.churn
    ]


def _compared(alone: Mapping[str, float], together: Mapping[str, float]) -> list[str]:
    """Returns the peers of both."""
    if not alone or alone.keys() != together.keys():
        raise InputError(
            wrong(
                "peers to compare",
                got=f"{sorted(together)} together",
                allowed=f"the same as alone, {sorted(alone)}, and at least one",
            )
        )
    return list(alone)


def terminal_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table for a terminal: the first column to the left, the others to the right."""
    table = Table(
        title=Text(title, "bold"), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
    )
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown: the first column to the left, the others to the right.

    Args:
        head: names of the columns.
        rows: as many cells each; they are shown as they are, whatever Markdown makes of them.
    """
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Returns the text so that Markdown shows it as it is; part of it comes from strangers."""
    shown = visible(text)
    for char in "\\`*_[]<>|":
        shown = shown.replace(char, "\\" + char)
    return shown
