"""What all data have in common: shapes, shards, splits, and what is missing."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.image_sets import GREY, png, small, write

from p2pl.data.load import Shard, load, split_validation
from p2pl.errors import DataError
from p2pl.extras import install
from p2pl.protocol.session import Task
from p2pl.seeds import seeded

DIGITS = Task(input=(1, 8, 8), classes=10)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(input=(1, 28, 28), classes=10), r"\(1, 8, 8\).*allowed \(1, 28, 28\)"),
        (Task(input=(64,), classes=10), r"\(1, 8, 8\).*allowed \(64,\)"),
        (Task(input=(1, 8, 8), classes=9), r"0\.\.9.*allowed 0\.\.8"),
    ],
)
def test_another_shape_or_more_classes_than_the_session_are_refused(
    task: Task, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load("digits", task)


def test_each_channel_has_its_own_mean(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(255, "RGB")], [0])
    task = Task(input=(3, 2, 2), classes=3, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    assert load(str(tmp_path), task).train.x[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("index", [-1, 6])
def test_a_shard_outside_the_partition_is_refused(index: int) -> None:
    with pytest.raises(DataError, match=r"allowed 0\.\.5"):
        load("digits", DIGITS, shard=Shard(index, 6, "iid"))


@pytest.mark.parametrize("ref", ["", "./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "a/b/c"])
def test_what_is_neither_folder_nor_dataset_is_refused(ref: str) -> None:
    with pytest.raises(DataError, match="allowed digits, an existing folder"):
        load(ref, DIGITS)


@pytest.mark.parametrize(
    ("ref", "module", "extra"),
    [
        ("digits", "sklearn", "data"),
        ("FOLDER", "pyarrow", "hf"),
        ("FOLDER", "PIL", "hf"),
        ("me/tiny", "datasets", "hf"),
    ],
)
def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, module: str, extra: str
) -> None:
    small(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(DataError, match=re.escape(install(extra))):
        load(str(tmp_path) if ref == "FOLDER" else ref, GREY)


def test_validation_rows_are_random_and_disjoint_from_the_rest() -> None:
    train, held_out = split_validation(50, 0.2, seeded("s", "p", 0, "validation"))
    again, _ = split_validation(50, 0.2, seeded("s", "p", 0, "validation"))
    assert (len(train), len(held_out)) == (40, 10)
    assert torch.equal(train, again)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert held_out.tolist() != list(range(10))


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.05, 1), (2, 0.5, 1), (10, 0.05, 1)])
def test_each_side_keeps_at_least_one_row(count: int, share: float, held: int) -> None:
    train, held_out = split_validation(count, share, torch.Generator())
    assert (len(train), len(held_out)) == (count - held, held)


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"1 rows.*at least 2"):
        split_validation(1, 0.2, torch.Generator())


@pytest.mark.parametrize(
    ("ref", "shape", "mean"),
    [
        ("ylecun/mnist", (1, 28, 28), 0.1307),
        ("zalando-datasets/fashion_mnist", (1, 28, 28), 0.2860),
        ("uoft-cs/cifar10", (3, 32, 32), 0.4734),
    ],
)
def test_published_datasets_have_their_published_mean(
    ref: str, shape: tuple[int, ...], mean: float
) -> None:
    folder = os.environ.get("P2PL_DATA_DIR")
    if folder is None or not (Path(folder) / ref).is_dir():
        pytest.skip(f"P2PL_DATA_DIR does not name a folder with {ref}")
    task = Task(input=shape, classes=10)
    read = load(ref, task, data_dir=Path(folder), shard=Shard(0, 60, "iid"))
    assert float(read.train.x.mean()) == pytest.approx(mean, abs=0.01)
    assert read.test is not None
    assert torch.bincount(read.test.y).tolist() == [1_000] * 10 or ref == "ylecun/mnist"
    assert np.prod(read.train.x.shape[1:]) == np.prod(shape)


@pytest.mark.parametrize("ref", ["~nobody-has-this-name/x", "x" * 300])
def test_what_can_be_no_path_is_looked_for_in_the_other_places(ref: str, tmp_path: Path) -> None:
    task = Task(input=(1, 2, 2), classes=3)
    with pytest.raises(DataError, match="--data"):
        load(ref, task, data_dir=tmp_path)
