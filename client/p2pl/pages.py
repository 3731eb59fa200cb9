"""Large numbers that lie in files: in memory while they are read, and nowhere but on disk else.

A peer with a large model holds several versions of it that it does not look at most of the time:
the one that it serves, those that it has received, the one that it set out from. They lie in files,
mapped into memory. The kernel brings a page in when somebody reads it, and `rest` gives the pages
back. What is small, or finds no room on disk, stays in usual memory, and is never given back.
"""

import contextlib
import ctypes
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from torch import Tensor

from p2pl import regular

LEAST_BYTES = 32 << 20  # chosen: smaller versions are no burden, and files are slower

KEPT_BYTES = 1 << 28  # chosen: several times what training a small network takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers, of malloc.h

Held: TypeAlias = Tensor | memoryview | None

_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by address


def room(folder: Path, size: int) -> memoryview:
    """Returns `size` bytes to write to, of any content; large ones are in a file without a name.

    Args:
        folder: where there may be room on disk.
        size: in bytes, at least 1.
    """
    if size >= LEAST_BYTES and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would kill the process
            return memoryview(_known(mmap.mmap(file.fileno(), size)))
    if not hasattr(mmap, "MAP_PRIVATE"):
        return memoryview(mmap.mmap(-1, size))
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def opened(path: Path) -> memoryview:
    """Returns the bytes of a file that is replaced and never changed; what is written is not saved.

    Raises:
        OSError: it cannot be read.
        ValueError: it is empty.
    """
    with regular.opened(path) as file:
        return memoryview(_known(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)))


def rest(*held: Held) -> None:
    """Gives the pages back of what lies in a file, until somebody reads it; all else stays.

    Args:
        held: vectors or bytes; nobody has changed in place what `opened` gave.
    """
    for one in held:
        mapping = _mapping_of(one)
        if mapping is not None and hasattr(mapping, "madvise"):
            mapping.madvise(mmap.MADV_DONTNEED)


def trim() -> None:
    """Gives freed memory back to the kernel that glibc keeps between blocks; elsewhere, nothing.

    It takes blocks of up to 32 MiB from its heap, as large as a layer is, and returns only the end.
    """
    if sys.platform == "linux":
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim_heap is not None:
            trim_heap(0)


def keep_freed() -> None:
    """Has glibc keep what is freed, for what is asked for next, from now on; elsewhere, nothing.

    Else it returns the end of its heap to the kernel, which clears each page before it gives it
    out again: in some runs of a small convolutional network, after every training step.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if set_option is not None:
            set_option(M_MMAP_THRESHOLD, LEAST_BYTES)  # larger blocks are returned at once, as ever
            set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def is_in_file(held: Held) -> bool:
    """Returns whether vectors or bytes lie in a file of this module's."""
    return _mapping_of(held) is not None


def _known(mapping: mmap.mmap) -> mmap.mmap:
    _mapped[_address(mapping)] = mapping
    return mapping


def _mapping_of(held: Held) -> mmap.mmap | None:
    if held is None or (isinstance(held, Tensor) and held.device.type != "cpu"):
        return None
    at = held.data_ptr() if isinstance(held, Tensor) else _address(held)
    for begin, mapping in list(_mapped.items()):
        if begin <= at < begin + len(mapping):
            return mapping
    return None


def _address(held: memoryview | mmap.mmap) -> int:
    return int(np.frombuffer(held, dtype=np.uint8).ctypes.data)
