"""What is wrong with a person's model is said before the first round, with its layer and shapes."""

import re
from pathlib import Path

import pytest
import torch
from support.objectives import objective
from torch import Tensor, nn

import p2pl
from p2pl.data.examples import Examples
from p2pl.errors import ModelError
from p2pl.learning.trial import check_on

DATA = Examples(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)


class Head(nn.Module):
    """A layer on the flat image, and whatever a test wants of it."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.out = nn.Linear(64, outputs)

    def scores(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(x.flatten(1))
        return made

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)


class TwoInputs(Head):
    def forward(self, x: Tensor, clinical: Tensor) -> Tensor:  # type: ignore[override]  # on purpose
        return self.scores(x) + clinical.sum()


class InADictionary(Head):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # on purpose
        return {"logits": self.scores(x)}


class Unlearnable(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x).detach()


class Raising(Head):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no weights file configured")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Head(8), "outputs of Head: got [2, 8], allowed [2, 3]"),
        (Head(1), "outputs of Head: got [2, 1], allowed [2, 3]"),
        (nn.Conv2d(1, 3, 1), "outputs of Conv2d: got [2, 3, 8, 8], allowed [2, 3]"),
        (InADictionary(), "outputs of InADictionary: got 'dict of logits', allowed one tensor"),
        (TwoInputs(), "model: TwoInputs, given inputs [2, 1, 8, 8]: TypeError: "),
        (Raising(), "Raising, given inputs [2, 1, 8, 8]: KeyError: 'no weights file configured'"),
        (Unlearnable(), "the gradient of Unlearnable, given inputs [2, 1, 8, 8]: RuntimeError: "),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(60, 3)),
            "model: layer 1 (Linear), given inputs [2, 64]: RuntimeError: mat1 and mat2",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.GroupNorm(3, 3)),
            "model: layer 2 (GroupNorm), given inputs [1, 3]: ValueError: Expected more than 1",
        ),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else "",
)
def test_what_is_wrong_with_a_model_is_said(model: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        check_on(objective(model, 3), DATA)


def test_a_sound_model_is_left_as_it_is() -> None:
    model = nn.Sequential(Head(), nn.Dropout(0.5))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.random.get_rng_state()
    check_on(objective(model, 3), DATA)
    check_on(objective(model, 3), DATA.take(torch.tensor([0])))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert all(one.grad is None for one in model.parameters())


def test_a_peer_and_a_simulation_begin_with_it(tmp_path: Path) -> None:
    spec = {
        "name": "tried",
        "task": {"input": [1, 8, 8], "classes": 3},
        "model": {"name": "arrays"},
        "training": {"learning_rate": 0.1, "batch_size": 2},
        "exchange": {"rounds": 1, "cohort": 1},
    }
    p2pl.create(spec, tmp_path / "tried.torrent", model=Head(8))
    with pytest.raises(ModelError, match=re.escape("outputs of Head: got [2, 8], allowed [2, 3]")):
        p2pl.join(tmp_path / "tried.torrent", Head(8), DATA, alone=True, run_dir=tmp_path / "run")
    many = Examples(torch.rand(40, 1, 8, 8), torch.arange(40) % 3)
    with pytest.raises(ModelError, match=re.escape("outputs of Head: got [2, 8], allowed [2, 3]")):
        p2pl.simulate(tmp_path / "tried.torrent", data=(many, many), model=Head(8), peers=2)
