"""What the experiments of `scripts/reproduce` share: cells, raw figures, statistics, RESULTS.md.

An experiment is a frozen list of cells; a cell is one `p2pl simulate` command. What it prints is
kept in `OUT/raw/EXPERIMENT/CELL.json` and not computed again while the command and its session
stay the same, so a run that was stopped goes on where it was. Tables and pictures are made from
these files alone, and stand in RESULTS.md between two markers that bear the experiment's name;
`--page` makes them of what is there, and says what is not.
"""

import argparse
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import torch
from click import ClickException
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from scipy import stats

from p2pl import __version__
from p2pl.cli import app
from p2pl.data import load as data
from p2pl.errors import P2PLError
from p2pl.run.files import write_atomically

ROOT = Path(__file__).parents[1]
SESSIONS = Path("scripts/sessions")  # from ROOT, where every cell is run
PAGE = "RESULTS.md"
MNIST, FASHION, CIFAR = "ylecun/mnist", "zalando-datasets/fashion_mnist", "uoft-cs/cifar10"
NAMES = {MNIST: "MNIST", FASHION: "Fashion-MNIST", CIFAR: "CIFAR-10"}
SIGNIFICANT_DIGITS = 7  # kept of a raw figure
CONFIDENCE = 0.95

Figures = Mapping[str, Any]  # what `p2pl simulate --json` prints


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation with all its seeds, one audit, or one run of a script that prints JSON."""

    name: str  # of its file
    arguments: tuple[str, ...]
    minutes: float = 1.0  # that it takes on one core, roughly: for the time left
    home: str = ""  # the experiment that keeps its raw figures; "" = this one
    script: str = ""  # from ROOT; "" = p2pl
    verb: str = "simulate"  # of p2pl, which prints a JSON object; or audit
    timed: bool = False  # run when nothing else runs, for its seconds are among the figures

    @property
    def session(self) -> str:
        """A digest of the session file as `--set` changes it, comments left out; "": it has none.

        Figures are stale once the file says something else of what the command leaves to it.
        """
        if self.script or not self.arguments or not self.arguments[0].endswith(".toml"):
            return ""
        spec = tomllib.loads((ROOT / self.arguments[0]).read_text())
        spec.pop("comment", None)
        for option, change in itertools.pairwise(self.arguments):
            if option == "--set":
                place, _, value = change.partition("=")
                section, _, field = place.partition(".")
                spec.setdefault(section, {})[field] = tomllib.loads(f"x = {value}")["x"]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """What a person would type to get the same figures."""
        python = ".venv/bin/python " if self.script.endswith(".py") else ""
        program = f"{python}{self.script}" if self.script else f"p2pl {self.verb}"
        return f"{program} {shlex.join(self.arguments)}"

    def file(self, raw: Path) -> Path:
        """Returns where its figures are kept, given the experiment's folder of raw figures."""
        return raw.parent / (self.home or raw.name) / f"{self.name}.json"


class NotRun(Exception):
    """A section asks for a cell that has not been run yet."""


class Kept(dict[str, Figures]):
    """Raw figures by cell."""

    def __missing__(self, cell: str) -> Figures:
        """Says that a cell has not been run."""
        raise NotRun(cell)


@dataclass(frozen=True, slots=True)
class Results:
    """The raw figures of an experiment, and a place for its pictures."""

    figures: Mapping[str, Figures]  # by cell; of those not run, none
    commands: Mapping[str, tuple[str, str]]  # by cell: the command, and the file from `folder`
    folder: Path
    missing: tuple[str, ...] = ()  # the cells that have not been run
    core_minutes: float = 0.0  # that those took which have been run

    def picture(self, name: str, png: bytes) -> str:
        """Writes a picture, and returns it as Markdown; the words that describe it go below."""
        write_atomically(self.folder / f"{name}.png", png)
        return f"![{name}]({self.folder.name}/{name}.png)"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Cells, and what to make of their figures."""

    name: str
    cells: tuple[Cell, ...]
    section: Callable[[Results], str]  # Markdown, from the heading on


# --- running -------------------------------------------------------------------------------------


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Runs an experiment from the command line, and exits with 1 where a cell failed."""
    parser = argparse.ArgumentParser(prog=f"reproduce {experiment.name}")
    parser.add_argument("--out", type=Path, help="default: results; with --fast, runs/fast")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fast", action="store_true", help="2 seeds, 2 rounds: does it run?")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--page", action="store_true", help="run nothing, write what is there")
    options = parser.parse_args(arguments)
    cells = [cell for cell in experiment.cells if options.only in cell.name]
    if options.fast:
        cells = [hasty(cell) for cell in cells]
    if options.list:
        for cell in cells:
            print(f"{cell.name}: {cell.command}")
        return
    out = options.out or ROOT / ("runs/fast" if options.fast else "results")
    raw = out / "raw" / experiment.name
    failed = {} if options.page else run_cells(cells, raw, options.jobs)
    for name, reason in failed.items():
        print(f"reproduce: cell {name} failed: {reason}", file=sys.stderr)
    if failed:
        sys.exit(1)
    if options.only and not options.page:
        return
    out.mkdir(parents=True, exist_ok=True)
    page = ROOT / PAGE if out == ROOT / "results" else out.parent / PAGE
    shown = [hasty(cell) for cell in experiment.cells] if options.fast else experiment.cells
    try:
        write_section(page, experiment, read_results(shown, raw, out))
    except NotRun as missing:
        sys.exit(f"reproduce: {experiment.name} has nothing to show before cell {missing} is run")
    print(f"page {page}")


def hasty(cell: Cell) -> Cell:
    """Returns the cell with so little to do that it shows whether it runs, and nothing else."""
    few = {"simulate": ("--seeds", "2", "--rounds", "2"), "audit": ("--rounds", "2")}
    little = ("--fast",) if cell.script else few[cell.verb]
    return replace(cell, arguments=(*cell.arguments, *little), minutes=cell.minutes / 50)


def run_cells(cells: Sequence[Cell], raw: Path, jobs: int) -> dict[str, str]:
    """Returns why cells failed, by name, once all that were missing have been run."""
    raw.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if not is_done(cell, raw)]
    together = [cell for cell in missing if not cell.timed]
    alone = [cell for cell in missing if cell.timed]
    return _run(together, raw, jobs) | _run(alone, raw, 1)


def _run(missing: Sequence[Cell], raw: Path, jobs: int) -> dict[str, str]:
    """Returns why cells failed, by name, once all have been run, so many at a time."""
    if not missing:
        return {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]} of {task.fields[cells]} cells"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    failed: dict[str, str] = {}
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        # By work, so that the time left is not thrown off by a few long cells.
        work = sum(cell.minutes for cell in missing)
        task = bar.add_task(raw.name, total=work, done=0, cells=len(missing))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=_be_worker) as pool:
            running = {pool.submit(run_cell, cell, raw, threads): cell for cell in missing}
            for number, done in enumerate(as_completed(running), 1):
                cell = running[done]
                reason = done.result()
                if reason:
                    failed[cell.name] = reason
                name = f"{raw.name}: {cell.name}"
                bar.update(task, advance=cell.minutes, done=number, description=name)
    return failed


def _be_worker() -> None:
    """Makes this process load the same data once, not for every cell, and end with its parent."""
    os.chdir(ROOT)
    data.load = cache(data.load)  # ten seconds each
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Waits for the parent's end, and ends this process, in the middle of a cell or not."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def run_cell(cell: Cell, raw: Path, threads: int) -> str:
    """Runs a cell's command in this process, keeps its figures, and returns why it failed or ""."""
    begun = time.monotonic()
    more = ("--threads", str(threads)) if cell.verb == "simulate" else ()
    command = [cell.verb, *cell.arguments, *more, "--json"]
    printed = io.StringIO()
    try:
        if cell.script:
            python = [sys.executable] if cell.script.endswith(".py") else []
            script = [*python, cell.script, *cell.arguments]
            printed.write(
                subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout.decode()
            )
        else:
            with redirect_stdout(printed), redirect_stderr(io.StringIO()):
                app(command, standalone_mode=False)
    except (P2PLError, ClickException, RuntimeError, CalledProcessError, MemoryError) as fault:
        return f"{type(fault).__name__}: {fault}"
    record = {
        "command": cell.command,
        "arguments": cell.arguments,
        "session": cell.session,
        "p2pl": __version__,
        "torch": torch.__version__,
        "threads": threads,
        "seconds": round(time.monotonic() - begun, 1),
        "figures": _rounded(json.loads(printed.getvalue())),
    }
    cell.file(raw).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cell.file(raw), json.dumps(record, indent=1).encode() + b"\n")
    return ""


def is_done(cell: Cell, raw: Path) -> bool:
    """Returns whether the figures of this very command, on this very session, are there."""
    try:
        record = json.loads(cell.file(raw).read_bytes())
        alike = record.get("session", cell.session) == cell.session  # the oldest do not say
        return bool(record["arguments"] == list(cell.arguments) and alike)
    except (OSError, ValueError, KeyError):
        return False


def read_results(cells: Sequence[Cell], raw: Path, folder: Path) -> Results:
    """Returns what was kept of all cells; what an older command left counts as not run."""
    done = [cell for cell in cells if is_done(cell, raw)]
    records = {cell.name: json.loads(cell.file(raw).read_bytes()) for cell in done}
    mine = [records[cell.name] for cell in done if not cell.home]
    return Results(
        Kept((name, record["figures"]) for name, record in records.items()),
        {cell.name: (cell.command, str(cell.file(raw).relative_to(folder))) for cell in done},
        folder,
        tuple(cell.name for cell in cells if cell not in done),
        sum(record["seconds"] * record["threads"] for record in mine) / 60,
    )


def _rounded(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Returns the value with its floats cut to what means something."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


# --- the page ------------------------------------------------------------------------------------


def write_section(page: Path, experiment: Experiment, results: Results) -> None:
    """Replaces the experiment's section of the page, or adds it at the end."""
    text = f"{experiment.section(results).strip()}\n\n{commands(experiment.name, results)}"
    begin, end = f"<!-- begin {experiment.name} -->", f"<!-- end {experiment.name} -->"
    section = f"{begin}\n{text}\n{end}"
    old = page.read_text() if page.exists() else _HEAD
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(old):
        new = pattern.sub(lambda _: section, old)
    else:
        new = f"{old.rstrip()}\n\n{section}\n"
    write_atomically(page, new.encode())


_HEAD = """# Results

Made by `scripts/reproduce`, from the raw figures in `results/raw`; do not edit between the
markers. Accuracies are in percent, on the global test set, after the last mix. Unless something
else is said, they are means over all peers and over 5 seeds, ± the standard deviation over the
seeds; a seed sets the partition, the initial parameters, the batches and the cohorts. "Over peers"
is the standard deviation over the peers of one seed, averaged over the seeds.
"""


def commands(name: str, results: Results) -> str:
    """Returns where each cell's figures are, folded away; each file names its command."""
    count = len(results.commands) + len(results.missing)
    parts = [
        f"<details><summary>The {count} cells behind this section: `scripts/reproduce {name}`"
        "</summary>",
        f"`scripts/reproduce {name} --only TEXT` runs those whose name holds the text, `--list` "
        "prints their commands.",
    ]
    if results.commands:
        first, _ = next(iter(results.commands.values()))
        links = (
            f"[{cell}]({results.folder.name}/{file})"
            for cell, (_, file) in results.commands.items()
        )
        took = f"Together they took {math.ceil(results.core_minutes)} minutes of one core."
        parts += [
            f"{took} Each file names its command and its seconds; the first:",
            f"    {first}",
            " ·\n".join(links),
        ]
    if results.missing:
        parts += [f"**Not run yet**, {len(results.missing)}:", " ·\n".join(results.missing)]
    return "\n\n".join([*parts, "</details>"])


def part(title: str, show: Callable[[Results], str], results: Results) -> str:
    """Returns a part of a section, or that it waits for a cell."""
    try:
        text = show(results)
    except NotRun as missing:
        text = f"Not run yet (it waits for `{missing}`, and maybe more: see below)."
    return f"### {title}\n\n{text}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Paired:
    """By how much one is above the other, seed by seed."""

    mean: float
    low: float  # of the 95 % confidence interval of the mean, by Student's t
    high: float
    p: float  # of the paired t-test, two-sided

    def __str__(self) -> str:
        """As in a table."""
        if self.low == self.high == 0:
            return "0 in every seed"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p {p_value(self.p)}"


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Returns the difference between two lists of figures for the same seeds.

    Wilcoxon's signed-rank test is no use here: its least two-sided p for five pairs is 1/16.
    """
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean = statistics.fmean(apart)
    if len(set(apart)) == 1:  # no spread to judge by
        return Paired(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(apart) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(apart) - 1))
    return Paired(mean, mean - half, mean + half, p)


def p_value(p: float) -> str:
    """Returns a p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def accuracy(figures: Figures | None) -> str:
    """Returns mean ± standard deviation over the seeds; None: the cell has not been run."""
    if figures is None:
        return "not run"
    return f"{figures['accuracy']['mean']:.2f} ± {figures['accuracy']['std_over_seeds']:.2f}"
