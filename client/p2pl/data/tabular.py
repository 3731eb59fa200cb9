"""Rows of a table as vectors: checked against what the session says of each column, and encoded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pl.data.frames import SUFFIXES, Cells, Faults, Piece, open_table
from p2pl.data.names import train_and_test
from p2pl.data.source import Source, Split, Targets, in_memory
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Column, Table, Task

Numbers: TypeAlias = NDArray[np.float64]
MAX_STDS = 1e6  # of a number from its mean: further off is a fault, and would spoil all training
Gaps: TypeAlias = NDArray[np.bool_]
# What is wrong with a row: its place among the rows at hand, what stands there, what may.
Complain: TypeAlias = Callable[[int, object, str], None]


def table_source(path: Path, task: Task, table: Table) -> Source:
    """Returns the data in a table file, or in a folder of them.

    Args:
        path: a CSV or parquet file, all of it training data; or a folder, where `train` and `test`
            are told by name or folder, and files that bear neither name are all training data.
        task: the session's.
        table: what the session says of the columns.

    Raises:
        DataError: a file is not as the session says; all its faults are listed, as far as a person
            would read them.
    """
    train, test = [path], list[Path]()
    if path.is_dir():
        train, test = train_and_test(path, SUFFIXES, "table")
    elif path.suffix.lower() not in SUFFIXES:
        raise DataError(wrong("--data", got=str(path), allowed=f"a file {' or '.join(SUFFIXES)}"))
    made = _split(train, task, table)
    return Source(made, _split(test, task, table) if test else None, task.labels)


def _split(paths: Sequence[Path], task: Task, table: Table) -> Split:
    read = [read_table(path, task, table) for path in paths]
    return in_memory(*(np.concatenate(part) for part in zip(*read, strict=True)))


def read_inputs(path: Path, table: Table) -> NDArray[np.float32] | None:
    """Returns the inputs in a CSV or parquet file without targets, [N, width].

    None where a column of the targets is there: it is then read with them, or not at all.

    Raises:
        DataError: the file is not as the session says.
    """
    opened = open_table(path)
    faults = Faults(opened.named)
    if set(table.targets) & set(opened.header):
        return None
    there = _there(opened.header, [column.name for column in table.columns], faults)
    inputs = [_inputs(piece, table, faults) for piece in opened.pieces(there, faults)]
    if not sum(map(len, inputs)) and not faults.count:
        faults.add("rows", wrong("rows below the header", got=0, allowed="at least one"))
    faults.check()
    return np.concatenate(inputs)


def _there(header: Sequence[str], wanted: Sequence[str], faults: Faults) -> list[str]:
    """Returns the columns that are wanted and there; the others are noted."""
    for name in wanted:
        if name not in header:
            faults.add(f"column {name!r}", f"missing; the file has {', '.join(header)}"[:300])
    return [name for name in wanted if name in header]


def read_table(path: Path, task: Task, table: Table) -> tuple[NDArray[np.float32], Targets]:
    """Returns the rows of a CSV or parquet file: inputs [N, width], and targets [N] or [N, K].

    Targets are int64 class numbers where the task has classes; else float32, [N, K] where it says
    how many outputs there are.

    Raises:
        DataError: the file is not as the session says.
    """
    opened = open_table(path)
    faults = Faults(opened.named)
    wanted = [*(column.name for column in table.columns), *table.targets]
    there = _there(opened.header, wanted, faults)
    inputs: list[NDArray[np.float32]] = []
    targets: list[Targets] = []
    for piece in opened.pieces(there, faults):
        inputs.append(_inputs(piece, table, faults))
        targets.append(_targets(piece, task, table, faults))
    if not sum(map(len, targets)) and not faults.count:
        faults.add("rows", wrong("rows below the header", got=0, allowed="at least one"))
    faults.check()
    return np.concatenate(inputs), np.concatenate(targets)


def _inputs(piece: Piece, table: Table, faults: Faults) -> NDArray[np.float32]:
    """Returns the vectors of some rows, [n, width]."""
    blocks = [
        _encode(column, piece.columns[column.name], table.gaps, _noting(column.name, piece, faults))
        for column in table.columns
        if column.name in piece.columns
    ]
    nothing = np.empty((len(piece.numbers), 0), dtype=np.float32)
    return np.concatenate([nothing, *blocks], axis=1)


def _noting(name: str, piece: Piece, faults: Faults) -> Complain:
    """Returns what notes a fault in a column of some rows."""

    def complain(at: int, got: object, allowed: str) -> None:
        faults.add(f"column {name!r}", wrong(f"row {piece.numbers[at]}", got=got, allowed=allowed))

    return complain


def _encode(
    column: Column, cells: Cells, gaps: Sequence[str], complain: Complain
) -> NDArray[np.float32]:
    """Returns what the values of a column become, [n, column.width]."""
    if column.kind == "numeric":
        numbers, empty = to_numbers(cells, gaps, complain)
        scaled = np.nan_to_num((numbers - column.mean) / column.std)  # a gap is 0: the mean
        for at in np.flatnonzero(np.abs(scaled) > MAX_STDS):
            allowed = f"{column.mean:g}, give or take a million times {column.std:g}"
            complain(int(at), cells[at], allowed)
        block = scaled.clip(-MAX_STDS, MAX_STDS).astype(np.float32)[:, None]
    else:
        places, empty = _places(to_texts(cells, gaps), column.categories, complain)
        block = np.zeros((len(places), len(column.categories)), dtype=np.float32)
        known = np.flatnonzero(places >= 0)
        block[known, places[known]] = 1
    if column.missing == "refused":
        for at in np.flatnonzero(empty):
            complain(int(at), "no value", "one: the session refuses gaps in this column")
    if column.missing == "indicator":
        block = np.concatenate([block, empty.astype(np.float32)[:, None]], axis=1)
    return block


def to_numbers(cells: Cells, gaps: Sequence[str], complain: Complain) -> tuple[Numbers, Gaps]:
    """Returns a column as numbers [n], NaN where there is a gap, and where that is, [n]."""
    if isinstance(cells, np.ndarray):
        numbers, empty = cells, np.isnan(cells)
    else:
        nothing = {"", *gaps}
        empty = np.fromiter((cell in nothing for cell in cells), np.bool_, len(cells))
        numbers = np.fromiter(map(_number, cells), np.float64, len(cells))
        numbers[empty] = np.nan
    for at in np.flatnonzero(~empty & ~np.isfinite(numbers)):
        complain(int(at), cells[at], "a number, with a point where it has decimals")
    return numbers, empty


def _number(cell: str) -> float:
    """Returns the number in a cell; NaN where there is none."""
    try:
        return float("nan" if "_" in cell else cell)  # Python alone reads 1_000 as a number
    except ValueError:
        return float("nan")


def to_texts(cells: Cells, gaps: Sequence[str]) -> list[str]:
    """Returns a column as texts, "" where there is a gap; 1.0 is "1": a gap made it a float."""
    if isinstance(cells, np.ndarray):
        return ["" if np.isnan(n) else str(int(n)) if n == int(n) else str(n) for n in cells]
    return ["" if cell in gaps else cell for cell in cells]


def _places(
    texts: Sequence[str], categories: Sequence[str], complain: Complain
) -> tuple[NDArray[np.int64], Gaps]:
    """Returns each text's place among the categories, -1 for none, and where there is a gap."""
    place = {category: at for at, category in enumerate(categories)}
    places = np.fromiter((place.get(text, -1) for text in texts), np.int64, len(texts))
    empty = np.fromiter((not text for text in texts), np.bool_, len(texts))
    for at in np.flatnonzero(~empty & (places < 0)):
        complain(int(at), texts[int(at)], _listed(categories))
    return places, empty


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown}, … ({len(names)} in all)"


def _targets(piece: Piece, task: Task, table: Table, faults: Faults) -> Targets:
    """Returns the targets of some rows: class numbers [n], or numbers [n] or [n, K]."""
    columns = []
    for name in table.targets:
        cells = piece.columns.get(name, [""] * len(piece.numbers))
        complain = _noting(name, piece, faults) if name in piece.columns else _silent
        columns.append(_target(cells, task, table.gaps, complain))
    return np.stack(columns, axis=1) if task.outputs else columns[0]


def _silent(at: int, got: object, allowed: str) -> None:
    """Says nothing: that the column is missing was said."""
    del at, got, allowed


def _target(cells: Cells, task: Task, gaps: Sequence[str], complain: Complain) -> Targets:
    if task.classes:
        names = task.labels or tuple(map(str, range(task.classes)))
        places, empty = _places(to_texts(cells, gaps), names, complain)
        made: Targets = places
    else:
        numbers, empty = to_numbers(cells, gaps, complain)
        made = numbers.astype(np.float32)
    for at in np.flatnonzero(empty):
        complain(int(at), "no value", "a target in every row")
    return made
