"""A simulation on the screen."""

import io

import pytest
from rich.console import Console

from p2pl.metric import ACCURACY, Metric
from p2pl.simulation.engine import SimulatedRound
from p2pl.simulation.show import Bar

METRICS = (ACCURACY, Metric("MAE", "mm", higher_is_better=False))


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"accuracy": 91.84, "MAE": 0.5}, "accuracy 91.8 %"),
        ({"MAE": 0.5}, "MAE 0.500 mm"),
        ({"own": 2.0}, "own 2.000"),
    ],
)
def test_the_bar_says_how_good_the_mean_model_is_and_in_which_unit(
    scores: dict[str, float], said: str
) -> None:
    file = io.StringIO()
    with Bar(3, Console(file=file, width=120, force_terminal=True), METRICS) as bar:
        bar.round(SimulatedRound(1, (), None, 0.0, scores, {}, {}, 2, 0, 0))
        bar.show()
    assert f"mean model: {said} " in file.getvalue()
