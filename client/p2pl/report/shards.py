"""Who holds what: a partition as figures, as a table, and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pl.data import partition
from p2pl.data.partition import Indices
from p2pl.errors import visible

MAX_COLUMNS = 12  # classes in a terminal's table; more do not fit a line
MAX_ROWS = 100  # peers in it


@dataclass(frozen=True, slots=True)
class Shards:
    """A dataset divided among peers."""

    partition: str  # as on the command line
    seed: int
    labels: tuple[str, ...]  # names of the classes
    counts: NDArray[np.int64]  # [peers, classes], rows of each class
    sha256: str  # of the partition: which rows each peer holds

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures, for JSON."""
        return {
            "partition": self.partition,
            "partition_seed": self.seed,
            "peers": len(self.counts),
            "rows": int(self.counts.sum()),
            "sha256": self.sha256,
            "labels": list(self.labels),
            "rows_by_peer": self.counts.sum(axis=1).tolist(),
            "counts": self.counts.tolist(),
        }


def divide(labels: Indices, names: Sequence[str], how: str, peers: int, seed: int) -> Shards:
    """Returns how a partition divides a dataset.

    Args:
        labels: [N], class of each row, 0 to C - 1.
        names: of the C classes.
        how: iid, unbalanced, dirichlet:A or classes:K.
        peers: how many share the dataset, at least 1.
        seed: of the partition, 0..2**32-1.

    Raises:
        InputError: there is no such partition.
        DataError: the dataset is too small for so many peers, or has too few classes.
    """
    parts = partition.parse(how)(labels, peers, seed)
    counts = np.stack([np.bincount(labels[part], minlength=len(names)) for part in parts])
    return Shards(how, seed, tuple(names), counts, partition.digest(parts))


def shards_table(shards: Shards) -> RenderableType:
    """Returns a table for a terminal: by peer, its rows, its classes, and its rows of each class.

    Where there are more than `MAX_COLUMNS` classes, they have no columns of their own; of more than
    `MAX_ROWS` peers the last are left out.
    """
    counts, names = shards.counts, shards.labels
    peers, rows = len(counts), int(counts.sum())
    title = f"{shards.partition}, seed {shards.seed}: {rows} rows among {peers} peers"
    table = Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_footer=True,
    )
    table.add_column("peer", footer="all", no_wrap=True)
    totals = counts.sum(axis=0)
    wide = len(names) > MAX_COLUMNS
    heads = [("rows", rows), ("classes", int((totals > 0).sum()))]
    heads += [] if wide else [(str(kind), int(total)) for kind, total in enumerate(totals)]
    for head, total in heads:
        table.add_column(head, footer=str(total), justify="right", no_wrap=True)
    for peer, row in enumerate(counts[:MAX_ROWS]):
        held = [] if wide else [str(count) if count else "·" for count in row]
        table.add_row(f"{peer}/{peers}", str(row.sum()), str(int((row > 0).sum())), *held)
    if peers > MAX_ROWS:
        table.add_row("…")
    return Group(table, Text(_caption(shards)))


def _caption(shards: Shards) -> str:
    numbers = tuple(map(str, range(len(shards.labels))))
    names = ", ".join(f"{kind} {visible(name)}" for kind, name in enumerate(shards.labels))
    known = shards.labels != numbers and len(shards.labels) <= MAX_COLUMNS
    return (f"{names}\n" if known else "") + f"sha256 {shards.sha256}"
