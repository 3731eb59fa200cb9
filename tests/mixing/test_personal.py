import pytest
import torch
from support.objectives import objective
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.learning.sample import Sample
from p2pl.mixing.personal import EXAMPLES, choose

X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + 0.5 * X[:, 1] > 0).long()
MODEL = nn.Linear(2, 2, bias=False)
MINE = Sample(objective(MODEL, 2), Examples(X, Y), EXAMPLES)
ALONG_X = torch.tensor([-3.0, 0.0, 3.0, 0.0])  # sees the first input
ALONG_Y = torch.tensor([0.0, -3.0, 0.0, 3.0])  # sees the second
LIAR = -3 * ALONG_X


def loss(vector: Tensor) -> float:
    return MINE.loss(vector)


def test_what_others_know_is_taken_as_far_as_it_fits_my_data() -> None:
    x, y = 5 * ALONG_X, 5 * ALONG_Y
    chosen = choose(x, None, [y], MINE)
    best = min(loss(x + share * (y - x)) for share in torch.linspace(0, 1, 101).tolist())
    assert best <= loss(chosen) < best + 0.01 < min(loss(x), loss(y)) - 0.2


def test_others_that_are_no_good_to_me_cost_nothing() -> None:
    assert loss(choose(ALONG_X, None, [LIAR], MINE)) <= loss(ALONG_X)


def test_it_never_gets_worse_on_the_examples_it_is_chosen_by() -> None:
    before = choose(ALONG_X, None, [ALONG_Y], MINE)
    after = choose(0.1 * ALONG_X, before, [LIAR, -ALONG_Y], MINE)
    assert loss(after) <= loss(before)


def test_alone_i_keep_what_i_trained() -> None:
    assert torch.equal(choose(ALONG_X, None, [], MINE), ALONG_X)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    gradient, small = MINE.gradient(ALONG_X), 1e-2 * torch.eye(4)
    for k in range(4):
        slope = (loss(ALONG_X + small[k]) - loss(ALONG_X - small[k])) / 2e-2
        assert slope == pytest.approx(float(gradient[k]), abs=1e-3)


def test_choosing_changes_nobody_s_parameters() -> None:
    vectors = [ALONG_X.clone(), ALONG_Y.clone(), LIAR.clone()]
    kept = [vector.clone() for vector in vectors]
    choose(vectors[0], vectors[1], vectors[2:], MINE)
    assert all(torch.equal(a, b) for a, b in zip(vectors, kept, strict=True))
