"""Tables in files, CSV or parquet: a header, and the rows a piece at a time.

Nothing here knows what a column means. A cell is text, without the blanks around it; a column of a
parquet file that holds numbers stays numbers.
"""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pl import regular
from p2pl.errors import DataError, wrong
from p2pl.extras import install

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".parquet")
PIECE_ROWS = 65_536  # chosen: the texts of so many rows are a few tens of megabytes
MAX_SHOWN = 3  # of the faults in one place, and ...
MAX_PLACES = 20  # ... of the places: a person reads no more, and corrects them a kind at a time

# Of one column: texts, "" where there is nothing; or numbers, NaN where there is none.
Cells: TypeAlias = list[str] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a table, as columns by name."""

    numbers: Sequence[int]  # of the rows; in a CSV file the header is row 1
    columns: Mapping[str, Cells]


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with a file, by place: all of it, as far as a person would read it."""

    named: str  # the file, with the option that names it
    found: dict[str, list[str]] = field(default_factory=dict)
    more: dict[str, int] = field(default_factory=dict)

    def add(self, place: str, fault: str) -> None:
        """Notes one more fault in a place, e.g. a column."""
        if place not in self.found and len(self.found) == MAX_PLACES:
            place = ""  # further places are counted together
        known = self.found.setdefault(place, []) if place else []
        if place and len(known) < MAX_SHOWN:
            known.append(fault)
        else:
            self.more[place] = self.more.get(place, 0) + 1

    @property
    def count(self) -> int:
        """How many faults there are."""
        return sum(map(len, self.found.values())) + sum(self.more.values())

    def check(self) -> None:
        """Raises DataError with all that was found, if anything was."""
        if not self.count:
            return
        lines = [
            f"{place}: {fault}" + (f" (and {more} more)" if more else "")
            for place, known in self.found.items()
            for fault, more in zip(known, [0, 0, self.more.get(place, 0)], strict=False)
        ]
        if self.more.get(""):
            lines.append(f"and {self.more['']} faults in other places")
        many = "1 fault" if self.count == 1 else f"{self.count} faults"
        shown = "".join(f"\n  {line}" for line in lines)
        raise DataError(f"{self.named}: {many}, so nothing of it is used:{shown}")


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table in a file that was opened.

    Attributes:
        named: the file, with the option that names it.
        header: the names of its columns, as they stand there.
        pieces: given the columns that are wanted, yields all rows; what is wrong with a row is
            noted, and the row left out.
    """

    named: str
    header: tuple[str, ...]
    pieces: Callable[[Sequence[str], Faults], Iterator[Piece]]


def open_table(path: Path, option: str = "--data") -> TableFile:
    """Returns the table in a CSV or parquet file.

    Args:
        path: of the file.
        option: that names it, for messages.

    Raises:
        DataError: it cannot be read, is empty, or its columns cannot be told.
    """
    named = f"{option} {path}"
    is_parquet = path.suffix.lower() == ".parquet"
    opened = _open_parquet(path, named) if is_parquet else _open_csv(path, named)
    names = [name for name in opened.header if name]
    faults = Faults(named)
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.add("header", wrong("a name", got=name, allowed="each name once"))
    faults.check()
    return opened


# --- CSV -----------------------------------------------------------------------------------------


def _open_csv(path: Path, named: str) -> TableFile:
    with _readable(named), _opened(path) as file:
        header = tuple(cell.strip() for cell in next(csv.reader(file, strict=True), ()))
    if not any(header):
        got = "an empty file" if not path.stat().st_size else "an empty first row"
        raise DataError(wrong(named, got=got, allowed="a header, and rows below it"))
    signs = [sign for sign in ";\t|" if len(header) == 1 and sign in header[0]]
    if signs:
        raise DataError(
            wrong(
                f"{named}: what stands between two columns",
                got=signs[0],
                allowed="a comma",
                hint="save it as CSV with commas, and with points in numbers",
            )
        )
    return TableFile(
        named, header, lambda names, faults: _csv_pieces((path, named), header, names, faults)
    )


def _opened(path: Path) -> TextIO:
    """Returns a file, open for its text to be read, with its line ends as they are."""
    return io.TextIOWrapper(regular.opened(path), encoding="utf-8-sig", newline="")


def _csv_pieces(
    file_at: tuple[Path, str], header: Sequence[str], names: Sequence[str], faults: Faults
) -> Iterator[Piece]:
    path, named = file_at
    at = [header.index(name) for name in names]
    with _readable(named), _opened(path) as file:
        reader = csv.reader(file, strict=True)
        next(reader)
        rows = ((number, row) for number, row in enumerate(reader, 2) if row)  # no empty lines
        while held := list(itertools.islice(rows, PIECE_ROWS)):
            for number, row in held:
                if len(row) != len(header):
                    got, allowed = f"{len(row)} cells", f"{len(header)}, as the header has"
                    faults.add("rows", wrong(f"row {number}", got=got, allowed=allowed))
            whole = [(number, row) for number, row in held if len(row) == len(header)]
            columns = [[row[index].strip() for _, row in whole] for index in at]
            yield Piece([number for number, _ in whole], dict(zip(names, columns, strict=True)))


@contextmanager
def _readable(named: str) -> Iterator[None]:
    """Says what is wrong where a file cannot be read as text in rows."""
    try:
        yield
    except UnicodeDecodeError as fault:
        hint = "save it as CSV in UTF-8; a spreadsheet itself is not read"
        message = wrong(named, got=f"no UTF-8 text ({fault.reason})", allowed="UTF-8")
        raise DataError(f"{message}; {hint}") from fault
    except csv.Error as fault:
        raise DataError(wrong(named, got=str(fault), allowed="a CSV file")) from fault
    except OSError as fault:
        raise DataError(f"{named}: cannot be read: {fault.strerror or fault}") from fault


# --- parquet -------------------------------------------------------------------------------------


def _open_parquet(path: Path, named: str) -> TableFile:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as missing:
        raise DataError(f"{named}: parquet needs {missing.name}: {install('hf')}") from missing
    try:
        regular.check(path)
        names = parquet.read_schema(path).names
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as fault:
        raise DataError(f"{named}: unreadable parquet: {fault}") from fault
    return TableFile(
        named, tuple(names), lambda wanted, faults: _parquet_pieces((path, named), wanted, faults)
    )


def _parquet_pieces(
    file_at: tuple[Path, str], names: Sequence[str], faults: Faults
) -> Iterator[Piece]:
    import pyarrow
    from pyarrow import parquet

    path, named = file_at
    number = 1
    try:
        file = parquet.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(PIECE_ROWS, columns=list(names), use_threads=False):
            numbers = range(number, number + batch.num_rows)
            columns = {name: _cells(batch.column(name), name, faults) for name in names}
            yield Piece(numbers, columns)
            number += batch.num_rows
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as fault:
        raise DataError(f"{named}: unreadable parquet: {fault}") from fault


def _cells(column: "pyarrow.Array", name: str, faults: Faults) -> Cells:
    """Returns a column's values: numbers where it holds numbers, else texts; "" and NaN: a gap."""
    import pyarrow

    types, kind = pyarrow.types, column.type
    if types.is_dictionary(kind):
        return _cells(column.dictionary_decode(), name, faults)
    if types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind):
        whole = column.cast(pyarrow.float64(), safe=False)
        return np.asarray(whole.to_numpy(zero_copy_only=False), dtype=np.float64)
    if types.is_null(kind):
        return [""] * len(column)
    if types.is_boolean(kind):
        return [{True: "true", False: "false"}.get(value, "") for value in column.to_pylist()]
    if not (types.is_string(kind) or types.is_large_string(kind)):
        allowed = "numbers, texts, or true and false"
        faults.add(f"column {name!r}", wrong("type", got=str(kind), allowed=allowed))
        return [""] * len(column)
    return [(value or "").strip() for value in column.to_pylist()]
