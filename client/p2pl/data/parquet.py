"""Tables of images and class numbers: parquet files, read in place and column by column."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pl.data.images import decode_all
from p2pl.data.partition import Indices
from p2pl.data.source import NEED_HF, Pixels, Source, Split, number_names
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task

if TYPE_CHECKING:
    import pyarrow


def parquet_folder(folder: Path, files: Sequence[Path], task: Task | None) -> Source:
    """Returns the data in the parquet files of a folder, read in place.

    Args:
        folder: that was named.
        files: all parquet files below it; `train` and `test` are told by name or folder, and files
            that bear neither name are all training data.
        task: the session's; None: whatever classes there are.

    Raises:
        DataError: a file is damaged, or which columns to read cannot be told.
    """
    train = [path for path in files if _split_of(path.relative_to(folder)) == "train"]
    test = [path for path in files if _split_of(path.relative_to(folder)) == "test"]
    if not train and not test:
        train = list(files)
    if not train:
        raise DataError(
            wrong(f"--data {folder}", got="no training split", allowed="train*.parquet")
        )
    return source_of(_read(train), _read(test) if test else None, task)


def _split_of(path: Path) -> str:
    """Returns `train` or `test` if a file's name begins with it, or its folder bears it; or ""."""
    for split in ("train", "test"):
        if path.parent.name == split or re.fullmatch(rf"{split}([-_.].*)?", path.stem):
            return split
    return ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name, read on demand, and what they mean."""

    schema: "pyarrow.Schema"
    read: Callable[[str], "pyarrow.ChunkedArray"]


def _read(files: Sequence[Path]) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as fault:
        raise DataError(f"--data: parquet needs {fault.name}: {NEED_HF}") from fault

    def read(column: str) -> "pyarrow.ChunkedArray":
        try:
            tables = [
                parquet.ParquetFile(path, memory_map=True).read([column], use_threads=False)
                for path in files
            ]
        except (OSError, pyarrow.ArrowException) as fault:
            raise DataError(f"--data {files[0].parent}: unreadable parquet: {fault}") from fault
        return pyarrow.chunked_array([c for table in tables for c in table.column(0).chunks])

    try:
        schema = parquet.read_schema(files[0])
    except (OSError, pyarrow.ArrowException) as fault:
        raise DataError(f"--data {files[0]}: unreadable parquet: {fault}") from fault
    return Table(schema, read)


def source_of(train: Table, test: Table | None, task: Task | None) -> Source:
    """Returns the data in tables that have one column of images and one of class numbers.

    Args:
        train: with at least one row.
        test: likewise; None where there is no test set.
        task: what the session says of inputs and classes; None: no session is meant.

    Raises:
        DataError: which columns these are cannot be told, or the classes are not the session's.
    """
    features = _features(train.schema)
    image = _image_column(train.schema, features)
    label, names = _label_column(train.schema, features, task)
    return Source(
        _table_split(train, image, label, names, task),
        _table_split(test, image, label, names, task) if test else None,
        names,
    )


def _features(schema: "pyarrow.Schema") -> Mapping[str, Any]:
    """Returns the types that the `datasets` library noted beside the columns; {} if it did not."""
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(noted).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(schema: "pyarrow.Schema", features: Mapping[str, Any]) -> str:
    columns = [name for name, kind in features.items() if _kind(kind) == "Image"]
    if not columns:
        import pyarrow

        columns = [
            field.name
            for field in schema
            if pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        ]
    if len(columns) != 1:
        raise DataError(
            wrong(
                "columns of the data",
                got=f"{len(columns)} columns of images among {', '.join(schema.names)}",
                allowed="exactly one",
            )
        )
    return columns[0]


def _label_column(
    schema: "pyarrow.Schema", features: Mapping[str, Any], task: Task | None
) -> tuple[str, tuple[str, ...]]:
    """Returns the column of class numbers and the names of the classes, () where it has none."""
    import pyarrow

    named = {n: tuple(k["names"]) for n, k in features.items() if _kind(k) == "ClassLabel"}
    fitting = [
        column for column, names in named.items() if task is None or len(names) == task.classes
    ]
    if len(fitting) == 1:
        return fitting[0], named[fitting[0]]
    if named:
        raise DataError(
            wrong(
                "classes of the data",
                got="; ".join(f"{column}: {len(names)}" for column, names in named.items()),
                allowed=f"one column with {task.classes}, the session's task.classes"
                if task
                else "one column",
            )
        )
    whole = [field.name for field in schema if pyarrow.types.is_integer(field.type)]
    if len(whole) != 1:
        raise DataError(
            wrong(
                "columns of the data",
                got=f"{len(whole)} columns of whole numbers among {', '.join(schema.names)}",
                allowed="exactly one, the class number",
            )
        )
    return whole[0], ()


def _kind(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _table_split(
    table: Table, image: str, label: str, names: tuple[str, ...], task: Task | None
) -> Split:
    labels = table.read(label).to_numpy().astype(np.int64)
    if task and names and task.labels and names != task.labels:
        numbers = number_names(names, task, all_there=True)
        labels = np.array([numbers[name] for name in names])[labels]

    def read(rows: Indices) -> Pixels:
        column = table.read(image)
        return decode_all(len(rows), (column[int(row)]["bytes"].as_py() for row in rows))

    return Split(labels, read)
