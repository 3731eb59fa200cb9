"""Decoded images, kept beside the data: a simulation that begins again need not decode them again.

The file lies in the folder of the data, under a name made from what the data files hold and from
what the session makes of an image; so it is never taken for other data. It is numbers behind a
header that is read as a plain record, and a mark over both: one that is not as it was written is
not used, and written anew. Where the folder cannot be written to, nothing is kept.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

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
MAX_HEADER_BYTES = 1 << 10
MARK_BYTES = 16
READ_BYTES = 1 << 20
MAX_FILES = 8  # of one folder
Bytes: TypeAlias = NDArray[np.uint8]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
        return found.astype(np.float32) / np.float32(255)
    pixels = decode()
    coarse = np.rint(pixels * 255).astype(np.uint8)
    if np.array_equal(coarse.astype(np.float32) / np.float32(255), pixels):  # to the last bit
        _write(place, made_of, coarse)
    return pixels


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


def _read(place: Path, wanted: _Header) -> Bytes | None:
    """Returns the numbers in a file of `_write`; None where it is missing or is no such file."""
    count = int(np.prod(wanted.shape))
    size = len(MAGIC) + 4 + MAX_HEADER_BYTES + count + MARK_BYTES
    try:
        if place.parent.is_symlink() or place.is_symlink():
            return None
        if place.parent.stat().st_uid != os.getuid():
            return None  # who owns the folder may put there what it likes
        with regular.opened(place) as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.getuid() or about.st_size > size:
                return None  # somebody else's, or no such file
            held = file.read(size)
    except OSError:
        return None
    body, mark = held[:-MARK_BYTES], held[-MARK_BYTES:]
    if not body.startswith(MAGIC) or xxh3_128(body).digest() != mark:
        return None
    begin = len(MAGIC) + 4
    length = int.from_bytes(body[len(MAGIC) : begin], "little")
    try:
        header = msgspec.json.decode(body[begin : begin + length], type=_Header)
    except msgspec.DecodeError:
        return None
    numbers = np.frombuffer(body, np.uint8, offset=min(begin + length, len(body)))
    if header != wanted or len(numbers) != count:
        return None  # of other data, whatever its name says
    return numbers.reshape(wanted.shape)


def _write(place: Path, made_of: str, numbers: Bytes) -> None:
    """Writes the numbers, whole or not at all; where the folder does not allow it, not at all."""
    header = msgspec.json.encode(_Header(made_of, numbers.shape))
    body = MAGIC + len(header).to_bytes(4, "little") + header + numbers.tobytes()
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
