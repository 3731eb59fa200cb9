"""What `p2pl simulate` does: every seed, the screen, the run directories, the figures."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p2pl.data import load as datasets
from p2pl.learning import device as devices
from p2pl.simulate.engine import run
from p2pl.simulate.numbers import numbers
from p2pl.simulate.rundirs import check_out, write_numbers, write_seed
from p2pl.simulate.setup import Setup, check
from p2pl.simulate.show import Bar, table


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a simulation, and what to do with what comes of it."""

    name: str  # of the session
    data: str
    data_dir: Path | None
    seeds: int
    held_out: int | None  # training examples that are judged on; None = the test set is
    device: str
    threads: int | None  # None = all cores
    out: Path | None
    quiet: bool  # no table


def simulate(setup: Setup, options: Options) -> dict[str, Any]:
    """Returns the figures of `options.seeds` seeds, from the setup's own on.

    Raises:
        InputError: something asked for is not possible.
        TrainingDiverged: a peer's loss is no longer finite.
    """
    check(setup)
    if options.out:
        check_out(options.out)
    device = devices.pick(options.device)
    torch.set_num_threads(options.threads or devices.cores())
    whole = datasets.load(options.data, setup.session.task, data_dir=options.data_dir)
    if options.held_out:
        whole = datasets.hold_out(whole, options.held_out)
    whole = datasets.Data(
        whole.train.to(device), whole.test and whole.test.to(device), whole.labels
    )
    results = []
    with Bar(options.seeds * setup.session.exchange.rounds, Console(file=sys.stderr)) as bar:
        for number in range(options.seeds):
            seeded = replace(setup, seed=setup.seed + number)
            result = run(seeded, whole, device, bar.round)
            if options.out:
                write_seed(result, options.out, options.name, whole.labels)
            results.append(result)
    figures = {
        "name": options.name,
        "data": options.data,
        "held_out": options.held_out,
        **numbers(results),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    if options.out:
        write_numbers(options.out, figures)
    if not options.quiet:
        Console().print(table(figures))
    return figures
