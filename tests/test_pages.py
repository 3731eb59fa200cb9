"""Large numbers in files: what is given back comes again as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from p2pl import pages

LARGE = pages.LEAST_BYTES


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="such files need fallocate")
def test_what_was_written_to_a_room_is_there_after_a_rest_and_the_folder_stays_empty(
    tmp_path: Path,
) -> None:
    room = pages.room(tmp_path, LARGE)
    vector = torch.frombuffer(room, dtype=torch.float32)
    vector.fill_(3.0)
    pages.rest(vector, room)
    assert pages.is_in_file(vector[5:])
    assert bool((vector == 3.0).all())
    assert list(tmp_path.iterdir()) == []


def test_a_small_room_and_usual_memory_are_never_given_back(tmp_path: Path) -> None:
    room, vector = pages.room(tmp_path, 64), torch.full((LARGE // 4,), 2.0)
    room[:] = bytes(range(64))
    pages.rest(room, vector, None)
    assert not pages.is_in_file(room)
    assert bytes(room) == bytes(range(64))
    assert bool((vector == 2.0).all())


def test_a_folder_without_room_gives_usual_memory(tmp_path: Path) -> None:
    room = pages.room(tmp_path / "missing", LARGE)
    assert len(room) == LARGE
    assert not pages.is_in_file(room)


def test_what_is_written_to_an_opened_file_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"as it was")
    pages.opened(path)[:2] = b"no"
    assert path.read_bytes() == b"as it was"


FAULTS = """
import ctypes, resource, sys
from p2pl import pages

libc, size = ctypes.CDLL(None), 1 << 23
libc.malloc.restype = ctypes.c_void_p

def touched():
    for _ in range(20):
        held = [ctypes.c_void_p(libc.malloc(size)) for _ in range(6)]
        for one in held:
            ctypes.memset(one, 1, size)
        for one in held:
            libc.free(one)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    pages.keep_freed()
before = touched()
print(touched() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_without_the_kernel() -> None:
    usual, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, check=True
            ).stdout
        )
        for how in ("usual", "kept")
    )
    assert kept < usual / 10
