"""Named pipes in the place of files: refused at once, and not waited for."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pl import pages, regular
from p2pl.api.files import read_session, read_spec
from p2pl.api.private import read_invitation
from p2pl.data import frames, parquet, texts
from p2pl.errors import P2PLError, SessionFileError
from p2pl.exchange import checkpoint
from p2pl.network.keys import Identity
from p2pl_tracker import register

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes")


def test_a_name_with_a_null_byte_is_a_name_that_no_file_has() -> None:
    with pytest.raises(SessionFileError, match="cannot be read"):
        read_session("a\0b.torrent")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("s.torrent", read_session),
        ("s.toml", read_spec),
        ("s.invitation", read_invitation),
        ("key.pem", Identity.load_or_create),
        ("data.csv", frames.open_table),
        ("data.parquet", frames.open_table),
        ("images.parquet", lambda path: parquet.read_table(path, "data")),
        ("tokenizer.json", texts.read_tokenizer),
        ("s.safetensors", lambda path: checkpoint._read(path, 9)),
        ("s.torrent", lambda path: register.served([path], private_only=False)),
    ],
)
def test_a_named_pipe_is_refused_and_not_waited_for(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(P2PLError, match=r"regular file|files to read"):
        read(path)


def test_what_is_no_regular_file_says_so_and_a_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        regular.opened(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="allowed a regular file"):
        pages.opened(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"some")
    assert regular.read(tmp_path / "file") == b"some"
