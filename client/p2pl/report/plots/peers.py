"""A bar, a dot or a pair of dots for each peer."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from p2pl.metric import ACCURACY, Metric
from p2pl.report.plots.canvas import (
    BAD,
    BLUE,
    INK,
    MAX_TICKS,
    ORANGE,
    Matrix,
    canvas,
    class_colours,
    grid,
    in_legend,
    legend_beside,
    mark_names,
    png,
    shortened,
    stride,
    titled,
)


def draw_by_peer(values: Matrix, metric: Metric = ACCURACY, *, bad: int = 0) -> bytes:
    """Returns a dot for each peer and seed, and each peer's mean.

    Args:
        values: [seeds, peers], in the metric's unit; the honest peers come first.
        metric: what was measured.
        bad: how many of the last peers are bad ones, 0 to all.
    """
    peers = values.shape[1]
    figure, axes = canvas(4.2)
    places = np.arange(peers)
    size = 26 if peers <= MAX_TICKS else 8
    for start, end, colour, label in (
        (0, peers - bad, BLUE, "honest"),
        (peers - bad, peers, BAD, "bad"),
    ):
        if start == end:
            continue
        for seed in values:
            axes.scatter(
                places[start:end], seed[start:end], s=size, color=colour, alpha=0.55, linewidth=0
            )
        axes.hlines(
            values[:, start:end].mean(axis=0),
            places[start:end] - 0.3,
            places[start:end] + 0.3,
            color=colour,
            linewidth=2,
            label=f"{label}, mean over the seeds" if bad else "mean over the seeds",
        )
    step = stride(peers)
    axes.set_xticks(np.arange(0, peers, step), [str(peer) for peer in range(0, peers, step)])
    axes.set_xlabel("peer")
    axes.set_ylabel(metric.axis, parse_math=False)
    titled(axes, f"{metric.title} of each peer")
    grid(axes, "y")
    legend_beside(axes)
    return png(figure)


def draw_bytes(
    traffic: Mapping[str, tuple[int, int]], *, title: str, bad: Collection[str] = ()
) -> bytes:
    """Returns two bars a peer.

    Args:
        traffic: (received, sent) in bytes, by the peer's name.
        title: whose traffic it is.
        bad: names of peers that are known to be bad.
    """
    names = list(traffic)
    figure, axes = canvas(1.6 + 0.42 * len(names))
    places = np.arange(len(names), dtype=np.float64)
    for offset, side, colour, label in ((-0.2, 0, BLUE, "received"), (0.2, 1, ORANGE, "sent")):
        sizes = [traffic[name][side] for name in names]
        axes.barh(places + offset, sizes, height=0.38, color=colour, label=label)
    axes.set_yticks(places, [shortened(name) for name in names], parse_math=False)
    mark_names(axes.get_yticklabels(), bad)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_xlabel("bytes")
    axes.set_ylabel("peer")
    grid(axes, "x")
    titled(axes, title)
    legend_beside(axes)
    return png(figure)


def draw_comparison(
    alone: Mapping[str, float], together: Mapping[str, float], metric: Metric = ACCURACY
) -> bytes:
    """Returns, for each peer, two dots and the way from one to the other.

    Args:
        alone: the metric, in its unit, by the peer's name.
        together: the same of the same peers, after mixing.
        metric: what was measured.
    """
    names = sorted(together, key=lambda name: alone[name])
    figure, axes = canvas(1.7 + 0.36 * len(names))
    places = np.arange(len(names))
    before, after = [alone[name] for name in names], [together[name] for name in names]
    axes.hlines(places, before, after, color="#BBBBBB", linewidth=2.5, zorder=1)
    axes.scatter(before, places, s=55, color=ORANGE, label="alone", zorder=2)
    axes.scatter(after, places, s=55, color=BLUE, label="together", zorder=2)
    for place, one, two in zip(places, before, after, strict=True):
        for value, is_right in ((one, one > two), (two, two >= one)):
            axes.annotate(
                metric.shown_spread(value),
                (value, place),
                xytext=(8 if is_right else -8, 0),
                textcoords="offset points",
                ha="left" if is_right else "right",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.set_yticks(places, [shortened(name) for name in names], parse_math=False)
    axes.margins(x=0.12, y=0.6 / max(1, len(names)))
    grid(axes, "x")
    axes.set_xlabel(metric.axis, parse_math=False)
    axes.set_ylabel("peer")
    gain = metric.shown_gain(metric.gain(float(np.mean(before)), float(np.mean(after))))
    unit = "points" if metric.unit == "%" else metric.unit
    better = "" if metric.higher_is_better else f" better in {metric.name}"
    titled(axes, f"Alone and together: {' '.join([gain, unit]).strip()}{better} on average")
    legend_beside(axes)
    return png(figure)


def draw_shards(counts: NDArray[np.int64], labels: Sequence[str], *, title: str) -> bytes:
    """Returns one bar a peer, made of its rows of each class.

    Args:
        counts: [peers, classes], rows.
        labels: names of the classes.
        title: what is divided, and how.
    """
    peers = len(counts)
    figure, axes = canvas(1.2 + min(12.0, 0.32 * peers))
    colours = class_colours(len(labels))
    begun = np.zeros(peers)
    for kind, label in enumerate(labels):
        axes.barh(
            np.arange(peers),
            counts[:, kind],
            left=begun,
            height=0.82 if peers <= MAX_TICKS else 1.0,
            color=colours[kind],
            edgecolor="white" if peers <= MAX_TICKS else "none",
            linewidth=0.5,
            label=in_legend(label),
        )
        begun += counts[:, kind]
    step = stride(peers)
    axes.set_yticks(np.arange(0, peers, step), [str(peer) for peer in range(0, peers, step)])
    axes.set_ylim(peers - 0.4, -0.6)
    axes.set_xlabel("rows, coloured by class")
    axes.set_ylabel("peer")
    grid(axes, "x")
    titled(axes, title)
    if len(labels) <= MAX_TICKS:
        legend_beside(axes)
    return png(figure)
