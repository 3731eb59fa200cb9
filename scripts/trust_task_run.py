"""Learned trust beside equal sharing, on a task that is no classification; prints JSON.

    scripts/trust_task_run.py TASK PARTITION [--attacks A,B] [--seeds N] [--first-seed N] [--fast]

Six peers, of which the last two are bad where there is an attack. `honest` are the same four by
themselves. The data are drawn from the seed:

| TASK         | data                                        | model             | metric     |
|--------------|---------------------------------------------|-------------------|------------|
| `friedman`   | regression: Friedman's first function       | 10, 32, 1         | RMSE       |
| `multilabel` | five labels of counted words                | 20, 32, 5         | AUROC      |
| `markov`     | texts of a chain of 12 tokens, 16 at a time | embedding, linear | perplexity |
| `diabetes`   | regression: 442 patients                    | linear            | RMSE       |
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn

import p2pl

PEERS, BAD, ROUNDS = 6, 2, 15
ATTACKS = ("none", "sign-flip", "label-flip", "alie", "ipm", "dissensus", "stale", "free-rider")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Drawn:
    """What one seed is about."""

    task: Mapping[str, Any]  # the session's table
    train: Pair
    test: Pair
    model: nn.Module
    training: Mapping[str, Any]


def friedman(seed: int) -> Drawn:
    """Returns a regression in ten inputs of which five matter."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(3_000, 10, noise=1.0, random_state=seed)
    x, y = _floats((x - 0.5) * 3.46), _floats((y - 14.4) / 4.9)[:, None]
    task = {"kind": "regression", "input": [10], "outputs": 1}
    return Drawn(
        task, (x[:2_000], y[:2_000]), (x[2_000:], y[2_000:]), _two_layers(10, 1), _sgd(0.05)
    )


def multilabel(seed: int) -> Drawn:
    """Returns inputs with any of five labels."""
    from sklearn.datasets import make_multilabel_classification

    x, y = make_multilabel_classification(4_000, 20, n_classes=5, random_state=seed)
    x, y = _floats((x - x.mean(0)) / x.std(0)), _floats(y)
    task = {"kind": "multilabel", "input": [20], "outputs": 5}
    return Drawn(
        task, (x[:3_000], y[:3_000]), (x[3_000:], y[3_000:]), _two_layers(20, 5), _sgd(0.2)
    )


def markov(seed: int) -> Drawn:
    """Returns texts of a chain whose next token depends on the last one alone."""
    random = RandomState(seed)
    chain = random.dirichlet([0.2] * 12, size=12)
    tokens = np.zeros((900, 17), dtype=np.int64)
    tokens[:, 0] = random.randint(12, size=900)
    for at in range(1, 17):
        drawn = random.random_sample(900)[:, None]
        tokens[:, at] = (chain[tokens[:, at - 1]].cumsum(1) < drawn).sum(1).clip(max=11)
    texts = torch.from_numpy(tokens)
    task = {"kind": "language", "input": [16], "classes": 12}
    model = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12))
    return _cut(task, (texts[:, :-1], texts[:, 1:]), 600, model, _sgd(1.0))


def diabetes(seed: int) -> Drawn:
    """Returns 442 patients, of which a peer holds 57: eleven of them to judge others by."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    order = RandomState(seed).permutation(len(y))
    x, y = _floats(x / x.std(0))[order], _floats((y - 152) / 77)[order, None]
    task = {"kind": "regression", "input": [10], "outputs": 1}
    model = nn.Sequential(nn.Linear(10, 1))
    return _cut(task, (x, y), 342, model, _sgd(0.02))


TASKS = {"friedman": friedman, "multilabel": multilabel, "markov": markov, "diabetes": diabetes}


def _cut(
    task: Mapping[str, Any], whole: Pair, rows: int, model: nn.Module, training: Mapping[str, Any]
) -> Drawn:
    """Returns the first rows to train on, and the rest to test on."""
    x, y = whole
    return Drawn(task, (x[:rows], y[:rows]), (x[rows:], y[rows:]), model, training)


def _floats(values: Any) -> Tensor:  # noqa: ANN401  # whatever numpy makes
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def _two_layers(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def _sgd(rate: float) -> dict[str, Any]:
    return {"learning_rate": rate, "batch_size": 16}


def measured(
    task: str, partition: str, attack: str, rule: str, seed: int, rounds: int
) -> dict[str, Any]:
    """Returns the loss, the metric and the bad peers' weight of one run."""
    torch.manual_seed(seed)
    drawn = TASKS[task](seed)
    spec = {
        "name": f"trust-{task}",
        "seed": seed,
        "task": drawn.task,
        "model": {"name": "arrays"},
        "training": drawn.training,
        "exchange": {"rounds": rounds, "cohort": PEERS - 1, "min_peers": 2},
        "mixing": {"rule": "uniform" if rule == "honest" else rule},
    }
    kind = "absent" if rule == "honest" else attack
    with tempfile.TemporaryDirectory() as folder:
        file = p2pl.create(spec, Path(folder) / "s.torrent", model=drawn.model)
        made = p2pl.simulate(
            file,
            (drawn.train, drawn.test),
            PEERS,
            model=drawn.model,
            partition=partition,
            partition_seed=seed,
            attack=None if kind == "none" else f"{kind}:{BAD}",
            curves=False,
            threads=1,
        )
    primary = made.figures["primary"]
    return {
        "metric": primary["metric"],
        "value": primary["mean"],
        "bad_weight": made.figures["bad_weight"],
        "wrongly_rejected": made.figures["good_rejected"],
    }


def main() -> None:
    """Prints, by attack and arm, what each seed came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("partition")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="two rounds of one seed")
    given = parser.parse_args()
    rounds, seeds = (2, 1) if given.fast else (ROUNDS, given.seeds)
    numbers = range(given.first_seed, given.first_seed + seeds)
    by_attack = {}
    for attack in given.attacks.split(","):
        arms = ("uniform", "degroot") if attack == "none" else ("honest", "uniform", "degroot")
        by_attack[attack] = {
            arm: [
                measured(given.task, given.partition, attack, arm, seed, rounds) for seed in numbers
            ]
            for arm in arms
        }
    print(json.dumps({"task": given.task, "by_attack": by_attack}))


if __name__ == "__main__":
    main()
