"""How fast `p2pl simulate` is, beside Flower's simulation engine at the same work in the same run.

Both clocks cover the engine and nothing before it: the data are in memory when they start. Flower
scores the mean model after every round; ours does too, and every peer after the last. Flower trains
on all examples in batches of 64, ours on the 95 % that are not held back, in batches of 61: as many
steps, since few steps decide how far a short run gets.

    scripts/bench simulate --baseline FILE --baseline-python PYTHON     all of it
    scripts/bench simulate --parts scale cnn                            without Flower
    scripts/bench simulate --parts engines          other engines, each in an environment of its own
    scripts/bench simulate --parts start            the start, and what scoring takes of a round
    scripts/bench simulate --parts step             a CNN's training step, layer by layer
    scripts/bench simulate --parts cnn resnet --device cuda      both networks on a GPU

FILE is a program that takes the numbers of peers and rounds, does the work of `BENCH` below and
prints one JSON object with `seconds` and `accuracy`; PYTHON has Flower installed. The data sets are
looked for in $P2PL_DATA_DIR.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from bench_engines import LINEAR, NETWORK, ONE_THREAD, PROGRAMS, compare, write_data
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from p2pl.data.examples import Examples
from p2pl.data.load import Data, load
from p2pl.learning import models
from p2pl.learning.evaluate import evaluate
from p2pl.learning.objective import Objective
from p2pl.learning.task import task_of
from p2pl.learning.train import Start, train
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Session, changed, read_spec
from p2pl.simulation.engine import Result, run
from p2pl.simulation.setup import Setup

MNIST, CIFAR = "ylecun/mnist", "uoft-cs/cifar10"
BENCH = """
name = "bench"
[task]
input = [1, 28, 28]
classes = 10
[model]
name = "logreg"
[training]
learning_rate = 0.1
batch_size = 61
validation_share = 0.05
[exchange]
rounds = 10
cohort = 4
[mixing]
rule = "uniform"
"""
CNN = """
name = "bench-cnn"
[task]
input = [3, 32, 32]
classes = 10
[model]
name = "cnn"
[training]
learning_rate = 0.05
momentum = 0.9
batch_size = 64
[exchange]
rounds = 2
cohort = 4
"""
PARTS = ("engines", "start", "flower", "linear", "scale", "cnn", "resnet", "step")
NETWORKS = {"cnn": "cnn", "resnet": "resnet-gn"}  # by part
FEW = 2_000  # images on which a processor trains and scores a residual network: minutes
SIDE, BATCH = {"cpu": 1_024, "cuda": 8_192}, {"cpu": 64, "cuda": 1_024}  # see `peak_rate`
TIMES = 40  # that a layer is computed; the least counts
STEPS = 5  # of the shorter of two trainings; what the longer takes more is that of steps
ROWS_PER_PEER = 60  # of MNIST: 1 000 peers have all of it
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Command:
    """One run of the command, in a process of its own."""

    figures: dict[str, Any]
    start_s: float  # until its first round
    wall_s: float
    peak_mib: float


def simulate(spec: str, data: str, *options: str, one_thread: bool = False) -> Command:
    """Returns what `p2pl simulate` printed, how long it took with its start, and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.toml"
        file.write_text(spec)
        command = [sys.executable, "-m", "p2pl.cli", "simulate", str(file), "--data", data]
        begun, begun_at = time.perf_counter(), time.time()
        child = subprocess.Popen(
            [*command, *options, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(ONE_THREAD if one_thread else {})},
        )
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"bench: `p2pl simulate {' '.join(options)}` failed")
        wall_s = time.perf_counter() - begun
    figures = json.loads(printed)
    start_s = figures["first_round"]["time"] - begun_at
    return Command(figures, start_s, wall_s, usage.ru_maxrss / 1_024)


def against_flower(program: Path, python: Path, repeats: int) -> None:
    """Prints median seconds and their ratio, and mean accuracy, of repeats with other seeds."""
    print("peers  rounds   p2pl s   flower s   ratio   p2pl %   flower %", flush=True)
    for peers, rounds in ((6, 10), (100, 3)):
        ours, theirs = [], []
        for seed in range(repeats):
            # Everybody pulls from everybody: plain averaging, as the other does.
            everybody = ("--peers", str(peers), "--cohort", str(peers - 1), "--rounds", str(rounds))
            seeded = (*everybody, "--first-seed", str(seed), "--no-curves")
            ours.append(simulate(BENCH, MNIST, *seeded).figures)
            done = subprocess.run(
                [str(python), str(program), str(peers), str(rounds)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            theirs.append(json.loads(done.stdout.splitlines()[-1]))
        mine = statistics.median(one["seconds"] for one in ours)
        other = statistics.median(one["seconds"] for one in theirs)
        print(
            f"{peers:5}  {rounds:6} {mine:8.2f} {other:10.2f} {other / mine:7.1f} "
            f"{statistics.fmean(one['accuracy']['mean'] for one in ours):8.2f} "
            f"{statistics.fmean(one['accuracy'] for one in theirs):10.2f}",
            flush=True,
        )


def by_peers(session: Session, data: Data) -> None:
    """Prints the seconds a round takes by the number of peers, each with as many examples."""
    print(f"peers  s a round  ms a peer   ({ROWS_PER_PEER} examples each; training and mixing)")
    for peers in (10, 100, 1_000):
        rows = peers * ROWS_PER_PEER
        part = replace(data, train=Examples(data.train.x[:rows], data.train.y[:rows]))
        result = simulation(session, part, peers, rounds=6)
        took = [one.seconds["train"] + one.seconds["mix"] for one in result.rounds[1:]]
        second = statistics.median(took)
        print(f"{peers:5} {second:10.4f} {1_000 * second / peers:10.3f}", flush=True)


def simulation(
    session: Session,
    data: Data,
    peers: int,
    rounds: int,
    precision: str = "float32",
    device: torch.device = CPU,
) -> Result:
    """Returns a simulation in this process."""
    shorter = changed(session, ("exchange", "rounds", rounds))
    return run(Setup(shorter, "00" * 32, peers, "iid", precision=precision), data, device)


def at_scale() -> None:
    """Prints time and memory of many peers, by the rule."""
    print("peers  rounds  rule       engine s   command s   peak MiB   accuracy %")
    for peers, rounds, rule in (
        (1_000, 10, "uniform"),
        (100, 10, "degroot"),
        (1_000, 3, "degroot"),
    ):
        done = simulate(
            BENCH, MNIST, "--peers", str(peers), "--rounds", str(rounds), "--mixing", rule
        )
        print(
            f"{peers:5}  {rounds:6}  {rule:9} {done.figures['seconds']:9.1f} {done.wall_s:11.1f} "
            f"{done.peak_mib:10.0f} {done.figures['accuracy']['mean']:12.2f}   "
            + ", ".join(f"{k} {v:.1f} s" for k, v in done.figures["seconds_by_phase"].items()),
            flush=True,
        )


def start_and_scoring(home: Path, repeats: int) -> None:
    """Prints how long it takes to the first round, with images decoded before, and what scoring is.

    The start is all that the process does until its first round begins. Scoring is of ten rounds,
    the last included, after which figures are exact.

    Args:
        home: the folder of data sets.
        repeats: how often each size is run, after one that decodes.
    """
    print("peers   start: processor s   s   scoring, of ten rounds   examples before the last")
    for job in LINEAR:
        with tempfile.TemporaryDirectory() as folder:
            write_data(home / job.data, Path(folder) / "data", job.examples)
            data = str(Path(folder) / "data")
            everybody = ("--peers", str(job.peers), "--cohort", str(job.peers - 1))
            options = (*everybody, "--rounds", "10", "--threads", "1")
            begun = [
                simulate(job.spec, data, *options, one_thread=True) for _ in range(1 + repeats)
            ]
        warm = begun[1:]
        phases = [one.figures["seconds_by_phase"] for one in warm]
        start_s = statistics.median(one.start_s for one in warm)
        cpu_s = statistics.median(one.figures["first_round"]["cpu_seconds"] for one in warm)
        share = statistics.median(each["evaluate"] / sum(each.values()) for each in phases)
        scored = warm[-1].figures["scoring"]["examples"]
        print(
            f"{job.peers:6} {cpu_s:16.2f} {start_s:6.2f} {share:12.0%} {scored or 'all':>20}",
            flush=True,
        )


def beside_the_machine(session: Session, data: Data, device: torch.device) -> None:
    """Prints how long a network's rounds take beside the matrix arithmetic in them."""
    assert data.test is not None
    result = simulation(session, data, 20, session.exchange.rounds, device=device)
    threads = result.engine.allowed
    torch.set_num_threads(threads)
    rate = peak_rate(device)
    torch.set_num_threads(1)
    training, scoring = operations(session, data.train)
    trained = statistics.fmean(one.entries[0].samples or 0 for one in result.rounds) * 20
    # Who is scored: before and after the mix, and on its validation data; and the mean model.
    entries = [entry for one in result.rounds for entry in one.entries]
    before = sum(entry.accuracy_before_mix is not None for entry in entries) / len(result.rounds)
    after = sum(entry.accuracy is not None for entry in entries) / len(result.rounds)
    held = (len(data.train) - trained) * before / 20
    scored = (before + after + 1) * len(data.test) + held
    print(
        f"CIFAR-10, {len(data.train)} images, {session.model.name}, 20 peers, "
        f"{result.engine.kind}, {named(device, threads)}; "
        f"this machine reaches {rate / 1e9:.0f} GFLOP/s with as much"
    )
    print("phase      s a round   GFLOP   s at that rate   share")
    for phase, work in (("train", training * trained), ("evaluate", scoring * scored), ("mix", 0)):
        took = statistics.fmean(one.seconds[phase] for one in result.rounds)
        ideal = work / rate
        print(f"{phase:9} {took:10.2f} {work / 1e9:7.0f} {ideal:16.2f} {ideal / took:7.0%}")
    if device == CPU:
        print("where the time of training goes (one peer's first batches):")
        for name, share in profiled(session, data.train):
            print(f"  {share:6.1%}  {name}")
    torch.set_num_threads(threads)
    beside_bfloat16(session, data, result, device)


def named(device: torch.device, threads: int) -> str:
    """Returns what computes."""
    return f"{threads} threads" if device == CPU else torch.cuda.get_device_name(device)


def beside_bfloat16(session: Session, data: Data, result: Result, device: torch.device) -> None:
    """Prints by how much half precision is faster than the result, and what it does to accuracy."""
    reduced = simulation(session, data, 20, session.exchange.rounds, "bfloat16", device)
    print("with --precision bfloat16: s a round, times as fast, accuracy beside float32's")
    for phase in ("train", "mix", "evaluate"):
        usual, took = (
            statistics.fmean(one.seconds[phase] for one in each.rounds)
            for each in (result, reduced)
        )
        print(f"{phase:9} {took:10.2f} {usual / took:7.1f}")
    print(
        "accuracy  "
        + " for ".join(
            f"{statistics.fmean(peer.accuracy for peer in each.scores):.2f}"
            for each in (reduced, result)
        )
    )


def peak_rate(device: torch.device = CPU) -> float:
    """Returns the most operations a second that float32 arithmetic reaches here: the best of many.

    Of a large matrix product, and of a large convolution: torch computes them by different
    libraries, and on some processors one is more than twice as fast as the other. On a GPU, torch
    lets convolutions compute in TF32, and so the limit is one of TF32 as well.
    """
    side, count = SIDE[device.type], BATCH[device.type]
    matrix = torch.randn(side, side, device=device)
    layer = nn.Conv2d(64, 64, 5, padding=2, device=device)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(count, 64, 16, 16, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    work: tuple[tuple[Callable[[], object], int], ...] = (
        (partial(torch.mm, matrix, matrix), 2 * side**3),
        (partial(layer, images), 2 * 64**2 * 5**2 * images[:, 0].numel()),
    )
    with torch.inference_mode():
        return max(1_000 * number / least_ms(compute, 20, device) for compute, number in work)


def operations(session: Session, examples: Examples) -> tuple[float, float]:
    """Returns the operations in the matrix products of one example: to train, and to score."""
    model, size = models.build(session), session.training.batch_size
    batch = Examples(examples.x[:size], examples.y[:size])
    start = Start(flatten(model))
    objective = Objective.of(model, task_of(session.task))
    order = torch.Generator().manual_seed(0)
    with FlopCounterMode(display=False) as training:
        train(objective, start, batch, session.training, order)
    with FlopCounterMode(display=False) as scoring:
        evaluate(objective, start.vector, batch)
    return training.get_total_flops() / size, scoring.get_total_flops() / size


def profiled(session: Session, examples: Examples) -> list[tuple[str, float]]:
    """Returns the operations that take the most of training, with their shares."""
    steps = trained(session, examples, 10)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        steps()
    events = sorted(watched.key_averages(), key=lambda one: -one.self_cpu_time_total)
    total = sum(one.self_cpu_time_total for one in events)
    return [(one.key, one.self_cpu_time_total / total) for one in events[:8]]


def of_networks(parts: Sequence[str], home: Path, device: torch.device) -> None:
    """Prints what was asked for of networks, where their images are in the folder of data sets."""
    if not (home / CIFAR).is_dir():
        print(f"no {CIFAR} in $P2PL_DATA_DIR: networks were not measured")
        return
    session = read_spec(CNN).session()
    data = load(CIFAR, session.task, data_dir=home)
    for part, name in NETWORKS.items():
        if part in parts:
            used = fewer(data) if part == "resnet" and device == CPU else data
            beside_the_machine(changed(session, ("model", "name", name)), used, device)
    if "step" in parts:
        step_by_layer(session, data)


def fewer(data: Data) -> Data:
    """Returns the first of all images."""
    assert data.test is not None
    train, test = (Examples(of.x[:FEW], of.y[:FEW]) for of in (data.train, data.test))
    return replace(data, train=train, test=test)


def step_by_layer(session: Session, data: Data) -> None:
    """Prints how long each layer of a CNN takes of a training step, on one thread."""
    torch.set_num_threads(1)
    size = session.training.batch_size
    model = models.build(session).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = data.train.x[:size].contiguous(memory_format=torch.channels_last)
    print(f"{session.model.name}, a step of {size} images, 1 thread; ms, least of {TIMES}")
    print(f"{'layer':46} {'forwards':>9} {'backwards':>10}")
    together = 0.0
    for number, layer in enumerate(cast(nn.Sequential, model)):
        given = given.detach().requires_grad_(number > 0)  # nobody asks for the images' gradient
        there = least_ms(partial(layer, given), TIMES)
        made: torch.Tensor = layer(given)
        gradient = torch.ones_like(made)
        wanted = [one for one in (given, *layer.parameters()) if one.requires_grad]
        back = least_ms(
            partial(torch.autograd.grad, made, wanted, gradient, retain_graph=True), TIMES
        )
        print(f"{str(layer)[:46]:46} {there:9.2f} {back:10.2f}")
        together += there + back
        given = made
    few, many = (
        least_ms(trained(session, data.train, steps), TIMES) for steps in (STEPS, 2 * STEPS)
    )
    step = (many - few) / STEPS
    print(f"{'batches, loss, autograd, the step itself':46} {step - together:9.2f}")
    print(f"{'together':46} {step:9.2f}")
    work = size * operations(session, data.train)[0]
    print(
        f"{work / 1e9:.2f} GFLOP of products and convolutions in a step, in its layers "
        f"{work / together / 1e6:.0f} GFLOP/s; most that is reached here {peak_rate() / 1e9:.0f}"
    )


def least_ms(compute: Callable[[], object], times: int, device: torch.device = CPU) -> float:
    """Returns the least of the milliseconds that it takes."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        compute()
        if device != CPU:
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - begun)
    return 1_000 * min(took)


def trained(session: Session, examples: Examples, steps: int) -> Callable[[], object]:
    """Returns what trains a new model on the first examples, for so many steps."""
    model, count = models.build(session), steps * session.training.batch_size
    objective = Objective.of(model, task_of(session.task))
    part, start = Examples(examples.x[:count], examples.y[:count]), Start(flatten(model))
    order = torch.Generator().manual_seed(0)
    return partial(train, objective, start, part, session.training, order)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--baseline", type=Path, help="the program to compare with")
    parser.add_argument("--baseline-python", type=Path, help="what runs it")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all, one after another")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of networks")
    parser.add_argument("--engines", nargs="+", choices=tuple(PROGRAMS), default=tuple(PROGRAMS))
    parser.add_argument("--sizes", nargs="+", help="MODEL:PEERS of `--parts engines`, e.g. cnn:10")
    parser.add_argument(
        "--kept",
        type=Path,
        default=Path(tempfile.gettempdir()) / "p2pl-bench-engines.jsonl",
        help="where the runs of `--parts engines` are kept, so that it goes on where it was",
    )
    asked = parser.parse_args(arguments)
    home = os.environ.get("P2PL_DATA_DIR")
    if not home or not (Path(home) / MNIST).is_dir():
        print(f"bench: needs {MNIST} in $P2PL_DATA_DIR; nothing was measured")
        return
    if "engines" in asked.parts:
        jobs = [
            job for job in (*LINEAR, *NETWORK) if job.data == MNIST or (Path(home) / CIFAR).is_dir()
        ]
        chosen = [job for job in jobs if not asked.sizes or job.name in asked.sizes]
        compare(Path(home), asked.repeats, chosen, asked.engines, asked.kept)
    if "start" in asked.parts:
        start_and_scoring(Path(home), asked.repeats)
    if "flower" in asked.parts:
        if asked.baseline and asked.baseline_python:
            against_flower(asked.baseline, asked.baseline_python, asked.repeats)
        else:
            print("no --baseline and --baseline-python: Flower was not measured")
    if "scale" in asked.parts:
        at_scale()
    if "linear" in asked.parts:
        session = read_spec(BENCH).session()
        by_peers(session, load(MNIST, session.task, data_dir=Path(home)))
    if {*NETWORKS, "step"} & set(asked.parts):
        of_networks(asked.parts, Path(home), torch.device(asked.device))


if __name__ == "__main__":
    main()
