"""The cells of a study as tasks of a Ray cluster: one a free CPU, on whatever machine it is.

The project goes along as it lies here, without what no cell reads. p2pl itself, torch and the data
must be on every machine; a task whose p2pl is another one fails, and says so. A task that was lost
with its worker is run again by Ray. Rows come back to the process that leads the study, which alone
writes them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments import runner, store
from experiments.grid import ROOT, Cell
from p2pl.simulation.joined import Ray, summary
from p2pl.simulation.worker import Stamp, stamp

RETRIES = 3  # of a task whose worker died; chosen: a cell that kills its worker does so every time
LOOK_S = 60.0  # how often it is looked whether there is any machine left
LEFT_HERE = ("/docs", "/notebooks", "/results", "/runs", "/tests", "/site", ".venv*", ".git")


class NobodyLeft(Exception):
    """No machine of the cluster has a CPU for tasks."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The code that a study is led by."""

    stamp: Stamp
    commit: str | None
    dirty: bool


def finished(ray: Ray, cells: Sequence[Cell], jobs: int | None) -> runner.Finished:
    """Yields cells with their rows, or with why they failed, as tasks are done.

    Args:
        ray: joined, with `environment()`.
        cells: to run.
        jobs: at a time, at most; None: as many as there are CPUs.

    Raises:
        NobodyLeft: there is no CPU for tasks in the cluster.
    """
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(run)
    origin = Origin(stamp(), store.commit_now(), store.is_dirty())
    waiting = list(reversed(cells))
    running: dict[Any, Cell] = {}
    while waiting or running:
        while waiting and (jobs is None or len(running) < jobs):
            cell = waiting.pop()
            running[task.options(name=cell.name).remote(cell, origin)] = cell
        done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
        if not done and ray.cluster_resources().get("CPU", 0) < 1:
            raise NobodyLeft("no machine of the cluster has a CPU for tasks")
        for ref in done:
            yield running.pop(ref), _row(ray, ref)


def environment() -> dict[str, Any]:
    """Returns what a worker needs to run cells: the project, and where data are."""
    told = {name: os.environ[name] for name in ("P2PL_DATA_DIR",) if name in os.environ}
    return {"working_dir": str(ROOT), "excludes": list(LEFT_HERE), "env_vars": told}


def run(cell: Cell, origin: Origin) -> store.Row | str:
    """Returns what a cell came to on the machine where this is called, or why it failed.

    Args:
        cell: to run.
        origin: the code that the study is led by.
    """
    runner.be_ready()
    if (here := stamp()) != origin.stamp:
        return f"a worker has other code, {here}, than this process, {origin.stamp}"
    row = runner.run_cell(cell, threads=1)
    if isinstance(row, str):
        return row
    return replace(row, commit=origin.commit, dirty=origin.dirty)


def _row(ray: Ray, ref: Any) -> store.Row | str:  # noqa: ANN401  # of Ray, which has no types
    """Returns the row of a task that is done, or why there is none."""
    try:
        row: store.Row | str = ray.get(ref)
    except ray.exceptions.RayError as fault:
        return summary(getattr(fault, "cause", None) or fault)
    return row
