"""Each peer by itself beside the same peer in a swarm."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from p2pl.errors import InputError, wrong
from p2pl.report import plots
from p2pl.report.tables import terminal_table
from p2pl.run.files import write_atomically
from p2pl.terminal import percent


def comparison_table(alone: Mapping[str, float], together: Mapping[str, float]) -> Table:
    """Returns a table for a terminal: each peer's accuracy alone and after mixing.

    Args:
        alone: accuracy in percent, by the peer's name; at least one.
        together: the same peers' accuracy after mixing, in percent.

    Raises:
        InputError: the two are not of the same peers, or there are none.
    """
    names = _compared(alone, together)
    rows = [
        (
            name,
            percent(alone[name]),
            percent(together[name]),
            f"{together[name] - alone[name]:+.1f}",
        )
        for name in names
    ]
    one = float(np.mean([alone[name] for name in names]))
    two = float(np.mean([together[name] for name in names]))
    rows.append(("mean", percent(one), percent(two), f"{two - one:+.1f}"))
    return terminal_table("Accuracy", ("peer", "alone", "together", "gain"), rows)


def draw_alone_versus_together(
    alone: Mapping[str, float], together: Mapping[str, float], out: Path
) -> None:
    """Writes a picture of each peer's accuracy alone and after mixing.

    Args:
        alone: accuracy in percent, by the peer's name; at least one.
        together: the same peers' accuracy after mixing, in percent.
        out: the PNG file.

    Raises:
        InputError: the file cannot be written, or the two are not of the same peers.
    """
    _compared(alone, together)
    write_atomically(out, plots.draw_comparison(alone, together))


def _compared(alone: Mapping[str, float], together: Mapping[str, float]) -> list[str]:
    """Returns the peers of both."""
    if not alone or alone.keys() != together.keys():
        raise InputError(
            wrong(
                "peers to compare",
                got=f"{sorted(together)} together",
                allowed=f"the same as alone, {sorted(alone)}, and at least one",
            )
        )
    return list(alone)
