"""What a round costs on three local nodes of Ray, beside the same round in one process.

    scripts/bench ray [--rounds 10] [--turns 3]

Two kinds of rounds. In empty ones nobody trains, mixes or scores: what is left is what the exchange
itself costs, by peers and by parameters. In full ones, small networks train on digits. One process
and the cluster take turns; a line has medians of seconds a round, and the largest difference of any
parameter between the two.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from p2pl.data.load import Data, load
from p2pl.protocol import session
from p2pl.simulation import cluster, joined
from p2pl.simulation.cluster import Cluster
from p2pl.simulation.engine import Result, run
from p2pl.simulation.setup import Setup

SPEC = Path(__file__).parents[1] / "torrentfiles" / "digits.toml"
NODES, STORE_BYTES = 3, 300 << 20
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of round."""

    peers: int
    hidden: int  # of a network 64 - hidden - 10
    epochs: int  # 0: an empty round


CASES = (
    Case(12, 64, 0),
    Case(96, 64, 0),
    Case(12, 14_000, 0),
    Case(12, 64, 2),
    Case(12, 2_000, 10),
)


def main() -> None:
    """Prints a line of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = load("digits", session.read_spec(SPEC.read_text()).task)
    with three_nodes() as workers:
        for case in CASES:
            print(json.dumps(measured(case, data, workers, asked)), flush=True)


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    """Yields a worker on each of three nodes."""
    ray = joined.imported()
    from ray.cluster_utils import Cluster as LocalNodes

    each: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    nodes = LocalNodes(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    try:
        for _ in range(NODES - 1):
            nodes.add_node(**each)
        with joined.joined(f"ray:{nodes.address}", 1):
            yield cluster.start(ray, NODES, "cpu", 1)
    finally:
        nodes.shutdown()


def measured(case: Case, data: Data, workers: Cluster, asked: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of one case."""
    setup = setup_of(case, asked.rounds)
    turns = [(run(setup, data, CPU), on(workers, setup, data)) for _ in range(asked.turns)]
    one, three = ([median_s(pair[n]) for pair in turns] for n in (0, 1))
    pairs = zip(turns[0][0].vectors, turns[0][1].vectors, strict=True)
    return {
        "peers": case.peers,
        "parameters": len(turns[0][0].vectors[0]),
        "epochs": case.epochs,
        "one_process_s": round(statistics.median(one), 4),
        "three_nodes_s": round(statistics.median(three), 4),
        "three_nodes_range_s": [round(min(three), 4), round(max(three), 4)],
        "apart": max(float((a - b).abs().max()) for a, b in pairs),
    }


def setup_of(case: Case, rounds: int) -> Setup:
    """Returns the simulation of a case."""
    spec = session.read_spec(SPEC.read_text())
    setup = Setup.of(spec, peers=case.peers).changed(
        ("model", "arguments", {"hidden": [case.hidden]}),
        ("exchange", "rounds", rounds),
        ("exchange", "cohort", 2),
        ("exchange", "polish_rounds", 0 if case.epochs else rounds - 1),
        ("training", "local_epochs", max(1, case.epochs)),
        ("mixing", "rule", "uniform"),
    )
    return replace(setup, engine="sequential", curves=False)


def on(workers: Cluster, setup: Setup, data: Data) -> Result:
    """Returns what the cluster makes of a simulation."""
    there = replace(setup, engine="ray")
    return workers.spread([there], data, None)(there, data, CPU)


def median_s(result: Result) -> float:
    """Returns the median of a round's seconds.

    Of empty rounds the first one trains after all, and the last one always scores everybody.
    """
    return statistics.median(sum(one.seconds.values()) for one in result.rounds[1:-1])


if __name__ == "__main__":
    main()
