"""Tables of images and class numbers: parquet files, read in place and column by column."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from p2pl import regular
from p2pl.data import decoded
from p2pl.data.names import split_of_file, split_words
from p2pl.data.partition import Indices
from p2pl.data.pixels import Encoded, decode_all
from p2pl.data.source import Pixels, Source, Split, check_each_once, number_names
from p2pl.errors import DataError, wrong
from p2pl.extras import install
from p2pl.protocol.session import Task

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name, read on demand, and what they mean."""

    name: str  # for messages
    schema: "pyarrow.Schema"
    read: Callable[[str], "pyarrow.ChunkedArray"]


def parquet_folder(folder: Path, files: Sequence[Path], task: Task | None) -> Source:
    """Returns the data in the parquet files of a folder, read in place.

    Args:
        folder: that was named.
        files: all parquet files below it; `train` and `test` are told by the words in a file's name
            or a folder's, and files that bear no such word are all training data.
        task: the session's; None: whatever classes there are.

    Raises:
        DataError: a file is damaged, or which files or columns to read cannot be told.
    """
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_of_file(path.relative_to(folder)), []).append(path)
    if set(by_split) == {""}:
        by_split = {"train": list(files)}
    else:
        for split, paths in by_split.items():
            if split in ("train", "test"):
                _check_one_configuration(folder, split, paths)
    if "train" not in by_split:
        raise DataError(
            wrong(f"--data {folder}", got="no training split", allowed="train*.parquet")
        )
    tables = {
        split: [read_table(path, str(path.relative_to(folder))) for path in by_split.get(split, ())]
        for split in ("train", "test")
    }
    found = source_of(tables["train"], tables["test"], task)
    if task is None:
        return found
    train = _kept(folder, by_split["train"], found.train, task)
    test = _kept(folder, by_split["test"], found.test, task) if found.test else None
    return Source(train, test, found.names)


def _kept(folder: Path, files: Sequence[Path], split: Split, task: Task) -> Split:
    """Returns the split; where all its rows are asked for, they may be kept from another time."""

    def read(rows: Indices) -> Pixels:
        count = len(split.labels)
        if not np.array_equal(rows, np.arange(count)):
            return split.read(rows)
        return decoded.kept(folder, files, task, count, lambda: split.read(rows))

    return Split(split.labels, read)


def _check_one_configuration(folder: Path, split: str, paths: Sequence[Path]) -> None:
    """Raises DataError where a split lies in several folders, as several data sets would.

    Below the folder that is named after the split, it may.
    """
    homes = sorted({_home(path.relative_to(folder)) for path in paths})
    if len(homes) > 1:
        raise DataError(
            wrong(
                f"--data {folder}",
                got=f"a {split} split in each of {', '.join(homes)}",
                allowed="one",
                hint=f"they may be several data sets: name one, e.g. {folder / homes[-1]}",
            )
        )


def _home(path: Path) -> str:
    """Returns the folder that a file's split is in."""
    if split_words(path.stem):
        return str(path.parent)
    named = [parent for parent in path.parents if split_words(parent.name)]
    return str(named[0].parent)


def read_table(path: Path, name: str) -> Table:
    """Returns the table in a parquet file; its columns are read when somebody asks for them.

    Args:
        path: of the file.
        name: for messages.

    Raises:
        DataError: it is damaged, or cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as fault:
        raise DataError(f"--data: parquet needs {fault.name}: {install('hf')}") from fault

    def read(column: str) -> "pyarrow.ChunkedArray":
        try:
            opened = parquet.ParquetFile(path, memory_map=True)
            return opened.read([column], use_threads=False).column(0)
        except (OSError, ValueError, LookupError, pyarrow.ArrowException) as fault:
            raise DataError(f"--data {path}: unreadable parquet: {fault}") from fault

    try:
        regular.check(path)
        schema = parquet.read_schema(path)
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as fault:
        raise DataError(f"--data {path}: unreadable parquet: {fault}") from fault
    return Table(name, schema, read)


def source_of(train: Sequence[Table], test: Sequence[Table], task: Task | None) -> Source:
    """Returns the data in tables that have a column of images and one of class numbers each.

    Every table says itself which number is which class; what counts is the name.

    Args:
        train: at least one.
        test: those of the test split; none where there is none.
        task: the session's; None: whatever classes there are.

    Args:
        train: with at least one row.
        test: likewise; None where there is no test set.
        task: what the session says of inputs and classes; None: no session is meant.

    Raises:
        DataError: which columns these are cannot be told, or the classes are not the session's.
    """
    parts = [_part(table, task) for table in (*train, *test)]
    first = parts[0]
    for part in parts[1:]:
        _check_like(part, first, task)
    names = (task.labels if task else ()) or first.names
    numbered = [(part, _labels(part, names, task)) for part in parts]
    return Source(
        _split(numbered[: len(train)], task),
        _split(numbered[len(train) :], task) if test else None,
        first.names,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A table, and which of its columns are read."""

    table: Table
    image: str
    label: str
    names: tuple[str, ...]  # of the classes, in the order of the table's numbers; () if it has none
    classes: int | None  # how many the table says that there are


def _part(table: Table, task: Task | None) -> _Part:
    noted = _features(table.schema)
    features = {name: kind for name, kind in noted.items() if name in table.schema.names}
    image = _image_column(table, features)
    label = _label_column(table, features, task)
    names = _names(features.get(label))
    if task and task.labels:
        check_each_once(names)
    names = names if len(set(names)) == len(names) else ()  # then its numbers are all there is
    part = _Part(table, image, label, names, _classes(features.get(label)))
    _check_types(part)
    return part


def _features(schema: "pyarrow.Schema") -> Mapping[str, Any]:
    """Returns the types that the `datasets` library noted beside the columns; {} if it did not."""
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(noted).get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(table: Table, features: Mapping[str, Any]) -> str:
    columns = [name for name, kind in features.items() if _kind(kind) == "Image"]
    columns = columns or [field.name for field in table.schema if _holds_images(field.type)]
    if len(columns) != 1:
        raise DataError(
            wrong(
                f"columns of {table.name}",
                got=f"{len(columns)} columns of images among {', '.join(table.schema.names)}",
                allowed="exactly one",
            )
        )
    return columns[0]


def _holds_images(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _label_column(table: Table, features: Mapping[str, Any], task: Task | None) -> str:
    """Returns the column of class numbers."""
    import pyarrow

    named = {name: kind for name, kind in features.items() if _kind(kind) == "ClassLabel"}
    fitting = [column for column, kind in named.items() if _fits(kind, task)]
    if len(fitting) == 1:
        return fitting[0]
    if named:
        counts = "; ".join(f"{column}: {_classes(kind)}" for column, kind in named.items())
        raise DataError(
            wrong(
                f"classes of {table.name}",
                got=counts,
                allowed=f"one column with {task.classes}, the session's task.classes"
                if task
                else "one column",
            )
        )
    whole = [field.name for field in table.schema if pyarrow.types.is_integer(field.type)]
    if len(whole) != 1:
        raise DataError(
            wrong(
                f"columns of {table.name}",
                got=f"{len(whole)} columns of whole numbers among {', '.join(table.schema.names)}",
                allowed="exactly one, the class number",
            )
        )
    return str(whole[0])


def _fits(feature: object, task: Task | None) -> bool:
    """Returns whether a column's classes may be those of the session."""
    if task is None or _classes(feature) in (None, task.classes):
        return True
    names = _names(feature)
    return bool(names and task.labels and set(names) <= set(task.labels))


def _kind(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _names(feature: object) -> tuple[str, ...]:
    """Returns the class names that a feature notes; () where it notes none."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _classes(feature: object) -> int | None:
    """Returns how many classes a feature notes; None where it does not say."""
    noted = feature.get("num_classes") if isinstance(feature, dict) else None
    return len(_names(feature)) or (noted if isinstance(noted, int) else None)


def _check_types(part: _Part) -> None:
    """Raises DataError where a column does not hold what its note says."""
    import pyarrow

    image, label = (part.table.schema.field(name) for name in (part.image, part.label))
    for field, fits, allowed in (
        (image, _holds_images(image.type), "images, as {bytes, path}"),
        (label, pyarrow.types.is_integer(label.type), "whole numbers, the class number"),
    ):
        if not fits:
            what = f"column {field.name} of {part.table.name}"
            raise DataError(wrong(what, got=str(field.type), allowed=allowed))


def _check_like(part: _Part, first: _Part, task: Task | None) -> None:
    """Raises DataError where what a number means in two tables cannot be told."""
    has_names = bool(part.names), bool(first.names)
    if has_names == (True, True):
        is_alike = bool(task and task.labels) or set(part.names) == set(first.names)
    else:
        is_alike = has_names == (False, False) and part.label == first.label
    if not is_alike:
        raise DataError(
            wrong(
                f"classes of {part.table.name}",
                got=", ".join(part.names) or f"column {part.label}, without names",
                allowed=f"as in {first.table.name}: "
                + (", ".join(first.names) or f"column {first.label}, without names"),
            )
        )


def _labels(part: _Part, names: tuple[str, ...], task: Task | None) -> Indices:
    """Returns the class of each row, [n], in the order of `names`.

    Raises:
        DataError: a row has none, or one that its own table or the session does not know.
    """
    column = part.table.read(part.label)
    if column.null_count:
        got = f"{column.null_count} rows without one"
        raise DataError(wrong(f"labels of {part.table.name}", got=got, allowed="one a row"))
    # Not by its to_numpy, which loads pandas: half a second.
    labels: Indices = np.array(column.to_pylist(), dtype=np.int64)
    known = part.classes
    if known is not None and len(labels) and not 0 <= labels.min() <= labels.max() < known:
        got = f"{labels.min()}..{labels.max()}"
        allowed = f"0..{known - 1}, for it has {known} classes"
        raise DataError(wrong(f"labels of {part.table.name}", got=got, allowed=allowed))
    if not part.names or part.names == names:
        return labels
    like = task and msgspec.structs.replace(task, labels=names)
    numbers = number_names(part.names, like, all_there=False) if like else _places(names)
    return np.array([numbers[name] for name in part.names])[labels]


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _split(parts: Sequence[tuple[_Part, Indices]], task: Task | None) -> Split:
    """Returns the rows of several tables, one after the other."""
    ends = np.cumsum([len(labels) for _, labels in parts])

    def read(rows: Indices) -> Pixels:
        assert task is not None  # without a session, only labels are asked for
        return decode_all(len(rows), _images(rows), task)

    def _images(rows: Indices) -> Iterator[Encoded]:
        columns: dict[int, pyarrow.ChunkedArray] = {}
        for row, at in zip(rows, np.searchsorted(ends, rows, side="right"), strict=True):
            part, labels = parts[at]
            if at not in columns:
                columns[at] = part.table.read(part.image)
            inside = int(row - ends[at] + len(labels))
            name = f"{part.table.name} row {inside}"
            yield Encoded(name, partial(_bytes, columns[at], inside))

    return Split(np.concatenate([labels for _, labels in parts]), read)


def _bytes(column: "pyarrow.ChunkedArray", row: int) -> bytes | None:
    cell = column[row]
    raw: bytes | None = cell["bytes"].as_py() if cell.is_valid else None
    return raw
