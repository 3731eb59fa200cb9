"""Hurts a real swarm at random, lets it heal, and checks what must be so whatever happened to it.

    scripts/soak                        30 minutes: swarms of 12, of each kind of exchange in turn
    scripts/soak --hours 24 --seed 7
    scripts/soak --minutes 5 --kinds raft --peers 6 --rounds 20

A swarm is a tracker, honest peers and one that lies, all real processes. While they train, peers
are killed and started again, stopped for a while, cut off, slowed down, and started with clocks
that are wrong; their disks fill up; the tracker is killed; the liar changes its lie. When most of
the rounds are done, everything is healed and everybody may finish. Then:

- every honest peer finished, or said why not, and nowhere is there a traceback;
- over their last rounds, the models of the honest are within half a point of their median, and
  nobody's got worse after them;
- no private peer spent more than it says;
- every run directory could be read at each moment at which its peer was killed, and at the end;
- no process's memory grew.

Each event is a line with the seconds since the start; what is broken is said at once and again at
the end, and the exit code is 1. The same seed draws the same events; what they meet is up to the
machine. The run directories stay in --out where something broke.
"""

import argparse
import contextlib
import heapq
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import soak_checks as checks
from launcher import BIN, ROOT, Fault, Peer, Running, Swarm, wait_until
from soak_checks import Ended, Sample
from soak_lines import Switch, can_have_lines

from p2pl.errors import P2PLError
from p2pl.network.keys import Identity
from p2pl.protocol.session.metainfo import decode
from p2pl.run.log import LoggedRun, read_run

KINDS = ("cohort", "gossip", "braintorrent", "raft")
LIES = (
    *("address", "key", "round", "size", "digest", "values", "notes", "reason", "busy", "silent"),
    *("votes", "pledge", "relay"),
)
CLOCKS_S = (0.0, 0.0, -7_200.0, 86_400.0, 31_536_000.0, -200.0)
MEMBERS = 5  # of raft: those who vote
EPSILON = 4.0
QUIET_FROM = 0.6  # of the rounds, by the median peer: then everything is healed
HURT_SHARE = 1 / 3  # of the peers, at most, at one moment
SAMPLE_S = 2.0
LOADED_S = 600.0
DISK_BYTES = 24 << 20
SEEDING_S = 300.0
FELL = 2  # times as far as it may be from the others: one score is off by chance, a mean is less
TRIES = 2  # of a peer that ends by itself though everything is healed: say, once all have left

SPEC = """
name = "soak-{kind}"
seed = {seed}
[task]
{task}
[model]
name = "logreg"
[training]
learning_rate = 0.2
momentum = 0.9
batch_size = {batch}
[exchange]
kind = "{kind}"
rounds = {rounds}
cohort = 4
min_peers = {min_peers}
start_deadline_s = 300.0
wait_s = 1.0
pull_deadline_s = 5.0
{more}
"""


@dataclass(frozen=True)
class DataSet:
    """What the peers train on."""

    ref: str
    task: str
    batch: int
    within: float  # points below the median that a model may be


# A row of the digits' test set is 0.28 points, one of MNIST's 0.01.
DIGITS = DataSet("digits", "input = [1, 8, 8]\nclasses = 10", 16, 4.0)
MNIST = DataSet("ylecun/mnist", "input = [1, 28, 28]\nclasses = 10", 128, checks.WITHIN)


@dataclass
class Honest:
    """One honest peer, through all its lives."""

    name: str
    number: int
    is_private: bool
    rounds: int  # until it is done
    process: Peer | None = None
    hurt: str = ""  # what is being done to it; "": nothing
    clock_s: float = 0.0  # how wrong its clock is
    lives: int = 0
    given_up: int = 0  # times that it ended by itself, once everything was healed
    is_done: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether a process runs, or stands still."""
        return self.process is not None and not self.process.is_over


@dataclass
class Log:
    """Says what happens, a line each."""

    begun_s: float = field(default_factory=time.monotonic)
    broken: list[str] = field(default_factory=list)

    def say(self, what: str) -> None:
        """Prints an event."""
        print(f"{time.monotonic() - self.begun_s:8.1f}  {what}", flush=True)

    def breaks(self, *what: str) -> None:
        """Prints and remembers what must not be."""
        for one in what:
            self.broken.append(one)
            self.say(f"BROKEN  {one}")


class Turn(Swarm):
    """One swarm, from its first process to its checks.

    Args:
        folder: of everything.
        kind: of exchange.
        asked: the command line.
        rng: draws the events.
        log: is told of them.
        switch: the network; None: loopback, on which nothing can be cut.
    """

    def __init__(  # each of them a different thing
        self,
        folder: Path,
        kind: str,
        asked: argparse.Namespace,
        rng: random.Random,
        log: Log,
        switch: Switch | None,
    ) -> None:
        super().__init__(folder)
        self.kind, self.asked, self.rng, self.log, self.switch = kind, asked, rng, log, switch
        self.data = MNIST if os.environ.get("P2PL_DATA_DIR") and not asked.digits else DIGITS
        privates = set(rng.sample(range(asked.peers), asked.private))
        self.peers = [
            Honest(f"peer-{n}", n, n in privates, asked.rounds) for n in range(asked.peers)
        ]
        self.memory: dict[str, list[Sample]] = {}
        self.trains: set[str] = set()  # processes of peers that have done a round
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()
        self.the_tracker: Running | None = None
        self.liar: Running | None = None
        self.sampled_s = 0.0
        self.events = 0
        self.is_healed = False

    # The stage.

    @property
    def url(self) -> str:
        """The tracker's address."""
        host = self.switch.lines["tracker"].address if self.switch else "127.0.0.1"
        return f"http://{host}:{self.port}"

    def inside(self, name: str) -> list[str]:
        """Returns what a command begins with that runs on the network of `name`."""
        return self.switch.inside(name) if self.switch else []

    def host(self, name: str) -> str:
        """Returns the address of `name`."""
        return self.switch.lines[name].address if self.switch else "127.0.0.1"

    def tracker(self, *options: str) -> Running:
        """Starts the tracker and returns when it listens."""
        listen = ["--host", self.host("tracker"), "--port", str(self.port)]
        command = [*self.inside("tracker"), str(BIN / "p2pl-tracker"), "serve", *listen, *options]
        tracker = self.start("tracker", command)
        wait_until(lambda: "listening on" in tracker.text() or tracker.is_over, LOADED_S, "tracker")
        self.the_tracker = tracker
        return tracker

    def session(self) -> Path:
        """Returns the session file of this turn."""
        members = []
        for peer in self.peers:
            identity = Identity.load_or_create(self.folder / peer.name / "identity.pem")
            members.append(identity.peer_id)
        voters = ", ".join(f'"{one}"' for one in members[:MEMBERS])
        more = (
            f"[exchange.raft]\npatience_s = 120.0\nmembers = [{voters}]"
            if self.kind == "raft"
            else ""
        )
        spec = SPEC.format(
            kind=self.kind,
            seed=self.rng.randrange(1 << 31),
            task=self.data.task,
            batch=self.data.batch,
            rounds=self.asked.rounds,
            min_peers=min(len(members), MEMBERS) if self.kind == "raft" else len(members),
            more=more,
        )
        return self.create(spec, f"soak-{self.kind}")

    def begin(self, peer: Honest) -> None:
        """Starts a peer's process: a new life, in the same run directory."""
        options = ["--data", self.data.ref, "--shard", f"{peer.number}/{len(self.peers)}"]
        options += ["--listen", f"{self.host(peer.name)}:0", "--seed-for", str(SEEDING_S)]
        options += ["--run-dir", str(self.folder / peer.name), "--threads", "1"]
        if peer.is_private:
            options += ["--dp-epsilon", str(EPSILON)]
        program = [sys.executable, str(ROOT / "scripts" / "soak_process.py"), "clock"]
        words = [str(peer.clock_s), "join", str(self.torrent), *options]
        spawned = self._spawn(peer.name, [*self.inside(peer.name), *program, *words])
        peer.process = Peer(peer.name, *spawned, self.folder / peer.name)
        self.started.append(peer.process)
        peer.lives += 1

    def lie(self) -> None:
        """Starts the liar with another lie."""
        if self.liar is not None:
            self.liar.kill()
        what = self.rng.choice(LIES)
        self.log.say(f"liar     {what}")
        program = [sys.executable, str(ROOT / "scripts" / "soak_process.py"), "lie", what]
        files = [str(self.torrent), str(self.torrent.with_suffix(".safetensors"))]
        command = [*self.inside("liar"), *program, *files, self.url, self.host("liar")]
        self.liar = self.start("liar", command)

    # The play.

    def play(self) -> dict[str, object]:
        """Returns the figures of the turn."""
        with ExitStack() as stack:
            disks = self.switch is not None
            for peer in self.peers:
                stack.enter_context(_disk(self.folder / peer.name, is_small=disks))
            self.tracker()
            self.torrent = self.session()
            self.file = decode(self.torrent.read_bytes())
            stack.callback(self.end)
            for peer in self.peers:
                peer.clock_s = self.rng.choice(CLOCKS_S) if self.rng.random() < 0.2 else 0.0
                self.begin(peer)
            self.lie()
            wait_until(lambda: any(map(_round_of, self.peers)), LOADED_S, "the first round")
            self.hurt_for_a_while()
            self.heal()
            self.let_finish()
            return self.check()

    def hurt_for_a_while(self) -> None:
        """Hurts the swarm until most of the rounds are done."""
        until, next_s = QUIET_FROM * self.asked.rounds, time.monotonic()
        while median(map(_round_of, self.peers)) < until and not self._are_all_done():
            if time.monotonic() > next_s:
                self.hurt()
                next_s = time.monotonic() + self.rng.uniform(0.5, 2.0) * self.asked.every
            self._pass()

    def hurt(self) -> None:
        """Does one bad thing, if not too many are being done already."""
        self.events += 1
        if self.rng.random() < 0.08:
            self.tracker_dies()
            return
        if self.rng.random() < 0.08:
            self.lie()
            return
        well = [one for one in self.peers if one.is_alive and not one.hurt and not one.is_done]
        hurt = sum(bool(one.hurt) for one in self.peers)
        if not well or hurt >= HURT_SHARE * len(self.peers):
            return
        peer = self.rng.choice(well)
        kinds = [self.kill, self.stop]
        if self.switch is not None:
            kinds += [self.cut, self.slow, self.fill]
        self.rng.choice(kinds)(peer)

    def kill(self, peer: Honest) -> None:
        """Kills a peer, reads what it left, and starts it again, perhaps with another clock."""
        assert peer.process is not None
        peer.process.kill()
        peer.hurt = "killed"
        self.log.say(f"{peer.name:<8} killed at round {_round_of(peer)}")
        self.log.breaks(*checks.unreadable(self.folder / peer.name, self.file))
        self._after(self.rng.uniform(0, 8), lambda: self._again(peer))

    def _again(self, peer: Honest) -> None:
        is_wrong = not self.is_healed and self.rng.random() < 0.4
        peer.clock_s = self.rng.choice(CLOCKS_S) if is_wrong else 0.0
        off = f", its clock {peer.clock_s:+.0f} s off" if peer.clock_s else ""
        self.log.say(f"{peer.name:<8} starts again{off}")
        peer.hurt = ""
        self.begin(peer)

    def stop(self, peer: Honest) -> None:
        """Stops a process for a while."""
        process = peer.process
        assert process is not None
        process.process.send_signal(signal.SIGSTOP)
        peer.hurt = "stopped"
        span_s = self.rng.uniform(1, 20)
        self.log.say(f"{peer.name:<8} stopped for {span_s:.0f} s")

        def go_on() -> None:
            process.process.send_signal(signal.SIGCONT)
            self._well(peer, "stopped")

        self._after(span_s, go_on)

    def cut(self, peer: Honest) -> None:
        """Cuts a peer off from all others for a while."""
        assert self.switch is not None
        span_s = self.rng.uniform(1, 20)
        self.switch.lines[peer.name].is_cut = True
        peer.hurt = "cut off"
        self.log.say(f"{peer.name:<8} cut off for {span_s:.0f} s")
        self._after(span_s, lambda: self._heal_line(peer, "cut off"))

    def slow(self, peer: Honest) -> None:
        """Slows a peer's line down for a while."""
        assert self.switch is not None
        line, span_s = self.switch.lines[peer.name], self.rng.uniform(5, 30)
        line.delay_s, line.loss = self.rng.uniform(0.02, 0.4), self.rng.uniform(0, 0.08)
        line.bytes_s = 10 ** self.rng.uniform(4, 6)
        peer.hurt = "slow"
        self.log.say(
            f"{peer.name:<8} slow for {span_s:.0f} s: {1e3 * line.delay_s:.0f} ms, "
            f"{100 * line.loss:.0f} % lost, {line.bytes_s / 1e3:.0f} kB/s"
        )
        self._after(span_s, lambda: self._heal_line(peer, "slow"))

    def _heal_line(self, peer: Honest, hurt: str) -> None:
        assert self.switch is not None
        self.switch.lines[peer.name].heal()
        self._well(peer, hurt)

    def fill(self, peer: Honest) -> None:
        """Fills a peer's disk for a while."""
        span_s = self.rng.uniform(2, 15)
        filler = self.folder / peer.name / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
            while True:
                out.write(bytes(1 << 16))
        peer.hurt = "disk full"
        self.log.say(f"{peer.name:<8} disk full for {span_s:.0f} s")

        def free() -> None:
            filler.unlink(missing_ok=True)
            self._well(peer, "disk full")

        self._after(span_s, free)

    def tracker_dies(self) -> None:
        """Kills the tracker and starts it again after a while."""
        assert self.the_tracker is not None
        if self.the_tracker.is_over:
            return
        self.the_tracker.kill()
        span_s = self.rng.uniform(1, 15)
        self.log.say(f"tracker  killed for {span_s:.0f} s")
        self._after(span_s, self._tracker_again)

    def _tracker_again(self) -> None:
        self.tracker()
        self.log.say("tracker  starts again")

    def _well(self, peer: Honest, hurt: str) -> None:
        self.log.say(f"{peer.name:<8} no longer {hurt}")
        if peer.hurt == hurt:  # else it has ended meanwhile, and is about to start again
            peer.hurt = ""

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.later, (time.monotonic() + seconds, next(self.count), act))

    def _pass(self) -> None:
        """Lets a little time pass, does what is due, and looks at everybody."""
        time.sleep(0.1)
        while self.later and self.later[0][0] <= time.monotonic():
            heapq.heappop(self.later)[2]()
        self._look()
        if time.monotonic() - self.sampled_s > SAMPLE_S:
            self.sampled_s = time.monotonic()
            for running in self.started:
                self._sample(running)

    def _look(self) -> None:
        """Notes who has ended by itself, and starts those again that said why."""
        for peer in self.peers:
            if peer.process is None or not peer.process.is_over or peer.hurt == "killed":
                continue
            if peer.is_done:
                continue
            ended = Ended(peer.name, peer.process.process.returncode, peer.process.text())
            if wrong := checks.said_why(ended):
                self.log.breaks(wrong)
            self._heal_of(peer)
            if ended.code == 0 or ended.code == 5:  # 5: it met nobody, and says so
                peer.is_done = True
                self.log.say(f"{peer.name:<8} finished")
                continue
            last = ended.output.strip().splitlines()[-1:] or ["nothing said"]
            self.log.say(f"{peer.name:<8} ended with exit code {ended.code}: {last[0][:160]}")
            self.log.breaks(*checks.unreadable(self.folder / peer.name, self.file))
            peer.given_up += self.is_healed
            if peer.given_up == TRIES:
                peer.is_done = True
                self.log.say(f"{peer.name:<8} is left at that: it said why {TRIES} times")
                continue
            peer.hurt = "killed"
            self._after(self.rng.uniform(1, 5), partial(self._again_right, peer))

    def _again_right(self, peer: Honest) -> None:
        """Starts a peer that ended by itself, with what a person would have put right."""
        (self.folder / peer.name / "filler").unlink(missing_ok=True)
        peer.clock_s, peer.hurt = 0.0, ""
        self.log.say(f"{peer.name:<8} starts again")
        self.begin(peer)

    def _heal_of(self, peer: Honest) -> None:
        if self.switch is not None:
            self.switch.lines[peer.name].heal()

    def _sample(self, running: Running) -> None:
        """Notes how much memory a process has; a peer's grows until its first round is done."""
        name = running.output.stem
        with contextlib.suppress(OSError, ValueError, IndexError):
            if name.startswith("peer") and name not in self.trains:
                if not checks.has_done_a_round(running.text()):
                    return
                self.trains.add(name)
            pages = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1])
            if pages:
                sample = Sample(time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"))
                self.memory.setdefault(name, []).append(sample)

    def _are_all_done(self) -> bool:
        return all(peer.is_done for peer in self.peers)

    def heal(self) -> None:
        """Ends all that is being done, and starts those again that are dead."""
        self.log.say("everything is healed")
        self.is_healed = True
        while self.later:
            heapq.heappop(self.later)[2]()
        for peer in self.peers:
            self._heal_of(peer)

    def let_finish(self) -> None:
        """Returns when all have finished, or the patience is over."""
        until_s = time.monotonic() + self.asked.patience
        while not self._are_all_done() and time.monotonic() < until_s:
            self._pass()
        for peer in self.peers:
            if not peer.is_done:
                assert peer.process is not None
                self.log.breaks(checks.said_why(Ended(peer.name, None, peer.process.text())))

    def check(self) -> dict[str, object]:
        """Returns the figures of the turn; what is broken is in the log."""
        accuracies: dict[str, float] = {}
        for peer in self.peers:
            directory = self.folder / peer.name
            wrong = checks.unreadable(directory, self.file)
            self.log.breaks(*wrong)
            if wrong:
                continue
            run = read_run(directory)
            if peer.is_private:
                self.log.breaks(*self._spent(run))
            elif peer.is_done and (level := checks.level(run)) is not None:
                accuracies[peer.name] = level
                self.log.breaks(*checks.fell(run, FELL * self.data.within))
        self.log.breaks(*checks.apart(accuracies, self.data.within))
        for name, samples in self.memory.items():
            if not name.startswith("liar"):
                self.log.breaks(*checks.growing(name, samples))
        return {
            "kind": self.kind,
            "events": self.events,
            "lives": sum(peer.lives for peer in self.peers),
            "finished": f"{sum(peer.is_done for peer in self.peers)}/{len(self.peers)}",
            "accuracy": f"{min(accuracies.values(), default=0):.2f}.."
            f"{max(accuracies.values(), default=0):.2f}",
        }

    def _spent(self, run: LoggedRun) -> list[str]:
        try:
            ledger = checks.ledger_of(run.directory, self.file.id)
        except P2PLError as fault:
            return [f"{run.directory.name}: {fault}"]
        if ledger is None:
            return [f"{run.directory.name}: private, and no ledger"] if run.rounds else []
        return checks.under_counted(run, ledger, self.file)


def _round_of(peer: Honest) -> int:
    try:
        if peer.is_done or peer.process is None:
            return peer.rounds if peer.is_done else 0
        return peer.process.last_round()
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def _disk(folder: Path, *, is_small: bool) -> Iterator[None]:
    """Gives a run directory a disk of its own, where that is possible."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_small:
        yield
        return
    kept = folder.with_name(folder.name + "-kept")
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "soak", str(folder)]
    subprocess.run(words, check=True)
    try:
        yield
    finally:
        shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("filler"), dirs_exist_ok=True)
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="no swarm begins after them")
    parser.add_argument("--hours", type=float, help="in the place of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", type=int, default=12, help="honest ones in each swarm")
    parser.add_argument("--private", type=int, default=2, help="of them with --dp-epsilon")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between events, mean")
    parser.add_argument("--patience", type=float, default=900.0, help="seconds to finish, healed")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of exchange, in turns")
    parser.add_argument("--digits", action="store_true", help="even where P2PL_DATA_DIR has MNIST")
    parser.add_argument("--loopback", action="store_true", help="no network of one's own")
    parser.add_argument("--out", type=Path, help="folder for runs; kept where something broke")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Soaks, prints a summary, and returns the exit code."""
    asked = _arguments(words)
    kinds = asked.kinds.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        print(f"soak: got {unknown[0]!r}, allowed {', '.join(KINDS)}", file=sys.stderr)
        return 2
    minutes = asked.minutes if asked.hours is None else 60 * asked.hours
    out = asked.out or Path(tempfile.mkdtemp(prefix="soak-"))
    log = Log()
    has_lines = can_have_lines() and not asked.loopback
    log.say(f"seed {asked.seed}, {asked.peers} peers, {minutes:g} minutes, runs in {out}")
    if not has_lines:
        log.say("loopback: nothing is cut, slowed or filled; that takes Linux, and root")
    rows: list[Mapping[str, object]] = []
    for number in itertools.count():
        if number and time.monotonic() - log.begun_s > 60 * minutes:
            break
        rows.append(_one_turn(out / f"turn-{number}", kinds[number % len(kinds)], asked, log))
    _sum_up(rows, log)
    if not log.broken and asked.out is None:
        shutil.rmtree(out, ignore_errors=True)
    return int(bool(log.broken))


def _one_turn(folder: Path, kind: str, asked: argparse.Namespace, log: Log) -> dict[str, object]:
    rng = random.Random(f"{asked.seed}/{folder.name}/{kind}")
    log.say(f"{folder.name}: a swarm of kind {kind}")
    folder.mkdir(parents=True)
    names = [*(f"peer-{n}" for n in range(asked.peers)), "tracker", "liar"]
    with ExitStack() as stack:
        switch = None
        if can_have_lines() and not asked.loopback:
            switch = stack.enter_context(Switch(names, random.Random(rng.random())))
        turn = Turn(folder, kind, asked, rng, log, switch)
        stack.callback(turn.end)
        try:
            return turn.play()
        except Fault as fault:
            log.breaks(f"{kind}: {fault}")
            return {"kind": kind, "finished": "no"}


def _sum_up(rows: Sequence[Mapping[str, object]], log: Log) -> None:
    for row in rows:
        log.say("  ".join(f"{name} {value}" for name, value in row.items()))
    for one in log.broken:
        log.say(f"BROKEN  {one}")
    log.say("every invariant held" if not log.broken else f"{len(log.broken)} broken")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    sys.exit(main())
