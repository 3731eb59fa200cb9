"""Swarms of real processes on a network as it is, a seed each: prints one JSON object.

A tracker and N peers, each in a network namespace of its own at the end of a line that is good, or
slow and lossy; peers that stand still a fifth of the time; a tenth of all pairs that cannot reach
each other, another tenth every few seconds. The figures are of all peers once each has done its
rounds: their accuracy, the share of pulls that failed, and how many rounds older than its reader's
a pulled model was.

    scripts/reality_run.py SPEC.toml --data REF --network good|line|all [--set FIELD=VALUE]…

As root, on Linux.
"""

import argparse
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import BIN, PATIENCE_S, Fault, Peer, Swarm, wait_until
from soak_lines import Line, Switch, can_have_lines
from swarm_run import as_toml, spec_with

LINE_DELAY_S, LINE_LOSS, LINE_BYTES_S = 0.025, 0.005, 20e6 / 8  # each end: a path has two
AWAY_S, THERE_S = 2.0, 8.0  # means: a peer stands still a fifth of the time
APART_SHARE, APART_S = 0.1, 5.0
SEEDING_S = 600.0


@dataclass(frozen=True)
class Network:
    """What is wrong with a network."""

    has_slow_lines: bool = False
    has_absences: bool = False  # peers that are away, and pairs that are apart


NETWORKS = {"good": Network(), "line": Network(True), "all": Network(True, True)}


class Lab(Swarm):
    """A swarm on a switch, each process on a line of its own.

    Args:
        folder: of everything.
        switch: with a line for the tracker and for each peer.
    """

    def __init__(self, folder: Path, switch: Switch) -> None:
        super().__init__(folder, environment={"OMP_NUM_THREADS": "1"})
        self.switch = switch

    @property
    def url(self) -> str:
        """The tracker's address."""
        return f"http://{self.switch.lines['tracker'].address}:{self.port}"

    def serve(self) -> None:
        """Starts the tracker and returns when it listens."""
        listen = ["--host", self.switch.lines["tracker"].address, "--port", str(self.port)]
        inside = self.switch.inside("tracker")
        tracker = self.start("tracker", [*inside, str(BIN / "p2pl-tracker"), "serve", *listen])
        wait_until(
            lambda: "listening on" in tracker.text() or tracker.is_over, PATIENCE_S, "tracker"
        )

    def join(self, name: str, torrent: Path, *options: str) -> Peer:
        """Starts a peer at the end of its line."""
        run_dir = self.folder / name
        listen = ["--listen", f"{self.switch.lines[name].address}:0", "--run-dir", str(run_dir)]
        joins = [str(BIN / "p2pl"), "join", str(torrent), *listen, *options]
        spawned = self._spawn(name, [*self.switch.inside(name), *joins])
        peer = Peer(name, *spawned, run_dir)
        self.started.append(peer)
        return peer


class Weather:
    """Who is away, and who cannot reach whom, as time passes.

    Args:
        peers: by the names of their lines.
        switch: the network.
        rng: draws the spells.
    """

    def __init__(self, peers: dict[str, Peer], switch: Switch, rng: random.Random) -> None:
        self.peers, self.switch, self.rng = peers, switch, rng
        self.away: set[str] = set()
        now_s = time.monotonic()
        self.turns_s = {name: now_s + rng.expovariate(1 / THERE_S) for name in peers}
        self.redrawn_s = now_s

    def pass_by(self, now_s: float) -> None:
        """Changes what is due at `now_s`."""
        for name, peer in self.peers.items():
            if now_s < self.turns_s[name] or peer.is_over:
                continue
            goes = name not in self.away
            peer.process.send_signal(signal.SIGSTOP if goes else signal.SIGCONT)
            (self.away.add if goes else self.away.discard)(name)
            self.turns_s[name] = now_s + self.rng.expovariate(1 / (AWAY_S if goes else THERE_S))
        if now_s >= self.redrawn_s:
            pairs = [*itertools.combinations(self._addresses(), 2)]
            drawn = self.rng.sample(pairs, round(APART_SHARE * len(pairs)))
            self.switch.apart = frozenset(map(frozenset, drawn))
            self.redrawn_s = now_s + APART_S

    def clear(self) -> None:
        """Lets everybody go on, and reach everybody."""
        for name in self.away:
            self.peers[name].process.send_signal(signal.SIGCONT)
        self.away.clear()
        self.switch.apart = frozenset()

    def _addresses(self) -> list[str]:
        return [self.switch.lines[name].address for name in self.peers]


def main() -> None:
    """Prints what came of one swarm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--partition", default="iid")
    parser.add_argument("--network", choices=NETWORKS, default="good")
    parser.add_argument("--seeds", type=int, default=5, help="of shards, session and network")
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE, as in the TOML")
    parser.add_argument("--deadline", type=float, default=600.0, help="of the rounds, in seconds")
    parser.add_argument("--fast", action="store_true", help="two rounds: does it run?")
    options = parser.parse_args()
    if not can_have_lines():
        sys.exit("reality_run: a network of one's own takes Linux, root and /dev/net/tun")
    if options.fast:
        options.set.append("exchange.rounds=2")
    try:
        swarms = [measure(options, seed) for seed in range(1 if options.fast else options.seeds)]
    except Fault as fault:
        sys.exit(str(fault))
    accuracies = [one.pop("accuracy") for one in swarms]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    accuracy = {
        "mean": statistics.fmean(accuracies),
        "std_over_seeds": spread,
        "per_seed": accuracies,
    }
    means = {name: statistics.fmean(one[name] for one in swarms) for name in swarms[0]}
    print(json.dumps({"accuracy": accuracy, **means}))


def measure(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Returns the figures of one swarm."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_in(Path(folder), options, seed)


def measure_in(folder: Path, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Returns the figures of one swarm, whose files are in `folder`."""
    names = [f"peer-{number}" for number in range(options.peers)]
    rng = random.Random(f"{seed}/{options.network}")
    network = NETWORKS[options.network]
    together = [f"exchange.min_peers={options.peers}", "exchange.pull_deadline_s=5.0"]
    spec = spec_with(options.spec, [*together, f"seed={seed}", *options.set])
    with Switch([*names, "tracker"], rng) as switch, Lab(folder, switch) as lab:
        lab.serve()
        torrent = lab.create(as_toml(spec), "session")
        shards = ["--partition", options.partition, "--partition-seed", str(seed)]
        peers = {
            name: lab.join(
                name,
                torrent,
                "--data",
                options.data,
                "--shard",
                f"{number}/{options.peers}",
                *shards,
                "--seed-for",
                str(SEEDING_S),
                "--threads",
                "1",
            )
            for number, name in enumerate(names)
        }
        if network.has_slow_lines:
            for line in switch.lines.values():
                slow(line)
        everybody = peers.values()
        wait_until(lambda: all(map(Peer.last_round, everybody)), PATIENCE_S, "the first round")
        train(peers, switch, rng, network, spec["exchange"]["rounds"], options.deadline)
        return figures([peer.rounds() for peer in everybody])


def slow(line: Line) -> None:
    """Makes a line one as many have at home."""
    line.delay_s, line.loss, line.bytes_s = LINE_DELAY_S, LINE_LOSS, LINE_BYTES_S


def train(  # each of them a different thing
    peers: dict[str, Peer],
    switch: Switch,
    rng: random.Random,
    network: Network,
    rounds: int,
    deadline_s: float,
) -> None:
    """Returns when every peer has done its rounds.

    Raises:
        Fault: one has not by the deadline, or ended before.
    """
    weather = Weather(peers, switch, rng)

    def are_done() -> bool:
        if network.has_absences:
            weather.pass_by(time.monotonic())
        over = [one for one in peers.values() if one.is_over and one.last_round() < rounds]
        if over:
            raise Fault(f"{over[0].name} ended early:\n{over[0].text()[-2_000:]}")
        return all(peer.last_round() == rounds for peer in peers.values())

    wait_until(are_done, deadline_s, f"round {rounds} of everybody")
    weather.clear()


def figures(by_peer: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Returns what all peers came to."""
    rounds = [entry for rounds in by_peer for entry in rounds]
    asked = sum(len(entry["cohort"]) for entry in rounds)
    ages = [entry["round"] - version for entry in rounds for version in entry["versions"].values()]
    last = [entries[-1]["accuracy"] for entries in by_peer]
    return {
        "accuracy": statistics.fmean(last),
        "worst_peer": min(last),
        "pulls_failed": 100 * (1 - sum(len(one["received"]) for one in rounds) / asked),
        "rounds_late": statistics.fmean(max(0, age) for age in ages),
        "rounds_late_most": max(ages),
        "seconds_per_round": statistics.fmean(entry["seconds"] for entry in rounds),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    main()
