"""The run directory: what one peer did in one session, for programs to read.

    session.json       whose run this is: session id, session name, peer id; what is measured
    rounds.jsonl       one line a round, written as soon as the round is over
    summary.json       how it ended; absent while the run is under way, or when it was killed
    session.torrent    the session itself (written by whoever joins it)
    model.safetensors  the final weights (written by whoever has them)
    model-best.safetensors  those of the round that did best on validation (likewise)
    messages.jsonl     what was said between the rounds, for people; at most 1 MiB of it
    lock               held by the process that is writing

A line is on its way to the disk before `append` returns, so `kill -9` costs at most the line being
written: such a torn last line is cut off when the directory is opened again. Readers ignore fields
they do not know, so newer logs can be shown by older programs, and the other way round.

Accuracies are in percent, other metrics and losses in the units that `session.json` says, bytes are
those of parameters and their headers on the wire between peers. JSON has no NaN: a loss that is not
finite is written as null, and a metric that is not finite is left out.
"""

import contextlib
import dataclasses
import fcntl
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from p2pl.errors import InputError, RunDirError, wrong
from p2pl.metric import ACCURACY, Metric
from p2pl.run.files import write_atomically

MARKER_FILE = "session.json"
SESSION_FILE = "session.torrent"
ROUNDS_FILE = "rounds.jsonl"
SUMMARY_FILE = "summary.json"
MODEL_FILE = "model.safetensors"
CHECKPOINT_FILE = "initial.safetensors"  # from which all peers of the session begin
BEST_FILE = "model-best.safetensors"
PERSONAL_FILE = "personal.safetensors"
MESSAGES_FILE = "messages.jsonl"
LOCK_FILE = "lock"
MAX_LEFT_OUT = 256  # peers that a summary names for it
MAX_MERGED = 1_024  # peers that a marker names
NAMED_ROUNDS = 20  # of each of them
MAX_MESSAGES_BYTES = 1 << 20  # then the older half goes
MAX_RECORD_BYTES = 64 << 20  # of one JSON file, or one line; 100,000 peers by id fit

Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
PeerId: TypeAlias = str
T = TypeVar("T")
NUMBERS = ("trust", "metrics", "metrics_before_mix")  # fields that hold numbers by name


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON object: frozen; unknown fields are ignored, and what is not finite becomes null."""

    def __post_init__(self) -> None:
        """Replaces or drops what JSON cannot hold: NaN and the infinities."""
        # All values at once: a simulation makes an entry a peer and round.
        values = msgspec.structs.astuple(self)
        if not all(map(math.isfinite, [value for value in values if isinstance(value, float)])):
            for field, value in zip(self.__struct_fields__, values, strict=True):
                if isinstance(value, float) and not math.isfinite(value):
                    msgspec.structs.force_setattr(self, field, None)
        for field in NUMBERS:
            named = getattr(self, field, None)
            if isinstance(named, dict) and not all(map(math.isfinite, named.values())):
                finite = {name: one for name, one in named.items() if math.isfinite(one)}
                msgspec.structs.force_setattr(self, field, finite)


class Marker(_Record, frozen=True):
    """Whose run this is."""

    session_id: str
    peer_id: PeerId
    name: str = ""  # of the session
    alone: bool | None = None  # whether the peer trains without the others; None: not known
    metrics: tuple[Metric, ...] = ()  # what is measured, the primary one first; () = not known
    loss_unit: str = "nats"  # of all losses; "" where they have none
    data_mark: str = ""  # of the peer's examples, as it divided them; "" = not known
    reach: str = ""  # whether others could dial the peer, as it was found last; "" = not known
    merged: tuple[PeerId, ...] = ()  # whose models it took before its first round or after its last
    rounds: Count = 0  # to do in all; 0 = not known
    epsilon_budget: float | None = None  # that training may spend; None: it is not private
    attack: str = ""  # what a peer does that tests a swarm; "": it is honest, as far as is known


class RoundEntry(_Record, frozen=True):
    """One round of one peer."""

    round: Annotated[int, Meta(ge=0)]
    train_loss: float | None = None  # mean over the round's training
    validation_loss: float | None = None  # after mixing, on own validation data
    accuracy: Percent | None = None  # after mixing, on the test set
    accuracy_before_mix: Percent | None = None  # after training, on the same test set
    metrics: dict[str, float] = {}  # after mixing, on the test set; the primary one first
    metrics_before_mix: dict[str, float] = {}  # after training, on the same test set
    personal_accuracy: Percent | None = None  # of its personal model, on labels like its own
    own_accuracy: Percent | None = None  # after mixing, likewise; None: no personal model is kept
    own_accuracy_before_mix: Percent | None = None  # after training, likewise
    personal_score: float | None = None  # these three, in whatever the primary metric is
    own_score: float | None = None
    own_score_before_mix: float | None = None
    trust: dict[PeerId, float] = {}  # the row that was mixed with; itself included
    cohort: tuple[PeerId, ...] = ()  # whom it asked
    received: tuple[PeerId, ...] = ()  # who delivered something usable
    rejected: dict[PeerId, str] = {}  # who did not, and why
    resting: dict[PeerId, str] = {}  # who was met before and is left alone for now, and why
    versions: dict[PeerId, Count] = {}  # of those who delivered: which of their versions
    joined: tuple[PeerId, ...] = ()  # who was not there, as far as it knew, and now is
    left: dict[PeerId, Seconds] = {}  # who is no longer there, and how long it had been
    bytes_in: Count = 0
    bytes_out: Count = 0
    bytes_relayed: Count = 0  # of connections by relays, both ways, their framing included
    bytes_by_peer: dict[PeerId, tuple[Count, Count]] = {}  # (in, out)
    seconds_by_peer: dict[PeerId, Seconds] = {}  # waited for its answer; several at the same time
    messages_out: Count = 0  # to other peers
    tracker_bytes: Count = 0  # both ways
    tracker_seconds: Seconds | None = None  # None: no tracker answered this round
    seconds: Seconds = 0.0
    samples: Count | None = None  # trained on in this round
    time: float | None = None  # of its end, seconds since 1970
    epsilon: float | None = None  # privacy spent so far; None: training is not private
    trust_epsilon: float | None = None  # by asking examples held back; it does not add to the other

    def value(self, metric: Metric) -> float | None:
        """Returns a metric after mixing; None: it is not known."""
        return _value(metric, self.metrics, self.accuracy)

    def value_before_mix(self, metric: Metric) -> float | None:
        """Returns a metric after training, before mixing; None: it is not known."""
        return _value(metric, self.metrics_before_mix, self.accuracy_before_mix)


class ScoredOn(_Record, frozen=True):
    """What a model is scored on.

    Attributes:
        source: `given`: it came with the data; `drawn`: a share of the peer's data, which it does
            not train on; `validation`: there is none, and what is held back stands in for it.
        examples: how many.
        share: of the data, where it was drawn.
    """

    source: Literal["given", "drawn", "validation"]
    examples: Count
    share: float | None = None

    @property
    def said(self) -> str:
        """What it is, in words: 114 examples of a test set that came with the data."""
        if self.source == "given":
            return f"{self.examples} examples of a test set that came with the data"
        if self.source == "drawn":
            share = f"a share of {self.share:g}" if self.share else "a part"
            return f"{self.examples} examples, {share} of the data, drawn at random"
        return (
            f"{self.examples} examples held back for validation, on which trust is learned too: "
            "there is no test set"
        )


class Message(_Record, frozen=True):
    """Something that a person was told between two rounds."""

    time: float  # seconds since 1970
    text: str


class LeftOut(_Record, frozen=True):
    """A peer whose model was not mixed in some rounds."""

    rounds: tuple[Count, ...] = ()  # the first of them
    times: Count = 0  # in how many
    why: str = ""  # the last time


class Summary(_Record, frozen=True):
    """How a run ended."""

    accuracy: Percent | None = None  # of the last round, after mixing, on the test set
    metrics: dict[str, float] = {}  # likewise; the primary one first
    personal_accuracy: Percent | None = None  # of its personal model, on labels like its own
    personal_score: float | None = None  # likewise, in whatever the primary metric is
    rounds: Count = 0  # number of the last round that was completed
    best_round: Count | None = None  # the least validation loss; None: no such model is kept
    best_validation_loss: float | None = None
    peer_id: PeerId = ""
    epsilon: float | None = None
    trust_epsilon: float | None = None
    delta: float | None = None  # of both; None: training is not private, or an older p2pl
    state: Literal["finished", "interrupted"] = "finished"
    session_id: str = ""
    name: str = ""  # of the session
    peers_met: tuple[PeerId, ...] = ()  # those that delivered something usable
    left_out: dict[PeerId, LeftOut] = {}  # who was left out of which rounds, and why
    met_nobody: bool = False  # it was to train with others, and mixed with nobody in any round
    undialled: str = ""  # why others could not dial it; "": they could, or nobody has tried
    bytes_in: Count = 0
    bytes_out: Count = 0
    bytes_relayed: Count = 0  # of connections by relays, both ways, their framing included
    tracker_bytes: Count = 0
    seconds: Seconds = 0.0  # sum over the rounds
    samples: Count | None = None  # of its own, to train on
    labels: tuple[str, ...] = ()  # class names, in the order of their numbers
    confusion: tuple[tuple[Count, ...], ...] = ()  # [true class][predicted class], test samples
    test_set: ScoredOn | None = None  # None: the trainer alone knows what it scores on

    def value(self, metric: Metric) -> float | None:
        """Returns a metric of the final model; None: it is not known."""
        return _value(metric, self.metrics, self.accuracy)


def _value(metric: Metric, metrics: Mapping[str, float], accuracy: float | None) -> float | None:
    """Returns a metric by its name; runs of before there were any have an accuracy alone."""
    return metrics.get(metric.name, accuracy if metric.name == ACCURACY.name else None)


def measured(
    declared: Sequence[Metric], scored: Iterable[RoundEntry | Summary]
) -> tuple[Metric, ...]:
    """Returns what was measured in a run, the primary metric first; at least one.

    A trainer that somebody brings, and runs of older versions, need not say what they measure: then
    it is what they told, in no known unit.

    Args:
        declared: what is said to be measured; () or the accuracy where nobody said it.
        scored: what was told.
    """
    if declared and tuple(declared) != (ACCURACY,):
        return tuple(declared)
    for one in scored:
        if one.accuracy is None and one.metrics:
            return tuple(map(Metric, one.metrics))
    return (ACCURACY,)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the rounds in the log, those before a restart included."""

    rounds: int = 0  # how many are in the log
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_relayed: int = 0
    tracker_bytes: int = 0
    seconds: float = 0.0
    peers_met: frozenset[PeerId] = frozenset()
    left_out: Mapping[PeerId, LeftOut] = dataclasses.field(default_factory=dict)

    def plus(self, entry: RoundEntry) -> "Totals":
        """Returns the sums with one more round."""
        return Totals(
            rounds=self.rounds + 1,
            bytes_in=self.bytes_in + entry.bytes_in,
            bytes_out=self.bytes_out + entry.bytes_out,
            bytes_relayed=self.bytes_relayed + entry.bytes_relayed,
            tracker_bytes=self.tracker_bytes + entry.tracker_bytes,
            seconds=self.seconds + entry.seconds,
            peers_met=self.peers_met.union(entry.received),
            left_out=_left_out(self.left_out, entry),
        )


def _left_out(before: Mapping[PeerId, LeftOut], entry: RoundEntry) -> Mapping[PeerId, LeftOut]:
    """Returns who was left out of rounds so far; of very many peers, the first ones."""
    absent = {**entry.resting, **entry.rejected}
    if not absent:
        return before
    after = dict(before)
    for peer_id, why in absent.items():
        if peer_id in after or len(after) < MAX_LEFT_OUT:
            known = after.get(peer_id, LeftOut())
            rounds = (
                known.rounds if len(known.rounds) >= NAMED_ROUNDS else (*known.rounds, entry.round)
            )
            after[peer_id] = LeftOut(rounds=rounds, times=known.times + 1, why=why)
    return after


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """What a run directory holds."""

    directory: Path
    session_id: str  # "" when the directory does not tell
    name: str  # of the session
    peer_id: PeerId  # the directory's name when it does not tell
    rounds: tuple[RoundEntry, ...]
    summary: Summary | None  # None: under way, or killed
    metrics: tuple[Metric, ...] = (ACCURACY,)  # the primary one first
    loss_unit: str = "nats"

    @property
    def metric(self) -> Metric:
        """The primary metric."""
        return self.metrics[0]

    @property
    def state(self) -> str:
        """How it ended: finished, interrupted, or unfinished (under way, or killed)."""
        return self.summary.state if self.summary else "unfinished"


class RunLog:
    """The one writer of a run directory.

    Opening it takes the directory for this process until `close`; use it as a context manager.

    Attributes:
        directory: where the files are.
        last: the last round in the log; None before the first.
        totals: sums over the rounds in the log.
    """

    def __init__(self, directory: Path, marker: Marker) -> None:
        """Opens the run directory of this peer in this session, and creates it if need be.

        Args:
            directory: where the files are, or will be.
            marker: whose run this is.

        Raises:
            RunDirError: it belongs to another session or peer, or to a run that was alone where
                this one is not (or the other way round); another process is using it, its files
                are damaged, or it cannot be written.
        """
        self.directory = directory
        self.last: RoundEntry | None = None
        self.totals = Totals()
        self._said = ""
        with ExitStack() as held, _translated(directory):
            _check_owner(directory, marker)  # before anything is created in a stranger's directory
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(_lock(directory / LOCK_FILE))
            known = _check_owner(directory, marker)
            if known is None or (known.alone is None and marker.alone is not None):
                known = marker
                _write_record(directory / MARKER_FILE, marker)
            self._marker = known
            rounds = (directory / ROUNDS_FILE).open("ab", buffering=0)
            self._file: BinaryIO = held.enter_context(rounds)
            self._replay(until=None)
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes use the directory."""
        self._held.close()

    def append(self, entry: RoundEntry) -> None:
        """Writes one round; when this returns, `kill -9` cannot lose it.

        Raises:
            RunDirError: it cannot be written; the log is as it was before.
        """
        line = msgspec.json.encode(entry)
        msgspec.json.decode(line, type=RoundEntry)  # what cannot be read back is not written
        if self.last is not None and entry.round <= self.last.round:
            raise ValueError(f"round {entry.round} after round {self.last.round}")
        size = self._file.seek(0, os.SEEK_END)
        with _translated(self.directory):
            (self.directory / SUMMARY_FILE).unlink(missing_ok=True)  # of before the restart
            written = self._file.write(line + b"\n")
        if written != len(line) + 1:
            self._file.truncate(size)
            raise RunDirError(
                wrong(
                    str(self.directory / ROUNDS_FILE),
                    got=f"a full disk at round {entry.round}",
                    allowed="room for one more line",
                    hint="free some space and join again; the run resumes",
                )
            )
        self._add(entry)

    def describe(
        self,
        metrics: Sequence[Metric],
        loss_unit: str,
        *,
        rounds: int = 0,
        epsilon_budget: float | None = None,
    ) -> None:
        """Writes down what the run measures, and how far it is to go.

        Args:
            metrics: the primary one first.
            loss_unit: of all losses.
            rounds: to do in all; 0: not known.
            epsilon_budget: that training may spend; None: it is not private.

        Raises:
            InputError: it cannot be written.
        """
        told = msgspec.structs.replace(
            self._marker,
            metrics=tuple(metrics),
            loss_unit=loss_unit,
            rounds=rounds,
            epsilon_budget=epsilon_budget,
        )
        if told != self._marker:
            _write_record(self.directory / MARKER_FILE, told)
            self._marker = told

    def take_data_mark(self, mark: str) -> bool:
        """Writes down which examples the run is about, and returns whether they were others before.

        Args:
            mark: of the peer's examples, as it divided them; "" where it is not known.

        Raises:
            InputError: it cannot be written.
        """
        before = self._marker.data_mark
        if mark and mark != before:
            self._marker = msgspec.structs.replace(self._marker, data_mark=mark)
            _write_record(self.directory / MARKER_FILE, self._marker)
        return bool(mark and before and mark != before)

    def take_reach(self, text: str) -> None:
        """Writes down whether others can dial the peer.

        Raises:
            InputError: it cannot be written.
        """
        if text != self._marker.reach:
            self._marker = msgspec.structs.replace(self._marker, reach=text)
            _write_record(self.directory / MARKER_FILE, self._marker)

    def take_merged(self, peers: Iterable[PeerId]) -> None:
        """Writes down whose models were taken outside of a round; of very many, the first ones.

        Raises:
            InputError: it cannot be written.
        """
        before = self._marker.merged
        new = [peer for peer in dict.fromkeys(peers) if peer not in before]
        if new and len(before) < MAX_MERGED:
            merged = (*before, *new)[:MAX_MERGED]
            self._marker = msgspec.structs.replace(self._marker, merged=merged)
            _write_record(self.directory / MARKER_FILE, self._marker)
            self.totals = dataclasses.replace(
                self.totals, peers_met=self.totals.peers_met.union(merged)
            )

    def say(self, text: str, time_s: float) -> None:
        """Keeps what a person was told; where that fails, nothing is lost that a run needs.

        Args:
            text: of it; what was said last is not said again.
            time_s: seconds since 1970.
        """
        if text == self._said:
            return
        self._said = text
        path = self.directory / MESSAGES_FILE
        with contextlib.suppress(OSError, InputError):
            if path.exists() and path.stat().st_size > MAX_MESSAGES_BYTES:
                _, _, newer = path.read_bytes()[-MAX_MESSAGES_BYTES // 2 :].partition(b"\n")
                write_atomically(path, newer)
            with path.open("ab", buffering=0) as file:
                file.write(msgspec.json.encode(Message(time=time_s, text=text)) + b"\n")

    @property
    def reach(self) -> str:
        """Whether others can dial the peer, as it was found last."""
        return self._marker.reach

    def drop_after(self, round_index: int) -> None:
        """Forgets the rounds later than this one: they are to be done again.

        A peer that was killed between logging a round and saving its weights resumes from the
        weights, so the log steps back to them.

        Raises:
            RunDirError: the log cannot be read or written.
        """
        with _translated(self.directory):
            self._replay(until=round_index)

    def finish(self, summary: Summary) -> None:
        """Writes the summary: after a crash there is the old one or the new one, never a part.

        Raises:
            InputError: it cannot be written.
        """
        _write_record(self.directory / SUMMARY_FILE, summary)

    def _replay(self, until: int | None) -> None:
        """Reads the log from the start and cuts it after the last round that is to be kept."""
        self.last = None
        self.totals = Totals(peers_met=frozenset(self._marker.merged))
        keep_bytes = 0
        for entry, end in _complete_rounds(self.directory / ROUNDS_FILE):
            if until is not None and entry.round > until:
                break
            self._add(entry)
            keep_bytes = end
        if keep_bytes < self._file.seek(0, os.SEEK_END):
            self._file.truncate(keep_bytes)

    def _add(self, entry: RoundEntry) -> None:
        self.last, self.totals = entry, self.totals.plus(entry)


def make_directory(directory: Path) -> None:
    """Makes a run directory where there is none.

    Raises:
        RunDirError: it cannot be made, or its name is not UTF-8.
    """
    try:
        str(directory).encode()
    except UnicodeEncodeError as fault:  # safetensors cannot open files there
        raise RunDirError(
            wrong("run directory", got=str(directory), allowed="a name in UTF-8")
        ) from fault
    with _translated(directory):
        directory.mkdir(parents=True, exist_ok=True)


def read_run(directory: Path) -> LoggedRun:
    """Returns what a run directory holds; the directory may be in use, and is not touched.

    Raises:
        RunDirError: it is missing, is not a run directory, or is damaged.
    """
    if not (directory / ROUNDS_FILE).is_file():
        raise RunDirError(
            wrong(
                "run directory",
                got=str(directory),
                allowed=f"a directory with a file {ROUNDS_FILE}",
                hint="p2pl join --run-dir writes one",
            )
        )
    with _translated(directory):
        rounds = tuple(entry for entry, _ in _complete_rounds(directory / ROUNDS_FILE))
        marker = _read_record(directory / MARKER_FILE, Marker)
        summary = _read_record(directory / SUMMARY_FILE, Summary)
    scored = (*rounds, *([summary] if summary else ()))
    metrics = measured(marker.metrics if marker else (), scored)
    told: tuple[Marker | Summary, ...] = tuple(found for found in (marker, summary) if found)
    return LoggedRun(
        directory=directory,
        session_id=next((one.session_id for one in told if one.session_id), ""),
        name=next((one.name for one in told if one.name), ""),
        peer_id=next((one.peer_id for one in told if one.peer_id), directory.resolve().name),
        rounds=rounds,
        summary=summary,
        metrics=metrics,
        loss_unit=marker.loss_unit if marker else "nats",
    )


def read_marker(directory: Path) -> Marker | None:
    """Returns whose run a directory holds; None where it does not tell. Raises RunDirError."""
    with _translated(directory):
        return _read_record(directory / MARKER_FILE, Marker)


def _complete_rounds(path: Path) -> Iterator[tuple[RoundEntry, int]]:
    """Yields each round with the offset of the byte after it; stops at a torn last line."""
    end, before = 0, -1
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_RECORD_BYTES):
            number += 1
            try:
                entry = _decode(line, RoundEntry, f"{path} line {number}")
            except RunDirError:
                # Valid JSON of a wrong type is not what a crash leaves, nor is a line amid others.
                if not lines.read(1) and not _is_json(line):
                    return
                raise
            if not line.endswith(b"\n"):
                return  # by chance the cut fell on the end of the object
            if entry.round <= before:
                raise RunDirError(
                    wrong(
                        f"{path} line {number}",
                        got=f"round {entry.round}",
                        allowed=f"a round later than {before}",
                        hint="the file was edited, or put together from two runs",
                    )
                )
            end, before = end + len(line), entry.round
            yield entry, end


def _check_owner(directory: Path, marker: Marker) -> Marker | None:
    """Returns the directory's marker, None where there is none; raises if it is another's."""
    found = _read_record(directory / MARKER_FILE, Marker)
    if found is None:
        if (directory / ROUNDS_FILE).exists():
            raise RunDirError(
                wrong(
                    "run directory",
                    got=f"{directory} with {ROUNDS_FILE} but no {MARKER_FILE}",
                    allowed="a new directory, or one of this session",
                    hint="give another --run-dir",
                )
            )
        return None
    for what, ours, theirs in (
        ("session", marker.session_id, found.session_id),
        ("peer", marker.peer_id, found.peer_id),
    ):
        if ours != theirs:
            raise RunDirError(
                wrong(
                    f"run directory {directory}",
                    got=f"the run of {what} {theirs}",
                    allowed=f"a new directory, or the run of {what} {ours}",
                    hint="give another --run-dir",
                )
            )
    _check_company(directory, marker, found)
    return found


def _check_company(directory: Path, marker: Marker, found: Marker) -> None:
    """Raises RunDirError if one run is alone and the other is not; a run may leave it open.

    A marker that an older p2pl wrote does not say it; then the rounds in the log do.
    """
    is_known = found.alone is not None
    was_alone = found.alone if is_known else _was_alone(directory / ROUNDS_FILE)
    if marker.alone is None or was_alone is None or marker.alone == was_alone:
        return
    kinds = {True: "a run with --alone", False: "a run with others"}
    got = kinds[was_alone] if is_known or not was_alone else "a run in which nobody else took part"
    raise RunDirError(
        wrong(
            f"run directory {directory}",
            got=got,
            allowed=f"a new directory, or {kinds[marker.alone]}",
            hint="what one peer learned alone must not enter a swarm in the middle, nor the "
            "other way round: give another --run-dir",
        )
    )


def _was_alone(rounds_file: Path) -> bool | None:
    """Whether a peer asked nobody and got nothing in all its rounds; None before the first."""
    if not rounds_file.exists():
        return None
    rounds = (entry for entry, _ in _complete_rounds(rounds_file))
    first = next(rounds, None)
    return None if first is None else not any(map(_has_company, chain([first], rounds)))


def _has_company(entry: RoundEntry) -> bool:
    """Whether the peer asked a tracker or another peer in this round, or was asked."""
    bytes_moved = entry.bytes_in + entry.bytes_out + entry.tracker_bytes
    return bool(entry.cohort or entry.received or bytes_moved)


def is_begun(directory: Path, marker: Marker) -> bool:
    """Returns whether a run directory holds this run already; changes nothing.

    Raises:
        RunDirError: it belongs to another session or peer, or is damaged; see `RunLog`.
    """
    with _translated(directory):
        return _check_owner(directory, marker) is not None


def session_of(directory: Path) -> str:
    """Returns the id of the session that a run directory is of; "" where it does not say.

    Raises:
        RunDirError: it is damaged, or cannot be read.
    """
    with _translated(directory):
        marker = _read_record(directory / MARKER_FILE, Marker)
    return marker.session_id if marker else ""


def is_in_use(directory: Path) -> bool:
    """Returns whether a process is writing to a run directory now; changes nothing."""
    try:
        with (directory / LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds the lock; the kernel lets go of it when the process dies."""
    with path.open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            lock.seek(0)
            holder = lock.read(20).decode("ascii", "replace").strip() or "unknown"
            raise RunDirError(
                wrong(
                    "run directory",
                    got=f"{path.parent}, in use by process {holder}",
                    allowed="a directory that no other process is writing to",
                    hint="wait for that process to end, or give another --run-dir",
                )
            ) from taken
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
        lock.flush()
        yield


def _write_record(path: Path, record: _Record) -> None:
    """Replaces the file in one step; one field a line, so that people can read it too."""
    raw = msgspec.json.encode(record)
    msgspec.json.decode(raw, type=type(record))  # what cannot be read back is not written
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    lines = (b'  "%s": %s' % (name.encode(), bytes(value)) for name, value in fields.items())
    write_atomically(path, b"{\n" + b",\n".join(lines) + b"\n}\n")


def _read_record(path: Path, kind: type[T]) -> T | None:
    """Returns the record in a JSON file; None where there is no file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    return _decode(raw, kind, str(path))


def _decode(raw: bytes, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        shown = raw[:80].decode("utf-8", "replace")
        raise RunDirError(
            wrong(where, got=shown, allowed=f"a JSON object as p2pl writes it ({fault})")
        ) from fault


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    except RecursionError:
        return True  # nested so deep that nobody has torn it off a line of p2pl
    return True


@contextmanager
def _translated(directory: Path) -> Iterator[None]:
    """Turns what the operating system says into a RunDirError that names the directory."""
    try:
        yield
    except OSError as fault:
        raise RunDirError(
            wrong(
                "run directory",
                got=f"{directory}: {fault.strerror or fault}",
                allowed="a directory that can be read and written",
                hint="give another --run-dir",
            )
        ) from fault
