"""Feeds every decoder of p2pl inputs that nobody meant, and says which of them it does not stand.

    scripts/fuzz                            a minute in all
    scripts/fuzz --inputs 1000000           so many for each decoder
    scripts/fuzz --only ask --only gossip   these alone; --list names them all
    scripts/fuzz --atheris --only ask       inputs chosen by which branches they reach

What holds: whatever the input is, a decoder returns or raises an error of p2pl's own tree, within
a second of processor time, and within 64 MiB. Whatever breaks that is kept in a file and named, and
the exit code is 1. Each decoder runs in a process of its own, so that a crash is found too.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

if "--atheris" in sys.argv:  # what is to be guided by its branches must be loaded by atheris
    import atheris

    with atheris.instrument_imports(include=["p2pl", "p2pl_tracker", "bencodepy"]):
        import fuzz_decoders  # noqa: F401  # again below, from what is loaded

import fuzz_inputs
from fuzz_decoders import Decoder, decoders
from hypothesis import HealthCheck, Phase, given, seed, settings

MAX_CPU_S = 1.0
HANGS_AFTER_S = 20.0
ROOM_BYTES = (
    2 << 30
)  # of address space beyond what is mapped: a bomb ends the input, not the machine
BATCH = 500
SHAPED_SHARE = 0.01  # of the inputs, that Hypothesis makes: they take a hundred times as long
SHAPED_CORPUS = 200  # of them that the mutator goes on from
DEFAULT_S = 60.0
MAX_FAULTS = 20  # of one decoder; one kind of fault counts once


@dataclass(frozen=True)
class Fault:
    """One way in which a decoder does not hold."""

    what: str
    where: str
    file: str


@dataclass
class Tally:
    """What came of one decoder."""

    name: str
    inputs: int = 0
    shaped: int = 0  # of them made by Hypothesis
    taken: int = 0  # of them that were valid
    seconds: float = 0.0
    slowest_s: float = 0.0  # of processor time, for one input
    most_bytes: int = 0  # that a batch needed beyond what was there
    faults: list[Fault] = field(default_factory=list)


class Hangs(BaseException):  # no handler may take it for an error of its own
    """An input is not done with after `HANGS_AFTER_S`."""


@dataclass
class Fuzzer:
    """Tries inputs on one decoder.

    Args:
        decoder: which.
        out: a folder for inputs that break it.
        cpu: a clock of processor time, in seconds.
        hangs_after_s: of processor time: then an input is given up.
    """

    decoder: Decoder
    out: Path
    cpu: Callable[[], float] = time.process_time
    hangs_after_s: float = HANGS_AFTER_S
    tally: Tally = field(init=False)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tally = Tally(self.decoder.name)

    def attempt(self, data: bytes) -> None:
        """Tries one input; a fault is kept."""
        self.tally.inputs += 1
        begun_s = self.cpu()
        try:
            self.decoder.decode(data)
            self.tally.taken += 1
        except self.decoder.refuses:
            pass
        except Hangs:
            self.blame(data, f"not done after {self.hangs_after_s:g} s", "time")
        except Exception as fault:  # noqa: BLE001  # that is what is looked for
            self.blame(data, f"{type(fault).__name__}: {str(fault)[:100]}", _place(fault))
        took_s = self.cpu() - begun_s
        if took_s > MAX_CPU_S:
            self.blame(data, f"{took_s:.1f} s of processor time", "time")
        self.tally.slowest_s = max(self.tally.slowest_s, took_s)

    def batch(self, inputs: Sequence[bytes]) -> None:
        """Tries some inputs; if together they need much memory, each again by itself."""
        with _alarm():
            needed = self._try_all(inputs)
        if needed > self.decoder.max_bytes:
            for data in inputs:
                with _alarm():
                    alone = self._try_all([data])
                self.tally.inputs -= 1
                if alone > self.decoder.max_bytes:
                    self.blame(data, f"{alone >> 20} MiB of memory", "memory")
                self.tally.most_bytes = max(self.tally.most_bytes, alone)
        else:
            self.tally.most_bytes = max(self.tally.most_bytes, needed)

    def _try_all(self, inputs: Sequence[bytes]) -> int:
        before = _restart_high_water()
        for data in inputs:
            signal.setitimer(signal.ITIMER_VIRTUAL, self.hangs_after_s)
            self.attempt(data)
        return _memory("VmHWM") - before

    def blame(self, data: bytes, what: str, where: str) -> None:
        """Keeps an input that shows a fault of a kind that was not seen before."""
        kind = (what.split(":")[0] if where != "time" else "time", where)
        if kind in self.seen or len(self.seen) >= MAX_FAULTS:
            return
        self.seen.add(kind)
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.decoder.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
        path.write_bytes(data)
        self.tally.faults.append(Fault(what, where, str(path)))


def _place(fault: BaseException) -> str:
    """Returns the innermost line of p2pl that a traceback shows."""
    frames = traceback.extract_tb(fault.__traceback__)
    ours = [one for one in frames if "/p2pl" in one.filename] or frames
    return f"{'/'.join(Path(ours[-1].filename).parts[-3:])}:{ours[-1].lineno}"


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Lets an input be given up, in a process whose timer is nobody else's."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGVTALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _restart_high_water() -> int:
    """Returns the resident bytes now; the high-water mark begins there again."""
    gc.collect(0)
    with contextlib.suppress(
        OSError
    ):  # not on Linux: the mark only grows, and shows the worst once
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmHWM")


def _memory(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(fuzzer: Fuzzer, inputs: int | None, seconds: float, number: int) -> None:
    """Tries inputs until there were enough of them, or the time is over.

    Args:
        fuzzer: with its decoder.
        inputs: how many; None: as many as the time allows.
        seconds: for how long, where no number is given.
        number: seeds everything.
    """
    decoder, tally = fuzzer.decoder, fuzzer.tally
    begun_s = time.monotonic()
    corpus = list(decoder.examples)
    fuzzer.batch(corpus)
    if not tally.taken:
        fuzzer.blame(corpus[0], "no example is taken", "example")
    round_number = 0

    def is_over() -> bool:
        if inputs is not None:
            return tally.inputs >= inputs
        return time.monotonic() - begun_s > seconds

    while not is_over():
        round_number += 1
        rng = random.Random(f"{decoder.name}/{number}/{round_number}")
        if decoder.shaped is not None and tally.shaped < SHAPED_SHARE * max(tally.inputs, BATCH):
            made = _shaped(decoder, min(BATCH, inputs or BATCH), rng.getrandbits(63))
            tally.shaped += len(made)
            fuzzer.batch(made)
            room = max(0, SHAPED_CORPUS - len(corpus))
            corpus += rng.sample(made, min(room, len(made), 50))
        else:
            batch = [
                fuzz_inputs.mutant(rng, corpus, decoder.notation)
                for _ in range(min(BATCH, (inputs or tally.inputs + BATCH) - tally.inputs))
            ]
            fuzzer.batch(batch)
    tally.seconds = time.monotonic() - begun_s


def _shaped(decoder: Decoder, count: int, number: int) -> list[bytes]:
    """Returns inputs that Hypothesis makes."""
    assert decoder.shaped is not None
    made: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(decoder.shaped)
    def collect(data: bytes) -> None:
        made.append(data)

    collect()
    return made


def guided(fuzzer: Fuzzer, inputs: int, number: int) -> None:
    """Tries inputs that atheris chooses by the branches that they reach; never returns."""
    corpus = fuzzer.out / f"corpus-{fuzzer.decoder.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for index, example in enumerate(fuzzer.decoder.examples):
        (corpus / f"example-{index}").write_bytes(example)

    def one(data: bytes) -> None:
        fuzzer.attempt(data)
        if fuzzer.tally.faults:
            print(json.dumps(asdict(fuzzer.tally)), flush=True)
            os._exit(1)

    limits = [f"-runs={inputs}", f"-seed={number or 1}", "-max_len=16384", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *limits, "-timeout=20", str(corpus)], one)
    atheris.Fuzz()


def _child(decoder: Decoder, asked: argparse.Namespace, share_s: float, pipe: Connection) -> None:
    """Fuzzes one decoder, and sends its tally."""
    warnings.simplefilter("ignore")
    limit = _memory("VmSize") + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fuzzer = Fuzzer(decoder, asked.out)
    fuzz(fuzzer, asked.inputs, share_s, asked.seed)
    pipe.send(fuzzer.tally)


def run_apart(decoder: Decoder, asked: argparse.Namespace, share_s: float) -> Tally:
    """Returns what came of a decoder in a process of its own, its death included."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(decoder, asked, share_s, there))
    child.start()
    there.close()
    try:
        tally: Tally = here.recv()
    except EOFError:
        child.join()
        fault = Fault(f"the process ended with {child.exitcode}", "process", "same --seed again")
        tally = Tally(decoder.name, faults=[fault])
    child.join()
    return tally


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, help="for each decoder")
    parser.add_argument("--seconds", type=float, default=DEFAULT_S, help="in all, without --inputs")
    parser.add_argument("--only", action="append", metavar="NAME", help="one decoder; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-faults"), help="for what breaks one")
    parser.add_argument("--atheris", action="store_true", help="choose inputs by coverage")
    parser.add_argument("--list", action="store_true", help="name the decoders")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Fuzzes, prints, and returns the exit code."""
    asked = _arguments(words)
    with decoders() as known:
        names = [one.name for one in known]
        if unknown := sorted(set(asked.only or ()) - set(names)):
            print(f"fuzz: got {unknown[0]!r}, allowed {', '.join(names)}", file=sys.stderr)
            return 2
        wanted = [one for one in known if not asked.only or one.name in asked.only]
        if asked.list:
            print("\n".join(names))
            return 0
        if asked.atheris:
            return _with_atheris(wanted, asked)
        print(f"{'decoder':<18} {'inputs':>9} {'shaped':>8} {'taken':>8} {'per s':>8}", end="")
        print(f" {'slowest':>9} {'memory':>8}  faults")
        failed = 0
        for decoder in wanted:
            tally = run_apart(decoder, asked, asked.seconds / len(wanted))
            failed += bool(tally.faults)
            _show(tally)
    print("nothing broke" if not failed else f"{failed} decoders broke; inputs in {asked.out}")
    return int(bool(failed))


def _with_atheris(wanted: Sequence[Decoder], asked: argparse.Namespace) -> int:
    """Returns the exit code of guided fuzzing, one process a decoder."""
    failed = 0
    for decoder in wanted:
        child = os.fork()
        if not child:
            guided(Fuzzer(decoder, asked.out), asked.inputs or 100_000, asked.seed)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        failed += bool(status)
        print(f"{decoder.name}: {'broke' if status else 'nothing broke'}", flush=True)
    return int(bool(failed))


def _show(tally: Tally) -> None:
    rate = tally.inputs / tally.seconds if tally.seconds else 0.0
    print(
        f"{tally.name:<18} {tally.inputs:>9,} {tally.shaped:>8,} {tally.taken:>8,} {rate:>8,.0f}"
        f" {1e3 * tally.slowest_s:>6.0f} ms {tally.most_bytes / (1 << 20):>4.0f} MiB"
        f"  {len(tally.faults)}",
        flush=True,
    )
    for fault in tally.faults:
        print(f"    {fault.what}  at {fault.where}  {fault.file}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
