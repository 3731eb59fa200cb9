"""A small residual network on few of CIFAR-10's images among six with skewed labels; prints JSON.

    scripts/norms_run.py mixed|home|group [--seeds N] [--first-seed N] [--rounds N] [--fast]

`mixed` and `home` have BatchNorm, whose statistics are mixed as all parameters are, or stay with
their peer; `group` has GroupNorm. Each is run with equal sharing, with learned trust, alone, and
with all images in one place.
"""

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pl.api.simulate import session_to_simulate, simulate
from p2pl.data.examples import Examples
from p2pl.data.load import Data, Shard, load

SPEC = Path(__file__).parents[1] / "experiments" / "sessions" / "resnet.toml"
HOLDERS, PARTS, TEST = 6, 25, 1_000  # training: one image in 25, thus 2,000
CASES: dict[str, dict[str, object]] = {
    "mixed": {},
    "home": {"training.buffers": "local"},
    "group": {"model.name": "resnet-gn"},
}
ARMS: dict[str, tuple[dict[str, object], str | None]] = {
    "equal": ({"mixing.rule": "uniform"}, None),
    "learned": ({"mixing.rule": "degroot"}, None),
    "alone": ({}, "isolated"),
    "pooled": ({}, "centralised"),
}
NOT_IN = {("home", "alone"), ("home", "pooled")}  # where nothing is exchanged, as `mixed`


def few() -> Data:
    """Returns 2,000 images to train on, drawn once for all, and the first 1,000 of the test set."""
    folder = os.environ.get("P2PL_DATA_DIR")
    data = load(
        "uoft-cs/cifar10",
        session_to_simulate(SPEC).session.task,
        data_dir=Path(folder) if folder else None,
        shard=Shard(0, PARTS, "iid"),
    )
    assert data.test is not None
    return replace(data, test=Examples(data.test.x[:TEST], data.test.y[:TEST]))


def run(data: Data, case: str, seed: int, rounds: int | None) -> dict[str, Any]:
    """Returns the accuracy, percent, of one seed in each arm."""
    changes = {"exchange.rounds": rounds} if rounds else {}
    found: dict[str, Any] = {"seed": seed}
    for arm, (more, baseline) in ARMS.items():
        if (case, arm) not in NOT_IN:
            made = simulate(
                SPEC,
                data,
                HOLDERS,
                partition="dirichlet:0.5",
                first_seed=seed,
                changes={**changes, **CASES[case], **more},
                baseline=baseline,
                curves=False,
                threads=1,
            )
            found[arm] = made.figures["primary"]["mean"]
    return found


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + (2 if asked.fast else asked.seeds))
    data, rounds = few(), 2 if asked.fast else asked.rounds
    per_seed = [run(data, asked.case, seed, rounds) for seed in seeds]
    arms = [arm for arm in ARMS if arm in per_seed[0]]
    mean = {arm: statistics.fmean(one[arm] for one in per_seed) for arm in arms}
    print(json.dumps({"case": asked.case, "mean": mean, "per_seed": per_seed}))


if __name__ == "__main__":
    main()
