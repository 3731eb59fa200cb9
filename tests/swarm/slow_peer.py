"""Joins a session as one peer of some, with a training loop that takes so many seconds longer.

python slow_peer.py FILE INDEX/PEERS SECONDS RUN_DIR
"""

import sys
import time

import torch
from torch import nn

import p2pl


def main(torrent: str, shard: str, seconds: str, run_dir: str) -> None:
    """Takes part until all rounds are done."""
    index, peers = map(int, shard.split("/"))

    def fit(model: nn.Module, one: p2pl.Round) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=one.training.learning_rate)
        for inputs, targets in one.batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        time.sleep(float(seconds))

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
