"""Images in files, a folder for each class."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from p2pl import regular
from p2pl.data.names import entries, split_called
from p2pl.data.partition import Indices
from p2pl.data.pixels import Encoded, decode_all
from p2pl.data.source import Pixels, Source, Split, number_names
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def class_folders(folder: Path, task: Task | None) -> Source:
    """Returns the images below `folder`, which has a folder for each class.

    Args:
        folder: of class folders; or with a `train` folder and maybe a `test` folder of them.
            `Train` and `training` mean the same.
        task: the session's; None: whatever classes there are.

    Raises:
        DataError: there are no images, a folder cannot be read, or the classes are not those of
            the session.
    """
    splits = _split_folders(folder, task)
    root = splits.get("train", folder)
    names = _folders(root)
    task = task or Task(input=(1,), classes=max(2, len(names)), labels=names)
    numbers = number_names(names, task, all_there=not task.labels)
    train = _split(root, numbers, task)
    if "test" not in splits:
        return Source(train, None, names)
    like_train = msgspec.structs.replace(task, labels=task.labels or names)
    tested = number_names(_folders(splits["test"]), like_train, all_there=False)
    return Source(train, _split(splits["test"], tested, task), names)


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in entries(folder) if path.is_dir())


def _split_folders(folder: Path, task: Task | None) -> dict[str, Path]:
    """Returns the folders of the splits `train` and `test`; {} where there are only classes.

    Raises:
        DataError: two folders are the same split, or there is a split and nothing to train on.
    """
    found: dict[str, list[str]] = {}
    for name in _folders(folder):
        split = split_called(name)
        if split and not (task and name in task.labels):
            found.setdefault(split, []).append(name)
    for split, names in found.items():
        if len(names) > 1 or "train" not in found:
            raise DataError(
                wrong(
                    f"--data {folder}",
                    got=f"the folders {', '.join(names)}",
                    allowed=f"one {split} folder, and one called train",
                    hint="where that is the name of a class, name the classes in task.labels",
                )
            )
    return {split: folder / names[0] for split, names in found.items()}


def _split(root: Path, numbers: Mapping[str, int], task: Task) -> Split:
    images: list[Path] = []
    labels: list[int] = []
    for name, number in numbers.items():
        found = [path for path in entries(root / name) if path.suffix.lower() in IMAGE_SUFFIXES]
        images += found
        labels += [number] * len(found)
    if not images:
        raise DataError(
            wrong(
                f"--data {root}",
                got="no images",
                allowed=f"*.parquet, or a folder for each class, with {', '.join(IMAGE_SUFFIXES)}",
            )
        )
    return Split(
        np.array(labels, dtype=np.int64),
        lambda rows: decode_all(len(rows), _encoded([images[row] for row in rows], root), task),
    )


def loose_images(folder: Path, task: Task) -> tuple[Split, tuple[str, ...]] | None:
    """Returns the images that lie in a folder itself, without classes, and their names.

    None where there are none, or folders beside them.
    """
    inside = entries(folder)
    images = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images or any(path.is_dir() for path in inside):
        return None

    def read(rows: Indices) -> Pixels:
        return decode_all(len(rows), _encoded([images[row] for row in rows], folder), task)

    nothing = np.zeros(len(images), dtype=np.int64)
    return Split(nothing, read), tuple(path.name for path in images)


def _encoded(images: Sequence[Path], root: Path) -> list[Encoded]:
    return [Encoded(str(path.relative_to(root)), partial(regular.read, path)) for path in images]
