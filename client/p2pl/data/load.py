"""The data of one peer: `digits`, a folder, or a dataset of the Hugging Face Hub, as tensors.

A split is its labels and a way to read some of its rows, so that only the rows of the peer's shard
are ever decoded: six peers on one small machine load at the same time. Each kind of data is a
module: `digits`, `images`, `parquet`, `hub`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from p2pl.data import partition
from p2pl.data.digits import digits
from p2pl.data.examples import Examples
from p2pl.data.hub import hub_dataset
from p2pl.data.images import class_folders
from p2pl.data.parquet import parquet_folder
from p2pl.data.partition import Indices
from p2pl.data.source import Source, Split
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task
from p2pl.seeds import seeded

HUB_ID = r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?"


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


def load(ref: str, task: Task, *, data_dir: Path | None = None, shard: Shard | None = None) -> Data:
    """Returns the data that `ref` names, checked against the session's task.

    Args:
        ref: `digits`, a dataset id on the Hugging Face hub, or a folder of parquet or images.
        task: the session's.
        data_dir: where a dataset id is looked for first, as the folder `data_dir/ref`.
        shard: the peer's part of the training split; None: all of it.

    Raises:
        DataError: it cannot be had, or is not of the session's shape and classes.
        InputError: the shard's partition is none.
    """
    source = _open(ref, task, data_dir)
    _check_labels(source, task)
    rows = _rows(source.train.labels, shard)
    train = _examples(source.train, rows, task)
    test = None
    if source.test is not None:
        test = _examples(source.test, np.arange(len(source.test.labels)), task)
    return Data(train, test, task.labels or source.names)


def load_labels(ref: str, *, data_dir: Path | None = None) -> tuple[Indices, tuple[str, ...]]:
    """Returns the class of every training example, [N], and the names of the classes.

    Args:
        ref: as for `load`; no session is needed, for no image is decoded.
        data_dir: as for `load`.

    Raises:
        DataError: they cannot be had, or which column holds them cannot be told.
    """
    source = _open(ref, None, data_dir)
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


def _rows(labels: Indices, shard: Shard | None) -> Indices:
    if shard is None:
        return np.arange(len(labels))
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
                hint="convert the images first; nothing is resized or recoloured in silence",
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
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= task.classes:
            raise DataError(
                wrong(
                    f"labels of the {name} split",
                    got=f"{low}..{high}",
                    allowed=f"0..{task.classes - 1}, the session's task.classes",
                )
            )


def _open(ref: str, task: Task | None, data_dir: Path | None) -> Source:
    """Returns the data that `ref` names; without a task, whatever its classes are."""
    if ref == "digits":
        return digits()
    for folder in (data_dir and data_dir / ref, Path(ref).expanduser()):
        if ref and folder and folder.is_dir():
            files = sorted(folder.rglob("*.parquet"))
            return parquet_folder(folder, files, task) if files else class_folders(folder, task)
    if not re.fullmatch(HUB_ID, ref):
        raise DataError(
            wrong(
                "--data",
                got=ref,
                allowed="digits, an existing folder, or a Hugging Face dataset id",
            )
        )
    return hub_dataset(ref, task, data_dir)
