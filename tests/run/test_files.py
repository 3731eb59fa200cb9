"""Files that are replaced whole, and on disk when that is said."""

import os
import stat
from pathlib import Path

import pytest

from p2pl.errors import InputError
from p2pl.run.files import write_atomically


def test_the_contents_are_on_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def syncing(opened: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(opened).st_mode) else "file")
        fsync(opened)

    def replacing(draft: str, path: Path) -> None:
        done.append("name")
        replace(draft, path)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    write_atomically(tmp_path / "vote", b"mine")
    assert done == ["file", "name", "folder"]
    assert (tmp_path / "vote").read_bytes() == b"mine"


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vote"
    path.write_bytes(b"old")

    def failing(draft: str, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(path, b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["vote"]
    assert path.read_bytes() == b"old"


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(InputError, match="got a named pipe or a device, allowed a regular"):
            write_atomically(path, b"new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "pipe"]
    assert pipe.is_fifo()
    assert link.is_symlink()
