"""What a session says of a table's columns, read off the author's file.

Means, standard deviations and categories are the author's own: they stand in the session for
everybody to read, so that all peers scale and number alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from p2pl.data.frames import Cells, Faults, open_table
from p2pl.data.tabular import Numbers, to_numbers, to_texts
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Column, Table

OPTION = "--schema-from"  # that names the file
MAX_FOUND = 50  # chosen: a column of more texts is a name, a date or a note, not a category
DIGITS = 3  # that matter, of a mean beside its deviation; more would only tell more of the file


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the author says of the file.

    Attributes:
        path: of the file, CSV or parquet.
        targets: columns that are to be predicted; one, but for several labels or outputs.
        categorical: columns of numbers that stand for categories.
        left_out: columns that no model is to see: names, dates, notes.
    """

    path: Path
    targets: Sequence[str]
    categorical: Sequence[str] = ()
    left_out: Sequence[str] = ()


def describe(wanted: Wanted, kind: str) -> tuple[Table, Mapping[str, Any]]:
    """Returns the table of a session, and what follows from the file for its task.

    Args:
        wanted: what the author says.
        kind: of the task, as `task.kind`.

    Raises:
        DataError: the file is not a table with these columns, or a column is of no use.
    """
    if wanted.path.is_dir():
        raise DataError(
            wrong(
                f"{OPTION} {wanted.path}",
                got="a folder",
                allowed="one CSV or parquet file",
                hint="of images, write the names of the classes as labels in [task]",
            )
        )
    opened = open_table(wanted.path, OPTION)
    faults = Faults(opened.named)
    for name in {*wanted.targets, *wanted.categorical, *wanted.left_out} - {*opened.header}:
        faults.add(f"column {name!r}", f"missing; the file has {', '.join(opened.header)}"[:300])
    if not wanted.targets:
        raise DataError("--target: missing; allowed: the name of a column")
    faults.check()
    names = [name for name in opened.header if name and name not in wanted.left_out]
    pieces = list(opened.pieces(names, faults))
    whole = {name: _joined(piece.columns[name] for piece in pieces) for name in names}
    if not any(len(piece.numbers) for piece in pieces):
        faults.add("rows", wrong("rows below the header", got=0, allowed="at least one"))
    faults.check()
    gaps = Table(target="-", columns=(Column(name="-"),)).gaps
    inputs = [name for name in names if name not in wanted.targets]
    made = [_column(name, whole[name], gaps, name in wanted.categorical, faults) for name in inputs]
    targets = [whole[name] for name in wanted.targets]
    task = _task(wanted.targets, targets, gaps, kind, faults)
    if not inputs:
        faults.add("columns", "none but the target; allowed: at least one to predict it from")
    faults.check()
    target = wanted.targets[0] if len(wanted.targets) == 1 else tuple(wanted.targets)
    return Table(target=target, columns=tuple(made)), task


def completed(raw: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Returns a spec's tables with what the author's file says; what stands there already stays.

    So an author whose file lacks a class or a category writes `task.labels`, or that column.

    Args:
        raw: of the spec, as TOML has them.
        wanted: what the author says.

    Raises:
        DataError: the file is of no use.
    """
    written, columns = _written(raw.get("task")), _written(raw.get("table"))
    known = [column for column in columns.get("columns", []) if isinstance(column, Mapping)]
    table, follows = describe(wanted, str(written.get("kind", "classification")))
    if "labels" in written and isinstance(written["labels"], list) and "classes" in follows:
        follows = {"classes": len(written["labels"])}
    if follows.get("classes") == 1:
        place = f"{OPTION} {wanted.path}: column {table.targets[0]!r}"
        allowed = "2 or more; write all of them as labels in [task]"
        raise DataError(wrong(f"{place}: classes", got=1, allowed=allowed))
    by_name = {column.name: msgspec.to_builtins(column) for column in table.columns}
    by_name |= {str(column.get("name")): dict(column) for column in known}
    whole = {"target": table.target, **columns, "columns": list(by_name.values())}
    return {**raw, "task": {**follows, **written}, "table": whole}


def _written(table: object) -> dict[str, Any]:
    """Returns a table of a spec as a dictionary; {} where it is none, which is told later."""
    return dict(table) if isinstance(table, Mapping) else {}


def _joined(parts: Iterable[Cells]) -> Cells:
    """Returns a column of all pieces in one."""
    cells = list(parts)
    if cells and isinstance(cells[0], np.ndarray):
        return np.concatenate([np.asarray(part) for part in cells])
    return [cell for part in cells for cell in part]


def _column(
    name: str, cells: Cells, gaps: Sequence[str], is_categorical: bool, faults: Faults
) -> Column:
    """Returns what the session says of one column of inputs."""
    place = f"column {name!r}"
    strange: list[str] = []
    numbers, empty = to_numbers(cells, gaps, lambda at, got, _: strange.append(f"{got!r}"))
    texts = to_texts(cells, gaps)
    missing: Literal["indicator", "zero"] = "indicator" if empty.any() else "zero"
    if empty.all():
        faults.add(place, "no value in any row; leave it out: --leave-out NAME")
        return Column(name=name)
    if not strange and not is_categorical:
        mean, std = _scale(numbers)
        return Column(name=name, mean=mean, std=std, missing=missing)
    found = _in_order({text for text in texts if text})
    if len(found) > MAX_FOUND and not is_categorical:
        numeric = len(texts) - len(strange)
        of_numbers = f", {numeric} of its {len(texts)} rows are numbers" if numeric > 1 else ""
        faults.add(
            place,
            f"{len(found)} different texts, e.g. {strange[0]}{of_numbers}; leave it out "
            "(--leave-out NAME), correct it, or say that they are categories (--categorical NAME)",
        )
        return Column(name=name)
    return Column(name=name, kind="categorical", categories=found, missing=missing)


def _scale(numbers: Numbers) -> tuple[float, float]:
    """Returns a column's mean and standard deviation, gaps left out, with few digits."""
    mean, std = float(np.nanmean(numbers)), float(np.nanstd(numbers))
    if not std > abs(mean) * 1e-9:  # all values are the same
        return mean, 1.0
    place = DIGITS - 1 - math.floor(math.log10(std))
    return round(mean, place), round(std, place)


def _in_order(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns texts in the order of the numbers that they are, or of the alphabet."""
    try:
        return tuple(sorted(texts, key=float))
    except ValueError:
        return tuple(sorted(texts))


def _task(
    names: Sequence[str], targets: Sequence[Cells], gaps: Sequence[str], kind: str, faults: Faults
) -> dict[str, Any]:
    """Returns the fields of a task that follow from its targets."""
    if kind == "classification":
        return _classes(names, targets, gaps, faults)
    columns = []
    for name, cells in zip(names, targets, strict=True):
        numbers, empty = to_numbers(cells, gaps, _strange(name, faults))
        columns.append(numbers)
        if empty.any():
            faults.add(f"column {name!r}", f"{empty.sum()} gaps; a target is there in every row")
    if kind == "multilabel":
        return {"outputs": len(names), "labels": list(names)}
    if kind != "regression":
        return {}
    scales = [_scale(numbers) for numbers in columns] if not faults.count else [(0.0, 1.0)]
    return {
        "outputs": len(names),
        "target_mean": [mean for mean, _ in scales],
        "target_std": [std for _, std in scales],
    }


def _strange(name: str, faults: Faults) -> Any:  # noqa: ANN401  # a Complain
    def complain(at: int, got: object, allowed: str) -> None:
        del at
        faults.add(f"column {name!r}", wrong("target", got=got, allowed=allowed))

    return complain


def _classes(
    names: Sequence[str], targets: Sequence[Cells], gaps: Sequence[str], faults: Faults
) -> dict[str, Any]:
    """Returns the classes that the target has."""
    place = f"column {names[0]!r}"
    found = _in_order({text for text in to_texts(targets[0], gaps) if text})
    if len(names) > 1:
        faults.add("--target", f"{len(names)} columns; with task.kind classification: one")
    if not 1 <= len(found) <= MAX_FOUND:
        allowed = f"2..{MAX_FOUND}; for numbers, say kind = 'regression' in [task]"
        faults.add(place, wrong("classes", got=len(found), allowed=allowed))
    return {"classes": len(found), "labels": list(found)}
