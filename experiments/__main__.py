"""The command line of the experiments; `scripts/reproduce` sets up what it needs and calls it."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from experiments import grid, page, runner, store, tasks
from experiments.grid import ROOT, STUDIES, Cell, NotRun, Study
from p2pl.errors import InputError, P2PLError, printable, wrong
from p2pl.simulation.joined import joined
from p2pl.simulation.setup import is_ray


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a study, or goes on with it, and exits with 1 where a cell failed."""
    options = parser().parse_args(arguments)
    # Ended from outside, a study takes its workers and their peers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.jobs is not None and options.jobs < 1:
        sys.exit(f"reproduce: {wrong('--jobs', got=options.jobs, allowed='1 or more')}")
    names = [options.name]
    if options.name == "all":
        names = list(STUDIES if options.page else grid.ALL)
        print(f"reproduce: all is {' '.join(names)}", file=sys.stderr)
        if not options.page:
            print("reproduce: the other studies are run by name", file=sys.stderr)
    studies = [grid.study(name) for name in names]
    home = options.out or ROOT / ("runs/fast" if options.fast else "")
    place = page.Place(home.resolve(), hasty=options.fast)
    try:
        check_texts(studies, place, options)
        failed = [study.name for study in studies if not reproduce(study, place, options)]
    except (P2PLError, tasks.NobodyLeft) as fault:
        sys.exit(printable(f"reproduce: {fault}"))
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(141)
    sys.exit(1 if failed else 0)


def parser() -> argparse.ArgumentParser:
    """Returns what the command line may say."""
    made = argparse.ArgumentParser(prog="reproduce", description=__doc__)
    made.add_argument("name", choices=("all", *STUDIES), metavar="NAME|all")
    where = (
        "a folder for results/raw, docs/results and RESULTS.md; default: here; --fast: runs/fast"
    )
    made.add_argument("--out", type=Path, help=where)
    made.add_argument("--jobs", type=int, help="cells at a time, at most; default: one a core")
    where = "ray or ray:ADDRESS: cells are tasks of a Ray cluster; default: this machine's cores"
    made.add_argument("--engine", help=where)
    made.add_argument("--fast", action="store_true", help="2 seeds, 2 rounds: does it run?")
    made.add_argument("--only", default="", help="cells whose name holds this text")
    made.add_argument("--list", action="store_true", help="print the commands and stop")
    made.add_argument("--show", metavar="TEXT", help="print the rows of such cells and stop")
    made.add_argument("--page", action="store_true", help="run nothing, write what is there")
    stale = "run what another commit of the client made as well"
    made.add_argument("--stale", action="store_true", help=stale)
    return made


def check_texts(studies: Sequence[Study], place: page.Place, options: argparse.Namespace) -> None:
    """Raises InputError where no cell has what `--only` or `--show` looks for."""
    hint = f"scripts/reproduce {options.name} --list prints all"
    names = [cell.name for study in studies for cell in place.cells(study)]
    if not any(options.only in name for name in names):
        allowed = "a part of the name of a cell"
        raise InputError(wrong("--only", got=options.only, allowed=allowed, hint=hint))
    text = options.show
    if text is not None and not any(
        text in row.cell for study in studies for row in rows(study, place)
    ):
        allowed = "a part of the name of a cell that was run"
        raise InputError(wrong("--show", got=text, allowed=allowed, hint=hint))


def reproduce(study: Study, place: page.Place, options: argparse.Namespace) -> bool:
    """Returns whether all went well with one study."""
    cells = [cell for cell in place.cells(study) if options.only in cell.name]
    if options.list:
        list_cells(study, place, cells)
        return True
    if options.show is not None:
        show(study, place, options.show)
        return True
    if not options.page:
        todo = runner.missing(cells, place.raw, study.name, stale=options.stale)
        with running(options.engine) as run:
            failed = runner.run_cells(todo, place.raw, study.name, options.jobs, run)
        for name, reason in failed.items():
            print(f"reproduce: cell {name} failed: {reason}", file=sys.stderr)
        if failed:
            return False
        if options.only:
            return True
    return write(study, place)


@contextmanager
def running(engine: str | None) -> Iterator[runner.Running]:
    """Yields what runs cells.

    Args:
        engine: `ray` or `ray:ADDRESS`, for tasks of a cluster; None: processes of this machine.

    Raises:
        P2PLError: the cluster cannot be joined.
    """
    if engine is None:
        yield runner.in_processes
        return
    if not is_ray(engine):
        raise InputError(wrong("--engine", got=engine, allowed="ray, or ray:ADDRESS"))
    cores = len(os.sched_getaffinity(0))
    with joined(engine, cores, environment=tasks.environment()) as ray:
        yield partial(tasks.finished, ray)


def write(study: Study, place: page.Place) -> bool:
    """Returns whether there was something to write."""
    try:
        print(f"page {page.write_page(study, place)}")
    except NotRun as missing:
        nothing = f"reproduce: {study.name} has nothing to show before cell {missing} is run"
        print(nothing, file=sys.stderr)
        return False
    print(f"index {page.write_index(place)}")
    return True


def list_cells(study: Study, place: page.Place, cells: Sequence[Cell]) -> None:
    """Prints the command of each cell, and what is to be known of its figures."""
    kept = {home: store.read(store.path(place.raw, home)) for home in page.homes(study)}
    for cell in cells:
        row = kept[cell.home or study.name].get(cell.name)
        if row is None:
            state = "not run"
        elif not store.is_fresh(row, cell):
            state = "stale"
        else:
            state = store.origin(row)
        print(f"{cell.name}: {cell.command}{f'  # {state}' if state else ''}")


def show(study: Study, place: page.Place, text: str) -> None:
    """Prints the rows of the cells whose name holds a text, as JSON."""
    for row in rows(study, place):
        if text in row.cell:
            print(json.dumps(asdict(row), indent=1))


def rows(study: Study, place: page.Place) -> list[store.Row]:
    """Returns all rows of a study, and of those that keep figures for it."""
    kept = [store.read(store.path(place.raw, home)) for home in sorted(page.homes(study))]
    return [row for of_home in kept for row in of_home.values()]


if __name__ == "__main__":
    main()
