"""Images in files, a folder for each class, and how an encoded image becomes numbers."""

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from p2pl.data.source import NEED_HF, Pixels, Source, Split, number_names
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MAX_IMAGE_PIXELS = 1 << 26  # chosen: 8192 x 8192; more is no training image but a bomb


def class_folders(folder: Path, task: Task | None) -> Source:
    """Returns the images below `folder`, which has a folder for each class.

    Args:
        folder: of class folders, or with `train` and maybe `test` of them.
        task: the session's; None: whatever classes there are.

    Raises:
        DataError: there are no images, or their classes are not those of the session.
    """
    train, test = folder / "train", folder / "test"
    root = train if train.is_dir() else folder
    names = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    task = task or Task(input=(1,), classes=max(2, len(names)), labels=names)
    numbers = number_names(names, task, all_there=not task.labels)
    return Source(
        _split(root, numbers),
        _split(test, numbers) if root == train and test.is_dir() else None,
        names,
    )


def _split(root: Path, numbers: Mapping[str, int]) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    for name, number in numbers.items():
        found = sorted(p for p in (root / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [number] * len(found)
    if not files:
        raise DataError(
            wrong(
                f"--data {root}",
                got="no images",
                allowed=f"*.parquet, or a folder for each class, with {', '.join(IMAGE_SUFFIXES)}",
            )
        )
    return Split(
        np.array(labels, dtype=np.int64),
        lambda rows: decode_all(len(rows), (files[row].read_bytes() for row in rows)),
    )


def decode_all(count: int, encoded: Iterable[bytes | None]) -> Pixels:
    """Returns `count` images as [count, channels, height, width], 0..1.

    Args:
        count: how many there are.
        encoded: PNG, JPEG, BMP or WebP, one image each.

    Raises:
        DataError: one cannot be decoded, is not 8-bit grey or RGB, or is of another shape than the
            first.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as fault:
        raise DataError(f"--data: images need {fault.name}: {NEED_HF}") from fault
    pixels = np.empty((0,), dtype=np.uint8)
    for index, raw in enumerate(encoded):
        try:
            image = Image.open(io.BytesIO(raw or b""), formats=("PNG", "JPEG", "BMP", "WEBP"))
            shape = _shape(image.mode, image.size)
            if not index:
                pixels = np.empty((count, *shape), dtype=np.uint8)
            if shape != pixels.shape[1:]:
                raise DataError(
                    wrong(
                        "images of the data",
                        got=f"{pixels.shape[1:]} and {shape} as (height, width[, 3])",
                        allowed="one shape for all",
                    )
                )
            pixels[index] = np.frombuffer(image.tobytes(), np.uint8).reshape(shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
            raise DataError(f"--data: image {index} of the split is unreadable: {fault}") from fault
    pixels = pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
    scaled = np.ascontiguousarray(pixels, dtype=np.float32)
    scaled /= 255
    return scaled


def _shape(mode: str, size: tuple[int, int]) -> tuple[int, ...]:
    if mode not in ("L", "RGB") or math.prod(size) > MAX_IMAGE_PIXELS:
        raise DataError(
            wrong(
                "image of the data",
                got=f"mode {mode}, {size[0]}x{size[1]}",
                allowed=f"8-bit grey (L) or RGB, at most {MAX_IMAGE_PIXELS} pixels",
                hint="convert it first; nothing is recoloured in silence",
            )
        )
    width, height = size
    return (height, width) if mode == "L" else (height, width, 3)
