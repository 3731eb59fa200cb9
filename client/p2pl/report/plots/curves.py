"""Lines over the rounds, and over whatever else a figure depends on."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from p2pl.report.plots.canvas import (
    BAD,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    Curve,
    canvas,
    grid,
    legend_beside,
    png,
    titled,
)

MAX_MARKED = 12  # points of a line; more and their marks hide it


def draw_curves(
    curves: Mapping[str, Curve], *, title: str, unit: str, bad: Collection[str] = ()
) -> bytes:
    """Returns one line a peer, and over several honest peers their mean and its spread.

    Lines that coincide are told apart by their marks, which are at other rounds for each peer.

    Args:
        curves: (round, value) by the peer's name; one may be empty, but not all.
        title: what is drawn.
        unit: label of the vertical axis.
        bad: names of peers that are known to be bad; they are not in the mean.
    """
    figure, axes = canvas(4.2)
    honest = {name: curve for name, curve in curves.items() if name not in bad}
    few = len(honest) <= len(PALETTE)
    last = max(place for curve in curves.values() for place, _ in curve)
    step = max(1, math.ceil(last / MAX_MARKED)) * len(honest)
    colours = [colour for colour in PALETTE if not bad or colour != BAD]
    for index, (name, curve) in enumerate(honest.items()):
        _draw_curve(
            axes,
            curve,
            color=colours[index % len(colours)] if few else GREY,
            linewidth=1.4 if few else 0.8,
            alpha=0.9 if few else 0.6,
            marker=MARKERS[index % len(MARKERS)] if few else "o",
            markersize=5 if few else 3,
            markevery=(index % max(1, len(curve)), step) if few else [-1],
            label=name if few else ("one peer" if index == 0 else "_"),
        )
        if curve and curve[-1][0] < last:
            axes.plot(*curve[-1], "X", color=INK, markersize=7, zorder=4)  # above the lines
    for name in (name for name in curves if name in bad):
        _draw_curve(axes, curves[name], color=BAD, linewidth=1.6, linestyle=":", label=name)
    if len(honest) > 1:
        _draw_mean(axes, honest, dashed=few)
    titled(axes, title)
    axes.set_xlabel("round")
    axes.set_ylabel(unit, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid(axes, "y")
    axes.margins(x=0.02)
    legend_beside(axes)
    return png(figure)


def _draw_curve(axes: Axes, curve: Curve, **style: Any) -> None:  # noqa: ANN401  # matplotlib's
    axes.plot([place for place, _ in curve], [value for _, value in curve], **style)


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
    figure, axes = canvas(4.2)
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
    titled(axes, title)
    axes.set_xlabel(along)
    axes.set_ylabel(unit, parse_math=False)
    if "y" in logarithmic:
        axes.set_yscale("log")
    if "x" in logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid(axes, "y")
    axes.margins(x=0.02)
    if len(bands) > 1:
        legend_beside(axes)
    return png(figure)


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
    figure, axes = canvas(4.2)
    for colour, (name, seeds) in zip(cycle(PALETTE), lines.items(), strict=False):
        places = [place for place, _ in seeds[0]]
        values = np.array([[value for _, value in curve] for curve in seeds])
        if len(seeds) > 1:
            axes.plot(places, values.T, color=colour, linewidth=0.6, alpha=0.45)
        axes.plot(places, values.mean(axis=0), color=colour, linewidth=2, label=name)
    titled(axes, title)
    axes.set_xlabel(along)
    axes.set_ylabel(unit, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid(axes, "y")
    axes.margins(x=0.02)
    legend_beside(axes)
    return png(figure)


def draw_plan(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> bytes:
    """Returns how much noise is beside the signal, by the privacy budget.

    Args:
        curves: name -> (epsilon, noise over signal) in the order of epsilon, both above 0.
        title: what is drawn.
    """
    figure, axes = canvas(4.2)
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
    titled(axes, title)
    grid(axes, "y")
    axes.legend(frameon=False)
    return png(figure)


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
