"""Predictions as a file: CSV for people and spreadsheets, safetensors for programs."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from p2pl.errors import InputError, wrong
from p2pl.run.files import write_atomically

MAX_COLUMNS = 1_000  # of a CSV file; chosen: spreadsheets and people are lost in more


def write_predictions(
    path: Path, said: Mapping[str, Tensor], targets: Tensor | None, labels: Sequence[str]
) -> None:
    """Writes predictions, by the ending of the file's name.

    Args:
        path: FILE.csv, or FILE.safetensors, which holds the numbers as they are.
        said: by name, each [N, ...].
        targets: [N, ...]; None: they are not known.
        labels: names of the classes; ().

    Raises:
        InputError: the name has another ending, the file cannot be written, or a CSV file would
            have too many columns.
    """
    if path.suffix == ".csv":
        write_atomically(path, csv_of(said, targets, labels).encode())
    elif path.suffix == ".safetensors":
        whole = {**said, **({} if targets is None else {"target": targets})}
        write_atomically(path, save({name: one.contiguous() for name, one in whole.items()}))
    else:
        raise InputError(wrong("--out", got=str(path), allowed="FILE.csv or FILE.safetensors"))


def csv_of(said: Mapping[str, Tensor], targets: Tensor | None, labels: Sequence[str]) -> str:
    """Returns predictions as CSV: a row an example, its number first, with names for classes.

    Args:
        said: by name, each [N, ...]; more than one number an example makes several columns.
        targets: [N, ...]; None: they are not known. Left out where they are many an example.
        labels: names of the classes; ().

    Raises:
        InputError: there would be too many columns.
    """
    columns: dict[str, list[str]] = {}
    if targets is not None and targets[0].numel() == 1:
        columns["target"] = _cells(targets.flatten(), () if targets.is_floating_point() else labels)
    for name, values in said.items():
        columns.update(_columns(name, values, labels))
    out = io.StringIO()
    written = csv.writer(out, lineterminator="\n")
    written.writerow(["example", *columns])
    written.writerows(enumerate_rows(list(columns.values())))
    return out.getvalue()


def enumerate_rows(columns: Sequence[Sequence[str]]) -> Iterator[tuple[object, ...]]:
    """Yields the rows of columns, each with its number from 0 in front."""
    for index, row in enumerate(zip(*columns, strict=True)):
        yield index, *row


def _columns(name: str, values: Tensor, labels: Sequence[str]) -> dict[str, list[str]]:
    if values.dim() == 1:
        return {name: _cells(values, labels if name == "class" else ())}
    flat = values.flatten(1)
    if flat.shape[1] > MAX_COLUMNS:
        raise InputError(
            wrong(
                "--out, as CSV",
                got=f"{flat.shape[1]} numbers an example",
                allowed=f"at most {MAX_COLUMNS}",
                hint="name a FILE.safetensors instead",
            )
        )
    named = name == "probability" and len(labels) == flat.shape[1]
    ends = labels if named else range(flat.shape[1])
    if flat.shape[1] == 1:
        return {name: _cells(flat[:, 0], ())}
    return {f"{name}_{end}": _cells(flat[:, at], ()) for at, end in enumerate(ends)}


def _cells(values: Tensor, labels: Sequence[str]) -> list[str]:
    """Returns numbers as text, six digits of those with a fraction; of classes their names."""
    if values.is_floating_point():
        return [f"{one:.6g}" for one in values.tolist()]
    return [labels[one] if 0 <= one < len(labels) else str(one) for one in values.tolist()]
