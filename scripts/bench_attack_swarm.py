"""What two liars among six cost a real swarm, and what trust costs it: MNIST, logistic regression.

Three swarms of six processes on this machine, one after another: nobody lies; two serve their
parameters with the sign flipped, three times as large; nobody lies and all share equally. Then, in
one process, what a round's parts take by themselves.

    scripts/bench attack_swarm              needs P2PL_DATA_DIR or the network, for MNIST
    scripts/bench attack_swarm --data digits --session torrentfiles/digits.toml
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import launcher
import torch
from launcher import ROOT

from p2pl.data import load as datasets
from p2pl.data import partition
from p2pl.data.load import Data
from p2pl.learner import Learner
from p2pl.learning import checkpoint, models
from p2pl.learning.train import Start
from p2pl.mixing.base import PeerModel
from p2pl.protocol import session as sessions
from p2pl.protocol.session import Session

PEERS, BAD = 6, 2
ATTACK = "sign-flip:-3"
DEADLINE_S = 600.0
REPEATS = 9


@dataclass(frozen=True, slots=True)
class Swarm:
    """What the first four of six peers came to."""

    accuracy: float  # percent, on the test set, mean
    round_s: float  # median
    bad_weight: float  # percent of a mix that the last two were, mean of the rounds after the fifth
    rounds: int  # fewest


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session", type=Path, default=ROOT / "torrentfiles" / "mnist-iid.toml")
    parser.add_argument("--data", default="ylecun/mnist")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    spec = options.session.read_text()
    found = {
        "nobody lies": swarm(spec, options.data, bad=0),
        f"2 of 6 {ATTACK}": swarm(spec, options.data, bad=BAD),
        "nobody lies, equal sharing": swarm(
            spec + '\n[mixing]\nrule = "uniform"\n', options.data, bad=0
        ),
    }
    parts = parts_of_a_round(spec, options.data)
    if options.json:
        swarms = {name: asdict(one) for name, one in found.items()}
        print(json.dumps({"swarms": swarms, "milliseconds": parts}))
        return
    for name, one in found.items():
        print(
            f"{name:28} accuracy {one.accuracy:6.2f} %   round {1000 * one.round_s:5.0f} ms   "
            f"weight of the last two {one.bad_weight:5.2f} %"
        )
    print("by themselves: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in parts.items()))


def swarm(spec: str, data: str, bad: int) -> Swarm:
    """Returns what six processes came to; the last `bad` of them lie."""
    with tempfile.TemporaryDirectory() as folder, launcher.Swarm(Path(folder)) as started:
        started.tracker()
        torrent = started.create(spec, "session")
        lie = ("--attack", ATTACK)
        peers = [
            started.peer(
                f"peer-{index}",
                torrent,
                *("--data", data, "--shard", f"{index}/{PEERS}"),
                *(lie if index >= PEERS - bad else ()),
            )
            for index in range(PEERS)
        ]
        for peer in peers:
            peer.succeed(DEADLINE_S)
        return summed_up(peers)


def summed_up(peers: Sequence[launcher.Peer]) -> Swarm:
    """Returns the figures in the run directories."""
    ends = [peer.summary() for peer in peers]
    honest, suspects = ends[: PEERS - BAD], {end["peer_id"] for end in ends[PEERS - BAD :]}
    entries = [entry for peer in peers[: PEERS - BAD] for entry in peer.rounds()]
    return Swarm(
        accuracy=statistics.fmean(end["accuracy"] for end in honest),
        round_s=statistics.median(entry["seconds"] for entry in entries),
        bad_weight=statistics.fmean(
            100 * sum(weight for peer, weight in entry["trust"].items() if peer in suspects)
            for entry in entries
            if entry["round"] > 5
        ),
        rounds=min(end["rounds"] for end in honest),
    )


def parts_of_a_round(text: str, reference: str) -> dict[str, float]:
    """Returns milliseconds, medians: training, the two ways of mixing, and scoring, in one thread.

    What is left of a swarm's round is transfer, and waiting for the others on a shared machine.
    """
    torch.set_num_threads(1)
    session = sessions.read_spec(text).session()
    home = os.environ.get("P2PL_DATA_DIR")
    whole = datasets.load(reference, session.task, data_dir=Path(home) if home else None)
    learners = {rule: one_of(session, whole, rule) for rule in ("degroot", "uniform")}
    learner = learners["degroot"]
    begin = learner.decode_checkpoint(checkpoint.build(session)[0])
    vectors = [learner.fit(Start(begin), index).vector for index in range(1, 6)]
    others = {f"{index:064x}": PeerModel(2, 1, one) for index, one in enumerate(vectors[1:])}
    own = vectors[0]
    return {
        "train": timed(lambda: learner.fit(Start(own), 2)),
        "mix degroot": timed(lambda: learner.mix(own, others, 2, start=begin)),
        "mix uniform": timed(lambda: learners["uniform"].mix(own, others, 2)),
        "score": timed(lambda: learner.score(own, own)),
    }


def one_of(session: Session, whole: Data, rule: str) -> Learner:
    """Returns the learner of one peer, with its share of the data."""
    changed = sessions.changed(session, ("mixing", "rule", rule))
    rows = partition.iid(whole.train.y.numpy(), PEERS, 0)[0]
    mine = whole.train.part(torch.from_numpy(rows))
    return Learner.of(changed, ("0" * 64, "f" * 64), models.build(changed), mine, whole.test)


def timed(work: Callable[[], object]) -> float:
    """Returns the median of what it takes, milliseconds."""
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def nothing(done: int, steps: int) -> None:
    """Takes no notice of a step."""


if __name__ == "__main__":
    main()
