"""Measures one part of what Behera et al. 2021 show of an elected aggregator; prints JSON.

    scripts/raft_run.py PART [--fast]

`rates`: loss and accuracy against the learning rate of Adam (their figures 5 and 6), on training
examples that are held out, seeds from 100 on. `table`: their table I, on the test set, seeds from 0
on. `processes`: table I once more, from five real processes. `elections`: their table II, and
`failover`: how long a dead leader is missed, both from five real processes. `keys`: what it costs
that no key is used twice.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from launcher import ROOT, Peer, Swarm, wait_until

from p2pl.data import load as datasets
from p2pl.learner import Learner
from p2pl.learning.train import Start
from p2pl.learning.weights import flatten
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust.row import Trust
from p2pl.protocol.session import Session, read_spec
from p2pl.simulation.peers import peers_of, torch_trainer
from p2pl.simulation.raft import mix_at_the_leader
from p2pl.simulation.setup import Setup

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


class Raft(Swarm):
    """A tracker and five peers on this machine, one of which leads."""

    def __init__(self, folder: Path, data: str) -> None:
        super().__init__(folder)
        self.data = data
        self.peers: list[Peer] = []

    def begin(self, spec: str) -> None:
        self.tracker()
        self.torrent = self.create(spec, "session")
        self.peers = [self.start_peer(number) for number in range(PEERS)]

    def start_peer(self, number: int) -> Peer:
        shard = ("--partition", "iid", "--shard", f"{number}/{PEERS}")
        return self.peer(f"peer-{number}", self.torrent, "--data", self.data, *shard)

    def roles(self) -> list[tuple[float, int, str, int]]:
        """Returns when which peer took which role in which term, in order."""
        return sorted(
            (event["time"], number, event["role"], event["term"])
            for number, peer in enumerate(self.peers)
            for event in peer.roles()
        )

    def leader(self) -> int | None:
        """Returns who leads, of the processes that run."""
        alive = [number for number, peer in enumerate(self.peers) if not peer.is_over]
        last = {number: (term, role) for _, number, role, term in self.roles() if number in alive}
        leading = [(term, number) for number, (term, role) in last.items() if role == "leader"]
        return max(leading)[1] if leading else None

    def wait(self, reached: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        wait_until(reached, deadline_s, f"logs are in {self.folder}")


@contextmanager
def raft(spec: str, data: str) -> Iterator[Raft]:
    """Yields a swarm in a folder that is gone afterwards, unless something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="p2pl-raft-"))
    swarm = Raft(folder, data)
    try:
        swarm.begin(spec)
        yield swarm
    finally:
        swarm.end()
    shutil.rmtree(folder)


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
    # Timeouts that lie close together, so that two peers stand in one election now and then.
    spec = digits_spec(term_s=4.0, longest_timeout_s=0.65)
    with raft(spec, "digits") as swarm:
        swarm.wait(
            lambda: len({t for _, _, role, t in swarm.roles() if role == "leader"}) >= plan.terms
        )
        roles = swarm.roles()
    # Since the first of all: figures are kept with few digits.
    return {"roles": [(at_s - roles[0][0], *role) for at_s, *role in roles]}


def measure_failover(plan: Plan) -> Results:
    """Returns how long dead leaders were missed, at default settings."""
    missed: list[float] = []
    with raft(digits_spec(), "digits") as swarm:
        for _ in range(plan.kills):
            missed.append(kill_the_leader(swarm))
            print(f"missed for {missed[-1]:.2f} s", file=sys.stderr)
    return {"missed_s": missed}


def kill_the_leader(swarm: Raft) -> float:
    """Returns how many seconds after the leader's death another leads; brings the dead one back."""
    swarm.wait(lambda: len(settled(swarm)) == PEERS)
    leader = swarm.leader()
    assert leader is not None
    killed_s = time.time()
    swarm.peers[leader].kill()
    swarm.wait(lambda: swarm.leader() is not None, 60)
    found_s = max(at_s for at_s, _, role, _ in swarm.roles() if role == "leader")
    swarm.peers[leader] = swarm.start_peer(leader)
    return round(found_s - killed_s, 3)


def settled(swarm: Raft) -> set[int]:
    """Returns the peers that lead, or follow the present leader."""
    leader = swarm.leader()
    if leader is None:
        return set()
    its_id = swarm.peers[leader].logged("raft")[-1]["peer"]
    return {leader} | {
        number
        for number, peer in enumerate(swarm.peers)
        if not peer.is_over and [role["leader"] for role in peer.roles()[-1:]] == [its_id]
    }


def measure_processes(plan: Plan) -> Results:
    """Returns table I from the run logs of five real processes."""
    spec = SPEC.read_text().replace("rounds = 4", f"rounds = {plan.rounds}")
    # The processes find the data by P2PL_DATA_DIR.
    with raft(spec, "ylecun/mnist") as swarm:
        begun = time.monotonic()
        swarm.wait(lambda: all(peer.is_over for peer in swarm.peers))
        seconds = time.monotonic() - begun
        logs = [peer.rounds() for peer in swarm.peers]
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


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


PARTS: Mapping[str, Callable[[Plan], Results]] = {
    "rates": measure_rates,
    "table": measure_table,
    "processes": measure_processes,
    "elections": measure_elections,
    "failover": measure_failover,
    "keys": measure_keys,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--fast", action="store_true", help="as little as there is: does it run?")
    options = parser.parse_args()
    # Ended from outside, it takes its peers and its tracker along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data_dir = os.environ.get("P2PL_DATA_DIR")
    plan = Plan(Path(data_dir) if data_dir else None)
    if options.fast:
        plan = replace(
            plan,
            rates=(0.001,),
            rate_seeds=(100,),
            seeds=(0,),
            rounds=1,
            kills=1,
            terms=2,
            rsa_keys=2,
        )
    print(json.dumps(PARTS[options.part](plan)))


if __name__ == "__main__":
    main()
