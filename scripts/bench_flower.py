"""The same Flower clients under Flower's own FedAvg simulation and under p2pl, in one run.

MNIST, logistic regression, an unmodified `flwr` NumPyClient. First all-to-all averaging: what comes
out must be what FedAvg makes, to 1e-5. Then gossip with a few random neighbours and no server at
all. Accuracies are on the whole test set: of FedAvg's model, and the mean over all gossiping peers.

    P2PL_DATA_DIR=DIR scripts/bench flower [--peers 100] [--rounds 20] [--neighbours 2] [--seeds 5]
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy

from p2pl.data import load as datasets
from p2pl.learning import flower, models
from p2pl.learning.weights import Layout
from p2pl.protocol import session
from p2pl.protocol.session import Session
from p2pl.simulation import engine
from p2pl.simulation.setup import Setup

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-5
SPEC = """
name = "flower"
[task]
input = [1, 28, 28]
classes = 10
[model]
name = "arrays"
arguments = { a0 = [10, 784], a1 = [10] }
[training]
learning_rate = 0.1
[exchange]
kind = "gossip"
rounds = 1
cohort = 1
[mixing]
rule = "samples"
"""
Arrays = list[np.ndarray[Any, Any]]


class Client(NumPyClient):  # type: ignore[misc]  # flwr is not typed
    """Written for Flower; knows nothing of p2pl but where its arrays lie."""

    def __init__(self, arrays: str, part: int, parts: int, seed: int) -> None:
        loaded = np.load(arrays, mmap_mode="r")
        rows = np.random.default_rng(seed).permutation(len(loaded))[part::parts]
        mine = torch.from_numpy(np.array(loaded[np.sort(rows)]))
        self.x, self.y = mine[:, 1:], mine[:, 0].long()
        self.name = (seed, part)

    def get_parameters(self, config: dict[str, Any]) -> Arrays:
        return [np.zeros((10, 784), np.float32), np.zeros(10, np.float32)]

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        torch.set_num_threads(1)
        weight, bias = (torch.tensor(array).requires_grad_() for array in parameters)
        seed = hash((*self.name, config["server_round"])) % (1 << 62)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, 64):
            loss = cross_entropy(self.x[rows] @ weight.T + bias, self.y[rows])
            gradients = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                for parameter, gradient in zip((weight, bias), gradients, strict=True):
                    parameter -= 0.1 * gradient
        return [weight.detach().numpy(), bias.detach().numpy()], len(self.x), {}

    def evaluate(
        self, parameters: Arrays, config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        return 0.0, 0, {}


def fedavg(initial: Arrays, arrays: str, options: argparse.Namespace, seed: int) -> Arrays:
    """Returns what Flower's simulation makes of the clients."""
    last: list[Arrays] = []

    def keep(
        round_index: int, parameters: Arrays, config: dict[str, Any]
    ) -> tuple[float, dict[str, Any]]:
        last[:] = [parameters]
        return 0.0, {}

    def client(context: Context) -> Any:  # noqa: ANN401  # flwr is not typed
        part = int(context.node_config["partition-id"])
        return Client(arrays, part, options.peers, seed).to_client()

    def server(context: Context) -> Any:  # noqa: ANN401
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=options.peers,
            min_available_clients=options.peers,
            initial_parameters=ndarrays_to_parameters(initial),
            evaluate_fn=keep,
            on_fit_config_fn=lambda round_index: {"server_round": round_index},
        )
        config = ServerConfig(num_rounds=options.rounds)
        return ServerAppComponents(strategy=strategy, config=config)

    run_simulation(
        server_app=ServerApp(server_fn=server),
        client_app=ClientApp(client_fn=client),
        num_supernodes=options.peers,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return last[0]


def ours(wanted: Session, arrays: str, options: argparse.Namespace, seed: int) -> torch.Tensor:
    """Returns what p2pl makes of the same clients, by peer, [N, P]."""
    setup = Setup(wanted, "ab" * 32, peers=options.peers, partition="iid")
    result = engine.run(
        setup, lambda part, parts: Client(arrays, part, parts, seed), torch.device("cpu")
    )
    return torch.stack(result.vectors)


def accuracy(vectors: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the mean accuracy of models [N, P] on the test set, percent."""
    right = [
        ((x @ vector[:7_840].view(10, 784).T + vector[7_840:]).argmax(1) == y).float().mean()
        for vector in vectors
    ]
    return 100 * float(torch.stack(right).mean())


def main() -> None:
    """Prints one JSON object; fails where all-to-all averaging is not FedAvg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--neighbours", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fast", action="store_true", help="four peers, two rounds: does it run?")
    options = parser.parse_args()
    if options.fast:
        options.peers, options.rounds, options.seeds = 4, 2, 1
    torch.set_num_threads(1)
    plain = session.read_spec(SPEC).session()
    home = os.environ.get("P2PL_DATA_DIR")
    mnist = datasets.load("ylecun/mnist", plain.task, data_dir=Path(home) if home else None)
    assert mnist.test is not None
    x, y = mnist.test.x.flatten(1), mnist.test.y
    arrays = str(ROOT / "runs" / "bench-flower.npy")
    Path(arrays).parent.mkdir(exist_ok=True)
    joined = torch.cat([mnist.train.y.float().unsqueeze(1), mnist.train.x.flatten(1)], dim=1)
    np.save(arrays, joined.numpy())
    initial = [
        parameter.detach().numpy().copy()
        for _, parameter in sorted(models.build(plain).named_parameters())
    ]
    rows = [measure(plain, initial, arrays, options, seed, (x, y)) for seed in range(options.seeds)]
    fields = rows[0].keys()
    figures = {
        "peers": options.peers,
        "rounds": options.rounds,
        "neighbours": options.neighbours,
        "seeds": options.seeds,
        **{field: statistics.fmean(row[field] for row in rows) for field in fields},
        "largest_difference": max(row["difference"] for row in rows),
        "per_seed": rows,
    }
    print(json.dumps(figures))
    if figures["largest_difference"] > TOLERANCE:
        sys.exit(f"all-to-all averaging differs from FedAvg by {figures['largest_difference']:.2g}")


def measure(
    plain: Session,
    initial: Arrays,
    arrays: str,
    options: argparse.Namespace,
    seed: int,
    test: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, float]:
    """Returns one seed's figures: accuracies in percent, times in seconds."""

    def timed(work: Any) -> tuple[Any, float]:  # noqa: ANN401
        begun = time.perf_counter()
        made = work()
        return made, time.perf_counter() - begun

    everybody = session.changed(
        plain, ("exchange", "rounds", options.rounds), ("exchange", "cohort", options.peers - 1)
    )
    few = session.changed(
        everybody, ("exchange", "cohort", options.neighbours), ("mixing", "rule", "age")
    )
    model, fedavg_s = timed(lambda: fedavg(initial, arrays, options, seed))
    averaged, ours_s = timed(lambda: ours(everybody, arrays, options, seed))
    gossiped, gossip_s = timed(lambda: ours(few, arrays, options, seed))
    target = flower.flatten(model, Layout.of(models.build(plain)))
    return {
        "fedavg_accuracy": accuracy(target.unsqueeze(0), *test),
        "all_to_all_accuracy": accuracy(averaged, *test),
        "gossip_accuracy": accuracy(gossiped, *test),
        "difference": float((averaged - target).abs().max()),
        "fedavg_seconds": fedavg_s,
        "all_to_all_seconds": ours_s,
        "gossip_seconds": gossip_s,
    }


if __name__ == "__main__":
    main()
