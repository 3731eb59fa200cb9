"""A folder for each class."""

from pathlib import Path

import pytest
from support.image_sets import GREY, NAMES, pictures

from p2pl.data.load import load
from p2pl.errors import DataError
from p2pl.protocol.session import Task


def test_a_folder_for_each_class_is_read(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES, [0, 51, 255])
    read = load(str(tmp_path), GREY)
    assert read.train.y.tolist() == [0, 1, 2]
    assert read.train.x[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert read.test is None
    assert read.labels == NAMES


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    pictures(tmp_path / "train", NAMES, [0, 51, 255])
    pictures(tmp_path / "test", NAMES[1:], [102, 153])
    read = load(str(tmp_path), GREY)
    assert read.train.y.tolist() == [0, 1, 2]
    assert read.test is not None
    assert read.test.y.tolist() == [1, 2]


def test_a_peer_may_hold_only_some_of_the_named_classes(tmp_path: Path) -> None:
    pictures(tmp_path, ["eel", "cat"], [0, 51])
    task = Task(input=(1, 2, 2), classes=3, labels=("dog", "eel", "cat"))
    assert sorted(load(str(tmp_path), task).train.y.tolist()) == [1, 2]


def test_a_folder_that_is_no_class_of_the_session_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, ["eel", "fox"], [0, 51])
    with pytest.raises(DataError, match=r"fox.*allowed 3: cat, dog, eel"):
        load(str(tmp_path), Task(input=(1, 2, 2), classes=3, labels=NAMES))


def test_without_names_in_the_session_every_class_must_be_there(tmp_path: Path) -> None:
    pictures(tmp_path, ["eel", "cat"], [0, 51])
    with pytest.raises(DataError, match=r"2: cat, eel.*allowed 3: any names"):
        load(str(tmp_path), GREY)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no images"):
        load(str(tmp_path), GREY)
