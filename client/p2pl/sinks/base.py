"""Sinks that keep the figures of a run for other programs, and that never end or hold up the run.

A journal is told of a run's beginning, of each round as numbers by name, and of its end. It lives
in a thread of its own: a server that is slow, or gone, costs the run nothing. What goes wrong is
said once, and the run goes on without it.
"""

import logging
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeAlias

from p2pl import extras
from p2pl.errors import InputError, visible, wrong
from p2pl.events import Ended, Event, RoundEnded, Said, Sink, Started
from p2pl.registry import Registry
from p2pl.run.log import RoundEntry, Summary

log = logging.getLogger(__name__)

MAX_WAITING = 10_000  # events of a journal that is slower than the run; then it is given up
END_S = 30.0  # that a run waits at its end for what is still to be written
SHORT_ID_CHARS, FULL_ID_CHARS = 8, 64  # of a peer's id; another name for a peer is not cut


class Journal(Protocol):
    """Keeps the figures of one run after another; called in one thread, and in this order."""

    def begin(self, run: Started) -> None:
        """Takes in whose run begins or goes on, and its session's settings."""

    def round(self, index: int, figures: Mapping[str, float]) -> None:
        """Takes in a round.

        Args:
            index: of the round, from 1 on.
            figures: by name; `figures_of` says which.
        """

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        """Takes in how the run ended: `finished`, `interrupted`, or `failed`.

        Args:
            state: which of them.
            figures: of the final model; {} where it failed.
        """


Opener: TypeAlias = Callable[[str], Journal]  # given what stands after the colon
SINKS: Registry[Opener] = Registry("--log", "p2pl.sinks", "p2pl.sinks")


def parse(target: str) -> tuple[Opener, str]:
    """Returns what opens a journal, and its place: of `NAME:PLACE`.

    Raises:
        InputError: nothing has this name, or the place is missing.
    """
    name, colon, place = target.partition(":")
    opener = SINKS.find(name)
    if not (colon and place):
        raise InputError(wrong("--log", got=target, allowed="NAME:PLACE, e.g. tensorboard:runs/tb"))
    return opener, place


@contextmanager
def opened(targets: Sequence[str], said: Sequence[Sink] = ()) -> Iterator[tuple["Log", ...]]:
    """Gives the sinks that `--log` names, and lets them write what they have until it is left.

    Args:
        targets: `NAME:PLACE` each.
        said: are told where one of them fails.

    Raises:
        InputError: nothing has such a name, its place cannot be used, or a package is missing.
    """
    openers = [(target, *parse(target)) for target in targets]
    logs = [Log(target, _open(target, opener, place), said) for target, opener, place in openers]
    try:
        yield tuple(logs)
    finally:
        for one in logs:
            one.close()


def _open(target: str, opener: Opener, place: str) -> Journal:
    try:
        return opener(place)
    except ModuleNotFoundError as missing:
        extra = target.partition(":")[0]
        raise InputError(
            f"--log {target}: {missing.name} is not installed; it comes with: "
            f"{extras.install(extra)}"
        ) from missing
    except InputError:
        raise
    except Exception as fault:  # of somebody's program
        said = visible(f"{type(fault).__name__}: {fault}")
        raise InputError(
            wrong("--log", got=target, allowed="a place that can be written to", hint=said)
        ) from fault


class Log:
    """A sink that passes on to a journal, in a thread of its own, and is never in the way.

    Args:
        target: what the person called it, for messages.
        journal: that keeps the figures.
        said: are told where it fails, once.
    """

    def __init__(self, target: str, journal: Journal, said: Sequence[Sink] = ()) -> None:
        self._target, self._journal, self._said = target, journal, said
        self._run: Started | None = None
        self._is_open = self._is_told = False
        self._fault = ""
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="p2pl-log", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Passes an event on, and returns at once."""
        if isinstance(event, Started):
            self.begin(event)
        elif isinstance(event, RoundEnded) and self._run:
            self.round(event.entry.round, figures_of(event.entry, self._run))
        elif isinstance(event, Ended) and self._run:
            self.end(event.summary.state, summary_of(event.summary, self._run))
        # Rounds that are undone are written again, and the later value counts.

    def begin(self, run: Started) -> None:
        """Passes on that a run begins, and returns at once."""
        self._run, self._is_open = run, True
        self._put(partial(self._journal.begin, run))

    def round(self, index: int, figures: Mapping[str, float]) -> None:
        """Passes on a round's figures, and returns at once."""
        self._put(partial(self._journal.round, index, figures))

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        """Passes on how a run ended, and returns at once."""
        self._is_open = False
        self._put(partial(self._journal.end, state, figures))

    def close(self) -> None:
        """Returns when all is written, or when that takes too long."""
        if self._is_open:
            self.end("failed", {})
        self._put(None)
        self._thread.join(0.0 if self._fault else END_S)
        if self._thread.is_alive() and not self._fault:
            self._fault = f"it was not done {END_S:g} s after the run"
        self._tell()

    def _put(self, act: Callable[[], None] | None) -> None:
        self._tell()
        try:
            self._waiting.put_nowait(act)
        except queue.Full:
            self._fault = self._fault or f"it is {MAX_WAITING} events behind"

    def _work(self) -> None:
        while (act := self._waiting.get()) is not None:
            if self._fault:
                continue
            try:
                act()
            except Exception as fault:  # of somebody's program: the run goes on
                log.debug("%s", self._target, exc_info=fault)
                self._fault = f"{type(fault).__name__}: {fault}"

    def _tell(self) -> None:
        """Says once, in a thread of the run, that nothing more is logged."""
        if self._is_told or not self._fault:
            return
        self._is_told = True
        text = f"nothing more is logged to {self._target}: {visible(self._fault)}"
        if not self._said:
            log.warning("%s", text)
        for sink in self._said:
            sink(Said(text))


# --- names ---------------------------------------------------------------------------------------


def named(name: str, unit: str) -> str:
    """Returns the name of a figure with its unit, of letters that all programs take.

    Args:
        name: e.g. `accuracy`, `F1, macro`.
        unit: e.g. `%`, `mm`; "" where it has none.
    """
    texts = (name, _UNITS.get(unit, unit))
    parts = (re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") for text in texts)
    return "_".join(part for part in parts if part)


_UNITS = {"%": "percent"}


def figures_of(entry: RoundEntry, run: Started) -> dict[str, float]:
    """Returns the figures of a round by name; what is not known is left out.

    Args:
        entry: of the run log.
        run: whose round it is.
    """
    metrics, loss_unit = run.metrics, run.loss_unit
    found: dict[str, float | None] = {}
    for metric in metrics:
        found[named(metric.name, metric.unit)] = entry.value(metric)
        found[named(f"{metric.name} before mix", metric.unit)] = entry.value_before_mix(metric)
    own = entry.trust.get(run.peer_id)
    found |= {
        named(f"{metrics[0].name} personal", metrics[0].unit): entry.personal_score,
        named("train loss", loss_unit): entry.train_loss,
        named("validation loss", loss_unit): entry.validation_loss,
        "weight_of_others": None if own is None else max(0.0, 1 - own),
        "peers_received": len(entry.received),
        "peers_turned_down": len(entry.rejected),
        "received_bytes": entry.bytes_in,
        "sent_bytes": entry.bytes_out,
        "relayed_bytes": entry.bytes_relayed,
        "tracker_bytes": entry.tracker_bytes,
        "round_seconds": entry.seconds,
        "epsilon": entry.epsilon,
        "trust_epsilon": entry.trust_epsilon,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def summary_of(summary: Summary, run: Started) -> dict[str, float]:
    """Returns the figures of the final model by name: `final_accuracy_percent`.

    Args:
        summary: of the run.
        run: that has ended.
    """
    known = ((metric, summary.value(metric)) for metric in run.metrics)
    return {
        f"final_{named(metric.name, metric.unit)}": value
        for metric, value in known
        if value is not None
    }


def settings_of(run: Started) -> dict[str, str | int | float | bool]:
    """Returns what a run was begun with, by name: the session's settings, and the peer's own.

    Args:
        run: that begins.
    """
    own: dict[str, object] = {
        "session_id": run.session_id,
        "peer_id": run.peer_id,
        "rounds": run.rounds,
        "epsilon_budget": run.epsilon_budget,
    }
    plain = {name: _plain(value) for name, value in {**run.settings, **own}.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _plain(value: object) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def run_name(run: Started) -> str:
    """Returns what a run is called where several stand side by side: digits-1a2b3c4d."""
    who = visible(run.peer_id)
    return f"{visible(run.name)}-{who[:SHORT_ID_CHARS] if len(who) == FULL_ID_CHARS else who}"
