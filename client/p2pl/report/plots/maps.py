"""Heat maps: who trusts whom, and what was taken for what."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from p2pl.report.plots.canvas import (
    BAD,
    DOTS_PER_INCH,
    INK,
    MAX_TICKS,
    WIDTH_INCHES,
    Matrix,
    canvas,
    mark_names,
    png,
    shortened,
    stride,
    titled,
)

EMPTY_CELL = "#EAEAEA"
MAX_CELL_INCHES = 0.85
MAX_ANNOTATED_CELLS = 12  # a side; more and the numbers cannot be read
FLAT = 0.02  # weights that differ by no more look alike
MAPS_ACROSS = 3  # heat maps in a row; more and the cells are too small to see


def draw_trust(
    rows: Sequence[str],
    columns: Sequence[str],
    weights: Matrix,
    *,
    rejected: NDArray[np.bool_] | None = None,
    bad: Collection[str] = (),
) -> bytes:
    """Returns a heat map of who gives how much weight to whom.

    Args:
        rows: names of those that trust.
        columns: names of those that are trusted.
        weights: [rows, columns], 0..1; NaN where the two never met, but not everywhere.
        rejected: [rows, columns], where the one turned the other down; None: nowhere.
        bad: names of peers that are known to be bad.
    """
    figure, axes = _map_canvas(len(rows), len(columns))
    highest = float(np.nanmax(weights))
    refused = np.zeros(weights.shape, dtype=bool) if rejected is None else rejected
    image = _heat_map(axes, weights, highest if highest > 0 else 1.0)
    if max(weights.shape) <= MAX_ANNOTATED_CELLS:
        shown = np.where(refused, np.nan, weights)
        _annotate(axes, shown, highest, [[f"{cell:.2f}" for cell in row] for row in weights])
    down, across = np.nonzero(refused)
    axes.scatter(across, down, s=_cross_size(weights), c=BAD, marker="x", linewidths=2)
    _name_ticks(axes, rows, columns)
    mark_names((*axes.get_xticklabels(), *axes.get_yticklabels()), bad)
    titled(axes, trust_title(weights, refused))
    axes.set_xlabel("weight given to peer")
    axes.set_ylabel("by peer")
    _say_marks(figure, has_gaps=_has_gaps(weights), has_refused=bool(refused.any()))
    _colour_scale(figure, axes, image, "weight")
    return png(figure)


def trust_title(weights: Matrix, rejected: NDArray[np.bool_]) -> str:
    """Returns in words what a trust picture shows: who is turned down, or that nobody is."""
    turned_down = int(rejected.any(axis=0).sum())
    if turned_down:
        return f"Trust: {turned_down} turned down" if turned_down > 1 else "Trust: one turned down"
    known = weights[~np.isnan(weights)]
    if len(known) and float(known.max() - known.min()) <= FLAT:
        return "Trust: all weigh alike, nobody is turned down"
    return "Trust: weight given when last met"


def _say_marks(figure: Figure, *, has_gaps: bool, has_refused: bool) -> None:
    """Writes below the map what its marks mean, those that are there."""
    said: list[Artist] = []
    if has_gaps:
        said.append(Patch(facecolor=EMPTY_CELL, label="never met"))
    if has_refused:
        cross = Line2D([], [], color=BAD, marker="x", linestyle="", markeredgewidth=2)
        cross.set_label("met, and turned down")
        said.append(cross)
    if said:
        figure.legend(
            handles=said, loc="outside lower center", ncols=len(said), frameon=False, fontsize=9
        )


def _cross_size(weights: Matrix) -> float:
    """Returns the area, in points squared, of a cross that fits into a cell."""
    side = min(MAX_CELL_INCHES, (WIDTH_INCHES - 2) / max(weights.shape))
    return float((0.35 * 72 * side) ** 2)


def draw_trust_rounds(names: Sequence[str], rounds: Mapping[int, Matrix], *, title: str) -> bytes:
    """Returns who gives how much weight to whom, one heat map a round, all on one scale.

    Args:
        names: of the peers.
        rounds: number of the round -> [peers, peers], 0..1; row: by whom, column: to whom. At
            least one round.
        title: whose trust it is.
    """
    across = min(MAPS_ACROSS, len(rounds))
    down = math.ceil(len(rounds) / across)
    side = WIDTH_INCHES / MAPS_ACROSS
    figure = Figure(
        figsize=(side * across + 0.6, side * down + 0.4), dpi=DOTS_PER_INCH, layout="constrained"
    )
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    highest = max(float(np.nanmax(weights)) for weights in rounds.values()) or 1.0
    for axes in grid.flat[len(rounds) :]:
        axes.set_axis_off()
    for axes, (index, weights) in zip(grid.flat, rounds.items(), strict=False):
        image = _heat_map(axes, weights, highest)
        _name_ticks(axes, names, names)
        axes.set_title(f"round {index}", fontsize=9)
    figure.colorbar(image, ax=grid, label="weight", shrink=0.6).outline.set_visible(False)
    figure.supxlabel("weight given to peer", fontsize=9)
    figure.supylabel("by peer", fontsize=9)
    figure.suptitle(title, x=0.02, ha="left", fontweight="bold", parse_math=False)
    return png(figure)


def draw_confusion(confusion: Matrix, labels: Sequence[str], *, title: str) -> bytes:
    """Returns a heat map of what was taken for what; each row is coloured by its shares.

    Args:
        confusion: [classes, classes], counts; row: true class, column: predicted.
        labels: names of the classes.
        title: whose confusion it is.
    """
    figure, axes = _map_canvas(len(labels), len(labels))
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = _heat_map(axes, shares, 100.0)
    if len(labels) <= MAX_ANNOTATED_CELLS:
        _annotate(axes, shares, 100.0, [[f"{cell:.0f}" for cell in row] for row in confusion])
    _name_ticks(axes, labels, labels)
    titled(axes, title)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _colour_scale(figure, axes, image, "share of the true class (%)")
    return png(figure)


def _map_canvas(rows: int, columns: int) -> tuple[Figure, Axes]:
    """Returns a figure in which the cells of a heat map are square, and not huge."""
    cell_inches = min(MAX_CELL_INCHES, (WIDTH_INCHES - 2) / columns)
    return canvas(1.3 + cell_inches * rows, 2 + cell_inches * columns)


def _heat_map(axes: Axes, values: Matrix, highest: float) -> AxesImage:
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colormaps["Blues"].with_extremes(bad=EMPTY_CELL),
        vmin=0,
        vmax=highest,
        aspect="equal",
    )
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    if max(values.shape) <= MAX_TICKS:
        axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(length=0)
    return image


def _colour_scale(figure: Figure, axes: Axes, image: AxesImage, label: str) -> None:
    """Draws the scale beside the map, and as high as the map."""
    scale = figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.035, 1.0)), label=label)
    scale.outline.set_visible(False)
    scale.locator = MaxNLocator(5)


def _annotate(axes: Axes, values: Matrix, highest: float, texts: Sequence[Sequence[str]]) -> None:
    """Writes a text into each cell that has a value, light on dark and dark on light."""
    size = 9 if max(values.shape) <= 8 else 7.5
    for (row, column), value in np.ndenumerate(values):
        if not math.isnan(value):
            axes.text(
                column,
                row,
                texts[row][column],
                ha="center",
                va="center",
                fontsize=size,
                color="white" if value > 0.55 * highest else INK,
            )


def _name_ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    down, across = stride(len(rows)), stride(len(columns))
    below = [shortened(name).replace(" (", "\n(") for name in columns]
    longest = max((len(part) for name in below for part in name.split("\n")), default=0)
    upright = longest * len(columns) > 70
    axes.set_yticks(
        np.arange(0, len(rows), down), [shortened(name) for name in rows[::down]], parse_math=False
    )
    axes.set_xticks(
        np.arange(0, len(columns), across),
        below[::across],
        rotation=90 if upright else 0,
        parse_math=False,
    )
    if max(len(rows), len(columns)) > 14:
        axes.tick_params(labelsize=7)


def _has_gaps(values: Matrix) -> bool:
    return bool(np.isnan(values).any())
