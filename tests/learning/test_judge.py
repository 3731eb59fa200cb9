import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pl.learning.judge import Judge, LossJudge, MeanLossJudge
from p2pl.mixing.trust.row import Mine, Trust, learn
from p2pl.mixing.trust.screening import Received
from p2pl.protocol.session import Mixing

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
TRUTH = torch.tensor([1.0, -2.0, 0.5])
NOISE = torch.randn(60, generator=torch.Generator().manual_seed(1))
Y = X @ TRUTH + NOISE / 2


def squares(unit: float) -> LossJudge:
    """Returns a judge of linear regression that measures its errors in a unit of the targets."""
    return LossJudge(lambda vector: ((X @ vector - Y) * unit).square())


def mean_squares(unit: float) -> MeanLossJudge:
    def mean_loss(vector: Tensor) -> float:
        return float(((X @ vector - Y) * unit).square().mean())

    return MeanLossJudge(mean_loss, lambda: len(X))


@pytest.mark.parametrize("judge_of", [squares, mean_squares])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_the_unit_of_the_targets_does_not_count(
    judge_of: Callable[[float], Judge], unit: float
) -> None:
    worse = 0.8 * TRUTH
    assert judge_of(unit).harm(TRUTH, worse) == pytest.approx(judge_of(1.0).harm(TRUTH, worse))


@settings(max_examples=20, deadline=None)
@given(unit=st.floats(1e-4, 1e4))
def test_metres_and_millimetres_give_the_same_row(unit: float) -> None:
    generator = torch.Generator().manual_seed(2)
    offered = {peer: TRUTH + 0.1 * torch.randn(3, generator=generator) for peer in "abc"}
    offered["d"] = torch.tensor([-0.5, 1.5, 0.2])
    received = [Received(peer, vector) for peer, vector in offered.items()]

    def row(judge: LossJudge) -> tuple[float, ...]:
        return learn(Trust(), Mine(TRUTH, judge), received, Mixing()).row

    assert row(squares(unit)) == pytest.approx(row(squares(1.0)), abs=1e-6)


@pytest.mark.parametrize("judge", [squares(1.0), mean_squares(1.0)])
def test_forgetting_all_that_was_learned_is_a_harm_of_one(judge: Judge) -> None:
    assert judge.harm(TRUTH, torch.zeros(3))[0] == pytest.approx(1)


@pytest.mark.parametrize("judge", [squares(1.0), mean_squares(1.0)])
def test_no_change_does_no_harm_and_an_improvement_less_than_none(judge: Judge) -> None:
    assert judge.harm(TRUTH, TRUTH)[0] == 0
    assert judge.harm(0.7 * TRUTH, TRUTH)[0] < 0


def test_the_error_shrinks_with_the_number_of_examples() -> None:
    def judge(copies: int) -> LossJudge:
        x, y = X.repeat(copies, 1), Y.repeat(copies)
        return LossJudge(lambda vector: (x @ vector - y).square())

    (harm, few), (same, many) = (judge(n).harm(TRUTH, 0.9 * TRUTH) for n in (4, 16))
    assert same == pytest.approx(harm, rel=1e-4)
    assert many == pytest.approx(few / 2, rel=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_as_wrong_as_can_be(bad: float) -> None:
    losses = {1.0: torch.ones(8), 2.0: torch.full((8,), bad), 0.0: torch.full((8,), 9.0)}
    judge = LossJudge(lambda vector: losses[float(vector)])
    harm, _ = judge.harm(torch.tensor(1.0), torch.tensor(2.0))
    assert harm == pytest.approx(1, abs=0.01)


def test_a_handful_of_examples_says_nothing() -> None:
    judge = LossJudge(lambda vector: (vector - torch.tensor([1.0, 2.0, 3.0])).square())
    assert judge.harm(torch.tensor(1.0), torch.tensor(9.0)) == (0.0, 1.0)


def test_a_model_that_was_perfect_can_be_harmed() -> None:
    judge = LossJudge(lambda vector: (vector - torch.ones(8)).square())
    assert judge.harm(torch.tensor(1.0), torch.tensor(0.0))[0] > 0.5
