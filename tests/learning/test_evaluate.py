import math

import pytest
import torch
from support.objectives import objective
from torch import nn

from p2pl.data.examples import Examples
from p2pl.learning.evaluate import BATCH_EXAMPLES, evaluate
from p2pl.learning.models import cnn
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Task

# Logits are the inputs themselves.
PASS = nn.Linear(2, 2, bias=False)
IDENTITY = torch.eye(2).reshape(-1)


def test_scores_on_numbers_one_can_check_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = evaluate(objective(PASS, 2), IDENTITY, Examples(x, torch.tensor([0, 1, 1])))
    assert scores.confusion.tolist() == [[1, 0], [1, 1]]
    assert scores.confusion.dtype == torch.int64
    assert scores.accuracy == pytest.approx(200 / 3)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert scores.loss == pytest.approx((2 * right + wrong) / 3)


def test_more_examples_than_a_batch_are_all_counted() -> None:
    count = 2 * BATCH_EXAMPLES + 1
    x = torch.zeros(count, 2)
    x[:, 1] = 1
    scores = evaluate(
        objective(PASS, 2), IDENTITY, Examples(x, torch.ones(count, dtype=torch.int64))
    )
    assert scores.accuracy == 100
    assert scores.confusion.tolist() == [[0, 0], [0, count]]
    assert scores.loss == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-4)


def test_a_class_without_examples_still_has_its_row() -> None:
    examples = Examples(torch.zeros(4, 1), torch.full((4,), 2))
    scores = evaluate(objective(nn.Linear(1, 3), 3), torch.zeros(6), examples)
    assert scores.confusion.tolist() == [[0, 0, 0], [0, 0, 0], [4, 0, 0]]


def test_a_convolutional_network_scores_as_its_forward_pass_says() -> None:
    torch.manual_seed(0)
    model = cnn(Task(input=(3, 8, 8), classes=4), width=4, hidden=8)
    vector = flatten(model)
    examples = Examples(torch.rand(300, 3, 8, 8), torch.randint(0, 4, (300,)))
    with torch.no_grad():
        logits = model(examples.x)
    scores = evaluate(objective(model, 4), vector, examples)
    right = (logits.argmax(1) == examples.y).float().mean()
    assert scores.accuracy == pytest.approx(100 * float(right))
    loss = torch.nn.functional.cross_entropy(logits, examples.y)
    assert scores.loss == pytest.approx(float(loss), rel=1e-5)
    assert torch.equal(flatten(model), vector)  # however the numbers lie in memory
