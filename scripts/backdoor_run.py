"""A backdoor that two of six peers train into their models, and how far it gets; prints JSON.

    scripts/backdoor_run.py DATA PARTITION [--model M] [--seeds N] [--first-seed N] [--fast]

Half of the two peers' images have a bright square of 3 x 3 pixels in a corner and are called class
0 (Gu et al. 2017, arXiv:1708.06733); the others are as they were. `honest` are the other four by
themselves. Beside the accuracy, on images as they are, stands how many test images of the other
classes are taken for class 0 once they have the square.
"""

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import p2pl
from p2pl.api.simulate import Simulation, session_to_simulate, simulate
from p2pl.data import partition as partitions
from p2pl.data.examples import Examples
from p2pl.data.load import Data, load
from p2pl.simulation.peers import torch_trainer
from p2pl.tasks.classification import Classification

SPEC = Path(__file__).parents[1] / "experiments" / "sessions" / "trust.toml"
PEERS, BAD, SQUARE, TARGET = 6, 2, 3, 0
MODELS: dict[str, dict[str, object]] = {
    "logreg": {},
    "mlp": {"model.name": "mlp", "model.arguments": {"hidden": [64]}},
}
ARMS = {
    "honest": ("uniform", f"absent:{BAD}"),
    "uniform": ("uniform", f"label-flip:{BAD}"),
    "degroot": ("degroot", f"label-flip:{BAD}"),
}


@p2pl.register_task("backdoored")
class Backdoored(Classification):
    """Classes, of which a bad peer calls every other example the target class."""

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns labels of which every other one is the target class."""
        made = targets.clone()
        made[::2] = TARGET
        return made


def marked(x: Tensor, bright: float) -> Tensor:
    """Returns images [n, C, H, W] with the square, as a copy."""
    made = x.clone()
    made[..., -SQUARE:, -SQUARE:] = bright
    return made


def spoilt(data: Data, how: str, seed: int) -> Data:
    """Returns the data in which every other image of the last two peers has the square."""
    x, y = data.train.x.clone(), data.train.y
    for rows in partitions.parse(how)(y.numpy(), PEERS, seed)[-BAD:]:
        some = torch.from_numpy(rows[::2].copy())
        x[some] = marked(x[some], float(x.max()))
    return replace(data, train=Examples(x, y))


def taken_in(made: Simulation, test: Examples, bright: float) -> float:
    """Returns how many images with the square honest peers take for its class, percent."""
    (result,) = made.results
    objective = torch_trainer(result.learners[0]).objective
    others = marked(test.x[test.y != TARGET], bright)
    with torch.no_grad():
        found = [
            (objective.outputs(result.vectors[peer], others).argmax(1) == TARGET).float().mean()
            for peer in result.honest
        ]
    return 100 * statistics.fmean(map(float, found))


def run(data: Data, how: str, model: str, seed: int, rounds: int | None) -> dict[str, Any]:
    """Returns accuracy and success, percent, of one seed in each arm."""
    assert data.test is not None
    bad, bright = spoilt(data, how, seed), float(data.train.x.max())
    changes = {
        "task.kind": "backdoored",
        **MODELS[model],
        **({"exchange.rounds": rounds} if rounds else {}),
    }
    found: dict[str, Any] = {"seed": seed}
    for arm, (rule, attack) in ARMS.items():
        made = simulate(
            SPEC,
            bad,
            PEERS,
            partition=how,
            partition_seed=0,
            first_seed=seed,
            changes={**changes, "mixing.rule": rule},
            attack=attack,
            curves=False,
            threads=1,
        )
        found[arm] = {
            "accuracy": made.figures["primary"]["mean"],
            "success": taken_in(made, data.test, bright),
            "bad_weight": made.figures["bad_weight"],
        }
    return found


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("partition")
    parser.add_argument("--model", choices=MODELS, default="logreg")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args()
    folder = os.environ.get("P2PL_DATA_DIR")
    task = session_to_simulate(SPEC).session.task
    data = load(asked.data, task, data_dir=Path(folder) if folder else None)
    seeds, rounds = (1, 2) if asked.fast else (asked.seeds, None)
    numbers = range(asked.first_seed, asked.first_seed + seeds)
    per_seed = [run(data, asked.partition, asked.model, seed, rounds) for seed in numbers]
    print(json.dumps({"partition": asked.partition, "model": asked.model, "per_seed": per_seed}))


if __name__ == "__main__":
    main()
