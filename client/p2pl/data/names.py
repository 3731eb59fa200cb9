"""Which split a file or folder is of, told by its name; and all files below a folder."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2pl.errors import DataError, wrong

# What people call the parts of a data set. `validation` is told apart so that it is not taken for
# something to train on; p2pl holds back its own part of the training split.
SPLITS = {
    "train": ("train", "training", "trainset", "traindata"),
    "test": ("test", "testing", "testset", "testdata", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
_OF_WORD = {word: split for split, words in SPLITS.items() for word in words}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # mnist_train, mnistTrain, TRAIN-0


def split_words(name: str) -> tuple[str, ...]:
    """Returns the splits whose words are in a name, each once, e.g. of `mnist_train-0` `train`."""
    words = (found.group().lower() for found in _WORD.finditer(name))
    return tuple(dict.fromkeys(_OF_WORD[word] for word in words if word in _OF_WORD))


def split_called(name: str) -> str:
    """Returns the split that is called so, in capitals or not; "" where none is."""
    return _OF_WORD.get(name.lower(), "")


def split_of_file(path: Path) -> str:
    """Returns the split of a file, by its name or its nearest folder that says one; "" if none.

    Args:
        path: below the folder of the data.

    Raises:
        DataError: a name says two splits.
    """
    for name in (path.stem, *(folder.name for folder in path.parents)):
        splits = split_words(name)
        if len(splits) > 1:
            raise DataError(
                wrong(
                    f"--data {path}",
                    got=f"{' and '.join(splits)} in one name",
                    allowed="the name of one split",
                    hint="rename it",
                )
            )
        if splits:
            return splits[0]
    return ""


def train_and_test(
    folder: Path, suffixes: Iterable[str], what: str
) -> tuple[list[Path], list[Path]]:
    """Returns the files below a folder to train on, and those of the test split, which may be none.

    Files that bear the name of no split are to train on, where none bears one.

    Args:
        folder: that exists.
        suffixes: of the files, with their dots, in small letters.
        what: they hold, for the message.

    Raises:
        DataError: there is nothing to train on.
    """
    kinds = tuple(suffixes)
    files = sorted(file for suffix in kinds for file in files_below(folder, suffix))
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(split_of_file(file.relative_to(folder)), []).append(file)
    train = files if set(named) == {""} else named.get("train", [])
    if not train:
        got = ", ".join(one.name for one in files) or f"no {what}"
        allowed = f"files {', '.join(kinds)}; train and test are told apart by their names"
        raise DataError(wrong(f"--data {folder}", got=got, allowed=allowed))
    return train, named.get("test", [])


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Returns all files below a folder that end so, by name; links to folders are followed.

    What begins with a dot is not looked at: systems and editors leave such files and folders.

    Args:
        folder: that exists.
        suffix: with its dot, in small letters.

    Raises:
        DataError: a folder cannot be read.
    """
    return sorted(path for path in _walk(folder, frozenset()) if path.suffix.lower() == suffix)


def _walk(folder: Path, within: frozenset[str]) -> Iterator[Path]:
    """Yields the files below `folder`; `within` are the real folders that it is in."""
    here = os.path.realpath(folder)
    if here in within:  # a link to a folder that it is in
        return
    for path in entries(folder):
        if path.is_dir():
            yield from _walk(path, within | {here})
        else:
            yield path


def entries(folder: Path) -> list[Path]:
    """Returns what is in a folder, by name, but for what begins with a dot.

    Raises:
        DataError: the folder cannot be read, or holds a link to nothing.
    """
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        dead = [path for path in found if path.is_symlink() and not path.exists()]
    except OSError as fault:
        raise DataError(f"--data {folder}: cannot be read: {fault.strerror}") from fault
    if dead:
        raise DataError(
            wrong(
                f"--data {dead[0]}",
                got="a link to nothing",
                allowed="links to files and folders that are there",
                hint="mend or remove it",
            )
        )
    return found
