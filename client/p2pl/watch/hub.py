"""All runs that are watched: one thread reads them, and whoever looks gets the same events.

What is told of the runs is a list of events that only grows, each encoded once. A browser that
comes (or comes back) is sent the list from its beginning, then what is new. So nothing that takes
longer the longer a run is happens where browsers are answered.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from p2pl import regular
from p2pl.errors import SessionFileError
from p2pl.metric import Metric
from p2pl.protocol.session import MAX_SESSION_FILE_BYTES, decode, settings_of
from p2pl.run.log import MARKER_FILE, ROUNDS_FILE, SESSION_FILE, RoundEntry, measured
from p2pl.watch import entries
from p2pl.watch.follow import Follower, News

LOOK_S = 0.1  # between two looks at the files: with the reading itself, five pictures a second
BREATH_S = 0.005  # while there is much to read: browsers are answered meanwhile
SEARCH_S = 1.0  # between two searches for new runs, and for whether their processes are there
MAX_RUNS = 256  # of one page; chosen: as many lines as a person can still make something of
MAX_DEPTH = 2  # of folders, from one that was named to the runs in it: OUT/seed-K/peer-I
ALONE = "-alone"  # what `p2pl join --alone` puts behind the name of a run directory


@dataclass(slots=True)
class _Watched:
    """A run, and what was told of it last."""

    number: int
    follower: Follower
    label: str
    metrics: tuple[Metric, ...] = ()
    settings: dict[str, object] | None = None  # of its session; None: not read yet
    is_alive: bool = False
    told: dict[str, Any] = field(default_factory=dict)


class Hub:
    """Reads runs, and keeps what a page is told of them.

    Args:
        paths: run directories, or folders of them; they need not be there yet.
        clock: seconds, of a clock that never steps back.
    """

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self.events: list[bytes] = []  # grows, and is never changed otherwise
        self._paths, self._clock = tuple(paths), clock
        self._peers = entries.Peers()
        self._runs: dict[Path, _Watched] = {}
        self._waiting: list[str] | None = None
        self._searched_s: float | None = None
        self._peers_told = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="p2pl-watch", daemon=True)

    def start(self) -> None:
        """Begins to read, in a thread of its own."""
        self._thread.start()

    def end(self) -> None:
        """Lets the reading end, and everybody who is sent events; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """Ends the reading, and returns when it has ended."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(timeout=5 * SEARCH_S)

    @property
    def is_stopped(self) -> bool:
        """Whether it is to end."""
        return self._stopping.is_set()

    def look(self) -> bool:
        """Reads what is new in all runs, once; returns whether there is more to read at once."""
        now_s = self._clock()
        is_due = self._searched_s is None or now_s - self._searched_s >= SEARCH_S
        if is_due:
            self._searched_s = now_s
            self._search()
        is_behind = False
        for run in self._runs.values():
            news = run.follower.look()
            is_behind |= news.is_behind
            self._take(run, news, is_due=is_due)
        return is_behind

    def _keep_looking(self) -> None:
        while not self._stopping.is_set():
            is_behind = self.look()
            self._stopping.wait(BREATH_S if is_behind else LOOK_S)

    def _search(self) -> None:
        """Takes in the runs that are new, and tells for which ones it waits."""
        waiting = []
        left_out = 0
        for path in self._paths:
            found = sorted(set(_runs_in(path, MAX_DEPTH)), key=_in_order)
            if not found:
                waiting.append(entries.text(str(path)))
            for directory in found:
                left_out += self._add(directory)
        if left_out:
            waiting.append(f"{left_out} more runs, beyond the {MAX_RUNS} that a page shows")
        if waiting != self._waiting:
            self._waiting = waiting
            self._tell("waiting", {"paths": waiting})

    def _add(self, directory: Path) -> bool:
        """Takes in a run, and the one beside it that was alone; returns whether there is no room.

        Args:
            directory: of the run.
        """
        beside = directory.with_name(directory.name + ALONE)
        for one in (directory, beside) if _is_run(beside) else (directory,):
            if one in self._runs:
                continue
            if len(self._runs) >= MAX_RUNS:
                return True
            label = entries.text(_label(one, self._paths))
            self._runs[one] = _Watched(len(self._runs), Follower(one), label)
        return False

    def _take(self, run: _Watched, news: News, *, is_due: bool) -> None:
        """Tells what is new of a run.

        Args:
            run: of which.
            news: of its directory.
            is_due: whether to look as well whether its process is there.
        """
        if is_due:
            run.is_alive = run.follower.is_alive
        if news.has_changed or news.rounds:
            self._describe(run, news.rounds)
        told = self._told_of(run)
        if told != run.told:
            run.told = told
            self._tell("run", told)
        if news.cut is not None:
            self._tell("cut", {"run": run.number, "after": news.cut})
        if news.rounds:
            rounds = [entries.of_round(one, run.metrics, self._peers) for one in news.rounds]
            self._tell("rounds", {"run": run.number, "rounds": rounds})
        if news.messages:
            said = [entries.of_message(one) for one in news.messages]
            self._tell("messages", {"run": run.number, "messages": said})

    def _describe(self, run: _Watched, rounds: Sequence[RoundEntry]) -> None:
        """Finds out what a run measures, and what its session says."""
        marker = run.follower.marker
        if marker and marker.metrics:
            run.metrics = marker.metrics
        elif not run.metrics or rounds:
            run.metrics = measured(marker.metrics if marker else (), rounds)
        if run.settings is None:
            run.settings = _settings(run.follower.directory / SESSION_FILE)

    def _told_of(self, run: _Watched) -> dict[str, Any]:
        follower = run.follower
        told = entries.of_run(follower.marker, follower.summary, self._peers)
        settings = run.settings or {}
        return told | {
            "run": run.number,
            "label": run.label,
            "metrics": [entries.of_metric(one) for one in run.metrics],
            "rounds": told.get("rounds") or settings.get("exchange.rounds") or 0,
            "rule": settings.get("mixing.rule", ""),
            "kind": settings.get("exchange.kind", ""),
            "model": settings.get("model.name", ""),
            "state": told.get("ended") or ("running" if run.is_alive else "stopped"),
            "trouble": entries.text(follower.trouble),
        }

    def _tell(self, kind: str, value: dict[str, Any]) -> None:
        """Adds an event, after one with the ids of the peers that are new in it."""
        if len(self._peers.ids) > self._peers_told:
            new = self._peers.ids[self._peers_told :]
            self.events.append(_event("peers", {"from": self._peers_told, "ids": new}))
            self._peers_told += len(new)
        self.events.append(_event(kind, value))


def _event(kind: str, value: dict[str, Any]) -> bytes:
    """Returns a server-sent event; JSON has no line breaks, so it is one line."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(value))


def has_runs(path: Path) -> bool:
    """Returns whether a path is the directory of a run, or a folder of such."""
    return next(_runs_in(path, MAX_DEPTH), None) is not None


def _is_run(directory: Path) -> bool:
    return any((directory / name).is_file() for name in (ROUNDS_FILE, MARKER_FILE))


def _runs_in(path: Path, depth: int) -> Iterator[Path]:
    """Yields the run directories in a folder, or the folder itself where it is one."""
    if _is_run(path):
        yield path
    elif depth:
        try:
            inner = [one for one in path.iterdir() if one.is_dir()]
        except OSError:
            return  # it is not there yet
        for one in inner:
            yield from _runs_in(one, depth - 1)


def _in_order(path: Path) -> list[tuple[str, int]]:
    """Returns what sorts names with numbers as a person would: peer-2 before peer-10."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)(\d{0,18})", str(path))]


def _label(directory: Path, paths: Sequence[Path]) -> str:
    """Returns what a run is called: its folder, and for those in a named folder the way there."""
    for path in paths:
        if path != directory and path in directory.parents:
            above = path.parent if len(paths) > 1 else path
            return str(directory.relative_to(above))
    return directory.resolve().name


def _settings(path: Path) -> dict[str, object] | None:
    """Returns the settings of a session by path; None where there is no session file, or none."""
    try:
        with regular.opened(path) as file:
            session = decode(file.read(MAX_SESSION_FILE_BYTES + 1)).session
    except (OSError, SessionFileError):
        return None
    return settings_of(session)
