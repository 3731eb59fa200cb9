"""All engines at the same work, in turns, in one run; see `scripts/engines/work.py`.

What has been run is kept in a file, a line a run: a bench that was cut off goes on where it was.

The programs are the project's own, because the work must be the same to the step: the same rows,
the same parameters to begin with, both models, and processor time.

The engine's time is that of all rounds, without scores, in every row: each of the others scores one
model once they are over. Ours scores two (what a peer trained, and the mix) within its last round,
which is taken off by the processor time of that phase. The whole process has it all.
"""

import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
FLOWER = "flower"
PROGRAMS = {
    JAX: "jax_vmap.py",
    "fedjax": "fedjax_avg.py",
    "pfl": "pfl_avg.py",
    FLOWER: "flower_avg.py",
}
DEADLINE_S = 900.0  # of one run of one engine
FAR = 10.0  # times as long as ours in its first turn: an engine has no second one
FLOWER_PEERS = 100  # of more, each of Flower's rounds starts as many clients anew: hours
# How many times as long as ours another engine shall take: bare JAX by the number of peers.
ASKED_OF_JAX = {6: 1.0, 10: 1.0, 100: 1.0, 1_000: 0.8, 10_000: 0.8}
ASKED_OF_OTHERS = 2.0
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
    def name(self) -> str:
        """MODEL:PEERS."""
        return f"{self.model}:{self.peers}"

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

    engine_s: float  # processor time of the rounds, without scores
    score_s: float  # of ours: what scoring takes within the rounds
    compile_s: float  # of a first round, thrown away, with compilation
    process_s: float  # processor time of all of it, children included
    peak_mib: float
    accuracy: float


@dataclass(frozen=True)
class Kept:
    """The runs so far, of this commit and with these settings, in a file of one JSON object a line.

    Attributes:
        file: where they are.
        commit: of the project; runs of another one are left alone and do not count.
    """

    file: Path
    commit: str

    def find(self, job: Job, engine: str, turn: int) -> "Run | str | None":
        """Returns a run, or why it did not come to an end; None: there was none yet."""
        if not self.file.exists():
            return None
        wanted = self._names(job, engine, turn)
        for line in self.file.read_text().splitlines():
            told = json.loads(line)
            if {name: told.get(name) for name in wanted} == wanted:
                return told["fault"] if "fault" in told else Run(**told["run"])
        return None

    def add(self, job: Job, engine: str, turn: int, made: "Run | str") -> None:
        """Writes a run, or why it did not come to an end."""
        what = {"fault": made} if isinstance(made, str) else {"run": asdict(made)}
        with self.file.open("a") as file:
            file.write(json.dumps({**self._names(job, engine, turn), **what}) + "\n")

    def _names(self, job: Job, engine: str, turn: int) -> dict[str, Any]:
        return {"commit": self.commit, **asdict(job), "engine": engine, "turn": turn}


def compare(
    home: Path, turns: int, jobs: Sequence[Job], engines: Sequence[str], file: Path
) -> None:
    """Prints a table a job: medians of all turns, and how many times as long as ours, turn by turn.

    Args:
        home: the folder of data sets.
        turns: how often each engine runs.
        jobs: the sizes.
        engines: names of the others.
        file: where runs are kept.
    """
    kept = Kept(file, _commit())
    pythons = {name: _environment(name) for name in engines}
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            _compare_at(job, turns, kept, pythons, partial(_prepared, job, home, Path(folder)))


def _compare_at(
    job: Job, turns: int, kept: Kept, pythons: Mapping[str, str], prepared: Callable[[], Path]
) -> None:
    """Prints the table of one job; see `compare`.

    Args:
        job: the size.
        turns: how often each engine runs.
        kept: the runs so far.
        pythons: by engine, what runs it.
        prepared: returns the folder that holds the work.
    """
    runs: dict[str, dict[int, Run]] = {name: {} for name in (OURS, *pythons)}
    faults: dict[str, str] = {}
    if FLOWER in runs and job.peers > FLOWER_PEERS:
        faults[FLOWER] = f"not run with more than {FLOWER_PEERS} peers, which takes it hours"
    for turn in range(turns):
        for name in runs:
            if name in faults:
                continue
            made = kept.find(job, name, turn)
            if made is None:
                made = _run(name, job, pythons, prepared())
                kept.add(job, name, turn, made)
                print(
                    f"  {job.name}, {name}, turn {turn + 1} of {turns}: {_told(made)}", flush=True
                )
            if isinstance(made, str):
                faults[name] = made
                continue
            runs[name][turn] = made
            if turn == 0 and made.engine_s > FAR * runs[OURS][0].engine_s:
                faults[name] = f"one turn: more than {FAR:.0f} times as long"
    _table(job, runs, faults)


def _told(made: Run | str) -> str:
    return made if isinstance(made, str) else f"{made.engine_s:.2f} s"


def _commit() -> str:
    """Returns which code is measured: the commit, and a mark of what has changed since."""
    git = ["git", "-C", str(HERE.parent)]
    said = [
        subprocess.run([*git, *asked], stdout=subprocess.PIPE, check=True).stdout
        for asked in (["rev-parse", "HEAD"], ["diff", "HEAD", "--", "client", "scripts"])
    ]
    return said[0].decode().strip() + (hashlib.sha256(said[1]).hexdigest()[:8] if said[1] else "")


def _prepared(job: Job, home: Path, place: Path) -> Path:
    """Returns the folder with the work, which is written when it is first asked for."""
    if not (place / "work.npz").exists():
        # In another process: what a run takes at its most counts what this one held when it began.
        writer = multiprocessing.get_context("fork").Process(target=_write, args=(job, home, place))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(f"bench: the work of {job.name} could not be written")
    return place


def _run(name: str, job: Job, pythons: Mapping[str, str], place: Path) -> Run | str:
    """Returns a run of an engine, or why it did not come to an end."""
    try:
        return _ours(job, place) if name == OURS else _other(name, pythons[name], place)
    except subprocess.SubprocessError as fault:
        if name == OURS:
            raise
        return str(fault)


def _environment(name: str) -> str:
    """Returns the Python that has the engine."""
    script = ["flower_env", "simulation"] if name == FLOWER else ["engine_env", name]
    made = subprocess.run([str(HERE / script[0]), *script[1:]], stdout=subprocess.PIPE, check=True)
    return f"{HERE.parent / made.stdout.decode().split()[-1]}/bin/python"


def _write(job: Job, home: Path, place: Path) -> None:
    """Writes the session, the data as parquet, and the same work for the other engines."""
    (place / "bench.toml").write_text(job.spec)
    write_data(home / job.data, place / "data", job.examples)
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


def write_data(home: Path, place: Path, examples: int) -> None:
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
    score_s = figures["cpu_seconds_by_phase"]["evaluate"]
    engine_s = figures["cpu_seconds"] - score_s
    return Run(engine_s, score_s, 0.0, process_s, peak, figures["accuracy"]["mean"])


def _other(name: str, python: str, place: Path) -> Run:
    """Returns a run of another engine."""
    program = str(HERE / "engines" / PROGRAMS[name])
    printed, process_s, peak = _process([python, program, str(place / "work.npz")])
    told = json.loads(printed.splitlines()[-1])
    return Run(told["engine_s"], 0.0, told["compile_s"], process_s, peak, told["accuracy"])


def _table(job: Job, runs: Mapping[str, Mapping[int, Run]], faults: Mapping[str, str]) -> None:
    work = f"{job.model}, {job.data}, {job.peers} peers, {job.rounds} rounds"
    columns = (
        "engine s   of ours (least..most)   asked   compile s  process s  of ours  MiB  accuracy"
    )
    print(f"\n{work}: processor seconds, one thread, medians\nengine   {columns}")
    for name, by_turn in runs.items():
        if not by_turn:
            print(f"{name:8} {faults.get(name, 'not run')}")
            continue
        made = list(by_turn.values())
        engine, process = (_ratios(by_turn, runs[OURS], of) for of in (_engine_s, _process_s))
        print(
            f"{name:8} {_median(made, _engine_s):8.2f}   {_spread(engine):22} "
            f"{_asked(name, job, statistics.median(engine)):9} "
            f"{statistics.median(one.compile_s for one in made):7.2f} "
            f"{_median(made, _process_s):10.1f}  {statistics.median(process):7.2f} "
            f"{max(one.peak_mib for one in made):5.0f} {made[-1].accuracy:8.2f}"
            f"{'  ' + faults[name] if name in faults else ''}",
            flush=True,
        )
    ours = runs[OURS].values()
    starts = [one.process_s - one.engine_s - one.score_s for one in ours]
    print(
        f"ours takes {statistics.median(starts):.2f} s before its first round and after its last, "
        f"and {statistics.median(one.score_s for one in ours):.2f} s to score"
    )


def _asked(name: str, job: Job, ratio: float) -> str:
    """Returns how many times as long as ours the engine shall take, and whether it does."""
    if name == OURS:
        return ""
    least = ASKED_OF_JAX[job.peers] if name == JAX else ASKED_OF_OTHERS
    return f"{least} {'yes' if ratio >= least else 'no'}"


def _engine_s(run: Run) -> float:
    return run.engine_s


def _process_s(run: Run) -> float:
    return run.process_s


def _median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def _ratios(
    theirs: Mapping[int, Run], ours: Mapping[int, Run], of: Callable[[Run], float]
) -> list[float]:
    """Returns how many times as long as ours it took, turn by turn."""
    return [of(one) / of(ours[turn]) for turn, one in theirs.items()]


def _spread(ratios: Sequence[float]) -> str:
    """Returns the median, the least and the most."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
