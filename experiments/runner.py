"""Runs the cells of a study that are missing; what was stopped goes on where it was."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CalledProcessError
from typing import TypeVar

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


def run_cells(cells: Sequence[Cell], raw: Path, study: str, jobs: int) -> dict[str, str]:
    """Returns why cells failed, by name, once all of them have been run."""
    together = [cell for cell in cells if not cell.timed]
    alone = [cell for cell in cells if cell.timed]
    return _run(together, raw, study, jobs) | _run(alone, raw, study, 1)


def _run(cells: Sequence[Cell], raw: Path, study: str, jobs: int) -> dict[str, str]:
    """Returns why cells failed, by name, once all have been run, so many at a time."""
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
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        # By work, so that the time left is not thrown off by a few long cells.
        work = sum(cell.minutes for cell in cells)
        task = bar.add_task(study, total=work, done=0, cells=len(cells))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=_be_worker) as pool:
            running = {pool.submit(run_cell, cell, threads): cell for cell in cells}
            for number, done in enumerate(as_completed(running), 1):
                cell, row = running[done], done.result()
                if isinstance(row, str):
                    failed[cell.name] = row
                else:  # only this process writes, so no row is lost to another worker
                    store.add(store.path(raw, cell.home or study), row)
                name = f"{study}: {cell.name}"
                bar.update(task, advance=cell.minutes, done=number, description=name)
    return failed


def _be_worker() -> None:
    """Makes this process load the same data once, not for every cell, and end with its parent."""
    os.chdir(ROOT)
    data.load = _kept(data.load)  # ten seconds each
    threading.Thread(target=_end_with_parent, daemon=True).start()


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
    begun = time.monotonic()
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
