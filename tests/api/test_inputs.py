"""Modules that take several inputs, in a dictionary or a tuple."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.modules import SPEC
from torch import Tensor
from torch.utils.data import Dataset

import p2pl
from p2pl.api.simulate import simulate
from p2pl.data.own import Given, examples_of
from p2pl.errors import DataError, InputError, ModelError
from p2pl.learning.models import build
from p2pl.protocol.session import Task

pytestmark = pytest.mark.usefixtures("own_models")

TASK = Task(input=(1, 8, 8), classes=10)
torch.manual_seed(0)
IMAGES, KINDS, TARGETS = torch.rand(60, 1, 8, 8), torch.arange(60) % 4, torch.arange(60) % 10


class Items(Dataset[tuple[dict[str, Tensor], int]]):
    """A map-style data set whose items have two inputs."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        return {"image": IMAGES[index], "kind": KINDS[index]}, int(TARGETS[index])


def session(folder: Path, **exchange: object) -> p2pl.SessionFile:
    """Returns a session for a module of two inputs."""
    spec = {**SPEC, "model": {"name": "own-inputs"}}
    spec["exchange"] = {"rounds": 2, "cohort": 1, **exchange}
    return p2pl.create(spec, folder / "own.torrent")


@pytest.mark.parametrize(
    "data",
    [
        ({"image": IMAGES, "kind": KINDS}, TARGETS),
        ((IMAGES, KINDS), TARGETS),
        (({"kind": KINDS.numpy(), "image": IMAGES.numpy()}), TARGETS),
        Items(),
    ],
    ids=["dictionary", "tuple", "arrays", "data set"],
)
def test_a_module_is_called_with_its_inputs_by_name_or_by_place(
    tmp_path: Path, data: Given
) -> None:
    run = p2pl.join(session(tmp_path), data=data, alone=True, run_dir=tmp_path / "run")
    first, last = (entry.train_loss or 0 for entry in run.rounds)
    assert 0 < last < first


def test_peers_of_a_simulation_share_several_inputs(tmp_path: Path) -> None:
    data = ({"image": IMAGES, "kind": KINDS}, TARGETS)
    found = simulate(session(tmp_path), (data, data), 3, changes={"mixing.rule": "degroot"})
    assert found.results[0].engine.kind == "sequential"
    assert len(found.results[0].vectors) == 3


def test_inputs_of_different_lengths_or_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"input kind \[59\], targets \[60\]"):
        examples_of(({"image": IMAGES, "kind": KINDS[1:]}, TARGETS), TASK)
    with pytest.raises(DataError, match=r"item 1: got .*'input picture'.*'input image'.*item 0"):
        examples_of([({"image": IMAGES[0]}, 1), ({"picture": IMAGES[0]}, 1)], TASK)
    with pytest.raises(DataError, match=r"got \[\(\), \(8, 8\)\], allowed \(1, 8, 8\)"):
        examples_of(((KINDS, IMAGES[:, 0]), TARGETS), TASK)
    spoilt = IMAGES.clone()
    spoilt[3] = torch.nan
    with pytest.raises(DataError, match="input 1 of the data: got 'NaN"):
        examples_of(((IMAGES, spoilt), TARGETS), TASK)


def test_a_tuple_of_rows_is_still_one_input() -> None:
    made = examples_of((tuple(IMAGES), TARGETS), TASK)
    assert made.x.shape == (60, 1, 8, 8)


def test_private_training_refuses_several_inputs(tmp_path: Path) -> None:
    data = ({"image": IMAGES, "kind": KINDS}, TARGETS)
    with pytest.raises(InputError, match="several inputs"):
        p2pl.join(session(tmp_path), data=data, alone=True, dp_epsilon=1, run_dir=tmp_path / "run")


def test_private_training_refuses_batchnorm_and_leaves_frozen_layers_alone(tmp_path: Path) -> None:
    data = (IMAGES, TARGETS)
    spec = {**SPEC, "training": {"learning_rate": 0.1, "batch_size": 16}}
    spec["exchange"] = {"rounds": 1, "cohort": 1}
    for name in ("own-batchnorm", "own-frozen"):
        (tmp_path / name).mkdir()
        spec["model"] = {"name": name}
        file = p2pl.create(spec, tmp_path / name / "own.torrent")
        there: dict[str, Any] = {
            "data": data,
            "alone": True,
            "dp_epsilon": 8,
            "run_dir": tmp_path / name / "run",
        }
        if name == "own-batchnorm":
            with pytest.raises(ModelError, match="BatchNorm cannot support training with diff"):
                p2pl.join(file, **there)
            continue
        run = p2pl.join(file, **there)
        begun, ended = build(file.session).state_dict(), run.model.state_dict()
        assert torch.equal(begun["2.weight"], ended["2.weight"])
        assert not torch.equal(begun["5.weight"], ended["5.weight"])
