"""Faults of a person's module: one line that names the layer, what it was given, and the place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.modules import SPEC
from support.objectives import objective
from torch import Tensor, nn

import p2pl
from p2pl.api.simulate import simulate
from p2pl.data.examples import Examples
from p2pl.errors import ModelError, TrainingDiverged
from p2pl.learning.models import MODELS
from p2pl.learning.parts import flatten
from p2pl.learning.train import Start, train
from p2pl.protocol.session import Training
from p2pl.seeds import seeded


class Lambda(nn.Module):
    """Does whatever it is told."""

    def __init__(self, work: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401  # what people's modules give
        return self.work(x)


def raises(x: Tensor) -> Tensor:
    """Raises what no library would."""
    raise LookupError("no such table")


ELSEWHERE = torch.empty(64, device="meta")
BODY = nn.Flatten(), nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            (nn.Flatten(), nn.Linear(63, 10)),
            r"model layer '1', Linear\(in_features=63.*\), given \[2, 64\] float32 on cpu: "
            r"RuntimeError.*cannot be multiplied",
        ),
        (
            (*BODY, nn.Sequential(Lambda(raises))),
            r"layer '2.0', Lambda\(\), given \[2, 10\].* at test_faults.py, line \d+: LookupError",
        ),
        (
            (*BODY, Lambda(torch.log)),
            r"layer '2', Lambda\(\), given \[2, 10\].*: got NaN or infinity, allowed finite",
        ),
        (
            (nn.Flatten(), Lambda(lambda x: x + ELSEWHERE), nn.Linear(64, 10)),
            r"(layer '1', Lambda|layer '2', Linear).*given \[2, 64\] float32 on (cpu|meta)",
        ),
        ((nn.Flatten(), nn.Linear(64, 9)), r"outputs of Sequential: got \[2, 9\], .*\[2, 10\]"),
        ((*BODY, Lambda(lambda x: (x, x))), r"outputs of the model: got \(\[2, 10\].*`logits`"),
        ((*BODY, Lambda(lambda x: {"y": x})), r"got \{y: \[2, 10\] float32 on cpu\}, allowed"),
        ((*BODY, Lambda(lambda x: x.argmax(1))), r"outputs of Sequential: got \[2\]"),
    ],
    ids=["shape", "raises", "nan", "device", "outputs", "tuple", "dictionary", "classes"],
)
def test_a_fault_is_told_before_the_first_round_in_join_and_in_simulations(
    layers: tuple[nn.Module, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS._registered, "own-faulty", lambda task: nn.Sequential(*layers))
    file = p2pl.create({**SPEC, "model": {"name": "own-faulty"}}, tmp_path / "own.torrent")
    for run in (
        lambda: p2pl.join(file, data="digits", alone=True, run_dir=tmp_path / "run"),
        lambda: simulate(file, "digits", 2),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)


def test_a_model_that_gives_its_logits_in_a_dictionary_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (*BODY, Lambda(lambda x: {"logits": x, "hidden": None}))
    monkeypatch.setitem(MODELS._registered, "own-hf", lambda task: nn.Sequential(*layers))
    file = p2pl.create({**SPEC, "model": {"name": "own-hf"}}, tmp_path / "own.torrent")
    assert simulate(file, "digits", 3, changes={"mixing.rule": "degroot"}).results[0].scores


def test_what_cannot_be_made_says_what_it_raised_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(task: object) -> nn.Module:
        raise KeyError("no weights file configured")

    monkeypatch.setitem(MODELS._registered, "own-none", make)
    with pytest.raises(
        ModelError, match=r"own-none.*KeyError: .no weights.*\(test_faults.py, line"
    ):
        p2pl.create({**SPEC, "model": {"name": "own-none"}}, tmp_path / "own.torrent")


def test_numbers_that_one_example_makes_infinite_are_traced_to_their_layer() -> None:
    model = nn.Sequential(Lambda(lambda x: 1 / x), nn.Linear(4, 10))
    data = Examples(torch.ones(20, 4), torch.arange(20) % 10)
    data.x[17, 2] = 0
    training, order = Training(learning_rate=0.1), seeded("", "", 1, "x")
    with pytest.raises(TrainingDiverged, match=r"layer '0', Lambda\(\), given \[20, 4\].*infinity"):
        train(objective(model), Start(flatten(model)), data, training, order)
    steep = Training(learning_rate=1e30)
    plain = nn.Sequential(nn.Linear(4, 10), Lambda(lambda x: x**3))
    big = Examples(torch.randn(200, 4), data.y.repeat(10))
    with pytest.raises(TrainingDiverged, match=r"learning_rate 1e\+30 is too high"):
        train(objective(plain), Start(flatten(plain)), big, steep, order)


def test_a_module_without_a_gradient_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 10), Lambda(lambda x: x.detach()))
    data = Examples(torch.ones(20, 4), torch.arange(20) % 10)
    with pytest.raises(ModelError, match="model Sequential: its gradient cannot be computed"):
        objective(model).gradient(flatten(model), data)
