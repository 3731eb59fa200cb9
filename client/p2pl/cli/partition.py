"""`p2pl partition`: who would hold which part of a data set."""

import json
from pathlib import Path
from typing import Annotated

import typer

from p2pl.cli import options
from p2pl.cli.app import extra
from p2pl.run.files import write_atomically


def partition(
    data: options.Data,
    peers: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of peers to divide the data set among.")
    ],
    how: options.Partition = "iid",
    partition_seed: options.PartitionSeed = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="PNG file to draw into how many rows of each class each peer holds.  [default: "
            "nothing is drawn]"
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show which peer would hold which part of a data set.

    What is shown is the number of rows of each class by peer, and the partition's hash. `p2pl
    join --shard I/N` and `p2pl simulate` divide a data set in the same way.
    """
    with extra("client"):
        from p2pl.data import load as datasets
        from p2pl.report.shards import divide, shards_table
    labels, names = datasets.load_labels(data, data_dir=options.data_dir())
    shards = divide(labels, names, how, peers, partition_seed)
    if plot:
        with extra("report"):
            from p2pl.report.plots import draw_shards
        many = f"{peers} peer{'s' * (peers != 1)}"
        title = f"{data}, {how}, {many}, seed {partition_seed}"
        write_atomically(plot, draw_shards(shards.counts, shards.labels, title=title))
    if as_json:
        print(json.dumps({"data": data, **shards.as_dict()}))
        return
    from rich.console import Console

    Console().print(shards_table(shards))
    if plot:
        print(f"picture {plot}")
