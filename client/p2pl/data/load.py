"""The data of one peer: `digits`, a folder, or a dataset of the Hugging Face Hub, as tensors.

A split is its labels and a way to read some of its rows, so that only the rows of the peer's shard
are ever decoded: six peers on one small machine load at the same time. Each kind of data is a
module: `digits`, `images`, `parquet`, `hub`.
"""

import contextlib
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from p2pl.data import partition
from p2pl.data.digits import digits
from p2pl.data.examples import Examples
from p2pl.data.hub import hub_dataset
from p2pl.data.images import class_folders, loose_images
from p2pl.data.names import files_below
from p2pl.data.parquet import parquet_folder, read_table, source_of
from p2pl.data.partition import Indices
from p2pl.data.source import Source, Split, Targets
from p2pl.data.tabular import read_inputs, table_source
from p2pl.data.texts import Texts, text_source, texts_of
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Session, Table, Task
from p2pl.seeds import seeded

log = logging.getLogger(__name__)

FILE_SUFFIXES = (
    ".parquet",
    ".csv",
)  # of files that can be named; no dataset of the hub is called so
TEST_SEED = 0  # fixed for ever: a run that goes on must not train on what it is scored on
HUB_ID = r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?"


Form: TypeAlias = Table | Texts


def form_of(session: Session, tokenizer: Path | None = None) -> Form | None:
    """Returns what a session says of tables or texts, for `load`; None: the data are neither.

    Args:
        session: what all peers agreed on.
        tokenizer: the file that it names by its hash; None: it names none.

    Raises:
        DataError: the tokenizer is missing, or another one.
    """
    if session.text is not None:
        return texts_of(session.text, tokenizer)
    if tokenizer is not None:
        raise DataError("--tokenizer: not allowed with this session, which is not for text")
    return session.table


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a shared dataset a peer holds."""

    index: int  # 0..count-1
    count: int
    partition: str  # as on the command line: iid, unbalanced, dirichlet:A, classes:K
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Data:
    """What a peer learns from, and what its model is measured on."""

    train: Examples  # scaled and normalised
    test: Examples | None  # the whole test split, whatever the shard; None: there is none
    labels: tuple[str, ...]  # class names; () where nobody gave any
    test_share: float | None = None  # of the examples, drawn for `test`; None: it was given, if any


def load(
    ref: str,
    task: Task,
    *,
    form: Form | None = None,
    data_dir: Path | None = None,
    shard: Shard | None = None,
    test_share: float | None = None,
) -> Data:
    """Returns the data that `ref` names, checked against the session's task.

    Args:
        ref: `digits`, a dataset id on the Hugging Face hub, a folder of parquet or images, or one
            parquet file, which is all to train on; where the session has a table or a text, a file
            or a folder of such.
        task: the session's.
        form: what the session says of tables or texts, from `form_of`; None: they are neither.
        data_dir: where a dataset id is looked for before the hub is asked, as `data_dir/ref`. What
            is at `ref` itself comes first; where both are there, it is said which one is taken.
        shard: the peer's part of the training split; None: all of it.
        test_share: of the training examples that become the test set, where the data have none;
            drawn once for all, before they are divided into shards. None: there is none then.

    Raises:
        DataError: it cannot be had, or is not of the session's shape and classes.
        InputError: the shard's partition is none.
    """
    source = _open(ref, task, form, data_dir)
    _check_labels(source, task)
    train, test = source.train, source.test
    rows = np.arange(len(train.labels))
    if test_share is not None:
        if test is not None:
            raise DataError("--test-share: the data have a test split of their own; leave it out")
        rows, held = _test_rows(len(rows), test_share)
        test = Split(train.labels[held], lambda some: train.read(held[some]))
    if shard is not None:
        rows = rows[_rows(train.labels[rows], shard)]
    mine = _examples(train, rows, task)
    scored = None if test is None else _examples(test, np.arange(len(test.labels)), task)
    return Data(mine, scored, task.labels or source.names, test_share)


def _test_rows(count: int, share: float) -> tuple[Indices, Indices]:
    """Returns the rows that stay, and those that become the test set: the same ones every time."""
    held = round(share * count) if math.isfinite(share) else 0
    if not 0 < held < count:
        allowed = f"above 0 and below 1, so that of {count} examples some are on either side"
        raise DataError(wrong("--test-share", got=share, allowed=allowed))
    order = np.random.RandomState(TEST_SEED).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def with_test_share(data: Data, share: float) -> Data:
    """Returns the data with a share of their training examples as their test set.

    Args:
        data: without a test set.
        share: above 0 and below 1; which examples these are depends on how many there are alone.

    Raises:
        DataError: there is a test set, or no example would be left on one side.
    """
    if data.test is not None:
        raise DataError("test_share: the data have a test set of their own; leave it out")
    rows, held = map(torch.from_numpy, _test_rows(len(data.train), share))
    return Data(data.train.take(rows), data.train.take(held), data.labels, share)


def load_inputs(ref: str, task: Task, form: Form | None) -> tuple[Examples, tuple[str, ...]] | None:
    """Returns inputs that nobody has told the targets of, and the names of those that have some.

    None where the data have targets, or are of no such kind.

    Args:
        ref: a folder of images without classes; where the session has a table, a file of it
            without its target columns.
        task: the session's.
        form: as for `load`.

    Raises:
        DataError: they are not of the session's shape.
    """
    place = Path(ref).expanduser()
    if isinstance(form, Table) and place.is_file():
        rows = read_inputs(place, form)
        if rows is None:
            return None
        return Examples(torch.from_numpy(rows), torch.zeros(len(rows), dtype=torch.int64)), ()
    found = loose_images(place, task) if form is None and place.is_dir() else None
    if found is None:
        return None
    split, names = found
    return _examples(split, np.arange(len(names)), task), names


def load_labels(ref: str, *, data_dir: Path | None = None) -> tuple[Indices, tuple[str, ...]]:
    """Returns the class of every training example, [N], and the names of the classes.

    Args:
        ref: as for `load`; no session is needed, for no image is decoded.
        data_dir: as for `load`.

    Raises:
        DataError: they cannot be had, or which column holds them cannot be told.
    """
    source = _open(ref, None, None, data_dir)
    labels = source.train.labels
    if not len(labels) or labels.min() < 0:
        got = f"{len(labels)} labels, the least {labels.min(initial=0)}"
        raise DataError(wrong("labels of the data", got=got, allowed="at least one, from 0 on"))
    return labels, source.names or tuple(map(str, range(int(labels.max()) + 1)))


def hold_out(data: Data, count: int) -> Data:
    """Returns the data with `count` of its training examples as its test set, drawn once for all.

    To choose settings by: the test set proper is left unread, for the figures to be reported.

    Args:
        data: all of it, with or without a test set.
        count: of the examples to take out, at least 1.

    Raises:
        DataError: fewer than 2 examples would be left to train on.
    """
    if not 0 < count <= len(data.train) - 2:
        raise DataError(wrong("held-out examples", got=count, allowed=f"1..{len(data.train) - 2}"))
    order = torch.randperm(len(data.train), generator=seeded("", "", 0, "held out"))
    return Data(data.train.take(order[count:]), data.train.take(order[:count]), data.labels)


def split_validation(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the rows to train on and the rows to validate on: random, disjoint, all of them.

    Args:
        count: rows in all, at least 2.
        share: of the rows that go to validation; at least one row stays on each side.
        generator: on the CPU.

    Raises:
        DataError: there are too few rows to split.
    """
    if count < 2:
        raise DataError(wrong("training data", got=f"{count} rows", allowed="at least 2"))
    held_out = min(max(1, round(share * count)), count - 1)
    order = torch.randperm(count, generator=generator)
    return order[held_out:], order[:held_out]


def _rows(labels: Targets, shard: Shard) -> Indices:
    if not 0 <= shard.index < shard.count:
        raise DataError(
            wrong("--shard", got=f"{shard.index}/{shard.count}", allowed=f"0..{shard.count - 1}")
        )
    return partition.parse(shard.partition)(labels, shard.count, shard.seed)[shard.index]


def _examples(split: Split, rows: Indices, task: Task) -> Examples:
    pixels = split.read(rows)
    if pixels.shape[1:] != task.input:
        raise DataError(
            wrong(
                "shape of the data",
                got=tuple(pixels.shape[1:]),
                allowed=f"{task.input}, the session's task.input",
            )
        )
    x = torch.from_numpy(pixels)
    if task.mean:
        by_channel = (-1, *[1] * (len(task.input) - 1))
        x.sub_(torch.tensor(task.mean).view(by_channel))
        x.div_(torch.tensor(task.std).view(by_channel))
    return Examples(x, torch.from_numpy(split.labels[rows]))


def _check_labels(source: Source, task: Task) -> None:
    for name, split in (("train", source.train), ("test", source.test)):
        if split is None:
            continue
        if not len(split.labels):
            raise DataError(wrong(f"{name} split", got="0 rows", allowed="at least 1"))
        if split.labels.ndim > 1 or split.labels.dtype.kind == "f":  # the task itself checks them
            continue
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or (task.classes and high >= task.classes):
            allowed = f"0..{task.classes - 1}, the session's task.classes"
            if not task.classes:
                allowed = "no number below 0"
            raise DataError(
                wrong(f"labels of the {name} split", got=f"{low}..{high}", allowed=allowed)
            )


def _open(ref: str, task: Task | None, form: Form | None, data_dir: Path | None) -> Source:
    """Returns the data that `ref` names; without a task, whatever its classes are."""
    found = _places(ref, data_dir)
    if ref == "digits" and form is None:
        if found:
            _tell(
                ref, "what comes with scikit-learn", f"{found[0]}; write ./digits for what is here"
            )
        return digits()
    if len(found) > 1 and not found[0].samefile(found[1]):
        _tell(ref, "what is here", str(found[1]))
    if found:
        return _found(found[0], task, form)
    if form is not None:
        allowed = "an existing file or folder: the session is for a table or for text"
        raise DataError(wrong("--data", got=ref, allowed=allowed))
    if not re.fullmatch(HUB_ID, ref) or Path(ref).suffix.lower() in FILE_SUFFIXES:
        raise DataError(
            wrong(
                "--data",
                got=ref,
                allowed="digits, an existing folder or parquet file, or a Hugging Face dataset id",
            )
        )
    return hub_dataset(ref, task, data_dir)


def _places(ref: str, data_dir: Path | None) -> list[Path]:
    """Returns where the data are on this machine: as a path from here, and in the data folder."""
    if not ref:
        return []
    places = [Path(ref)] if data_dir is None else [Path(ref), data_dir / ref]
    found = []
    for place in places:
        # No such home, no name of a file, or not allowed to look: the next place may have it.
        with contextlib.suppress(OSError, RuntimeError):
            if (whole := place.expanduser()).exists():
                found.append(whole)
    return found


def _tell(ref: str, taken: str, other: str) -> None:
    """Says which of two that have the same name is taken."""
    log.error("--data %s: %s is taken, and not %s", ref, taken, other)


def _found(place: Path, task: Task | None, form: Form | None) -> Source:
    """Returns the data in a file or a folder."""
    if isinstance(form, Table) and task is not None:
        return table_source(place, task, form)
    if isinstance(form, Texts) and task is not None:
        return text_source(place, task, form)
    if place.is_dir():
        files = files_below(place, ".parquet")
        return parquet_folder(place, files, task) if files else class_folders(place, task)
    if place.suffix.lower() == ".parquet":
        return source_of([read_table(place, place.name)], (), task)
    raise DataError(
        wrong(
            "--data",
            got=str(place),
            allowed="a folder or a parquet file; a CSV file or a text with sessions for such",
            hint="whoever makes the session: p2pl create --schema-from FILE --target NAME",
        )
    )
