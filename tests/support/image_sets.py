"""Small images and data sets of them, as others write them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from p2pl.protocol.session import Task

GREY = Task(input=(1, 2, 2), classes=3)
NAMES = ("cat", "dog", "eel")


def png(value: int, mode: str = "L", size: tuple[int, int] = (2, 2)) -> bytes:
    """Returns an image of one brightness as a PNG file."""
    file = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int],
    names: Sequence[str] | None = NAMES,
    more: dict[str, tuple[list[int], list[str]]] | None = None,
) -> None:
    """Writes a parquet file as the `datasets` library does; without `names`, as others do."""
    columns: dict[str, object] = {
        "image": pyarrow.array(
            [{"bytes": raw, "path": None} for raw in images],
            pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
        ),
        "label": pyarrow.array(labels, pyarrow.int64()),
    }
    features: dict[str, object] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": list(names)}
    for column, (values, its_names) in (more or {}).items():
        columns[column] = pyarrow.array(values, pyarrow.int64())
        features[column] = {"_type": "ClassLabel", "names": its_names}
    table = pyarrow.table(columns)
    if names is not None:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def small(folder: Path) -> Path:
    """Returns `folder` with three images to train on and one to test on."""
    write(
        folder / "data" / "train-00000-of-00001.parquet", [png(v) for v in (0, 51, 255)], [0, 2, 1]
    )
    write(folder / "data" / "test-00000-of-00001.parquet", [png(102)], [2])
    return folder


def pictures(folder: Path, names: Sequence[str], values: Sequence[int]) -> None:
    """Makes a folder for each class, with one image and something else in it."""
    for name, value in zip(names, values, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{value}.png").write_bytes(png(value))
        (folder / name / "notes.txt").write_text("not an image")
