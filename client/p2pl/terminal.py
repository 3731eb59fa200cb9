"""What a person sees while `p2pl join` runs.

`LiveView` redraws one screen of a terminal; `PlainView` writes one line a round, for log files and
pipes. Both are told the same few things, and either may be told them from a worker thread.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from p2pl import reasons
from p2pl.errors import visible
from p2pl.events import Ended, Event, Merged, Reachable, RoundEnded, Said, Started, Step
from p2pl.metric import ACCURACY, Metric, figure
from p2pl.run.log import PeerId, RoundEntry, Summary, measured

log = logging.getLogger(__name__)

SHORT_ID_CHARS = 8  # 32 bits: two of 100 peers look alike once in a million swarms
REFRESH_HZ = 4  # chosen: drawing takes milliseconds, and shares the interpreter with training
ETA_ROUNDS = 10  # the pace is the mean over the last ones; a single slow round is no trend
HISTORY_ROUNDS = 1_000  # kept for the small graphs
GRAPH_CHARS = 24
BAR_CHARS = 16
MAX_REASON_CHARS = 60  # of why a peer was rejected; the run log has all of it
LEFT_OUT = (
    "models that were not mixed in some rounds (this happens to honest peers too, whose data are "
    "of another kind or whose line is slow; where it is most rounds of one peer, tell its owner):"
)
MAX_LEFT_OUT_LINES = 5  # peers that are named when a run ends; the summary has all of them
NARROW_COLUMNS = 60  # below this the live view leaves out what is not essential
SPARE_LINES = 14  # of the screen that are not rows of the cohort

SPARKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class Header:
    """What does not change during a run."""

    name: str  # of the session
    session_id: str
    peer_id: PeerId
    rounds: int  # of the session
    model: str = ""
    data: str = ""  # which data, and how much of it is the peer's
    metrics: tuple[Metric, ...] = (ACCURACY,)  # the primary one first


class View(Protocol):
    """What `p2pl join` tells the person in front of it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def message(self, text: str) -> None:
        """Shows what is going on between rounds, e.g. "waiting for peers: 3 of 6"."""

    def training(self, round_index: int, step: int, steps: int, loss: float) -> None:
        """Shows how far local training is; may be called at every step. NaN: loss unknown.

        Args:
            round_index: the round, from 1 on.
            step: how many steps are done.
            steps: of how many.
            loss: of the last batch, nats.
        """

    def round(self, entry: RoundEntry) -> None:
        """Shows a round that is over."""

    def finish(self, summary: Summary) -> None:
        """Shows how the run ended."""


def open_view(header: Header, console: Console) -> View:
    """Returns the live view for a terminal that can draw it, else the plain one.

    Args:
        header: what stays the same during the run.
        console: where it is drawn.
    """
    if console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf"):
        return LiveView(header, console)
    return PlainView(header, console)


class RunConsole(Console):
    """A console of a run, which a reader that has enough (`| head`) does not end."""

    def on_broken_pipe(self) -> None:
        """Raises the fault that is handled, for the screen to tell; else rich ends the process."""
        raise  # called where it is handled


class Screen:
    """The sink that shows a run on a terminal; a context manager, which gives the terminal back.

    Args:
        console: to draw on.
        model: name of the session's model.
        data: which data and how much of it is the peer's.
    """

    def __init__(self, console: Console, *, model: str = "", data: str = "") -> None:
        self._console, self._model, self._data = console, model, data
        self._shown = ExitStack()
        self._view: View | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def __call__(self, event: Event) -> None:
        """Shows one event; a full disk or a closed pipe is no reason to end a run."""
        try:
            self._show(event)
        except OSError as fault:
            log.log(logging.ERROR, "nothing more is shown: %s", fault)
            self._view = None

    def _show(self, event: Event) -> None:
        if isinstance(event, Started):
            about = (self._model, self._data, event.metrics)
            header = Header(event.name, event.session_id, event.peer_id, event.rounds, *about)
            self._view = self._shown.enter_context(open_view(header, self._console))
        elif self._view is not None:
            tell(self._view, event)


def tell(view: View, event: Event) -> None:
    """Shows an event on a view; the beginning of a run is what the view was opened for.

    Args:
        view: that `open_view` returned.
        event: what happened.
    """
    if isinstance(event, Step):
        view.training(event.round, event.step, event.steps, math.nan)
    elif isinstance(event, Said | Reachable | Merged):
        view.message(event.text)
    elif isinstance(event, RoundEnded):
        view.round(event.entry)
    elif isinstance(event, Ended):
        view.finish(event.summary)


class PlainView:
    """One line a round."""

    def __init__(self, header: Header, console: Console) -> None:
        self._header, self._console = header, console
        self._pace = _Pace(header.rounds)
        self._said = ""

    def __enter__(self) -> Self:
        header = self._header
        known = (("model", header.model), ("data", header.data))
        self._write(
            f"session {visible(header.name)} {short_id(header.session_id)}",
            f"peer {short_id(header.peer_id)}",
            *(f"{what} {visible(value)}" for what, value in known if value),
            f"rounds {header.rounds}",
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to undo."""

    def message(self, text: str) -> None:
        """Writes the text, unless it is what was written last."""
        if text != self._said:
            self._said = text
            self._write(visible(text))

    def training(self, round_index: int, step: int, steps: int, loss: float) -> None:
        """Writes nothing: a log wants one line a round."""

    def round(self, entry: RoundEntry) -> None:
        """Writes the round's line."""
        self._pace.add(entry)
        self._said = ""
        parts = round_line(entry, self._header.rounds, self._header.metrics)
        self._write(*parts, f"ETA {duration(self._pace.left_s())}")

    def finish(self, summary: Summary) -> None:
        """Writes how the run ended."""
        for line in left_out_lines(summary):
            self._write(line)
        self._write(*summary_line(summary, self._header.metrics))

    def _write(self, *parts: str) -> None:
        line = "  ".join(parts)
        encoding = self._console.encoding
        line = line.encode(encoding, "replace").decode(encoding)
        # Text, not markup: part of it comes from strangers. Soft wrap: one line stays one line.
        self._console.print(Text(line), soft_wrap=True, highlight=False)


class LiveView:
    """One screen, redrawn at most `REFRESH_HZ` times a second."""

    def __init__(
        self, header: Header, console: Console, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._header, self._console, self._now = header, console, now
        self._pace = _Pace(header.rounds)
        self._round_began = now()
        # Replaced, never changed: another thread draws them.
        self._metric = header.metrics[0]  # the primary one
        self._scores: tuple[float | None, ...] = ()
        self._loss: tuple[float | None, ...] = ()
        self._in, self._out, self._relayed, self._tracker = 0, 0, 0, 0
        self._entry: RoundEntry | None = None
        self._doing = "starting"
        self._ended = False
        self._left_out: tuple[str, ...] = ()
        self._live = Live(
            console=console,
            get_renderable=self.screen,
            refresh_per_second=REFRESH_HZ,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last screen where it is."""
        self._live.stop()

    def message(self, text: str) -> None:
        """Shows the text until there is something newer to show."""
        self._doing = visible(text)

    def training(self, round_index: int, step: int, steps: int, loss: float) -> None:
        """Shows how far local training is."""
        known = f", loss {figure(loss)}" if math.isfinite(loss) else ""
        self._doing = f"round {round_index}: training, step {step}/{steps}{known}"

    def round(self, entry: RoundEntry) -> None:
        """Shows the round's cohort, and adds the round to the graphs."""
        self._pace.add(entry)
        self._round_began = self._now()
        self._metric = primary(entry, self._header.metrics)
        self._scores = (*self._scores, entry.value(self._metric))[-HISTORY_ROUNDS:]
        self._loss = (*self._loss, entry.train_loss)[-HISTORY_ROUNDS:]
        self._in += entry.bytes_in
        self._relayed += entry.bytes_relayed
        self._out += entry.bytes_out
        self._tracker += entry.tracker_bytes
        self._doing = f"round {entry.round} took {duration(entry.seconds)}"
        self._entry = entry

    def finish(self, summary: Summary) -> None:
        """Shows how the run ended."""
        self._ended = True
        self._left_out = tuple(left_out_lines(summary))
        self._doing = "  ".join(summary_line(summary, self._header.metrics))

    def screen(self) -> RenderableType:
        """Returns the whole screen as it is now."""
        narrow = self._console.width < NARROW_COLUMNS
        parts: list[RenderableType] = [self._title(narrow), self._progress()]
        if self._entry is not None:
            rows = max(1, self._console.height - SPARE_LINES)
            parts += [
                self._graphs(),
                Padding(cohort_table(self._entry, self._header.peer_id, rows, narrow), (1, 0)),
                self._traffic(self._entry),
            ]
        parts += [Text(line, "yellow") for line in self._left_out]  # wrapped: nothing is cut off
        parts.append(Text(self._doing, "bold") if self._ended else _one_line(self._doing, "cyan"))
        return Group(*parts)

    def _title(self, narrow: bool) -> RenderableType:
        header = self._header
        title = Text(f"p2pl · {visible(header.name)}", "bold")
        title.append(f" · session {short_id(header.session_id)}", "dim")
        title.append(f" · me {short_id(header.peer_id)}", "dim")
        about = " · ".join(visible(part) for part in (header.model, header.data) if part)
        if narrow or not about:
            return Rule(title, style="dim", align="left")
        return Group(Rule(title, style="dim", align="left"), _one_line(about, "dim"))

    def _progress(self) -> RenderableType:
        done, rounds = self._pace.done, self._header.rounds
        row = _grid()
        row.add_row(
            Text(f"round {done}/{rounds}", "bold"),
            Text("" if self._ended else f"ETA {duration(self._eta_s())}"),
            ProgressBar(total=rounds, completed=done, width=BAR_CHARS * 2),
        )
        return row

    def _eta_s(self) -> float | None:
        """Returns the seconds left; the running round counts down."""
        left_s = self._pace.left_s()
        if left_s is None or self._pace.done >= self._header.rounds:
            return left_s
        return left_s - min(self._now() - self._round_began, self._pace.mean_s())

    def _graphs(self) -> RenderableType:
        rows = _grid()
        score, loss, style = self._scores, self._loss, "bold green"
        metric = self._metric
        rows.add_row(
            visible(metric.name if metric.higher_is_better else f"{metric.name} (lower is better)"),
            Text(visible(metric.shown(score[-1])), style),
            _one_line(sparkline(score, GRAPH_CHARS)),
        )
        rows.add_row(
            "loss", Text(figure(loss[-1]), "bold"), _one_line(sparkline(loss, GRAPH_CHARS))
        )
        return rows

    def _traffic(self, entry: RoundEntry) -> RenderableType:
        asked = (
            "no answer this round, going on with known peers"
            if entry.tracker_seconds is None
            else f"answered in {duration(entry.tracker_seconds)}, {decimal(self._tracker)}"
        )
        rows = _grid(columns=2)
        rows.add_row(
            "traffic",
            _one_line(
                f"in {decimal(self._in)} (+{decimal(entry.bytes_in)})  "
                f"out {decimal(self._out)} (+{decimal(entry.bytes_out)})" + _by_relay(self._relayed)
            ),
        )
        if entry.cohort or self._tracker:  # else this run is alone on purpose
            style = "yellow" if entry.tracker_seconds is None else ""
            rows.add_row("tracker", _one_line(asked, style))
        if entry.epsilon is not None:
            rows.add_row("privacy", _one_line(f"epsilon {figure(entry.epsilon)} spent"))
        return rows


def cohort_table(entry: RoundEntry, me: PeerId, rows: int, narrow: bool) -> Table:
    """Returns the round's cohort, most trusted first, at most so many rows.

    Args:
        entry: the round.
        me: the peer's own id.
        rows: how many at most, at least 1.
        narrow: whether columns that can be done without are left out.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("peer", no_wrap=True)
    if not narrow:
        table.add_column("trust", no_wrap=True, min_width=BAR_CHARS)
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column(_one_line(f"in round {entry.round}"))  # the first to give way
    peers = _by_trust(entry, me)
    most = max([entry.trust.get(peer, 0.0) for peer in peers] + [1e-9])
    for peer in peers[:rows]:
        weight = entry.trust.get(peer)
        cells: list[RenderableType] = [Text("me" if peer == me else short_id(peer))]
        if not narrow:
            cells.append(Text(bar((weight or 0.0) / most, BAR_CHARS), "blue"))
        cells.append(Text("-" if weight is None else f"{weight:.3f}"))
        cells.append(_state(entry, peer, me))
        table.add_row(*cells)
    if len(peers) > rows:
        table.add_row(Text(f"and {len(peers) - rows} more", "dim"))
    return table


def _by_trust(entry: RoundEntry, me: PeerId) -> list[PeerId]:
    """Returns the peer itself and the round's cohort, most trusted first, the rejected last."""
    absent = {**entry.resting, **entry.rejected}
    peers = {me, *entry.cohort, *absent}
    return sorted(peers, key=lambda peer: (peer in absent, -entry.trust.get(peer, 0.0), peer))


def _state(entry: RoundEntry, peer: PeerId, me: PeerId) -> Text:
    if peer in entry.rejected:
        return _one_line(f"rejected: {_reason(entry.rejected[peer])}", "red")
    if peer == me:
        return Text("")
    if peer in entry.resting:
        return _one_line(f"left alone for now: {_reason(entry.resting[peer])}", "yellow")
    if peer in entry.received:
        return _one_line("received", "green")
    return _one_line("nothing received", "yellow")


def round_line(entry: RoundEntry, rounds: int, metrics: Sequence[Metric]) -> list[str]:
    """Returns the parts of the line that says how a round went."""
    why = "; ".join(f"{short_id(peer)} {_reason(text)}" for peer, text in entry.rejected.items())
    parts = [
        f"round {entry.round}/{rounds}",
        f"loss {figure(entry.train_loss)}",
        score_of(entry, metrics),
        f"cohort {len(entry.cohort)} (rejected {len(entry.rejected)}{': ' + why if why else ''})",
        f"in {decimal(entry.bytes_in)} out {decimal(entry.bytes_out)}"
        + _by_relay(entry.bytes_relayed),
        duration(entry.seconds),
    ]
    if entry.epsilon is not None:
        parts.insert(3, f"epsilon {figure(entry.epsilon)}")
    return parts


def summary_line(summary: Summary, metrics: Sequence[Metric]) -> list[str]:
    """Returns the parts of the line that says how a run ended."""
    return [
        f"{summary.state} after round {summary.rounds}",
        score_of(summary, metrics),
        f"in {decimal(summary.bytes_in)} out {decimal(summary.bytes_out)}"
        + _by_relay(summary.bytes_relayed),
        duration(summary.seconds),
        "met nobody: trained alone"
        if summary.met_nobody
        else f"peers met {len(summary.peers_met)}",
        *(["nobody could dial it"] if summary.undialled else []),
    ]


def _by_relay(count: int) -> str:
    """Returns how many bytes relays carried, where they carried any."""
    return f", {decimal(count)} by relay" if count else ""


def left_out_lines(summary: Summary) -> list[str]:
    """Returns a line for each of those who were left out of rounds most often, and why.

    The first line says what that means; there is none where nobody was left out.
    """
    often = sorted(summary.left_out.items(), key=lambda item: (-item[1].times, item[0]))
    lines = [LEFT_OUT] if often else []
    for peer, one in often[:MAX_LEFT_OUT_LINES]:
        named = ", ".join(map(str, one.rounds))
        more = f" and {one.times - len(one.rounds)} more" if one.times > len(one.rounds) else ""
        rounds, last = ("round", "") if one.times == 1 else ("rounds", ", the last time")
        lines.append(
            f"peer {short_id(peer)} left out of {rounds} {named}{more}{last}: {_explained(one.why)}"
        )
    if len(often) > MAX_LEFT_OUT_LINES:
        lines.append(f"and {len(often) - MAX_LEFT_OUT_LINES} more peers: see summary.json")
    return lines


def _explained(why: str) -> str:
    """Returns a reason of the run log in plain words, and then as the log has it."""
    said, words = visible(why), reasons.plain(why)
    if words == reasons.shown(why):  # there are no other words for it
        return said
    return f"{words[0].lower()}{words[1:].removesuffix('.')} ({said})"


def primary(scored: RoundEntry | Summary, metrics: Sequence[Metric]) -> Metric:
    """Returns the primary metric: the first one, or what was told where nobody said what is."""
    return measured(metrics, [scored])[0]


def score_of(scored: RoundEntry | Summary, metrics: Sequence[Metric]) -> str:
    """Returns the primary metric for reading: "accuracy 91.8 %", "MAE 0.412 mm"."""
    metric = primary(scored, metrics)
    return visible(metric.said(scored.value(metric)))


def short_id(full_id: str) -> str:
    """Returns the start of an id, enough to tell peers apart by eye."""
    return visible(full_id)[:SHORT_ID_CHARS]


def duration(seconds: float | None) -> str:
    """Returns a time in the unit that suits it: 12 ms, 1.4 s, 18 s, 2 min 5 s, 1 h 2 min."""
    if seconds is None:
        return "-"
    if seconds < 0.0005:
        return "0 s"
    if seconds < 0.0995:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"


def percent(value: float | None) -> str:
    """Returns a share for reading: 91.8 %."""
    return "-" if value is None else f"{value:.1f} %"


def bar(share: float, chars: int) -> str:
    """Returns a bar that fills this share, 0 to 1, of so many characters."""
    eighths = round(max(0.0, min(1.0, share)) * chars * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def sparkline(values: Sequence[float | None], chars: int) -> str:
    """Returns a graph of so many characters at most; each shows the last value of its share.

    Args:
        values: one a round; None where there was none.
        chars: width, at least 1.
    """
    if not values:
        return ""
    columns = min(chars, len(values))
    shown = [values[(column + 1) * len(values) // columns - 1] for column in range(columns)]
    known = [value for value in shown if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return "".join(
        " "
        if value is None
        else SPARKS[round((value - low) / span * (len(SPARKS) - 1)) if span else 0]
        for value in shown
    )


def _reason(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= MAX_REASON_CHARS else shown[: MAX_REASON_CHARS - 1] + "…"


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _grid(columns: int = 3) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(columns - 1):
        grid.add_column(no_wrap=True)
    grid.add_column()  # may wrap, so it is the first to give way; its cells are of one line
    return grid


class _Pace:
    """How long the rounds still to come will take, judged by the last ones."""

    def __init__(self, rounds: int) -> None:
        self.done = 0  # number of the last round that is over
        self._rounds = rounds
        self._seconds: tuple[float, ...] = ()

    def add(self, entry: RoundEntry) -> None:
        self.done = entry.round
        self._seconds = (*self._seconds, entry.seconds)[-ETA_ROUNDS:]

    def mean_s(self) -> float:
        return sum(self._seconds) / len(self._seconds)

    def left_s(self) -> float | None:
        """Returns the seconds left; None before the first round is over."""
        if not self._seconds:
            return None
        return max(0, self._rounds - self.done) * self.mean_s()
