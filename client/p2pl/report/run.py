"""What came out of one or many runs: pictures, a page that shows them, and the numbers.

`write_report` reads run directories of one session and writes into another directory:

    report.md      a page for people, with every picture and table
    report.json    the same numbers for programs
    *.png          the pictures; one is left out where no run has its numbers
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Group, RenderableType
from rich.filesize import decimal

from p2pl.errors import InputError, RunDirError, visible, wrong
from p2pl.metric import ACCURACY, Metric, figure
from p2pl.report import plots
from p2pl.report.folder import (
    NUMBERS_FILE,
    PAGE_FILE,
    make_folder,
    picture_file,
    write_pictures,
    write_text,
)
from p2pl.report.numbers import (
    Numbers,
    Spread,
    final_score,
    numbers_of,
    rejected_when_last_met,
    summed_confusion,
    trust_when_last_met,
)
from p2pl.report.tables import Rows, class_rows, markdown_table, markdown_text, terminal_table
from p2pl.run.log import LoggedRun, PeerId, ScoredOn, read_run
from p2pl.terminal import SHORT_ID_CHARS, duration, percent

TERMINAL_COLUMNS = ("peer", "state", "rounds", "before mixing", "received", "sent")
SCORE = 3  # the column of the primary metric
SCORE_CAPTION = (
    "After mixing, by round. The last point of a run that has ended is its final model. A cross: "
    "the run stopped early. Marks tell lines apart that lie on each other."
)
CAPTIONS = {
    "accuracy": SCORE_CAPTION,
    "score": SCORE_CAPTION,
    "loss": "Training loss by round.",
    "trust": "The weight that a row's peer gave to a column's peer the last time it asked for it. "
    "A cross: it was turned down then, with weight 0. Grey: the two never met. Where all weigh "
    "alike, that is as it should be: nobody loses weight without having done harm.",
    "confusion": "What the models took for what; each row is coloured by its shares.",
    "bytes": "Parameters received and sent, with their headers.",
}

FINAL_CAPTION = (
    "The {name} of a run that has ended is of the model that it ended with. It can differ from "
    "that of the last round in the log: a peer may go on merging while it serves the others. The "
    "{name} of a run that is under way, or was killed, is of its last round."
)
CHURN_CAPTION = (
    "As the others saw it, between the first and the last round in which they talked to it: how "
    "often a peer came, could no longer be reached, how long it stayed, and the share of the time."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What `write_report` wrote, and where."""

    page: Path
    numbers_file: Path
    pictures: Mapping[str, Path]  # by kind: accuracy (or score), loss, trust, confusion, bytes
    numbers: Numbers


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    called: Mapping[PeerId, str] | None = None,
    bad: Collection[PeerId] = (),
) -> Report:
    """Returns the report on these runs, written into the directory `out`.

    Args:
        run_dirs: of one session, each of another peer; at least one has completed a round.
        out: a directory, made where there is none; what an earlier report left there is replaced.
        called: names of peers, by id; others go by the start of their id.
        bad: ids of peers that are known to be bad, as in a test of one's own: they are marked.

    Raises:
        RunDirError: a run directory is missing or damaged, or two of them do not belong together.
        InputError: no round was completed, or `out` cannot be written.
    """
    runs = _related_runs(run_dirs)
    names = display_names([run.peer_id for run in runs] + _peers_met(runs))
    names |= {peer_id: f"{names[peer_id]} (bad)" for peer_id in bad}
    names |= {peer_id: visible(name) for peer_id, name in (called or {}).items()}
    numbers = numbers_of([run for run in runs if run.peer_id not in bad] or runs)
    make_folder(out)
    drawn = _draw(runs, names, {names[peer_id] for peer_id in bad})
    files = {kind: picture_file(kind) for kind in drawn}
    numbers = msgspec.structs.replace(numbers, pictures=files)
    pictures = write_pictures(out, drawn, CAPTIONS)
    write_text(out, _page(numbers, names), numbers)
    return Report(
        page=out / PAGE_FILE,
        numbers_file=out / NUMBERS_FILE,
        pictures=pictures,
        numbers=numbers,
    )


def report_tables(report: Report) -> RenderableType:
    """Returns the report's tables for a terminal: scores by peer, of all metrics, and by class."""
    numbers = report.numbers
    names = display_names([score.peer_id for score in numbers.peers])
    title = f"{numbers.name or 'session'} {numbers.session_id[:SHORT_ID_CHARS]}".strip()
    head, rows = _peer_rows(numbers, names)
    kept = [place for place, name in enumerate(head) if name in TERMINAL_COLUMNS or place == SCORE]
    narrow = [[row[index] for index in kept] for row in rows]
    parts = [terminal_table(visible(title), [head[index] for index in kept], narrow)]
    if len(numbers.metrics) > 1:
        parts.append(terminal_table("Metrics", *_metric_rows(numbers)))
    if numbers.classes:
        parts.append(terminal_table("By class", *class_rows(numbers.classes, numbers.macro)))
    return Group(*parts)


def display_names(peer_ids: Sequence[PeerId]) -> dict[PeerId, str]:
    """Returns the shortest starts of the ids, of at least 8 characters, that tell them apart.

    Args:
        peer_ids: may repeat, and may be empty.
    """
    ids = list(dict.fromkeys(peer_ids))
    longest = max((len(peer_id) for peer_id in ids), default=0)
    for chars in range(SHORT_ID_CHARS, longest):
        if len({peer_id[:chars] for peer_id in ids}) == len(ids):
            return {peer_id: visible(peer_id[:chars]) for peer_id in ids}
    return {peer_id: visible(peer_id) for peer_id in ids}


def _related_runs(run_dirs: Sequence[Path]) -> list[LoggedRun]:
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


def _peers_met(runs: Sequence[LoggedRun]) -> list[PeerId]:
    """Returns everybody the runs speak of, those with a run of their own first."""
    met: dict[PeerId, None] = dict.fromkeys(run.peer_id for run in runs)
    for run in runs:
        for entry in run.rounds:
            met.update(dict.fromkeys((*entry.trust, *entry.rejected, *entry.bytes_by_peer)))
            met.update(dict.fromkeys((*entry.joined, *entry.left)))
    return list(met)


def _draw(
    runs: Sequence[LoggedRun], names: Mapping[PeerId, str], bad: Collection[str]
) -> dict[str, bytes]:
    """Returns the pictures that the runs have numbers for, by kind."""
    drawn: dict[str, bytes] = {}
    metric = runs[0].metric
    unit = f" ({runs[0].loss_unit})" if runs[0].loss_unit else ""
    for kind, title, axis, curve in (
        (kind_of(metric), _score_title(runs, metric, bad), metric.axis, partial(_scores, metric)),
        ("loss", "Training loss", f"mean loss of the round{unit}", _losses),
    ):
        curves = {names[run.peer_id]: curve(run) for run in runs}
        if any(curves.values()):
            drawn[kind] = plots.draw_curves(curves, title=title, unit=axis, bad=bad)
    honest = [run for run in runs if names[run.peer_id] not in bad] or runs
    if any(trust_when_last_met(run.rounds) for run in honest):
        drawn["trust"] = _draw_trust(honest, names, bad)
    labels, confusion = summed_confusion(honest)
    if len(confusion):
        drawn["confusion"] = plots.draw_confusion(
            confusion,
            [visible(label) for label in labels],
            title=_confusion_title(honest, confusion),
        )
    title, traffic = _traffic(runs, names)
    if any(map(any, traffic.values())):
        drawn["bytes"] = plots.draw_bytes(traffic, title=title, bad=bad)
    return drawn


def kind_of(metric: Metric) -> str:
    """Returns what the picture of a metric is called."""
    return "accuracy" if metric == ACCURACY else "score"


def _scores(metric: Metric, run: LoggedRun) -> list[tuple[int, float]]:
    """Returns (round, value) where the value is known; the last one is of the final model."""
    points = [(entry.round, entry.value(metric)) for entry in run.rounds]
    known = [(place, value) for place, value in points if value is not None]
    final = final_score(run, metric)
    if known and final is not None:
        known[-1] = (known[-1][0], final)
    return known


def _losses(run: LoggedRun) -> list[tuple[int, float]]:
    return [(one.round, one.train_loss) for one in run.rounds if one.train_loss is not None]


def _score_title(runs: Sequence[LoggedRun], metric: Metric, bad: Collection[str]) -> str:
    """Returns what the curves are of, and on which examples, as far as that is known."""
    lies = f"; {len(bad)} of {len(runs)} peers bad" if bad else ""
    sources = {one.source for one in _scored_on(runs)}
    where = {
        frozenset(["given"]): ", on the test set",
        frozenset(["drawn"]): ", on examples drawn to test on",
        frozenset(["validation"]): ", on examples held back",
    }
    return f"{metric.title} after mixing{where.get(frozenset(sources), '')}{lies}"


def _scored_on(runs: Sequence[LoggedRun]) -> list[ScoredOn]:
    return [run.summary.test_set for run in runs if run.summary and run.summary.test_set]


def _draw_trust(
    runs: Sequence[LoggedRun], names: Mapping[PeerId, str], bad: Collection[str]
) -> bytes:
    """Returns the trust picture: a row for each run that mixed, a column for whom it met."""
    rows = {run.peer_id: row for run in runs if (row := trust_when_last_met(run.rounds))}
    refused = {run.peer_id: rejected_when_last_met(run.rounds) for run in runs}
    columns = list(dict.fromkeys([*rows, *(peer for row in rows.values() for peer in row)]))
    weights = np.array([[row.get(peer, np.nan) for peer in columns] for row in rows.values()])
    rejected = np.array([[peer in refused[by] for peer in columns] for by in rows], dtype=bool)
    return plots.draw_trust(
        [names[peer] for peer in rows],
        [names[peer] for peer in columns],
        weights,
        rejected=rejected,
        bad=bad,
    )


def _confusion_title(runs: Sequence[LoggedRun], confusion: plots.Matrix) -> str:
    count = sum(1 for run in runs if run.summary is not None and run.summary.confusion)
    right = percent(100 * float(confusion.trace() / max(1.0, confusion.sum())))
    over = f"summed over {count} peers" if count > 1 else "of one peer"
    return f"Confusion {over}: {right} right"


def _traffic(
    runs: Sequence[LoggedRun], names: Mapping[PeerId, str]
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
    parts = [
        f"# {markdown_text(title)}",
        f"Session `{markdown_text(numbers.session_id or 'unknown')}`.",
    ]
    metric = numbers.metric
    name = markdown_text(metric.name)
    if numbers.score is not None:
        spread = numbers.score
        lower = "" if metric.higher_is_better else "; lower is better"
        parts.append(
            f"**{markdown_text(metric.title)} {_shown(metric, spread.mean)}**, the mean over "
            f"{_count(spread)} (standard deviation {metric.shown_spread(spread.std)}, worst "
            f"{_shown(metric, spread.worst)}, best {_shown(metric, spread.best)}{lower})."
        )
    table = markdown_table(*_peer_rows(numbers, names))
    parts += ["## Peers", table, FINAL_CAPTION.format(name=name)]
    parts += [f"Scored on {one.said}." for one in numbers.test_sets]
    parts += _merged_on(numbers, names)
    if len(numbers.metrics) > 1:
        parts += ["## Metrics", markdown_table(*_metric_rows(numbers))]
    for kind, file in numbers.pictures.items():
        heading = markdown_text(metric.title) if kind == "score" else kind.capitalize()
        parts += [f"## {heading}", f"![{kind}]({file})", CAPTIONS[kind]]
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
    metric = numbers.metric
    return [
        f"{names[peer.peer_id]} had {_shown(metric, peer.score_of_last_round)} after its last "
        f"round and ended with {_shown(metric, peer.score)}."
        for peer in numbers.peers
        if peer.score_of_last_round not in (None, peer.score)
    ]


def _shown(metric: Metric, value: float | None) -> str:
    """Returns a value with its unit, which a stranger may have written, for a page."""
    return markdown_text(metric.shown(value))


def _metric_rows(numbers: Numbers) -> Rows:
    """Returns what the peers reached by every metric, the primary one first."""
    rows: list[tuple[str, ...]] = [
        (
            visible(metric.name),
            visible(metric.shown(spread.mean)),
            metric.shown_spread(spread.std),
            visible(metric.shown(spread.worst)),
            visible(metric.shown(spread.best)),
            "higher" if metric.higher_is_better else "lower",
        )
        for metric in numbers.metrics
        if (spread := numbers.spreads.get(metric.name))
    ]
    return ("metric", "mean over the peers", "std", "worst peer", "best peer", "better is"), rows


def _peer_rows(numbers: Numbers, names: Mapping[PeerId, str]) -> Rows:
    metric = numbers.metric
    name = visible(metric.name)
    head = ("peer", "state", "rounds", name, "best", "before mixing", "loss", "samples")
    rows: list[tuple[str, ...]] = [
        (
            names[score.peer_id],
            score.state,
            str(score.rounds),
            visible(metric.shown(score.score)),
            visible(metric.shown(score.best_score)),
            visible(metric.shown(score.score_before_mix)),
            figure(score.train_loss),
            "-" if score.samples is None else str(score.samples),
            decimal(score.bytes_in),
            decimal(score.bytes_out),
            duration(score.seconds),
            f"{1_000 * score.tracker_seconds:.0f} ms, {decimal(score.tracker_bytes)}",
        )
        for score in numbers.peers
    ]
    if numbers.score is not None and len(rows) > 1:
        mean = visible(metric.shown_range(numbers.score.mean, numbers.score.std))
        rows.append(("mean ± std", "", "", mean, *[""] * 8))
    return (*head, "received", "sent", "time", "with the tracker"), rows


def _count(spread: Spread) -> str:
    return "1 peer" if spread.peers == 1 else f"{spread.peers} peers"


def _rejection_rows(numbers: Numbers, names: Mapping[PeerId, str]) -> Rows:
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


def _churn_rows(numbers: Numbers, names: Mapping[PeerId, str]) -> Rows:
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
