"""Each peer alone is set beside the same peer in a swarm."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console
from support.pictures import colours_in, rgb

from p2pl.errors import InputError
from p2pl.metric import Metric
from p2pl.report import plots
from p2pl.report.comparison import comparison_table, draw_alone_versus_together

ALONE = {"a": 80.0, "b": 90.0}
TOGETHER = {"a": 91.0, "b": 89.5}


def test_alone_and_together_are_compared_peer_by_peer(tmp_path: Path) -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(comparison_table(ALONE, TOGETHER))
    lines = [line.split() for line in captured.get().splitlines()]
    assert ["a", "80.0", "%", "91.0", "%", "+11.0"] in lines
    assert ["b", "90.0", "%", "89.5", "%", "-0.5"] in lines
    assert ["mean", "85.0", "%", "90.2", "%", "+5.2"] in lines
    draw_alone_versus_together(ALONE, TOGETHER, tmp_path / "both.png")
    assert {rgb(plots.BLUE), rgb(plots.ORANGE)} <= colours_in(tmp_path / "both.png")


def test_a_gain_is_for_the_better_where_lower_is_better(tmp_path: Path) -> None:
    error = Metric("RMSE", "mm", higher_is_better=False)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(comparison_table({"a": 5.0, "b": 2.0}, {"a": 3.5, "b": 2.25}, error))
    lines = [line.split() for line in captured.get().splitlines()]
    assert ["RMSE"] in lines
    assert ["a", "5.000", "mm", "3.500", "mm", "+1.500"] in lines
    assert ["b", "2.000", "mm", "2.250", "mm", "-0.250"] in lines
    assert ["mean", "3.500", "mm", "2.875", "mm", "+0.625"] in lines
    draw_alone_versus_together(ALONE, TOGETHER, tmp_path / "both.png", error)
    assert {rgb(plots.BLUE), rgb(plots.ORANGE)} <= colours_in(tmp_path / "both.png")


@pytest.mark.parametrize("together", [{}, {"a": 1.0}, {"a": 1.0, "c": 2.0}])
def test_only_the_same_peers_can_be_compared(tmp_path: Path, together: Mapping[str, float]) -> None:
    with pytest.raises(InputError, match="peers to compare"):
        comparison_table(ALONE, together)
    with pytest.raises(InputError, match="peers to compare"):
        draw_alone_versus_together(ALONE, together, tmp_path / "both.png")
    assert not (tmp_path / "both.png").exists()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        draw_alone_versus_together({"a": 1.0}, {"a": 2.0}, tmp_path / "absent" / "x.png")
