"""Runs the cells of a study that are missing; what was stopped goes on where it was."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from subprocess import CalledProcessError
from typing import TypeAlias, TypeVar

from click import ClickException
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments import store
from experiments.grid import ROOT, Cell
from p2pl.cli import app
from p2pl.data import load as data
from p2pl.errors import P2PLError

T = TypeVar("T")

# Cells with their rows, or with why they failed, as they are done; and what runs cells so.
Finished: TypeAlias = Iterator[tuple[Cell, store.Row | str]]
Running: TypeAlias = Callable[[Sequence[Cell], int | None], Finished]


def missing(cells: Sequence[Cell], raw: Path, study: str, *, stale: bool = False) -> list[Cell]:
    """Returns the cells that have no fresh figures.

    Args:
        cells: of the study.
        raw: the folder of figures.
        study: its name.
        stale: whether figures that another commit of the client made count as none.
    """
    homes = {cell.home or study for cell in cells}
    rows = {home: store.read(store.path(raw, home)) for home in homes}
    found = []
    for cell in cells:
        row = rows[cell.home or study].get(cell.name)
        if not store.is_fresh(row, cell) or (stale and row and store.origin(row)):
            found.append(cell)
    return found


def run_cells(
    cells: Sequence[Cell], raw: Path, study: str, jobs: int | None, running: Running | None = None
) -> dict[str, str]:
    """Returns why cells failed, by name, once all of them have been run.

    Args:
        cells: to run; those that are timed come last, one at a time.
        raw: the folder of figures.
        study: its name.
        jobs: cells at a time, at most; None: as many as there is room for.
        running: runs cells, so many at a time; None: processes of this machine.
    """
    running = running or in_processes
    together = [cell for cell in cells if not cell.timed]
    alone = [cell for cell in cells if cell.timed]
    failed = _keep(together, raw, study, running(together, jobs))
    return failed | _keep(alone, raw, study, running(alone, 1))


def _keep(cells: Sequence[Cell], raw: Path, study: str, finished: Finished) -> dict[str, str]:
    """Returns why cells failed, by name, once all have been run; keeps the rows of the others."""
    if not cells:
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
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        # By work, so that the time left is not thrown off by a few long cells.
        work = sum(cell.minutes for cell in cells)
        task = bar.add_task(study, total=work, done=0, cells=len(cells))
        for number, (cell, row) in enumerate(finished, 1):
            if isinstance(row, str):
                failed[cell.name] = row
            else:  # only this process writes, so no row is lost to another worker
                store.add(store.path(raw, cell.home or study), row)
            name = f"{study}: {cell.name}"
            bar.update(task, advance=cell.minutes, done=number, description=name)
    return failed


def in_processes(cells: Sequence[Cell], jobs: int | None) -> Finished:
    """Yields cells with their rows, or with why they failed, as processes of this machine end.

    Args:
        cells: to run.
        jobs: at a time; None: one a core.
    """
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // (jobs or cores))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or cores, context, initializer=_be_worker) as pool:
        running = {pool.submit(run_cell, cell, threads): cell for cell in cells}
        for done in as_completed(running):
            yield running[done], done.result()


def _be_worker() -> None:
    """Makes this process ready for cells, and end with its parent."""
    be_ready()
    threading.Thread(target=_end_with_parent, daemon=True).start()


@cache
def be_ready() -> None:
    """Makes this process load the same data once, not for every cell, which is run from `ROOT`."""
    os.chdir(ROOT)
    data.load = _kept(data.load)  # ten seconds each


def _kept(load: Callable[..., T]) -> Callable[..., T]:
    """Returns what loads the same as before, once for equal arguments, hashable or not."""
    kept: dict[str, T] = {}

    def loaded(*args: object, **named: object) -> T:
        key = repr((args, sorted(named.items())))
        if key not in kept:
            kept[key] = load(*args, **named)
        return kept[key]

    return loaded


def _end_with_parent() -> None:
    """Waits for the parent's end, and ends this process, in the middle of a cell or not."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def run_cell(cell: Cell, threads: int) -> store.Row | str:
    """Returns what a cell's command came to in this process, or why it failed."""
    begun, cpu_begun = time.monotonic(), sum(os.times()[:4])
    commit, dirty = store.commit_now(), store.is_dirty()  # of the code that begins
    try:
        printed = _printed(cell, threads)
    except (P2PLError, ClickException, RuntimeError, CalledProcessError, MemoryError) as fault:
        return f"{type(fault).__name__}: {fault}"
    return store.Row(
        cell=cell.name,
        command=cell.command,
        session=cell.session,
        commit=commit,
        dirty=dirty,
        recorded_by=None,
        packages=store.versions(),
        threads=threads,
        seconds=round(time.monotonic() - begun, 1),
        figures=store.rounded(json.loads(printed)),
        cpu_seconds=round(sum(os.times()[:4]) - cpu_begun, 1),
    )


def _printed(cell: Cell, threads: int) -> str:
    """Returns what a cell's command prints."""
    if cell.script:
        python = [sys.executable] if cell.script.endswith(".py") else []
        script = [*python, cell.script, *cell.arguments]
        return subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout.decode()
    printed = io.StringIO()
    more = ("--threads", str(threads)) if cell.verb == "simulate" else ()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        app([cell.verb, *cell.arguments, *more, "--json"], standalone_mode=False)
    return printed.getvalue()
