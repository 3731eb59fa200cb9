"""All engines at the same work, in turns, in one run; see `scripts/engines/work.py`.

The programs are the project's own, because the work must be the same to the step: the same rows,
the same parameters to begin with, both models, and processor time.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2pl.data import partition
from p2pl.data.load import Data, load, split_validation
from p2pl.learning import checkpoint, models
from p2pl.protocol.session import Session, SessionFile, read_spec
from p2pl.seeds import seeded

HERE = Path(__file__).parent
OURS = "p2pl"
JAX = "jax"
PROGRAMS = {
    JAX: "jax_vmap.py",
    "fedjax": "fedjax_avg.py",
    "pfl": "pfl_avg.py",
    "flower": "flower_avg.py",
}
DEADLINE_S = 900.0  # of one run of one engine
FLOWER_PEERS = 100  # of more, each of Flower's rounds starts as many clients anew: hours
# One thread, of every library that might take more.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Job:
    """One size of the comparison."""

    model: str
    data: str  # name of the data set
    peers: int
    rounds: int
    examples: int  # training examples of the data set that are used; more than it has: twice over

    @property
    def spec(self) -> str:
        """The session, as TOML."""
        mnist = self.data.endswith("mnist")
        return f"""
name = "bench-engines"
[task]
input = {"[1, 28, 28]" if mnist else "[3, 32, 32]"}
classes = 10
[model]
name = "{self.model}"
[training]
learning_rate = {0.1 if mnist else 0.05}
batch_size = 64
validation_share = 0.05
[exchange]
rounds = {self.rounds}
cohort = 4
[mixing]
rule = "uniform"
"""


MNIST, CIFAR = "ylecun/mnist", "uoft-cs/cifar10"
LINEAR = tuple(
    Job("logreg", MNIST, peers, rounds, examples)
    for peers, rounds, examples in (
        (6, 10, 60_000),
        (100, 3, 60_000),
        (1_000, 3, 60_000),
        (10_000, 3, 120_000),
    )
)
NETWORK = (Job("cnn", CIFAR, 10, 2, 5_000), Job("cnn", CIFAR, 100, 1, 10_000))


@dataclass(frozen=True)
class Run:
    """One run of one engine, in a process of its own."""

    engine_s: float  # processor time of the rounds
    compile_s: float  # of a first round, thrown away, with compilation
    process_s: float  # processor time of all of it, children included
    peak_mib: float
    accuracy: float


def compare(home: Path, turns: int, jobs: Sequence[Job], engines: Sequence[str]) -> None:
    """Prints a table a job: medians of all turns, and how many times as long as ours, turn by turn.

    Args:
        home: the folder of data sets.
        turns: how often each engine runs.
        jobs: the sizes.
        engines: names of the others.
    """
    pythons = {name: _environment(name) for name in engines}
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            _write(job, home, place)
            those = [name for name in engines if name != "flower" or job.peers <= FLOWER_PEERS]
            runs: dict[str, list[Run]] = {name: [] for name in (OURS, *those)}
            for _ in range(turns):
                runs[OURS].append(_ours(job, place))
                for name in list(those):
                    made = _other(name, pythons[name], place)
                    if made is None:
                        those.remove(name)
                    else:
                        runs[name].append(made)
            _table(job, runs)


def _environment(name: str) -> str:
    """Returns the Python that has the engine."""
    script = ["flower_env", "simulation"] if name == "flower" else ["engine_env", name]
    made = subprocess.run([str(HERE / script[0]), *script[1:]], stdout=subprocess.PIPE, check=True)
    return f"{HERE.parent / made.stdout.decode().split()[-1]}/bin/python"


def _write(job: Job, home: Path, place: Path) -> None:
    """Writes the session, the data as parquet, and the same work for the other engines."""
    (place / "bench.toml").write_text(job.spec)
    _write_data(home / job.data, place / "data", job.examples)
    session = read_spec(job.spec).session()
    data = load(str(place / "data"), session.task)
    assert data.test is not None
    layers = [one.detach().numpy() for one in models.build(session).parameters()]
    arrays: dict[str, Any] = {f"initial_{k}": one for k, one in enumerate(layers)}
    np.savez(
        place / "work.npz",
        x=_bytes(data.train.x),
        y=data.train.y.numpy(),
        rows=_rows(job, session, data),
        test_x=_bytes(data.test.x),
        test_y=data.test.y.numpy(),
        layers=len(layers),
        rounds=job.rounds,
        rate=session.training.learning_rate,
        batch=session.training.batch_size,
        **arrays,
    )


def _bytes(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return (x * 255).round().byte().numpy()


def _rows(job: Job, session: Session, data: Data) -> np.ndarray[Any, Any]:
    """Returns the rows that each peer trains on, [N, k]: of all as many, the same as ours."""
    parts = partition.parse("iid")(data.train.y.numpy(), job.peers, 0)
    name = SessionFile("bench-engines", session, checkpoint.build(session)[1], trackers=()).id
    kept = []
    for part in parts:
        order = seeded(name, "", 0, "validation split")
        own, _ = split_validation(len(part), session.training.validation_share, order)
        kept.append(part[own.numpy()])
    return np.stack(kept)


def _write_data(home: Path, place: Path, examples: int) -> None:
    """Writes so many of a data set's training examples, and its whole test set."""
    from pyarrow import concat_tables, parquet

    place.mkdir()
    for split in ("train", "test"):
        files = sorted(home.rglob(f"{split}-*.parquet"))
        table = concat_tables([parquet.read_table(file) for file in files])
        if split == "train":
            table = concat_tables([table] * (1 + (examples - 1) // len(table))).slice(0, examples)
        parquet.write_table(table, place / f"{split}-00000-of-00001.parquet")


def _process(command: Sequence[str]) -> tuple[str, float, float]:
    """Returns what a command printed, its processor time and its memory, MiB.

    Raises:
        subprocess.SubprocessError: it failed, or took longer than `DEADLINE_S`.
    """
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            ["timeout", str(DEADLINE_S), *command],
            stdout=printed,
            stderr=said,
            env={**os.environ, **ONE_THREAD},
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        if child.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise subprocess.SubprocessError(f"ended with {child.returncode}: {' '.join(last)}")
        return printed.read().decode(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _ours(job: Job, place: Path) -> Run:
    """Returns a run of `p2pl simulate`: all to all, so that the mix is the plain mean."""
    everybody = ["--peers", str(job.peers), "--cohort", str(job.peers - 1), "--threads", "1"]
    once = ["--score-every", "0", "--score-peers", "1", "--json"]
    command = [sys.executable, "-m", "p2pl.cli", "simulate", str(place / "bench.toml")]
    printed, process_s, peak = _process(
        [*command, "--data", str(place / "data"), *everybody, *once]
    )
    figures = json.loads(printed)
    return Run(figures["cpu_seconds"], 0.0, process_s, peak, figures["accuracy"]["mean"])


def _other(name: str, python: str, place: Path) -> Run | None:
    """Returns a run of another engine; None where it does not come to an end."""
    program = str(HERE / "engines" / PROGRAMS[name])
    try:
        printed, process_s, peak = _process([python, program, str(place / "work.npz")])
    except subprocess.SubprocessError as fault:
        print(f"  {name}: {fault}", flush=True)
        return None
    told = json.loads(printed.splitlines()[-1])
    return Run(told["engine_s"], told["compile_s"], process_s, peak, told["accuracy"])


def _table(job: Job, runs: dict[str, list[Run]]) -> None:
    work = f"{job.model}, {job.data}, {job.peers} peers, {job.rounds} rounds"
    columns = "engine s   of ours (least..most)   compile s  process s  of ours  MiB  accuracy"
    print(f"\n{work}: processor seconds, one thread, medians\nengine   {columns}")
    for name, made in runs.items():
        if not made:
            continue
        engine, process = (_ratio(made, runs[OURS], of) for of in (_engine_s, _process_s))
        print(
            f"{name:8} {_median(made, _engine_s):8.2f}   {engine:22} "
            f"{statistics.median(one.compile_s for one in made):9.2f} "
            f"{_median(made, _process_s):10.1f}  {process.split()[0]:>7} "
            f"{max(one.peak_mib for one in made):5.0f} {made[-1].accuracy:8.2f}",
            flush=True,
        )
    starts = [one.process_s - one.engine_s for one in runs[OURS]]
    print(f"ours takes {statistics.median(starts):.2f} s before its first round and after its last")


def _engine_s(run: Run) -> float:
    return run.engine_s


def _process_s(run: Run) -> float:
    return run.process_s


def _median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def _ratio(theirs: Sequence[Run], ours: Sequence[Run], of: Callable[[Run], float]) -> str:
    """Returns how many times as long as ours it took, turn by turn: the median, least and most."""
    each = [of(one) / of(mine) for one, mine in zip(theirs, ours, strict=False)]
    return f"{statistics.median(each):.2f} ({min(each):.2f}..{max(each):.2f})"
