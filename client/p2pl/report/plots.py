"""Draws the pictures of a report: numbers and names in, a PNG file's bytes out.

Colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart; heat
maps are of one hue from light to dark. Names come from strangers and are drawn as they are, never
as mathematics.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

BLUE, ORANGE, GREY, INK = "#0072B2", "#E69F00", "#999999", "#222222"
PALETTE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A500")
EMPTY_CELL = "#EAEAEA"
DOTS_PER_INCH = 150
WIDTH_INCHES = 7.5
MAX_CELL_INCHES = 0.85
MAX_ANNOTATED_CELLS = 12  # a side; more and the numbers cannot be read
MAX_TICKS = 40  # a side of a heat map; more and the names overlap
MAX_NAME_CHARS = 18
MAPS_ACROSS = 3  # heat maps in a row; more and the cells are too small to see
MAX_MARKED = 12  # points of a line; more and their marks hide it

Curve: TypeAlias = Sequence[tuple[int, float]]  # (round, value), in the order of the rounds
Matrix: TypeAlias = NDArray[np.float64]


def draw_curves(curves: Mapping[str, Curve], *, title: str, unit: str) -> bytes:
    """Returns one line a peer, and over several peers their mean and its spread.

    Args:
        curves: by the peer's name; at least one of them has a value.
        title: what is drawn.
        unit: label of the vertical axis.
    """
    figure, axes = _canvas(4.2)
    few = len(curves) <= len(PALETTE)
    last = max(place for curve in curves.values() for place, _ in curve)
    for index, (name, curve) in enumerate(curves.items()):
        stopped_early = bool(curve) and curve[-1][0] < last
        axes.plot(
            [place for place, _ in curve],
            [value for _, value in curve],
            color=PALETTE[index] if few else GREY,
            linewidth=1.4 if few else 0.8,
            alpha=0.9 if few else 0.6,
            marker="X" if stopped_early else "o",
            markersize=7 if stopped_early else 3,
            markevery=[-1],
            zorder=4 if stopped_early else 2,  # else the others' lines hide the cross
            label=name if few else ("one peer" if index == 0 else "_"),
        )
    if len(curves) > 1:
        _draw_mean(axes, curves, dashed=few)
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel("round")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.margins(x=0.02)
    _legend_beside(axes)
    return _png(figure)


def draw_bands(
    bands: Mapping[str, Sequence[tuple[float, float | None, float]]],
    *,
    title: str,
    unit: str,
    along: str = "round",
    logarithmic: str = "",
) -> bytes:
    """Returns a few lines, each with a band around it.

    Args:
        bands: (place, value, half of the band's height), by name; a value may be missing.
        title: what is drawn.
        unit: label of the vertical axis.
        along: label of the horizontal axis.
        logarithmic: which of the axes are, "x", "y" or "xy"; where the vertical one is, what is
            not above 0 is left out.
    """
    figure, axes = _canvas(4.2)
    for index, (name, points) in enumerate(bands.items()):
        known = [
            (place, value, half)
            for place, value, half in points
            if value is not None and (value > 0 or "y" not in logarithmic)
        ]
        if not known:
            continue
        places, values, halves = (np.array(column) for column in zip(*known, strict=True))
        colour = PALETTE[index % len(PALETTE)]
        style = "-" if index == 0 else "--"  # where lines coincide, the first shows through
        marker = "o" if len(known) <= MAX_MARKED else ""
        (line,) = axes.plot(places, values, style, color=colour, linewidth=1.6, label=name)
        line.set_marker(marker)
        line.set_markersize(4)
        if halves.any():
            band = (values - halves, values + halves)
            axes.fill_between(places, *band, color=colour, alpha=0.2, linewidth=0)
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel(along)
    axes.set_ylabel(unit)
    if "y" in logarithmic:
        axes.set_yscale("log")
    if "x" in logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.margins(x=0.02)
    if len(bands) > 1:
        _legend_beside(axes)
    return _png(figure)


def draw_by_peer(values: Matrix, *, bad: int = 0) -> bytes:
    """Returns a dot for each peer and seed, and each peer's mean.

    Args:
        values: [seeds, peers], accuracy in percent.
        bad: the last so many peers are bad ones.
    """
    peers = values.shape[1]
    figure, axes = _canvas(4.2)
    places = np.arange(peers)
    size = 26 if peers <= MAX_TICKS else 8
    for start, end, colour, label in (
        (0, peers - bad, BLUE, "honest"),
        (peers - bad, peers, ORANGE, "bad"),
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
    every = _every(peers)
    axes.set_xticks(np.arange(0, peers, every), [str(peer) for peer in range(0, peers, every)])
    axes.set_xlabel("peer")
    axes.set_ylabel("accuracy on the test set (%)")
    axes.set_title("Accuracy of each peer", loc="left", fontweight="bold")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _legend_beside(axes)
    return _png(figure)


def draw_trust(rows: Sequence[str], columns: Sequence[str], weights: Matrix) -> bytes:
    """Returns a heat map of who gives how much weight to whom.

    Args:
        rows: names of those that trust.
        columns: names of those that are trusted.
        weights: [rows, columns]; NaN where the two never met.
    """
    figure, axes = _map_canvas(len(rows), len(columns))
    highest = float(np.nanmax(weights))
    image = _heat_map(axes, weights, highest if highest > 0 else 1.0)
    if max(weights.shape) <= MAX_ANNOTATED_CELLS:
        _annotate(axes, weights, highest, [[f"{cell:.2f}" for cell in row] for row in weights])
    _name_ticks(axes, rows, columns)
    axes.set_title("Trust: weight given when last met", loc="left", fontweight="bold")
    axes.set_xlabel("weight given to peer" + (" (grey: never met)" if _has_gaps(weights) else ""))
    axes.set_ylabel("by peer")
    _colour_scale(figure, axes, image, "weight")
    return _png(figure)


def draw_trust_rounds(names: Sequence[str], rounds: Mapping[int, Matrix], *, title: str) -> bytes:
    """Returns who gives how much weight to whom, one heat map a round, all on one scale.

    Args:
        names: of the peers.
        rounds: number of the round -> [peers, peers]; row: by whom, column: to whom. At least one.
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
    return _png(figure)


def draw_seeds(
    lines: Mapping[str, Sequence[Curve]], *, title: str, unit: str, along: str = "round"
) -> bytes:
    """Returns one line a name, the mean of its seeds, and each seed as a thin line beside it.

    Args:
        lines: name -> one curve a seed, at the same places.
        title: what is drawn.
        unit: label of the vertical axis.
        along: label of the other one.
    """
    figure, axes = _canvas(4.2)
    for colour, (name, seeds) in zip(cycle(PALETTE), lines.items(), strict=False):
        places = [place for place, _ in seeds[0]]
        values = np.array([[value for _, value in curve] for curve in seeds])
        if len(seeds) > 1:
            axes.plot(places, values.T, color=colour, linewidth=0.6, alpha=0.45)
        axes.plot(places, values.mean(axis=0), color=colour, linewidth=2, label=name)
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel(along)
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.margins(x=0.02)
    _legend_beside(axes)
    return _png(figure)


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
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _colour_scale(figure, axes, image, "share of the true class (%)")
    return _png(figure)


def draw_bytes(traffic: Mapping[str, tuple[int, int]], *, title: str) -> bytes:
    """Returns two bars a peer.

    Args:
        traffic: (received, sent) in bytes, by the peer's name.
        title: whose traffic it is.
    """
    names = list(traffic)
    figure, axes = _canvas(1.6 + 0.42 * len(names))
    places = np.arange(len(names), dtype=np.float64)
    for offset, side, colour, label in ((-0.2, 0, BLUE, "received"), (0.2, 1, ORANGE, "sent")):
        sizes = [traffic[name][side] for name in names]
        axes.barh(places + offset, sizes, height=0.38, color=colour, label=label)
    axes.set_yticks(places, [_cut(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.set_xlabel("bytes")
    axes.set_ylabel("peer")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    _legend_beside(axes)
    return _png(figure)


def draw_comparison(alone: Mapping[str, float], together: Mapping[str, float]) -> bytes:
    """Returns, for each peer, two dots and the way from one to the other.

    Args:
        alone: accuracy in percent, by the peer's name.
        together: the same peers' accuracy after mixing.
    """
    names = sorted(together, key=lambda name: alone[name])
    figure, axes = _canvas(1.7 + 0.36 * len(names))
    places = np.arange(len(names))
    before, after = [alone[name] for name in names], [together[name] for name in names]
    axes.hlines(places, before, after, color="#BBBBBB", linewidth=2.5, zorder=1)
    axes.scatter(before, places, s=55, color=ORANGE, label="alone", zorder=2)
    axes.scatter(after, places, s=55, color=BLUE, label="together", zorder=2)
    for place, one, two in zip(places, before, after, strict=True):
        for value, is_right in ((one, one > two), (two, two >= one)):
            axes.annotate(
                f"{value:.1f}",
                (value, place),
                xytext=(8 if is_right else -8, 0),
                textcoords="offset points",
                ha="left" if is_right else "right",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.set_yticks(places, [_cut(name) for name in names], parse_math=False)
    axes.margins(x=0.12, y=0.6 / max(1, len(names)))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_xlabel("accuracy on the test set (%)")
    axes.set_ylabel("peer")
    gain = float(np.mean(after) - np.mean(before))
    axes.set_title(
        f"Alone and together: {gain:+.1f} points on average", loc="left", fontweight="bold"
    )
    _legend_beside(axes)
    return _png(figure)


def draw_shards(counts: NDArray[np.int64], labels: Sequence[str], *, title: str) -> bytes:
    """Returns one bar a peer, made of its rows of each class.

    Args:
        counts: [peers, classes], rows.
        labels: names of the classes.
        title: what is divided, and how.
    """
    peers = len(counts)
    figure, axes = _canvas(1.2 + min(12.0, 0.32 * peers))
    colours = _colours(len(labels))
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
            label=_cut(label),
        )
        begun += counts[:, kind]
    every = _every(peers)
    axes.set_yticks(np.arange(0, peers, every), [str(peer) for peer in range(0, peers, every)])
    axes.set_ylim(peers - 0.4, -0.6)
    axes.set_xlabel("rows, coloured by class")
    axes.set_ylabel("peer")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    if len(labels) <= MAX_TICKS:
        _legend_beside(axes)
    return _png(figure)


def draw_plan(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> bytes:
    """Returns how much noise is beside the signal, by the privacy budget.

    Args:
        curves: name -> (epsilon, noise over signal) in the order of epsilon, both above 0.
        title: what is drawn.
    """
    figure, axes = _canvas(4.2)
    for index, (name, curve) in enumerate(curves.items()):
        spent, shares = zip(*curve, strict=True)
        axes.plot(spent, shares, color=PALETTE[index], linewidth=1.8, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    axes.set_xlabel("epsilon: more privacy to the left")
    axes.set_ylabel("noise beside the whole run's signal")
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.legend(frameon=False)
    return _png(figure)


def _colours(count: int) -> list[str]:
    """Returns colours that can be told apart, also in grey: of many, from dark to light."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    shades = colormaps["viridis"](np.linspace(0, 1, count))
    return [to_hex(shade) for shade in shades]


def _draw_mean(axes: Axes, curves: Mapping[str, Curve], *, dashed: bool) -> None:
    """Draws mean and spread over the rounds that at least half of the peers have."""
    by_round: dict[int, list[float]] = {}
    for curve in curves.values():
        for place, value in curve:
            by_round.setdefault(place, []).append(value)
    quorum = math.ceil(sum(1 for curve in curves.values() if curve) / 2)
    rounds = sorted(place for place, values in by_round.items() if len(values) >= quorum)
    mean = np.array([np.mean(by_round[place]) for place in rounds])
    spread = np.array([np.std(by_round[place]) for place in rounds])
    axes.fill_between(
        rounds, mean - spread, mean + spread, color=INK, alpha=0.13, linewidth=0, label="± 1 std"
    )
    style, width = ("--", 1.4) if dashed else ("-", 2.4)  # dashed: the lines below show through
    axes.plot(rounds, mean, color=INK, linestyle=style, linewidth=width, label="mean")


def _canvas(height_inches: float, width_inches: float = WIDTH_INCHES) -> tuple[Figure, Axes]:
    size = (width_inches, height_inches)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _map_canvas(rows: int, columns: int) -> tuple[Figure, Axes]:
    """Returns a figure in which the cells of a heat map are square, and not huge."""
    cell_inches = min(MAX_CELL_INCHES, (WIDTH_INCHES - 2) / columns)
    return _canvas(1.3 + cell_inches * rows, 2 + cell_inches * columns)


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
    down, across = _every(len(rows)), _every(len(columns))
    upright = max((len(_cut(name)) for name in columns), default=0) * len(columns) > 70
    axes.set_yticks(
        np.arange(0, len(rows), down), [_cut(name) for name in rows[::down]], parse_math=False
    )
    axes.set_xticks(
        np.arange(0, len(columns), across),
        [_cut(name) for name in columns[::across]],
        rotation=90 if upright else 0,
        parse_math=False,
    )
    if max(len(rows), len(columns)) > 14:
        axes.tick_params(labelsize=7)


def _every(count: int) -> int:
    """Returns of how many names one is written."""
    return math.ceil(count / MAX_TICKS) or 1


def _has_gaps(values: Matrix) -> bool:
    return bool(np.isnan(values).any())


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"


def _legend_beside(axes: Axes) -> None:
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, borderaxespad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.12)
    return file.getvalue()
