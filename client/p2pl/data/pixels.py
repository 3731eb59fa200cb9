"""How an encoded image becomes numbers.

What changes no colour and no size is done unasked: an image is turned as its EXIF note says, a
palette is looked up, transparency is dropped where nothing is transparent, and 16 bits are read as
16 bits. Anything else is done only where the session says so: `task.resize`, `task.colour`.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from p2pl.data.source import Pixels
from p2pl.errors import DataError, wrong
from p2pl.extras import install
from p2pl.protocol.session import Task

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MAX_IMAGE_PIXELS = 1 << 26  # chosen: 8192 x 8192; more is no training image but a bomb
MAX_TOLD = 8  # images that a message names for one fault; chosen: three lines of them
PAPER = 255  # what shows through where `task.colour` has transparency removed: white; chosen
# What Pillow's readers raise on damaged files.
_DAMAGE = (
    ValueError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)
_GREATEST = {"L": 255, "RGB": 255, "F": 1}  # number in an image of each mode that is read


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image, not read yet."""

    name: str  # for messages: its file, or its table and row
    read: Callable[[], bytes | None]  # returns a file of one of `FORMATS`


def decode_all(count: int, images: Iterable[Encoded], task: Task) -> Pixels:
    """Returns `count` images as the session wants them, [count, *input], 0..1.

    Args:
        count: how many there are.
        images: that many.
        task: the session's: its shape, and what may be done to an image to get there.

    Raises:
        DataError: some cannot be used; it names them, and says how many more there are.
    """
    pixels = np.empty((count, *task.input), dtype=np.float32)
    faults: dict[str, list[str]] = {}  # the names of the images, by what is wrong with them
    for index, encoded in enumerate(images):
        try:
            pixels[index] = _decode(encoded, task)
        except DataError as fault:
            faults.setdefault(str(fault), []).append(encoded.name)
    if faults:
        raise DataError(_told(faults, count))
    return pixels


def _told(faults: Mapping[str, list[str]], count: int) -> str:
    """Returns one message about all images that cannot be used."""
    parts = []
    for reason, names in faults.items():
        more = f" and {len(names) - MAX_TOLD} more" if len(names) > MAX_TOLD else ""
        parts.append(f"{', '.join(names[:MAX_TOLD])}{more}: {reason}")
    bad = sum(map(len, faults.values()))
    return f"--data: {bad} of {count} images cannot be used: {'; '.join(parts)}"


def _decode(encoded: Encoded, task: Task) -> Pixels:
    """Returns one image, of the session's shape, 0..1.

    Raises:
        DataError: that takes what the session does not allow, or the file is unreadable.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as fault:
        raise DataError(f"unreadable without {fault.name}: {install('hf')}") from fault
    try:
        opened: Image.Image = Image.open(io.BytesIO(encoded.read() or b""), formats=FORMATS)
        _check_size(opened)
        image = _plain(ImageOps.exif_transpose(opened), task)
    except UnidentifiedImageError as fault:
        raise DataError(f"unreadable: not of {', '.join(FORMATS)}") from fault
    except OSError as fault:
        raise DataError(f"unreadable: {fault.strerror or fault}") from fault
    except (*_DAMAGE, Image.DecompressionBombError) as fault:
        raise DataError(f"unreadable: {fault}") from fault
    return _shaped(_resized(image, task), task)


def _check_size(image: "Image") -> None:
    if math.prod(image.size) > MAX_IMAGE_PIXELS:
        allowed = f"at most {MAX_IMAGE_PIXELS} pixels"
        raise DataError(wrong("size", got=f"{image.size[0]}x{image.size[1]}", allowed=allowed))


def _plain(image: "Image", task: Task) -> "Image":
    """Returns an image as L, RGB or F, where nothing is lost or the session allows it."""
    is_palette, grey = image.mode == "P", task.input[0] == 1
    if image.mode.startswith("I;16"):
        return _deep(image)
    if image.mode == "1":
        image = image.convert("L")
    if image.has_transparency_data:
        image = _opaque(image, task)
    elif is_palette:
        image = image.convert("RGB")
    if is_palette and grey and _is_grey(image):
        return image.convert("L")
    if task.colour == "convert":
        return image.convert("L" if grey else "RGB")
    if image.mode not in _GREATEST:
        raise DataError(
            wrong(
                "mode",
                got=image.mode,
                allowed="grey or RGB",
                hint='convert it first, or agree on task.colour = "convert"',
            )
        )
    return image


def _opaque(image: "Image", task: Task) -> "Image":
    """Returns an image without its transparency, which is none or may be removed."""
    from PIL import Image

    mixed = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    least, _ = mixed.getchannel("A").getextrema()
    if least == 255:
        return mixed.convert(mixed.mode[:-1])
    if task.colour != "convert":
        raise DataError(
            wrong(
                "mode",
                got=f"{image.mode}, partly transparent",
                allowed="opaque images",
                hint='convert it first, or agree on task.colour = "convert": white shows through',
            )
        )
    paper = Image.new("RGBA", mixed.size, (PAPER,) * 4)
    return Image.alpha_composite(paper, mixed.convert("RGBA")).convert("RGB")


def _deep(image: "Image") -> "Image":
    """Returns a grey image of 16 bits as numbers in 0..1."""
    from PIL import Image

    return Image.fromarray(np.asarray(image).astype(np.float32) / 65_535)


def _is_grey(image: "Image") -> bool:
    colours = np.asarray(image)
    return bool((colours == colours[:, :, :1]).all())


def _resized(image: "Image", task: Task) -> "Image":
    """Returns an image of the session's size where the session says how it comes to it."""
    from PIL import Image, ImageOps

    if task.resize == "none":
        return image
    _, height, width = task.input  # the session has seen to it that they are three
    size = (width, height)
    way = Image.Resampling.BILINEAR  # over all that a new pixel covers, so nothing is skipped
    if task.resize == "stretch":
        return image.resize(size, way)
    if task.resize == "crop":
        return ImageOps.fit(image, size, way)
    return ImageOps.pad(image, size, way)  # black around it


def _shaped(image: "Image", task: Task) -> Pixels:
    """Returns the numbers of an image, [*input], 0..1."""
    numbers = np.asarray(image, dtype=np.float32)
    numbers = numbers.transpose(2, 0, 1) if numbers.ndim == 3 else numbers[None]
    if len(numbers) == 1 and task.colour == "convert":
        numbers = numbers.repeat(task.input[0], axis=0)
    if numbers.shape != task.input:
        raise DataError(
            wrong(
                "shape",
                got=numbers.shape,
                allowed=f"{task.input}, the session's task.input",
                hint="convert the images first, or agree on task.resize or task.colour; nothing "
                "is resized or recoloured in silence",
            )
        )
    return numbers / np.float32(_GREATEST[image.mode])
