"""Decoded images, kept beside the data: a simulation that begins again need not decode them again.

The file lies in the folder of the data, under a name made from what the data files hold and from
what the session makes of an image; so it is never taken for other data. It is numbers behind a
header that says what they were made of, and a mark over both: one that is not as it was written is
not used, and written anew. Where the folder cannot be written to, nothing is kept.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec
import numpy as np
import PIL
from numpy.typing import NDArray
from xxhash import xxh3_128

from p2pl import regular
from p2pl.data.source import Pixels
from p2pl.protocol.session import Task

FOLDER = ".p2pl-decoded"
MAGIC = b"p2pl decoded 1\n"
MAX_BYTES = 1 << 30  # of one file; chosen: CIFAR-100 has 154 MB; more is decoded every time
MIN_ROWS = 10_000  # of a split; chosen: fewer are decoded in half a second
MARK_BYTES = 16
READ_BYTES = 1 << 18
MAX_FILES = 8  # of one folder
Bytes: TypeAlias = NDArray[np.uint8]


class _Header(msgspec.Struct, frozen=True):
    made_of: str  # the mark of the data and of what is made of an image
    shape: tuple[int, ...]  # [n, *input], of bytes 0..255


def kept(
    folder: Path, files: Sequence[Path], task: Task, count: int, decode: Callable[[], Pixels]
) -> Pixels:
    """Returns decoded images, [n, *input], 0..1: those that were kept, or else `decode`'s.

    Args:
        folder: of the data.
        files: that the images are in, in their order.
        task: the session's.
        count: n.
        decode: decodes all of them.
    """
    shape = (count, *task.input)
    if count < MIN_ROWS or int(np.prod(shape)) > MAX_BYTES:
        return decode()
    made_of = _mark(files, task)
    place = folder / FOLDER / f"{made_of}.bin"
    found = _read(place, _Header(made_of, shape))
    if found is not None:
        return found
    pixels = decode()
    coarse = np.rint(pixels * 255).astype(np.uint8)
    if np.array_equal(_pixels(coarse), pixels):  # to the last bit
        _write(place, _Header(made_of, shape), coarse)
    return pixels


def _pixels(coarse: Bytes, out: Pixels | None = None) -> Pixels:
    """Returns bytes as numbers 0..1, in the memory that is given, or in new one."""
    return np.divide(coarse, np.float32(255), out=out, dtype=np.float32)


def _mark(files: Sequence[Path], task: Task) -> str:
    """Returns what names the data and what is made of an image, 32 hex digits."""
    decoder = PIL.__version__  # another one may round a resized image otherwise
    mark = xxh3_128(msgspec.json.encode((decoder, task.input, task.resize, task.colour)))
    for path in files:
        mark.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                mark.update(part)
    return mark.hexdigest()


def _beginning(header: _Header) -> bytes:
    """Returns what a file with these numbers begins with."""
    told = msgspec.json.encode(header)
    return MAGIC + len(told).to_bytes(4, "little") + told


def _read(place: Path, wanted: _Header) -> Pixels | None:
    """Returns the pixels in a file of `_write`; None where it is missing or is no such file."""
    begin = _beginning(wanted)
    try:
        if place.parent.is_symlink() or place.is_symlink():
            return None
        if place.parent.stat().st_uid != os.getuid():
            return None  # who owns the folder may put there what it likes
        with regular.opened(place) as file:
            about = os.fstat(file.fileno())
            size = len(begin) + int(np.prod(wanted.shape)) + MARK_BYTES
            if about.st_uid != os.getuid() or about.st_size != size:
                return None  # somebody else's, or no such file
            if file.read(len(begin)) != begin:
                return None  # of other data, whatever its name says
            return _read_pixels(file, xxh3_128(begin), wanted.shape)
    except OSError:
        return None


def _read_pixels(file: BinaryIO, mark: xxh3_128, shape: tuple[int, ...]) -> Pixels | None:
    """Returns the pixels that come next in a file; None where the mark behind them is another.

    Args:
        file: from which as many bytes are read.
        mark: of what came before.
        shape: of the pixels.
    """
    pixels = np.empty(int(np.prod(shape)), np.float32)
    # By parts that stay in a processor's cache: to touch new memory takes longer than all else.
    room = np.empty(READ_BYTES, np.uint8)
    for at in range(0, len(pixels), READ_BYTES):
        into = pixels[at : at + READ_BYTES]
        part = room[: len(into)]
        if file.readinto(part.data) != len(part):  # type: ignore[attr-defined]  # not in BinaryIO
            return None
        mark.update(part.data)
        _pixels(part, into)
    return pixels.reshape(shape) if file.read(MARK_BYTES) == mark.digest() else None


def _write(place: Path, header: _Header, numbers: Bytes) -> None:
    """Writes the numbers, whole or not at all; where the folder does not allow it, not at all."""
    body = _beginning(header) + numbers.tobytes()
    draft: Path | None = None
    try:
        place.parent.mkdir(exist_ok=True)
        if place.parent.is_symlink():
            return
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".part", delete=False) as out:
            draft = Path(out.name)
            out.write(body)
            out.write(xxh3_128(body).digest())
        draft.replace(place)
        _forget_old(place.parent)
    except OSError:
        if draft is not None:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    """Removes all files but the newest `MAX_FILES`: of data that have changed since."""
    files = [each for each in folder.iterdir() if each.suffix in (".bin", ".part")]
    for old in sorted(files, key=lambda each: -each.stat().st_mtime)[MAX_FILES:]:
        old.unlink(missing_ok=True)
