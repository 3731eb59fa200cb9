"""A folder for each class."""

import os
import subprocess
import sys
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


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing")])
def test_capitals_and_other_words_for_splits_are_known(
    tmp_path: Path, train: str, test: str
) -> None:
    pictures(tmp_path / train, NAMES, [0, 51, 255])
    pictures(tmp_path / test, NAMES[1:], [102, 153])
    read = load(str(tmp_path), GREY)
    assert (read.labels, read.train.y.tolist()) == (NAMES, [0, 1, 2])
    assert read.test is not None
    assert read.test.y.tolist() == [1, 2]


def test_a_test_folder_among_the_classes_is_no_class(tmp_path: Path) -> None:
    pictures(tmp_path, ["cat", "dog", "test"], [0, 1, 2])
    with pytest.raises(DataError, match="the folders test', allowed one test folder, and one"):
        load(str(tmp_path), GREY)
    named = Task(input=(1, 2, 2), classes=3, labels=("test", "cat", "dog"))
    assert load(str(tmp_path), named).train.y.tolist() == [1, 2, 0]


def test_a_class_that_only_the_test_folder_has_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "train", NAMES, [0, 1, 2])
    pictures(tmp_path / "test", ["cat", "fox"], [0, 1])
    with pytest.raises(DataError, match=r"fox.*allowed 3: cat, dog, eel"):
        load(str(tmp_path), GREY)


@pytest.mark.parametrize("link", ["cat/x.png", "fox"])
def test_a_link_to_nothing_is_named(tmp_path: Path, link: str) -> None:
    pictures(tmp_path, NAMES, [0, 51, 255])
    (tmp_path / link).symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"{link}: got 'a link to nothing'"):
        load(str(tmp_path), GREY)


def test_every_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES, [0, 51, 255])
    (tmp_path / "cat" / "bad.png").write_bytes(b"<html>")
    (tmp_path / "dog" / "worse.jpg").write_bytes(b"")
    (tmp_path / "eel" / "folder.png").mkdir()
    with pytest.raises(
        DataError,
        match=r"3 of 6 images.*cat/bad\.png, dog/worse\.jpg: .*; eel/folder\.png: .*directory",
    ):
        load(str(tmp_path), GREY)


def test_what_an_editor_left_is_not_looked_at(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES, [0, 51, 255])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat" / "._0.png").write_bytes(b"not an image")
    assert len(load(str(tmp_path), GREY).train) == 3


CLOSED = """
import pathlib, sys
from p2pl.data.load import load
from p2pl.protocol.session import Task
for name in (".", "cat", "cat/0.png"):
    closed = pathlib.Path(sys.argv[1], name)
    before = closed.stat().st_mode
    closed.chmod(0)
    try:
        load(sys.argv[1], Task(input=(1, 2, 2), classes=3))
    except Exception as fault:
        print(type(fault).__name__, fault)
    finally:
        closed.chmod(before)
"""


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES, [0, 51, 255])
    lesser = [sys.executable, "-c", CLOSED, str(tmp_path)]
    if os.getuid() == 0:  # root may read everything, unless it gives that up
        rights = "-dac_override,-dac_read_search"
        lesser = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *lesser]
    said = subprocess.run(lesser, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        f"DataError --data {tmp_path}: cannot be read: Permission denied",
        f"DataError --data {tmp_path}/cat: cannot be read: Permission denied",
        "DataError --data: 1 of 3 images cannot be used: cat/0.png: unreadable: Permission denied",
    ]
