"""The paper that all pictures are drawn on: sizes, colours, names and the PNG file.

Colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart; heat
maps are of one hue from light to dark. Names come from strangers and are drawn as they are, never
as mathematics.
"""

import io
import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text
from numpy.typing import NDArray

BLUE, ORANGE, GREY, INK = "#0072B2", "#E69F00", "#999999", "#222222"
BAD = "#D55E00"  # of peers that are known to be bad, and of what was turned down
PALETTE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", BAD, "#B8A500")
MARKERS = ("o", "s", "^", "D", "v", "P", "*")  # one a colour: who cannot see one sees the other
GRID_COLOUR = "#DDDDDD"
DOTS_PER_INCH = 150
WIDTH_INCHES = 7.5
MAX_TICKS = 40  # on an axis of names; more and they overlap
MAX_NAME_CHARS = 18
MAX_NAMED_COLOURS = 20  # more are made by turning the hue
GOLDEN = 0.618033988749895  # of a turn: no two hues in turn are near each other
FONT = "DejaVu Sans"  # comes with matplotlib
EMPTY_FONTS = "Last Resort"  # has a box for each letter
NOTHING = "\u200b"  # a letter without width

Curve: TypeAlias = Sequence[tuple[int, float]]  # (round, value), in the order of the rounds
Matrix: TypeAlias = NDArray[np.float64]


def canvas(height_inches: float, width_inches: float = WIDTH_INCHES) -> tuple[Figure, Axes]:
    """Returns a figure of one plot, without the frame above and to the right of it."""
    size = (width_inches, height_inches)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def titled(axes: Axes, title: str) -> None:
    """Writes the title above the plot, to the left."""
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)


def grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draws pale lines at the ticks of an axis."""
    axes.grid(axis=axis, color=GRID_COLOUR, linewidth=0.6)


def legend_beside(axes: Axes) -> None:
    """Writes the legend to the right of the plot."""
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, borderaxespad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def class_colours(count: int) -> list[str]:
    """Returns `count` colours that can be told apart, none of which is more than another.

    Classes have no order, so these colours have none: hues in turn, light and dark by turns.
    """
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    if count <= MAX_NAMED_COLOURS:
        named = colormaps["tab20"](range(MAX_NAMED_COLOURS))  # each hue, and its light one
        return [to_hex(shade) for shade in (*named[::2], *named[1::2])[:count]]
    places = np.arange(count)
    shades = [GOLDEN * places % 1, 0.45 + 0.4 * (places % 2), 0.6 + 0.35 * (places % 3 == 0)]
    return [to_hex(tuple(shade)) for shade in hsv_to_rgb(np.stack(shades, axis=1)).tolist()]


def stride(count: int) -> int:
    """Returns of how many names on an axis one is written, at least 1; `count` may be 0."""
    return math.ceil(count / MAX_TICKS) or 1


def shortened(name: str) -> str:
    """Returns the name, cut to `MAX_NAME_CHARS`."""
    return name if len(name) <= MAX_NAME_CHARS else name[: MAX_NAME_CHARS - 1] + "…"


def mark_names(labels: Iterable[Text], bad: Collection[str]) -> None:
    """Draws those names of an axis that are in `bad` in the colour of what is bad."""
    marked = {shortened(name) for name in bad}
    for label in labels:
        if label.get_text().replace("\n", " ") in marked:
            label.set_color(BAD)
            label.set_fontweight("bold")


def in_legend(name: str) -> str:
    """Returns the name, cut, as a legend shows it: one that begins with _ would be left out."""
    return NOTHING + shortened(name) if name.startswith("_") else shortened(name)


def png(figure: Figure) -> bytes:
    """Returns the figure as the bytes of a PNG file, every name in it readable."""
    file = io.BytesIO()
    make_readable(figure)
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.12)
    return file.getvalue()


def make_readable(figure: Figure) -> None:
    """Gives the texts of a figure fonts that have their letters, as far as some are installed.

    What no font has is written as its number in Unicode, so that two such names can still be told
    apart.
    """
    ticks = {
        axis: [tick.get_text() for tick in axis.get_ticklabels()]
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
    }
    texts: list[Any] = figure.findobj(Text)
    said = "".join([*(text.get_text() for text in texts), *chain.from_iterable(ticks.values())])
    families, numbers = _fonts_for(set(said) - {"\n"})
    if len(families) == 1 and not numbers:
        return
    for text in texts:
        if not text.get_text().isascii():
            text.set_fontfamily(families)
            text.set_fontweight("normal")  # few of these fonts have another
            text.set_text(text.get_text().translate(numbers))
    for axis, names in ticks.items():
        if not all(name.isascii() for name in names):
            axis.set_ticklabels([name.translate(numbers) for name in names], fontfamily=families)


def _fonts_for(letters: set[str]) -> tuple[list[str], dict[int, str]]:
    """Returns fonts that together have these letters, and what to write for those that none has."""
    families = [FONT]
    missing = letters - _letters(findfont(FONT))
    for font in fontManager.ttflist if missing else ():
        found = missing & _letters(font.fname)
        if found and font.name not in families and not font.name.startswith(EMPTY_FONTS):
            families.append(font.name)
            missing -= found
    return families, {ord(char): f"[{ord(char):X}]" for char in missing}


@lru_cache(maxsize=512)
def _letters(path: str) -> frozenset[str]:
    """Returns what a font can draw."""
    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font file that cannot be read
        return frozenset()
