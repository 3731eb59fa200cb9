"""A large module that shares a vector's memory, and gets its own again before it is trained."""

import pytest
import torch
from torch import nn

from p2pl.learning import parts
from p2pl.learning.parts import Layout, flatten, lend, load_into


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LARGE", 1)


def test_a_lent_vector_is_shared_and_no_loop_that_trains_in_place_changes_it() -> None:
    linear = nn.Linear(3, 2)
    model = nn.Sequential(linear, nn.BatchNorm1d(2))
    layout = Layout.of(model)
    vector = torch.arange(float(layout.total))
    first = linear.weight
    lend(model, vector, layout)
    assert first is linear.weight
    assert vector.data_ptr() <= first.data_ptr() < vector.data_ptr() + vector.nbytes
    assert torch.equal(flatten(model, layout), vector)

    load_into(model, vector, layout)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(1)
    model.train()
    model(torch.randn(4, 3))  # moves the running statistics
    assert torch.equal(vector, torch.arange(float(layout.total)))


def test_running_statistics_are_copied_for_a_model_in_training_mode_writes_to_them() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    layout = Layout.of(model)
    vector = torch.ones(layout.total)
    lend(model, vector, layout)
    model.train()
    model(torch.randn(4, 3))
    assert torch.equal(vector, torch.ones(layout.total))
