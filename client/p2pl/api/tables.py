"""Predictions as a file: CSV for people and spreadsheets, safetensors for programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from p2pl.errors import InputError, wrong
from p2pl.run.files import write_atomically

MAX_COLUMNS = 1_000  # of a CSV file; chosen: spreadsheets and people are lost in more


def write_predictions(
    path: Path,
    said: Mapping[str, Tensor],
    targets: Tensor | None,
    labels: Sequence[str],
    names: Sequence[str] = (),
) -> None:
    """Writes predictions, by the ending of the file's name.

    Args:
        path: FILE.csv, or FILE.safetensors, which holds the numbers as they are.
        said: by name, each [N, ...].
        targets: [N, ...]; None: they are not known.
        labels: names of the classes; ().
        names: of the examples, for CSV; (): they are numbered.

    Raises:
        InputError: the name has another ending, the file cannot be written, or a CSV file would
            have too many columns.
    """
    if path.suffix == ".csv":
        write_atomically(path, csv_of(said, targets, labels, names).encode())
    elif path.suffix == ".safetensors":
        whole = {**said, **({} if targets is None else {"target": targets})}
        write_atomically(path, save({name: one.contiguous() for name, one in whole.items()}))
    else:
        raise InputError(wrong("--out", got=str(path), allowed="FILE.csv or FILE.safetensors"))


def csv_of(
    said: Mapping[str, Tensor],
    targets: Tensor | None,
    labels: Sequence[str],
    names: Sequence[str] = (),
) -> str:
    """Returns predictions as CSV: a row an example, its name or number first; classes by name.

    Args:
        said: by name, each [N, ...]; more than one number an example makes several columns.
        targets: [N, ...]; None: they are not known. Left out where they are many an example.
        labels: names of the classes; ().
        names: of the examples; (): they are numbered from 0.

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
    count = len(next(iter(said.values())))
    written.writerows(zip(names or range(count), *columns.values(), strict=True))
    return out.getvalue()


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
