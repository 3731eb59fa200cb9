"""Regular files, opened to be read: a named pipe or a device would hold whoever reads it up."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def opened(path: Path) -> BinaryIO:
    """Returns the file, open for its bytes to be read.

    Raises:
        OSError: it cannot be read, or is a folder, a named pipe, a device or a socket.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.open(path, flags)
    except ValueError as fault:  # a null byte in the name
        raise FileNotFoundError(errno.ENOENT, str(fault), str(path)) from fault
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            said = "got a named pipe or a device, allowed a regular file"
            raise OSError(errno.EINVAL, said, str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def read(path: Path) -> bytes:
    """Returns all bytes of the file.

    Raises:
        OSError: as `opened` raises it.
    """
    with opened(path) as file:
        return file.read()


def check(path: Path) -> None:
    """Raises OSError unless the file can be opened, and is a regular one.

    For libraries that open it themselves, by its name.
    """
    opened(path).close()
