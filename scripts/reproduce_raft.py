"""What Behera et al. 2021 show of federated learning with an elected aggregator, measured again.

`rates`: loss and accuracy against the learning rate of Adam (their figures 5 and 6), on training
examples that are held out, seeds from 100 on. `table`: their table I, on the test set, seeds from 0
on. `processes`: table I once more, from five real processes. `elections`: their table II, and
`failover`: how long a dead leader is missed, both from five real processes. `keys`: what it costs
that no key is used twice.
"""

import argparse
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from demo import free_port, run, start_tracker
from experiments import PAGE, Experiment, table, write_section
from experiments import Results as Page

from p2pl.data import load as datasets
from p2pl.learner import Learner
from p2pl.learning.train import Start
from p2pl.learning.weights import flatten
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust.row import Trust
from p2pl.protocol.session import Session, read_spec
from p2pl.simulate.peers import peers_of, torch_trainer
from p2pl.simulate.raft import mix_at_the_leader
from p2pl.simulate.setup import Setup

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SPEC = ROOT / "torrentfiles" / "raft.toml"
DIGITS = ROOT / "torrentfiles" / "digits.toml"
PEERS = 5
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01)
RATE_SEEDS = range(100, 103)
SEEDS = range(5)
HELD_OUT = 10_000  # training examples that the rate is chosen on
KILLS = 5
TERMS = 8
RSA_KEYS = 50
DEADLINE_S = 1_800.0

Results = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    data_dir: Path | None
    rates: Sequence[float] = RATES
    rate_seeds: Sequence[int] = RATE_SEEDS
    seeds: Sequence[int] = SEEDS
    rounds: int = 4
    kills: int = KILLS
    terms: int = TERMS
    rsa_keys: int = RSA_KEYS


# --- table I, figures 5 and 6: through the code of a networked peer, in this process -------------


@dataclass(frozen=True)
class Row:
    """The last round of one run; accuracies in percent, losses in nats."""

    initial: tuple[float, float]  # (accuracy, loss) of the model that all set out from
    participants: list[tuple[float, float]]
    aggregated: tuple[float, float]


def train(setup: Setup, data: datasets.Data) -> Row:
    """Returns what the last round of a session came to."""
    learners = peers_of(setup, data, torch.device("cpu"))
    model = flatten(torch_trainer(learners[0]).model)
    starts = [Start(model) for _ in learners]
    for index in range(1, setup.session.exchange.rounds + 1):
        before = model
        trained = [
            learner.fit(start, index) for learner, start in zip(learners, starts, strict=True)
        ]
        vectors = [one.vector for one in trained]
        offers = {
            learner.peer_id: PeerModel(index, learner.samples, vector)
            for learner, vector in zip(learners, vectors, strict=True)
        }
        received = [
            {who: one for who, one in offers.items() if who != learner.peer_id}
            for learner in learners
        ]
        remembered = [(before, Trust())] * len(learners)
        mixed = mix_at_the_leader(setup, learners, vectors, received, remembered, index)
        model = mixed[0].vector
        starts = [Start(model, one.optimizer) for one in trained]
    return Row(
        score(learners[0], before),
        [score(learners[0], vector) for vector in vectors],
        score(learners[0], model),
    )


def score(learner: Learner, vector: torch.Tensor) -> tuple[float, float]:
    scores = learner.judge(vector)
    return round(scores.accuracy, 3), round(scores.loss, 4)


def session_at(rate: float | None, plan: Plan) -> Session:
    """Returns the ready-made session, with another rate of Adam if one is given."""
    session = read_spec(SPEC.read_text()).session()
    exchange = msgspec.structs.replace(session.exchange, rounds=plan.rounds)
    session = msgspec.structs.replace(session, exchange=exchange)
    if rate is None:
        return session
    training = msgspec.structs.replace(session.training, learning_rate=rate)
    return msgspec.structs.replace(session, training=training)


def setup_of(session: Session, seed: int) -> Setup:
    return Setup(session, "ab" * 32, peers=PEERS, partition="iid", seed=seed)


def measure_rates(plan: Plan) -> Results:
    """Returns, for each rate, what the held-out examples say of it."""
    task = session_at(None, plan).task
    data = datasets.hold_out(datasets.load("ylecun/mnist", task, data_dir=plan.data_dir), HELD_OUT)
    points = []
    for rate in plan.rates:
        rows = [train(setup_of(session_at(rate, plan), seed), data) for seed in plan.rate_seeds]
        points.append({"rate": rate, "rows": [asdict(row) for row in rows]})
        print(f"rate {rate:g}: {mean(row.aggregated[0] for row in rows):.2f} %", file=sys.stderr)
    return {"rounds": plan.rounds, "points": points}


def measure_table(plan: Plan) -> Results:
    """Returns table I for each seed, on the test set."""
    session = session_at(None, plan)
    data = datasets.load("ylecun/mnist", session.task, data_dir=plan.data_dir)
    rows = []
    for seed in plan.seeds:
        rows.append(asdict(train(setup_of(session, seed), data)))
        print(f"seed {seed}: {rows[-1]['aggregated'][0]:.2f} %", file=sys.stderr)
    rate = session.training.learning_rate
    return {"rounds": plan.rounds, "rate": rate, "rows": rows}


# --- table II: five real processes ---------------------------------------------------------------


@dataclass
class Swarm:
    """A tracker and five peers on this machine."""

    folder: Path
    torrent: Path
    data: Sequence[str]
    tracker: subprocess.Popen[bytes]
    peers: list[subprocess.Popen[bytes]]

    @classmethod
    def start(cls, folder: Path, spec: str, data: Sequence[str]) -> "Swarm":
        url = f"http://127.0.0.1:{free_port()}"
        tracker = start_tracker(folder, url)
        (folder / "session.toml").write_text(spec)
        torrent = folder / "session.torrent"
        run("p2pl", "create", folder / "session.toml", "--out", torrent, "--tracker", url)
        swarm = cls(folder, torrent, data, tracker, [])
        swarm.peers = [swarm.start_peer(number) for number in range(PEERS)]
        return swarm

    def start_peer(self, number: int) -> subprocess.Popen[bytes]:
        where = ["--run-dir", str(self.folder / f"peer-{number}"), "--listen", "127.0.0.1:0"]
        shard = ["--partition", "iid", "--shard", f"{number}/{PEERS}"]
        command = [str(BIN / "p2pl"), "join", str(self.torrent), *self.data, *shard, *where]
        with (self.folder / f"peer-{number}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def events(self, number: int) -> list[dict[str, Any]]:
        path = self.folder / f"peer-{number}" / "raft.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def roles(self) -> list[tuple[float, int, str, int]]:
        """Returns when which peer took which role in which term, in order."""
        return sorted(
            (event["time"], number, event["role"], event["term"])
            for number in range(PEERS)
            for event in self.events(number)
            if event["event"] == "role"
        )

    def leader(self) -> int | None:
        """Returns who leads, of the processes that run."""
        alive = [number for number in range(PEERS) if self.peers[number].poll() is None]
        last = {number: (term, role) for _, number, role, term in self.roles() if number in alive}
        leading = [(term, number) for number, (term, role) in last.items() if role == "leader"]
        return max(leading)[1] if leading else None

    def wait(self, reached: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while not reached():
            if time.monotonic() > end:
                sys.exit(f"not within {deadline_s:.0f} s; logs are in {self.folder}")
            time.sleep(0.05)

    def end(self) -> None:
        for process in (*self.peers, self.tracker):
            process.kill()
            process.wait(20)


def digits_spec(**raft: float) -> str:
    """Returns the digits session with a leader, and settings of the election."""
    settings = "".join(f"{name} = {value}\n" for name, value in raft.items())
    return (
        DIGITS.read_text()
        .replace("rounds = 20", "rounds = 100000")
        .replace("min_peers = 6", f'min_peers = {PEERS}\nkind = "raft"')
        .replace("seed = 1", 'seed = 1\n\n[mixing]\nrule = "samples"')
        + f"\n[exchange.raft]\n{settings}"
    )


def measure_elections(plan: Plan) -> Results:
    """Returns who was what when, over many short terms."""
    folder = Path(tempfile.mkdtemp(prefix="p2pl-raft-"))
    # Timeouts that lie close together, so that two peers stand in one election now and then.
    spec = digits_spec(term_s=4.0, longest_timeout_s=0.65)
    swarm = Swarm.start(make(folder / "terms"), spec, ["--data", "digits"])
    try:
        swarm.wait(
            lambda: len({t for _, _, role, t in swarm.roles() if role == "leader"}) >= plan.terms
        )
        roles = swarm.roles()
    finally:
        swarm.end()
    shutil.rmtree(folder)
    return {"roles": roles}


def measure_failover(plan: Plan) -> Results:
    """Returns how long dead leaders were missed, at default settings."""
    folder = Path(tempfile.mkdtemp(prefix="p2pl-raft-"))
    swarm = Swarm.start(make(folder / "kills"), digits_spec(), ["--data", "digits"])
    missed: list[float] = []
    try:
        for _ in range(plan.kills):
            missed.append(kill_the_leader(swarm))
            print(f"missed for {missed[-1]:.2f} s", file=sys.stderr)
    finally:
        swarm.end()
    shutil.rmtree(folder)
    return {"missed_s": missed}


def kill_the_leader(swarm: Swarm) -> float:
    """Returns how many seconds after the leader's death another leads; brings the dead one back."""
    swarm.wait(lambda: len(settled(swarm)) == PEERS)
    leader = swarm.leader()
    assert leader is not None
    killed_s = time.time()
    swarm.peers[leader].kill()
    swarm.peers[leader].wait(20)
    swarm.wait(lambda: swarm.leader() is not None, 60)
    found_s = max(at_s for at_s, _, role, _ in swarm.roles() if role == "leader")
    swarm.peers[leader] = swarm.start_peer(leader)
    return round(found_s - killed_s, 3)


def settled(swarm: Swarm) -> set[int]:
    """Returns the peers that lead, or follow the present leader."""
    leader = swarm.leader()
    if leader is None:
        return set()
    me = swarm.events(leader)[-1]["peer"]
    return {leader} | {
        number
        for number in range(PEERS)
        if swarm.peers[number].poll() is None
        and [e for e in swarm.events(number) if e["event"] == "role"][-1:]
        and [e for e in swarm.events(number) if e["event"] == "role"][-1]["leader"] == me
    }


def measure_processes(plan: Plan) -> Results:
    """Returns table I from the run logs of five real processes."""
    # The processes find the data by P2PL_DATA_DIR.
    folder = Path(tempfile.mkdtemp(prefix="p2pl-raft-"))
    swarm = Swarm.start(
        make(folder / "mnist"),
        SPEC.read_text().replace("rounds = 4", f"rounds = {plan.rounds}"),
        ["--data", "ylecun/mnist"],
    )
    begun = time.monotonic()
    try:
        swarm.wait(lambda: all(peer.poll() is not None for peer in swarm.peers))
        seconds = time.monotonic() - begun
        logs = [
            [
                json.loads(line)
                for line in (folder / "mnist" / f"peer-{number}" / "rounds.jsonl").open()
            ]
            for number in range(PEERS)
        ]
    finally:
        swarm.end()
    shutil.rmtree(folder)
    last, before = [log[-1] for log in logs], [log[-2:][0] for log in logs]
    return {
        "initial": before[0]["accuracy"],
        "participants": [entry["accuracy_before_mix"] for entry in last],
        "aggregated": [entry["accuracy"] for entry in last],
        "bytes_per_peer": statistics.fmean(sum(e["bytes_in"] for e in log) for log in logs),
        "seconds": round(seconds, 1),
    }


def measure_keys(plan: Plan) -> Results:
    """Returns what `scripts/bench sealed` says."""
    command = [sys.executable, str(ROOT / "scripts" / "bench_sealed.py"), "--json"]
    few = ["--rsa-keys", str(plan.rsa_keys)]
    done = subprocess.run([*command, *few], check=True, stdout=subprocess.PIPE)
    found: Results = json.loads(done.stdout)
    return found


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# --- what it says --------------------------------------------------------------------------------


def show_rates(results: Results, page: Page) -> str:
    """Returns figures 5 and 6 as a picture and a table."""
    points = results["points"]
    lines = [
        "### Learning rate",
        "",
        f"Loss and accuracy against the learning rate of Adam, after {results['rounds']} rounds of "
        f"{PEERS} peers (their figures 5 and 6); {HELD_OUT:,} held-out training examples, mean of "
        f"{len(points[0]['rows'])} seeds.",
        "",
        page.picture("raft-rates", draw_rates(results)),
        "",
        "| rate | aggregated: accuracy | loss | participants: accuracy | loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for point in points:
        rows = point["rows"]
        cells = [
            f"{mean(row['aggregated'][0] for row in rows):.2f}",
            f"{mean(row['aggregated'][1] for row in rows):.3f}",
            f"{mean(p[0] for row in rows for p in row['participants']):.2f}",
            f"{mean(p[1] for row in rows for p in row['participants']):.3f}",
        ]
        lines.append(f"| {point['rate']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_rates(results: Results) -> bytes:
    """Returns figures 5 and 6 as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    rates = [point["rate"] for point in results["points"]]
    for place, (axis, name) in enumerate(zip(axes, ("accuracy, %", "loss, nats"), strict=True)):
        shared = [mean(r["aggregated"][place] for r in p["rows"]) for p in results["points"]]
        own = [
            mean(one[place] for row in p["rows"] for one in row["participants"])
            for p in results["points"]
        ]
        axis.semilogx(rates, shared, marker="o", label="aggregated")
        axis.semilogx(rates, own, marker="s", linestyle="--", label="participants, mean")
        axis.set_xlabel("learning rate of Adam")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return drawn.getvalue()


def show_table(results: Results, page: Page) -> str:
    """Returns table I: one seed in full, and all seeds together."""
    rows = results["rows"]
    del page
    first = rows[0]
    lines = [
        "### Global model and participants",
        "",
        f"Their table I: MNIST test set, the last of {results['rounds']} rounds, Adam at a rate "
        f"of {results['rate']:g}; seed 0, and mean ± standard deviation of {len(rows)} seeds. The "
        "initial model is the one that this round began with.",
        "",
        "| node | loss | accuracy | accuracy, all seeds | published |",
        "|---|---:|---:|---:|---:|",
    ]

    def line(name: str, one: Sequence[float], every: Sequence[float], published: str) -> str:
        spread = plus_minus(every)
        return f"| {name} | {one[1]:.4f} | {one[0]:.2f} | {spread} | {published} |"

    said = ("94.74", "94.89", "94.23", "94.41", "94.58")
    lines.append(
        line("global model, initial", first["initial"], [r["initial"][0] for r in rows], "91.03")
    )
    for number in range(PEERS):
        every = [row["participants"][number][0] for row in rows]
        lines.append(
            line(f"participant {number + 1}", first["participants"][number], every, said[number])
        )
    lines.append(
        line(
            "global model, aggregated",
            first["aggregated"],
            [r["aggregated"][0] for r in rows],
            "96.04",
        )
    )
    gains = [row["aggregated"][0] - mean(p[0] for p in row["participants"]) for row in rows]
    lines += [
        "",
        f"Aggregated above the participants' mean: {plus_minus(gains)} points, at least "
        f"{min(gains):.2f} (published: 1.47).",
    ]
    return "\n".join(lines)


LETTERS = {"follower": "F", "pre-candidate": "F", "candidate": "C", "leader": "L"}


@dataclass(frozen=True)
class Turn:
    """A node became something else."""

    at_s: float  # since the first of all
    node: int
    was: str  # F, C or L
    now: str
    term: int

    @property
    def words(self) -> str:
        """What happened."""
        if self.now == "L":
            return f"elected in term {self.term}"
        if self.now == "C":
            return f"node {self.node} stands in term {self.term}"
        return "the term ends" if self.was == "L" else f"node {self.node} stands no longer"


def elections_of(roles: Sequence[tuple[float, int, str, int]]) -> list[list[Turn]]:
    """Returns what happened from one leader's resignation to the next one's, election by election.

    Args:
        roles: when which node took which role in which term, in order.
    """
    now = dict.fromkeys(range(PEERS), "F")
    found: list[list[Turn]] = [[]]
    for at_s, node, role, term in roles:
        was, letter = now[node], LETTERS[role]
        now[node] = letter
        if was == letter:
            continue
        if was == "L":
            found.append([])
        found[-1].append(Turn(at_s - roles[0][0], node, was, letter, term))
    return [one for one in found if any(turn.now == "L" for turn in one)]


def rivals(election: Sequence[Turn]) -> int:
    """Returns how many stood in one term, at most."""
    stood = [turn.term for turn in election if turn.now == "C"]
    return max(map(stood.count, stood), default=0)


def show_elections(results: Results, page: Page) -> str:
    """Returns table II: elections in which two stood, and who led."""
    del page
    elections = elections_of([tuple(role) for role in results["roles"]])
    contested = [one for one in elections if rivals(one) > 1]
    rows = [row for one in sorted(contested, key=rivals)[:2] for row in rows_of(one)]
    leaders = [turn.node for one in elections for turn in one if turn.now == "L"]
    first = leaders[:7]
    return "\n\n".join(
        [
            "### Elections",
            "Their table II: follower, candidate or leader over time, from the logs of five "
            "processes with terms of 4 s and timeouts that lie close together; two elections in "
            "which two stood.",
            table(["seconds", *(f"node {node}" for node in range(PEERS)), ""], rows),
            f"{len(contested)} of {len(elections)} elections had two candidates or more in one "
            "term, and each one leader. Leaders of seven terms in a row: "
            + ", ".join(f"node {node}" for node in first)
            + f"; nobody more than {max(map(first.count, first))} times.",
        ]
    )


def rows_of(election: Sequence[Turn]) -> list[list[str]]:
    """Returns a row for each turn of an election."""
    now = dict.fromkeys(range(PEERS), "F")
    rows = []
    for turn in election:
        now[turn.node] = turn.now
        rows.append([f"{turn.at_s:.2f}", *now.values(), turn.words])
    return rows


def show_failover(results: Results, page: Page) -> str:
    """Returns how long a dead leader is missed, in a sentence."""
    del page
    missed = results["missed_s"]
    return (
        f"Leader killed {len(missed)} times (default settings): another leads after "
        f"{statistics.median(missed):.2f} s (median), {min(missed):.2f} to {max(missed):.2f} s "
        "(published: 20 s)."
    )


def show_processes(results: Results, page: Page) -> str:
    """Returns table I from real processes, in a sentence."""
    del page
    return (
        f"Five real processes: initial {results['initial']:.2f} %, participants "
        + ", ".join(f"{accuracy:.2f}" for accuracy in results["participants"])
        + f" %, aggregated {min(results['aggregated']):.2f} % at every peer; "
        f"{results['bytes_per_peer'] / 1e6:.1f} MB received a peer, {results['seconds']:.0f} s."
    )


def show_keys(results: Results, page: Page) -> str:
    """Returns what the keys of sealed messages cost."""
    del page
    names = {"hpke": "X25519 (`hpke`, default)", "rsa": "RSA, 3,072 bits (`rsa`)"}
    rows = [
        [
            names[one["suite"]],
            *(f"{one[field]:.2f}" for field in ("key_ms", "key_p95_ms", "seal_ms", "open_ms")),
            f"{one['request_bytes']}",
        ]
        for one in results["suites"]
    ]
    speed = results["mib_per_s"]
    return "\n\n".join(
        [
            "### Fresh keys",
            "No key is used for two messages, so each costs the making of a key, a sealing and an "
            "opening: milliseconds on one core, medians, of "
            + " and ".join(f"{one['keys']} keys of `{one['suite']}`" for one in results["suites"])
            + ". Published is RSA; alone it cannot carry a model, so it wraps a key.",
            table(["suite", "key", "95th percentile", "seal", "open", "bytes of a request"], rows),
            f"For comparison, the Ed25519 signature of an announce takes "
            f"{results['ed25519_sign_ms']:.2f} ms. A model is locked under a key of its own, at "
            f"{speed['lock']:,} MiB/s, and unlocked at {speed['unlock']:,} MiB/s.",
        ]
    )


def mean(values: Any) -> float:  # noqa: ANN401  # any iterable of numbers
    return statistics.fmean(values)


def plus_minus(values: Sequence[float]) -> str:
    """Returns mean ± standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.2f} ± {spread:.2f}"


PARTS: Mapping[str, tuple[Callable[[Plan], Results], Callable[[Results, Page], str]]] = {
    "rates": (measure_rates, show_rates),
    "table": (measure_table, show_table),
    "processes": (measure_processes, show_processes),
    "elections": (measure_elections, show_elections),
    "failover": (measure_failover, show_failover),
    "keys": (measure_keys, show_keys),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="reproduce raft", description=__doc__)
    parser.add_argument("--out", type=Path, help="default: results; with --fast, runs/fast")
    parser.add_argument("--jobs", type=int, help="for the other experiments; this one is serial")
    parser.add_argument("--fast", action="store_true", help="as little as there is: does it run?")
    parser.add_argument("--only", default="", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    parser.add_argument("--page", action="store_true", help="run nothing, write what is there")
    options = parser.parse_args()
    # Ended from outside, it takes its peers and its tracker along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.list:
        print("\n".join(PARTS))
        return
    data_dir = os.environ.get("P2PL_DATA_DIR")
    plan = Plan(Path(data_dir) if data_dir else None)
    if options.fast:
        plan = Plan(
            plan.data_dir,
            rates=(0.001,),
            rate_seeds=(100,),
            seeds=(0,),
            rounds=1,
            kills=1,
            terms=2,
            rsa_keys=2,
        )
    out: Path = options.out or ROOT / ("runs/fast" if options.fast else "results")
    raw = out / "raw" / "raft"
    raw.mkdir(parents=True, exist_ok=True)
    for part, (measure, _) in PARTS.items():
        kept = raw / f"{part}.json"
        if options.only in part and not kept.exists() and not options.page:
            kept.write_text(json.dumps(measure(plan), indent=1) + "\n")
            print(f"{part}: {kept}")
    if options.only and not options.page:
        return
    page = ROOT / PAGE if out == ROOT / "results" else out / PAGE
    files = {part: raw / f"{part}.json" for part in PARTS}
    commands = {
        part: (f"scripts/reproduce raft --only {part}", str(file.relative_to(out)))
        for part, file in files.items()
        if file.exists()
    }
    missing = tuple(part for part in PARTS if part not in commands)
    results = Page({}, commands, out, missing)
    write_section(page, Experiment("raft", (), partial(section, raw)), results)
    print(f"page {page}")


_INTRODUCTION = """Behera et al. 2021, with `torrentfiles/raft.toml`. On real processes as well:
`scripts/test tests/swarm/test_raft.py` holds that a minority which is cut off decides nothing, that
there is one leader once the network is whole again, and that a peer which was away fetches what it
missed."""


def section(raw: Path, page: Page) -> str:
    """Returns what stands in RESULTS.md."""
    parts = ["## An elected aggregator", _INTRODUCTION]
    for part, (_, show) in PARTS.items():
        kept = raw / f"{part}.json"
        missing = f"Not run yet: `scripts/reproduce raft --only {part}`."
        parts.append(show(json.loads(kept.read_text()), page) if kept.exists() else missing)
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
