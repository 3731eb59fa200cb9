"""The bar of decentralised learning, whole or as a scaled-down twin; prints JSON.

    scripts/bar_run.py ARM [--data NAME] [--twin] [--seeds N] [--first-seed N] [--device D] [--fast]

Whole: 30 peers, Dirichlet 0.1, 300 rounds of one epoch, batch 32, SGD at 0.05, a network of four
convolutions with GroupNorm, images cropped and flipped at random, random cohorts of 4; a GPU's
work. The twin: 10 peers, 60 rounds, one training image in ten, 2,000 test images, convolutions of
half the width; two cores bear it.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import p2pl
from p2pl.api.simulate import session_to_simulate, simulate
from p2pl.data.examples import Examples
from p2pl.data.load import Data, Shard, load
from p2pl.mixing.base import Own, PeerModel, Row
from p2pl.mixing.fixed import FixedRow
from p2pl.protocol.session import Task, changed

SPEC = Path(__file__).parents[1] / "experiments" / "sessions" / "bar.toml"
PARTITION = "dirichlet:0.1"
CLASSES = {"uoft-cs/cifar10": 10, "uoft-cs/cifar100": 100}
PEERS, TWINS, PARTS, TEST = 30, 10, 10, 2_000
TWIN: dict[str, object] = {"exchange.rounds": 60, "model.arguments.width": 16}
PADDING = 4  # pixels on each side, from which a crop is drawn
QUASI_GLOBAL: dict[str, object] = {
    # At a rate that steps of the same length come to: 1 / (1 - momentum) of them add up.
    "training.momentum": 0.9,
    "training.learning_rate": 0.005,
    "training.quasi_global": True,
}
FALLING: dict[str, object] = {"training.schedule": "cosine"}
POLISHED: dict[str, object] = {"exchange.polish_rounds": 5}
ARMS: dict[str, dict[str, object]] = {
    "server": {"mixing.rule": "fedavg"},
    "epidemic": {},
    "learned": {"mixing.rule": "degroot"},
    "quasi-global": QUASI_GLOBAL,
    "cosine": FALLING,
    "polish": POLISHED,
    "together": {"mixing.rule": "degroot", **QUASI_GLOBAL, **FALLING, **POLISHED},
    "cosine-polish": {**FALLING, **POLISHED},
    "server-cosine": {"mixing.rule": "fedavg", **FALLING},
}


@p2pl.register_mixing("fedavg")
class FederatedAverage(FixedRow):
    """Weighs by examples, without a bound: with everybody's models, what a server computes."""

    def row(self, own: Own, received: Mapping[str, PeerModel]) -> Row:
        """Returns weights in proportion to examples (McMahan et al. 2017)."""
        counts = (own.samples, *(model.samples for model in received.values()))
        return tuple(count / sum(counts) for count in counts)


class CropAndFlip(nn.Module):
    """Shifts each image by up to four pixels and mirrors every other one, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        # Models are made under the session's seed, so each seed of a study shifts otherwise.
        self._drawn = torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        count, _, height, width = x.shape
        shifts = torch.randint(0, 2 * PADDING + 1, (2, count), generator=self._drawn)
        mirrored = (torch.rand(count, generator=self._drawn) < 0.5).to(x.device)
        down, right = shifts.to(x.device)
        padded = functional.pad(x, (PADDING,) * 4)
        columns = torch.arange(width, device=x.device)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + right[:, None]
        rows = torch.arange(height, device=x.device) + down[:, None]
        images = torch.arange(count, device=x.device)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)


@p2pl.register_model("four-convolutions")
def four_convolutions(task: Task, *, width: int = 32) -> nn.Module:
    """Returns four 3x3 convolutions with GroupNorm, three of them pooled, and a linear layer."""
    channels, height, breadth = task.input
    sizes = (width, 2 * width, 4 * width, 4 * width)
    layers: list[nn.Module] = [CropAndFlip()]
    for place, size in enumerate(sizes):
        layers += [nn.Conv2d(channels, size, 3, padding=1), nn.GroupNorm(8, size), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place < 3 else []
        channels = size
    flat = sizes[-1] * (height // 8) * (breadth // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, task.classes))


def images(name: str, changes: Mapping[str, object], *, twin: bool) -> Data:
    """Returns the images; of the twin, one in ten to train on, drawn once for all."""
    folder = os.environ.get("P2PL_DATA_DIR")
    data = load(
        name,
        changed(session_to_simulate(SPEC).session, *changes.items()).task,
        data_dir=Path(folder) if folder else None,
        shard=Shard(0, PARTS, "iid") if twin else None,
    )
    if not twin:
        return data
    assert data.test is not None
    return replace(data, test=Examples(data.test.x[:TEST], data.test.y[:TEST]))


def run(
    data: Data, changes: Mapping[str, object], seed: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """Returns what one seed came to."""
    begun = time.process_time()
    peers = TWINS if asked.twin else PEERS
    served = ARMS[asked.arm].get("mixing.rule") == "fedavg"
    everybody = {"exchange.cohort": peers - 1} if served else {}
    made = simulate(
        SPEC,
        data,
        peers,
        partition=PARTITION,
        first_seed=seed,
        changes={**changes, **ARMS[asked.arm], **everybody},
        engine="sequential",
        curves=False,
        threads=asked.threads,
        device=asked.device,
    )
    accuracy = made.figures["accuracy"]
    return {
        "seed": seed,
        "accuracy": accuracy["mean"],
        "std_over_peers": accuracy["std_over_peers"],
        "worst_peer": accuracy["worst_peer"],
        "of_mean_model": made.figures["accuracy_of_mean_model"],
        "cpu_seconds": time.process_time() - begun,
        "device": made.figures["device"],
        "of_mean_model_by_round": [
            round(one["accuracy_of_mean_model"], 2) for one in made.figures["by_round"]
        ],
    }


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--data", choices=CLASSES, default="uoft-cs/cifar10")
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args()
    changes: dict[str, object] = {"task.classes": CLASSES[asked.data]}
    changes |= TWIN if asked.twin else {}
    rounds = 6 if asked.fast else asked.rounds
    changes |= {"exchange.rounds": rounds} if rounds else {}
    data = images(asked.data, changes, twin=asked.twin)
    numbers = range(asked.first_seed, asked.first_seed + asked.seeds)
    per_seed = [run(data, changes, seed, asked) for seed in numbers]
    mean = statistics.fmean(one["accuracy"] for one in per_seed)
    print(json.dumps({"arm": asked.arm, "data": asked.data, "mean": mean, "per_seed": per_seed}))


if __name__ == "__main__":
    main()
