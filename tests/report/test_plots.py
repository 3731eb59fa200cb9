"""Pictures open, and show what they are given in the colours that they promise."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex
from support.pictures import colours_in, rgb
from support.processes import PATIENCE_S

from p2pl.extras import install
from p2pl.report import plots
from p2pl.report.plots import canvas
from p2pl.report.plots.maps import trust_title


def test_each_peer_has_a_line_of_its_own_colour(tmp_path: Path) -> None:
    png = plots.draw_curves(
        {"a": [(1, 10.0), (9, 90.0)], "b": [(1, 90.0), (9, 10.0)], "c": []}, title="t", unit="u"
    )
    (tmp_path / "curves.png").write_bytes(png)
    assert len({_hue(colour) for colour in colours_in(tmp_path / "curves.png")} - {None}) == 2


def _hue(colour: tuple[int, int, int]) -> str | None:
    """Returns which of two lines a pixel may be of; None for shades of grey."""
    red, _, blue = colour
    return "blue" if blue > red + 60 else "orange" if red > blue + 60 else None


def test_received_and_sent_have_a_bar_each(tmp_path: Path) -> None:
    png = plots.draw_bytes({"a": (100, 50), "b": (10, 20)}, title="t")
    (tmp_path / "bytes.png").write_bytes(png)
    found = colours_in(tmp_path / "bytes.png", pixels=2_000)
    assert {rgb(plots.BLUE), rgb(plots.ORANGE)} <= found


@pytest.mark.parametrize(("peers", "classes"), [(1, 2), (6, 10), (50, 100)])
def test_each_class_has_its_colour_in_the_picture_of_shards(
    tmp_path: Path, peers: int, classes: int
) -> None:
    counts = np.full((peers, classes), 30)
    labels = [f"class {number}" for number in range(classes)]
    (tmp_path / "s.png").write_bytes(plots.draw_shards(counts, labels, title="t $x$"))
    assert len(colours_in(tmp_path / "s.png")) >= classes


def test_a_class_whose_name_begins_with_an_underscore_is_in_the_legend() -> None:
    figure, axes = canvas.canvas(2.0)
    for name in ("_cat", "dog"):
        axes.bar([0], [1], label=canvas.in_legend(name))
    canvas.legend_beside(axes)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().strip(canvas.NOTHING) for text in legend.get_texts()] == ["_cat", "dog"]
    canvas.png(figure)


def test_names_in_every_script_can_be_told_apart(tmp_path: Path) -> None:
    # Cats and dogs in Chinese, Hindi and Russian: where a font is missing, there is no warning,
    # which would be an error here, and no box.
    same = np.array([[1.0, 0.0], [0.0, 1.0]])
    drawn = {
        plots.draw_confusion(same, names, title="猫, 犬")
        for names in (("猫", "犬"), ("犬", "猫"), ("बिल्ली", "कुत्ता"), ("кот", "пёс"))
    }
    assert len(drawn) == 4
    figure, axes = canvas.canvas(2.0)
    axes.set_yticks([0, 1], ["_猫", "dog"])
    canvas.titled(axes, "犬 \U0010fffd")  # a letter of nobody's
    canvas.make_readable(figure)
    assert axes.get_title(loc="left").endswith(" [10FFFD]")
    assert axes.get_yticklabels()[0].get_text() in ("_猫", "_[732B]")  # as fonts are installed


def test_peers_that_never_met_are_grey_in_the_trust_picture(tmp_path: Path) -> None:
    weights = np.array([[0.5, 0.5], [np.nan, 1.0]])
    grey = rgb(plots.EMPTY_CELL)
    (tmp_path / "gaps.png").write_bytes(plots.draw_trust(["a", "b"], ["a", "b"], weights))
    assert grey in colours_in(tmp_path / "gaps.png", pixels=2_000)
    weights[1, 0] = 0.0
    (tmp_path / "full.png").write_bytes(plots.draw_trust(["a", "b"], ["a", "b"], weights))
    assert grey not in colours_in(tmp_path / "full.png", pixels=2_000)


def test_who_was_turned_down_is_crossed_out_and_who_never_met_is_not(tmp_path: Path) -> None:
    weights = np.array([[0.5, 0.0], [np.nan, 1.0]])
    refused = np.array([[False, True], [False, False]])
    for name, given in (("crossed", refused), ("zero", None)):
        png = plots.draw_trust(["a", "b"], ["a", "b"], weights, rejected=given)
        (tmp_path / f"{name}.png").write_bytes(png)
    assert rgb(plots.BAD) in colours_in(tmp_path / "crossed.png", pixels=200)
    assert rgb(plots.BAD) not in colours_in(tmp_path / "zero.png", pixels=1)


def test_a_bad_peer_has_its_name_in_the_colour_of_what_is_bad(tmp_path: Path) -> None:
    even = np.full((2, 2), 0.5)
    names = ["a", "b (bad)"]
    for bad in ([], ["b (bad)"]):
        png = plots.draw_trust(names, names, even, bad=bad)
        (tmp_path / f"{len(bad)}.png").write_bytes(png)
    assert rgb(plots.BAD) not in colours_in(tmp_path / "0.png", pixels=1)
    assert rgb(plots.BAD) in colours_in(tmp_path / "1.png", pixels=50)


@pytest.mark.parametrize(
    ("weights", "refused", "words"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], [[0, 0], [0, 0]], "all weigh alike"),
        ([[0.7, 0.3], [0.5, 0.5]], [[0, 0], [0, 0]], "weight given when last met"),
        ([[1.0, 0.0], [0.5, 0.5]], [[0, 1], [0, 0]], "one turned down"),
        ([[0.5, np.nan], [np.nan, 0.5]], [[0, 0], [0, 0]], "all weigh alike"),
    ],
)
def test_the_title_of_a_trust_picture_says_what_it_shows(
    weights: list[list[float]], refused: list[list[int]], words: str
) -> None:
    assert words in trust_title(np.array(weights), np.array(refused, dtype=bool))


@pytest.mark.parametrize("count", [3, 10, 20, 60])
def test_the_colours_of_classes_differ_from_their_neighbours_and_have_no_order(count: int) -> None:
    shades = [rgb(shade) for shade in canvas.class_colours(count)]
    assert len(set(shades)) == count
    assert min(math.dist(one, two) for one, two in pairwise(shades)) > 40
    light = [sum(shade) for shade in shades]
    assert light not in (sorted(light), sorted(light, reverse=True))


def test_lines_that_coincide_have_marks_of_their_own(tmp_path: Path) -> None:
    line = [(place, 50.0) for place in range(1, 21)]
    png = plots.draw_curves({"a": line, "b": line, "c": line}, title="t", unit="u")
    (tmp_path / "same.png").write_bytes(png)
    found = {_hue(colour) for colour in colours_in(tmp_path / "same.png", pixels=100)}
    assert {"blue", "orange"} <= found


def test_a_bad_peer_is_not_in_the_mean_of_the_curves(tmp_path: Path) -> None:
    low, high = [(1, 0.0), (9, 0.0)], [(1, 90.0), (9, 90.0)]
    curves = {"a": high, "b": high, "c": low}
    drawn = {
        tuple(bad): plots.draw_curves(curves, title="t", unit="u", bad=bad) for bad in ([], ["c"])
    }
    for bad, png in drawn.items():
        (tmp_path / f"{len(bad)}.png").write_bytes(png)
    band = rgb("#e1e1e1")  # around the mean: as wide as the peers differ
    shades = [colours_in(tmp_path / f"{number}.png", pixels=9_000) for number in (0, 1)]
    assert [any(math.dist(one, band) < 12 for one in found) for found in shades] == [True, False]


def test_the_heat_maps_of_all_rounds_have_one_scale(tmp_path: Path) -> None:
    even, one_sided = np.full((3, 3), 0.25), np.eye(3)
    (tmp_path / "even.png").write_bytes(plots.draw_trust_rounds("abc", {1: even}, title="t"))
    both = {1: even, 20: one_sided}
    (tmp_path / "both.png").write_bytes(plots.draw_trust_rounds("abc", both, title="t"))
    alone, beside = (colours_in(tmp_path / f"{name}.png", 9_000) for name in ("even", "both"))
    pale, darkest = (rgb(to_hex(colormaps["Blues"](weight))) for weight in (0.25, 1.0))
    assert darkest in alone & beside
    assert not any(math.dist(colour, pale) < 3 for colour in alone)  # 0.25 is the most there
    assert any(math.dist(colour, pale) < 3 for colour in beside)


def test_a_rule_has_one_colour_for_its_mean_and_its_seeds(tmp_path: Path) -> None:
    lines = {"a": [[(1, 1.0), (2, 1.0)], [(1, 1.2), (2, 1.4)]], "b": [[(1, 2.0), (2, 3.0)]]}
    (tmp_path / "seeds.png").write_bytes(plots.draw_seeds(lines, title="t $x$", unit="u"))
    found = colours_in(tmp_path / "seeds.png", pixels=500)
    assert {rgb(plots.BLUE), rgb(plots.ORANGE)} <= found


def test_without_matplotlib_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
from p2pl.errors import InputError
try:
    import p2pl.report.plots
except InputError as fault:
    print(fault)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert install("report") in done.stdout
