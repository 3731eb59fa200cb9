"""What the experiments of `scripts/reproduce` share: cells, raw figures, statistics, RESULTS.md.

An experiment is a frozen list of cells; a cell is one `p2pl simulate` command. What it prints is
kept in `OUT/raw/EXPERIMENT/CELL.json` and not computed again while the command stays the same, so a
run that was stopped goes on where it was. Tables and pictures are made from these files alone, and
stand in RESULTS.md between two markers that bear the experiment's name.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
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
from p2pl.errors import P2PLError
from p2pl.learning import data
from p2pl.network.files import write_atomically

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
    """One simulation with all its seeds, or one run of a script that prints a JSON object."""

    name: str  # of its file
    arguments: tuple[str, ...]
    minutes: float = 1.0  # that it takes on one core, roughly: for the time left
    home: str = ""  # the experiment that keeps its raw figures; "" = this one
    script: str = ""  # from ROOT; "" = p2pl simulate

    @property
    def command(self) -> str:
        """What a person would type to get the same figures."""
        program = f".venv/bin/python {self.script}" if self.script else "p2pl simulate"
        return f"{program} {shlex.join(self.arguments)}"

    def file(self, raw: Path) -> Path:
        """Returns where its figures are kept, given the experiment's folder of raw figures."""
        return raw.parent / (self.home or raw.name) / f"{self.name}.json"


@dataclass(frozen=True, slots=True)
class Results:
    """The raw figures of an experiment, all cells, and a place for its pictures."""

    figures: Mapping[str, Figures]  # by cell
    commands: Mapping[str, tuple[str, str]]  # by cell: the command, and the file from `folder`
    folder: Path

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
    failed = run_cells(cells, raw, options.jobs)
    for name, reason in failed.items():
        print(f"reproduce: cell {name} failed: {reason}", file=sys.stderr)
    if failed:
        sys.exit(1)
    if options.only:
        return
    page = ROOT / PAGE if out == ROOT / "results" else out.parent / PAGE
    write_section(page, experiment, read_results(experiment.cells, raw, out))
    print(f"page {page}")


def hasty(cell: Cell) -> Cell:
    """Returns the cell with so little to do that it shows whether it runs, and nothing else."""
    little = ("--fast",) if cell.script else ("--seeds", "2", "--rounds", "2")
    return replace(cell, arguments=(*cell.arguments, *little), minutes=cell.minutes / 50)


def run_cells(cells: Sequence[Cell], raw: Path, jobs: int) -> dict[str, str]:
    """Returns why cells failed, by name, once all that were missing have been run."""
    raw.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if not is_done(cell, raw)]
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
        with ProcessPoolExecutor(jobs, context, initializer=_keep_data) as pool:
            running = {pool.submit(run_cell, cell, raw, threads): cell for cell in missing}
            for number, done in enumerate(as_completed(running), 1):
                cell = running[done]
                reason = done.result()
                if reason:
                    failed[cell.name] = reason
                name = f"{raw.name}: {cell.name}"
                bar.update(task, advance=cell.minutes, done=number, description=name)
    return failed


def _keep_data() -> None:
    """Makes this process load the same data once, and not for every cell: ten seconds each."""
    os.chdir(ROOT)
    data.load = cache(data.load)


def run_cell(cell: Cell, raw: Path, threads: int) -> str:
    """Runs a cell's command in this process, keeps its figures, and returns why it failed or ""."""
    begun = time.monotonic()
    command = ["simulate", *cell.arguments, "--threads", str(threads), "--json"]
    printed = io.StringIO()
    try:
        if cell.script:
            script = [sys.executable, cell.script, *cell.arguments]
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
    """Returns whether the figures of this very command are there."""
    try:
        record = json.loads(cell.file(raw).read_bytes())
        return bool(record["arguments"] == list(cell.arguments))
    except (OSError, ValueError, KeyError):
        return False


def read_results(cells: Sequence[Cell], raw: Path, folder: Path) -> Results:
    """Returns what was kept of all cells."""
    records = {cell: json.loads(cell.file(raw).read_bytes()) for cell in cells}
    return Results(
        {cell.name: record["figures"] for cell, record in records.items()},
        {
            cell.name: (record["command"], str(cell.file(raw).relative_to(folder)))
            for cell, record in records.items()
        },
        folder,
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
    """Returns each cell's command and file, folded away."""
    rows = [
        f"| [{cell}]({results.folder.name}/{file}) | `{command}` |"
        for cell, (command, file) in results.commands.items()
    ]
    head = (
        f"<details><summary>The commands behind this section: `scripts/reproduce {name}`</summary>"
    )
    return "\n".join([head, "", "| cell | command |", "|---|---|", *rows, "", "</details>"])


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


def accuracy(figures: Figures) -> str:
    """Returns mean ± standard deviation over the seeds."""
    return f"{figures['accuracy']['mean']:.2f} ± {figures['accuracy']['std_over_seeds']:.2f}"
