"""The picture of who made a model: a dot for each version, and a line for what it was made of."""

from collections.abc import Sequence
from typing import TypeAlias

from p2pl.report.plots.canvas import BLUE, INK, canvas, grid, png, shortened, titled

Place: TypeAlias = tuple[int, int]  # (round, row of the peer)
LEAST = 0.02  # weights below it are not drawn: there are many, and they say little
ROW_INCHES = 0.4


def draw_provenance(
    dots: Sequence[tuple[int, int, float]],
    lines: Sequence[tuple[Place, Place, float]],
    names: Sequence[str],
) -> bytes:
    """Returns a PNG.

    Args:
        dots: of versions: round, row, and their share in the model; larger ones are darker.
        lines: from a version to what was made of it, with its weight there.
        names: of the peers, in the order of the rows.
    """
    figure, axes = canvas(1.2 + ROW_INCHES * len(names))
    for begin, end, weight in lines:
        if weight >= LEAST:
            xs, ys = (begin[0], end[0]), (begin[1], end[1])
            axes.plot(xs, ys, color=INK, alpha=min(1.0, weight), linewidth=1, zorder=1)
    most = max((share for _, _, share in dots), default=1.0) or 1.0
    for index, row, share in dots:
        alpha = max(0.08, min(1.0, share / most))
        axes.scatter(index, row, color=BLUE, alpha=alpha, s=28, zorder=2, linewidths=0)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("round")
    grid(axes, "y")
    titled(axes, "What the model was made of")
    return png(figure)
