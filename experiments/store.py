"""The figures of each study, with where they come from: one compressed file of JSON lines a study.

The same rows give the same bytes: rows are sorted by cell, and the file bears no time.
"""

import gzip
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from experiments.grid import ROOT, Cell, Figures, normalised
from p2pl.run.files import write_atomically

SIGNIFICANT_DIGITS = 7  # kept of a figure
CLIENT = "client/p2pl"  # from ROOT: what figures are made by
PACKAGES = ("p2pl", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class Row:
    """What one cell came to, and by what it was made; None: not known."""

    cell: str
    command: str | None
    session: str | None  # the digest of the session file, see `Cell.session`
    commit: str | None  # of git, when the cell was run
    dirty: bool | None  # whether client/ differed from that commit
    recorded_by: str | None  # rows of before rows had a commit: the commit that added the figures
    packages: Mapping[str, str | None]  # versions
    threads: int | None
    seconds: float | None  # by the clock, whatever else the machine did
    figures: Figures
    cpu_seconds: float | None = None  # of all its processes


def path(raw: Path, study: str) -> Path:
    """Returns the file of a study in a folder of figures."""
    return raw / f"{study}.jsonl.gz"


def read(file: Path) -> dict[str, Row]:
    """Returns the rows of a file by cell; none where there is no file."""
    if not file.exists():
        return {}
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.cell: row for row in rows}


def write(file: Path, rows: Iterable[Row]) -> None:
    """Writes the rows, sorted by cell, always as the same bytes."""
    ordered = sorted(rows, key=lambda row: row.cell)
    # The order of the figures' own keys is kept: some pages list them in it.
    lines = [json.dumps(asdict(row), separators=(",", ":")) + "\n" for row in ordered]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, gzip.compress("".join(lines).encode(), compresslevel=9, mtime=0))


def add(file: Path, row: Row) -> None:
    """Replaces or adds one row. One process at a time may write to a study."""
    write(file, {**read(file), row.cell: row}.values())


def is_fresh(row: Row | None, cell: Cell) -> bool:
    """Returns whether a row has the figures of this very command, on this very session.

    What a row does not know of itself is taken to be alike: the oldest do not tell their session.
    Another commit alone makes nothing stale, for that would be hours of computing.
    """
    if row is None:
        return False
    return (
        (row.command is None or normalised(row.command) == cell.command)
        and (row.session is None or row.session == cell.session)
        and all(
            major(row.packages[name]) == major(version)
            for name, version in versions().items()
            if row.packages.get(name)
        )
    )


def major(version: str | None) -> str:
    """Returns the first number of a version."""
    return (version or "").partition(".")[0]


@cache
def versions() -> Mapping[str, str]:
    """Returns the versions of what figures depend on, as they are installed."""
    return {name: metadata.version(name) for name in PACKAGES} | {"python": python_version()}


def origin(row: Row) -> str:
    """Returns "" if this very client made the row, or else what is known of the one that did."""
    if row.commit is None:
        return f"made by a commit that is not known; recorded by {(row.recorded_by or '?')[:12]}"
    if row.dirty or client_tree(row.commit) != client_tree("HEAD") or is_dirty():
        changed = ", changed" if row.dirty else ""
        return f"made by another client, that of commit {row.commit[:12]}{changed}"
    return ""


@cache
def client_tree(commit: str) -> str:
    """Returns what git calls the client's files at a commit; the question if git does not know."""
    return git("rev-parse", f"{commit}:{CLIENT}") or f"{commit}:{CLIENT}"


@cache
def commit_now() -> str | None:
    """Returns the commit that is checked out; None outside of a git repository."""
    return git("rev-parse", "HEAD") or None


@cache
def is_dirty() -> bool:
    """Returns whether client/ differs from the commit that is checked out."""
    return bool(git("status", "--porcelain", "--", "client"))


def git(*arguments: str) -> str:
    """Returns what git answers, or "" if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def rounded(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Returns the value with its floats cut to what means something."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value
