"""Six holders of generated images with shapes, together, alone, and in one place; prints JSON.

    scripts/shapes_run.py PARTITION [--seeds N] [--first-seed N] [--rounds N] [--fast]

An image is noise around a brightness of its own, with one or two shapes of one kind: discs, which
are brighter, or crosses, which are darker. Sizes, places and contrasts are random. What is to be
told of each pixel is the kind of shape that it belongs to, or none. All of it is drawn anew by each
seed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2pl.api.simulate import simulate

SPEC = Path(__file__).parents[1] / "experiments" / "sessions" / "shapes.toml"
HOLDERS, TRAIN, TEST, SIDE, KINDS = 6, 180, 120, 32, 2
NOISE = 0.5  # standard deviation; contrasts are from 1 to 2
ARMS: dict[str, tuple[dict[str, object], str | None]] = {
    "together": ({}, None),
    "alone": ({}, "isolated"),
    "pooled": ({}, "centralised"),
}
Examples = tuple[Tensor, Tensor]


def images(count: int, random: torch.Generator) -> Examples:
    """Returns images [n, 1, 32, 32] and the kinds of their pixels [n, 32, 32]; 0: background."""
    x = NOISE * torch.randn(count, SIDE, SIDE, generator=random)
    y = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for image, target in zip(x, y, strict=True):
        kind, more = (int(torch.randint(KINDS, (), generator=random)) for _ in range(2))
        for _ in range(more + 1):
            u = torch.rand(4, generator=random).tolist()
            inside = shape(kind, 3 + 5 * u[0], 4 + (SIDE - 8) * u[1], 4 + (SIDE - 8) * u[2])
            contrast = (1 + u[3]) * (1 if kind == 0 else -1)
            image += contrast * (inside & (target == 0))
            target[inside] = kind + 1
        image += 4 * torch.rand((), generator=random) - 2  # no image is as bright as the next
    return x[:, None], y


def shape(kind: int, radius: float, row: float, column: float) -> Tensor:
    """Returns which pixels a disc (0) or a cross (1) has, [32, 32] bool."""
    places = torch.arange(SIDE)
    down, right = (places - row).abs()[:, None], (places - column).abs()[None]
    if kind == 0:
        return down**2 + right**2 <= radius**2
    arms = (down <= radius / 3) | (right <= radius / 3)
    return arms & (down <= radius) & (right <= radius)


def run(how: str, seed: int, rounds: int | None) -> dict[str, Any]:
    """Returns Dice, percent, of one seed: together, each alone, and all images in one place."""
    random = torch.Generator().manual_seed(seed)
    data = images(TRAIN, random), images(TEST, random)
    changes = {"exchange.rounds": rounds} if rounds else {}
    found: dict[str, Any] = {"seed": seed}
    for arm, (more, baseline) in ARMS.items():
        made = simulate(
            SPEC,
            data,
            HOLDERS,
            partition=how,
            partition_seed=0,
            first_seed=seed,
            changes={**changes, **more},
            baseline=baseline,
            curves=False,
            threads=1,
        )
        primary = made.figures["primary"]
        assert primary["metric"] == "Dice"
        found |= {arm: primary["mean"], f"{arm}_worst": primary["worst_peer"]}
    return found


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("partition")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + (2 if asked.fast else asked.seeds))
    per_seed = [run(asked.partition, seed, 2 if asked.fast else asked.rounds) for seed in seeds]
    mean = {arm: statistics.fmean(one[arm] for one in per_seed) for arm in ARMS}
    print(json.dumps({"partition": asked.partition, "mean": mean, "per_seed": per_seed}))


if __name__ == "__main__":
    main()
