"""A run directory, read while it is being written: what is new since the last look, and no more.

A look costs what is new: each line of the log is read once, and a file that has not changed is not
opened. A torn last line is left until the rest of it is there. A log that was cut (rounds are done
again after a crash, or because the swarm decided on another model) is noticed by its length, or by
its last known line, which is then another one or none.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from p2pl import regular
from p2pl.errors import visible
from p2pl.run.log import (
    LOCK_FILE,
    MARKER_FILE,
    MAX_RECORD_BYTES,
    MESSAGES_FILE,
    ROUNDS_FILE,
    SUMMARY_FILE,
    Marker,
    Message,
    RoundEntry,
    Summary,
)

BLOCK_BYTES = 1 << 20  # of one file that are read at a look: what is long comes in parts
MAX_TAIL_BYTES = 64  # of the last known line, kept to see that it is still there
ALL = -1  # rounds begin at 0 or 1: those after this one are all of them
T = TypeVar("T")
Which: TypeAlias = tuple[int, int, int]  # of a file: its number, size and time; others if it is new

_NO_ROUNDS: tuple[int | None, tuple[RoundEntry, ...]] = (None, ())
_NO_MESSAGES: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class News:
    """What a look found.

    Attributes:
        cut: rounds later than this one are no longer in the log; None: all that were there are.
        rounds: new ones, each later than those before.
        messages: new ones.
        is_behind: whether there is more to read at once.
        has_changed: whether marker, summary or trouble are others than before.
    """

    cut: int | None = None
    rounds: tuple[RoundEntry, ...] = ()
    messages: tuple[Message, ...] = ()
    is_behind: bool = False
    has_changed: bool = False


@dataclass(slots=True)
class _Lines:
    """How far a file of lines was read."""

    end: int = 0  # after the last whole line
    tail: bytes = b""  # what stands before that
    wanted: int = BLOCK_BYTES  # to read next: more, where a line is longer than a block
    is_behind: bool = False

    def read(self, path: Path) -> list[bytes] | None:
        """Returns new whole lines; None: those that were read before are no longer there.

        Raises:
            OSError: the file cannot be read.
        """
        with regular.opened(path) as file:
            file.seek(self.end - len(self.tail))
            block = file.read(len(self.tail) + self.wanted)
        if not block.startswith(self.tail):
            return None
        fresh = block[len(self.tail) :]
        whole = fresh.rfind(b"\n") + 1
        self.is_behind = len(fresh) == self.wanted
        if whole:
            self.end += whole
            self.tail = (self.tail + fresh[:whole])[-MAX_TAIL_BYTES:]
            self.wanted = BLOCK_BYTES
        elif self.is_behind:
            self.wanted = min(2 * self.wanted, MAX_RECORD_BYTES)
        return fresh[:whole].split(b"\n")[:-1]


@dataclass(slots=True)
class Follower:
    """Reads one run directory, again and again, and changes nothing in it.

    Attributes:
        directory: of the run; it need not be there yet.
        marker: whose run it is; None: it is not known yet.
        summary: how it ended; None: it is under way, or was killed.
    """

    directory: Path
    marker: Marker | None = None
    summary: Summary | None = None
    _rounds: _Lines = field(default_factory=_Lines)
    _messages: _Lines = field(default_factory=_Lines)
    _ends: list[tuple[int, int]] = field(default_factory=list)  # (end of its line, round)
    _said_s: float = 0.0  # when the last message was
    _seen: dict[str, Which] = field(default_factory=dict)  # by file
    _troubles: dict[str, str] = field(default_factory=dict)  # by file

    def look(self) -> News:
        """Returns what is new since the last look."""
        before = (self.marker, self.summary, self.trouble)
        self.marker = self._look_at(MARKER_FILE, lambda path: _record(path, Marker), self.marker)
        self.summary = self._look_at(
            SUMMARY_FILE, lambda path: _record(path, Summary), self.summary
        )
        cut, rounds = self._look_at(ROUNDS_FILE, self._new_rounds, _NO_ROUNDS)
        messages = self._look_at(MESSAGES_FILE, self._new_messages, _NO_MESSAGES)
        is_there = ROUNDS_FILE in self._seen
        if not is_there and self._ends:
            self._forget()
            cut = ALL
        return News(
            cut,
            rounds,
            messages,
            is_behind=is_there and self._rounds.is_behind and not self.trouble,
            has_changed=before != (self.marker, self.summary, self.trouble),
        )

    @property
    def trouble(self) -> str:
        """Why the run cannot be read, or not all of it; "": it can, or is not there yet."""
        return next(iter(self._troubles.values()), "")

    @property
    def is_alive(self) -> bool:
        """Whether the process that writes the run is there; nothing is locked to find out."""
        try:
            holder = int((self.directory / LOCK_FILE).read_bytes()[:20])
            if holder > 0:
                os.kill(holder, 0)
        except PermissionError:  # it is another person's
            return True
        except (OSError, ValueError, OverflowError):
            return False
        return holder > 0

    def _look_at(self, name: str, read: Callable[[Path], T], known: T) -> T:
        """Returns what a file says, read anew if it is another one than at the last look.

        Args:
            name: of the file.
            read: reads it.
            known: what stands where it is as before, or cannot be read; a file that is no longer
                there says nothing: None, or what `read` says of nothing new.
        """
        path = self.directory / name
        is_new = False
        try:
            found = os.stat(path)
            which = (found.st_ino, found.st_size, found.st_mtime_ns)
            is_new = which != self._seen.get(name) or (
                name == ROUNDS_FILE and self._rounds.is_behind
            )
            if not is_new:
                return known
            self._seen[name] = which
            self._troubles.pop(name, None)
            return read(path)
        except (FileNotFoundError, NotADirectoryError):
            self._seen.pop(name, None)
            self._troubles.pop(name, None)
            return known if isinstance(known, tuple) else None  # type: ignore[return-value]
        except OSError as fault:
            self._troubles[name] = f"{name} cannot be read: {fault.strerror or fault}"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            self._troubles[name] = _damaged(name, fault)
        return known

    def _new_rounds(self, path: Path) -> tuple[int | None, tuple[RoundEntry, ...]]:
        cut = self._cut(os.stat(path).st_size)
        lines = self._rounds.read(path)
        if lines is None:
            self._forget()
            cut, lines = ALL, self._rounds.read(path) or []
        rounds: list[RoundEntry] = []
        end, last = self._ends[-1] if self._ends else (0, ALL)
        for line in lines:
            try:
                rounds.append(_round(line, last))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
                self._rounds = _Lines(end)  # what follows is not read until it is another file
                self._troubles[ROUNDS_FILE] = _damaged(ROUNDS_FILE, fault)
                break
            end, last = end + len(line) + 1, rounds[-1].round
            self._ends.append((end, last))
        return cut, tuple(rounds)

    def _cut(self, size: int) -> int | None:
        """Returns the last round of a log that has become shorter; None: it has not."""
        if size >= self._rounds.end:
            return None
        while self._ends and self._ends[-1][0] > size:
            self._ends.pop()
        end, last = self._ends[-1] if self._ends else (0, ALL)
        self._rounds = _Lines(end)
        return last

    def _forget(self) -> None:
        self._rounds = _Lines()
        self._ends.clear()

    def _new_messages(self, path: Path) -> tuple[Message, ...]:
        lines = self._messages.read(path)
        if lines is None:  # the older half is gone
            self._messages = _Lines()
            lines = self._messages.read(path) or []
        said = [msgspec.json.decode(line, type=Message) for line in lines]
        new = tuple(one for one in said if one.time > self._said_s)
        self._said_s = new[-1].time if new else self._said_s
        return new


def _record(path: Path, kind: type[T]) -> T:
    with regular.opened(path) as file:
        return msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=kind)


def _round(line: bytes, last: int) -> RoundEntry:
    entry = msgspec.json.decode(line, type=RoundEntry)
    if entry.round <= last:
        raise msgspec.DecodeError(f"round {entry.round} after round {last}")
    return entry


def _damaged(name: str, fault: Exception) -> str:
    return f"{name} is damaged: {visible(str(fault))}"
