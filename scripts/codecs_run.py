"""A small convolutional network on few of CIFAR-10's images among six, by codec; prints JSON.

    scripts/codecs_run.py CODEC SPLIT [--seeds N] [--first-seed N] [--rounds N] [--fast]

`CODEC` is none, float16, int8, int4, int3, dither3 or dither2; `SPLIT` is iid or dirichlet:A. What
is not trained on is drawn once for all seeds.
"""

import argparse
import json
import os
from pathlib import Path

from p2pl.api.simulate import session_to_simulate, simulate
from p2pl.data.load import Data, Shard, load

SPEC = Path(__file__).parents[1] / "experiments" / "sessions" / "cnn-cifar.toml"
HOLDERS, PARTS = 6, 10  # training: one image in ten, thus 5,000
CODECS: dict[str, dict[str, object]] = {
    "none": {},
    "float16": {"wire.dtype": "float16"},
    **{name: {"wire.compression": name} for name in ("int8", "int4", "int3", "dither3", "dither2")},
}
SMALL = {
    "model.arguments": {"width": 8, "hidden": 32},
    "exchange.rounds": 10,
    "exchange.cohort": 3,
    "exchange.min_peers": HOLDERS,
}


def few() -> Data:
    """Returns 5,000 images to train on, and the test set."""
    folder = os.environ.get("P2PL_DATA_DIR")
    return load(
        "uoft-cs/cifar10",
        session_to_simulate(SPEC).session.task,
        data_dir=Path(folder) if folder else None,
        shard=Shard(0, PARTS, "iid"),
    )


def main() -> None:
    """Reads the command line and prints the figures, as `p2pl simulate --json` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codec", choices=CODECS)
    parser.add_argument("split")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args()
    rounds = 2 if asked.fast else asked.rounds
    made = simulate(
        SPEC,
        few(),
        HOLDERS,
        partition=asked.split,
        seeds=2 if asked.fast else asked.seeds,
        first_seed=asked.first_seed,
        changes={**SMALL, **CODECS[asked.codec], **({"exchange.rounds": rounds} if rounds else {})},
        curves=False,
        threads=1,
    )
    print(json.dumps(made.figures))


if __name__ == "__main__":
    main()
