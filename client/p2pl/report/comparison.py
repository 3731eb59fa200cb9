"""Each peer by itself beside the same peer in a swarm."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from p2pl.errors import InputError, visible, wrong
from p2pl.metric import ACCURACY, Metric
from p2pl.report import plots
from p2pl.report.tables import terminal_table
from p2pl.run.files import write_atomically


def comparison_table(
    alone: Mapping[str, float], together: Mapping[str, float], metric: Metric = ACCURACY
) -> Table:
    """Returns a table for a terminal: how good each peer is alone, and after mixing.

    A gain above 0 is for the better, whichever way the metric goes.

    Args:
        alone: the metric, in its unit, by the peer's name; at least one.
        together: the same of the same peers, after mixing.
        metric: what was measured.

    Raises:
        InputError: the two are not of the same peers, or there are none.
    """
    names = _compared(alone, together)
    rows = [
        (
            name,
            visible(metric.shown(alone[name])),
            visible(metric.shown(together[name])),
            metric.shown_gain(metric.gain(alone[name], together[name])),
        )
        for name in names
    ]
    one = float(np.mean([alone[name] for name in names]))
    two = float(np.mean([together[name] for name in names]))
    gain = metric.shown_gain(metric.gain(one, two))
    rows.append(("mean", visible(metric.shown(one)), visible(metric.shown(two)), gain))
    return terminal_table(visible(metric.title), ("peer", "alone", "together", "gain"), rows)


def draw_alone_versus_together(
    alone: Mapping[str, float],
    together: Mapping[str, float],
    out: Path,
    metric: Metric = ACCURACY,
) -> None:
    """Writes a picture of how good each peer is alone, and after mixing.

    Args:
        alone: the metric, in its unit, by the peer's name; at least one.
        together: the same of the same peers, after mixing.
        out: the PNG file.
        metric: what was measured.

    Raises:
        InputError: the file cannot be written, or the two are not of the same peers.
    """
    _compared(alone, together)
    write_atomically(out, plots.draw_comparison(alone, together, metric))


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
