"""Decoded images are kept beside the data, and used only where they are what was decoded."""

import os
from pathlib import Path

import numpy as np
import pytest

from p2pl.data import decoded
from p2pl.data.source import Pixels
from p2pl.protocol.session import Task

TASK = Task(input=(1, 4, 4), classes=2)
COUNT = 20


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "MIN_ROWS", 1)
    monkeypatch.setattr(decoded, "READ_BYTES", 50)  # so that a file is read in several parts


class Place:
    """A folder with one data file, and a count of how often it was decoded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.times = folder, folder / "train.parquet", 0
        self.file.write_bytes(b"images")
        grey = np.random.RandomState(0).randint(0, 256, (COUNT, *TASK.input))
        self.pixels: Pixels = grey.astype(np.float32) / np.float32(255)

    def read(self, task: Task = TASK) -> Pixels:
        """Returns the images, decoded now or kept."""
        return decoded.kept(self.folder, [self.file], task, COUNT, self._decode)

    def _decode(self) -> Pixels:
        self.times += 1
        return self.pixels

    @property
    def kept(self) -> list[Path]:
        return sorted((self.folder / decoded.FOLDER).glob("*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_was_kept_is_what_was_decoded_to_the_last_bit(place: Place) -> None:
    first, second = place.read(), place.read()
    assert place.times == 1
    assert second.dtype == np.float32
    np.testing.assert_array_equal(first, second)


def test_other_data_and_another_session_are_decoded_anew(place: Place) -> None:
    place.read()
    place.file.write_bytes(b"other images")
    place.read()
    place.read(Task(input=(1, 4, 4), classes=2, resize="crop"))
    assert place.times == 3


def test_what_was_kept_of_other_data_is_not_believed_under_this_name(place: Place) -> None:
    place.read()
    (theirs,) = place.kept
    held = theirs.read_bytes()
    place.file.write_bytes(b"other images")
    place.pixels = place.pixels[::-1]
    place.read()
    (mine,) = set(place.kept) - {theirs}
    mine.write_bytes(held)
    np.testing.assert_array_equal(place.read(), place.pixels)


@pytest.mark.parametrize("at", [0, 20, -100, -1])
def test_a_file_that_is_not_as_it_was_written_is_written_anew(place: Place, at: int) -> None:
    place.read()
    (file,) = place.kept
    held = bytearray(file.read_bytes())
    held[at] ^= 1
    file.write_bytes(held)
    np.testing.assert_array_equal(place.read(), place.pixels)
    assert place.times == 2
    place.read()
    assert place.times == 2


@pytest.mark.parametrize("made", [b"", decoded.MAGIC, b"x" * 4_000])
def test_what_is_no_such_file_is_not_used(place: Place, made: bytes) -> None:
    place.read()
    place.kept[0].write_bytes(made)
    np.testing.assert_array_equal(place.read(), place.pixels)
    assert place.times == 2


def test_a_link_and_what_belongs_to_somebody_else_are_not_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.read()
    (file,) = place.kept
    elsewhere = place.folder / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    place.read()
    assert place.times == 2
    monkeypatch.setattr(os, "getuid", lambda: -1)
    place.read()
    assert place.times == 3


def test_where_nothing_can_be_written_it_is_decoded_every_time(place: Place) -> None:
    (place.folder / decoded.FOLDER).write_bytes(b"in the way")
    place.read()
    np.testing.assert_array_equal(place.read(), place.pixels)
    assert place.times == 2


def test_numbers_that_are_no_bytes_are_not_kept(place: Place) -> None:
    place.pixels = place.pixels * np.float32(0.999)
    np.testing.assert_array_equal(place.read(), place.pixels)
    assert place.kept == []


def test_files_of_old_data_go(place: Place) -> None:
    for number in range(decoded.MAX_FILES + 2):
        place.file.write_bytes(bytes([number]))
        place.read()
    assert len(place.kept) == decoded.MAX_FILES
