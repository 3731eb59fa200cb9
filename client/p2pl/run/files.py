"""Files that are either all there or not there at all."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from p2pl.errors import InputError


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replaces the file in one step; a crash leaves the old one or the new one.

    When this returns, it is the new one, whatever happens to the machine's power.

    Args:
        path: the file; its folder exists.
        data: all that is in it afterwards.

    Raises:
        InputError: it cannot be written; the message names the file and the reason.
    """
    write_parts_atomically(path, (data,))


def write_parts_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Replaces the file in one step by parts that follow each other, and are never put together.

    Raises:
        InputError: it cannot be written; the message names the file and the reason.
    """
    draft: str | None = None
    try:
        _check_replaceable(path)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as out:
            draft = out.name
            for part in parts:
                out.write(part)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
        settle(path.parent)
    except OSError as fault:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {fault.strerror}") from fault


def check_can_be_written(path: Path) -> None:
    """Raises InputError for the name of a device or a named pipe, before anything is written."""
    try:
        _check_replaceable(path)
    except OSError as fault:
        raise InputError(f"{path}: cannot be written: {fault.strerror}") from fault


def _check_replaceable(path: Path) -> None:
    """Raises OSError where the name is a device's or a named pipe's, which would be gone after."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        said = "got a named pipe or a device, allowed a regular file or a name that is free"
        raise OSError(errno.EINVAL, said, str(path))


def settle(folder: Path) -> None:
    """Returns when the names in a folder are on disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
