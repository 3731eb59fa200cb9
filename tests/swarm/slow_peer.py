"""Joins a session as one peer of some, with a training loop that can take as long as ten rounds.

    python slow_peer.py FILE INDEX/PEERS RUN_DIR [OTHER_RUN_DIR]

With the run directory of another peer, each round of training lasts until that peer has done ten.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

import p2pl

TIMES = 10
LOOK_S = 0.02


def lines(other: Path) -> int:
    """Returns how many rounds another peer has done."""
    log = other / "rounds.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_rounds(other: Path) -> None:
    """Returns when another peer has done ten rounds more, or has ended."""
    enough = lines(other) + TIMES
    while lines(other) < enough and not (other / "summary.json").exists():
        time.sleep(LOOK_S)


def main(torrent: str, shard: str, run_dir: str, *others: str) -> None:
    """Takes part until all rounds are done."""
    index, peers = map(int, shard.split("/"))

    def fit(model: nn.Module, one: p2pl.Round) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=one.training.learning_rate)
        for inputs, targets in one.batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for other in others:
            wait_for_rounds(Path(other))

    p2pl.join(
        torrent,
        data="digits",
        shard=p2pl.Shard(index, peers, "iid"),
        fit=fit,
        listen="127.0.0.1:0",
        run_dir=run_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
