"""The task `classification`: what it counts, and how much that takes."""

import torch

from p2pl.protocol.session import Task as Settings
from p2pl.tasks.classification import MAX_CONFUSED, Classification


def test_few_classes_are_told_apart_in_a_matrix() -> None:
    task = Classification(Settings(input=(1,), classes=2))
    outputs, targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 0])
    tally = task.tally(outputs, targets)
    assert task.confusion(tally).tolist() == [[1, 1], [0, 1]]
    assert task.metrics_of(tally, 3)["accuracy"] == 100 * 2 / 3


def test_so_many_classes_as_a_session_may_have_take_no_matrix() -> None:
    task = Classification(Settings(input=(1,), classes=100_000))
    outputs = torch.zeros(3, 100_000)
    outputs[0, 7] = outputs[1, 99_999] = outputs[2, 5] = 1.0
    tally = task.tally(outputs, torch.tensor([7, 99_999, 6]))
    assert tally.numel() == 1
    assert task.metrics_of(tally, 3)["accuracy"] == 100 * 2 / 3
    assert task.confusion(tally).shape == (0, 0)
    assert not task.is_stackable
    assert Classification(Settings(input=(1,), classes=MAX_CONFUSED)).is_stackable
