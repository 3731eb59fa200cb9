"""My own data: `digits`, a folder, or a dataset of the Hugging Face hub, as tensors for the model.

A split is its labels and a way to read some of its rows, so that only the rows of my shard are ever
decoded: six peers on one small machine load at the same time. Parquet folders are read in place,
without the copy that the `datasets` cache would make of them.
"""

import importlib.util
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2pl.data import partition
from p2pl.data.examples import Examples
from p2pl.data.partition import Indices
from p2pl.errors import DataError, wrong
from p2pl.protocol.session import Task
from p2pl.seeds import seeded

if TYPE_CHECKING:
    import pyarrow

Pixels: TypeAlias = NDArray[np.float32]  # [n, *input], 0..1
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MAX_IMAGE_PIXELS = 1 << 26  # chosen: 8192 x 8192; more is no training image but a bomb
HUB_ID = r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?"
HUB_DEADLINE_S = 5.0
DIGITS_TEST_SHARE = 0.2
DIGITS_SPLIT_SEED = 0  # fixed for ever: the test set must be the same for every peer
NEED_HF = "pip install 'p2pl[hf]'"


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a shared dataset is mine."""

    index: int  # 0..count-1
    count: int
    partition: str  # as on the command line: iid, unbalanced, dirichlet:A, classes:K
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Data:
    """What I learn from and what I am judged by."""

    train: Examples  # scaled and normalised
    test: Examples | None  # the whole test split, whatever my shard; None: there is none
    labels: tuple[str, ...]  # class names; () where nobody gave any


@dataclass(frozen=True, slots=True)
class _Split:
    labels: Indices  # [N], in the session's numbering
    read: Callable[[Indices], Pixels]  # rows -> [n, *input]


@dataclass(frozen=True, slots=True)
class _Source:
    train: _Split
    test: _Split | None
    names: tuple[str, ...]


def load(ref: str, task: Task, *, data_dir: Path | None = None, shard: Shard | None = None) -> Data:
    """Returns the data that `ref` names, checked against the session's task.

    Args:
        ref: `digits`, a dataset id on the Hugging Face hub, or a folder of parquet or images.
        task: the session's.
        data_dir: where a dataset id is looked for first, as the folder `data_dir/ref`.
        shard: my part of the training split; None: all of it.

    Raises:
        DataError: it cannot be had, or is not of the session's shape and classes.
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


def _examples(split: _Split, rows: Indices, task: Task) -> Examples:
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


def _check_labels(source: _Source, task: Task) -> None:
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


def _open(ref: str, task: Task | None, data_dir: Path | None) -> _Source:
    """Returns the data that `ref` names; without a task, whatever its classes are."""
    if ref == "digits":
        return _digits()
    for folder in (data_dir and data_dir / ref, Path(ref).expanduser()):
        if ref and folder and folder.is_dir():
            return _folder(folder, task)
    if not re.fullmatch(HUB_ID, ref):
        raise DataError(
            wrong(
                "--data",
                got=ref,
                allowed="digits, an existing folder, or a Hugging Face dataset id",
            )
        )
    return _hub(ref, task, data_dir)


# --- digits --------------------------------------------------------------------------------------


def _digits() -> _Source:
    """Returns the 1 797 handwritten digits that ship inside scikit-learn, 80/20, stratified."""
    # Only the file is wanted: importing scikit-learn brings scipy and pandas, 2 s in every peer.
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("--data digits: needs scikit-learn: pip install 'p2pl[data]'")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.int64)
    except (OSError, ValueError) as fault:
        raise DataError(
            f"--data digits: scikit-learn's {path.name} is unreadable: {fault}"
        ) from fault
    pixels = (rows[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32)  # 17 grey levels, 0..16
    labels = rows[:, -1].copy()
    random = np.random.RandomState(DIGITS_SPLIT_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for kind in np.unique(labels):
        of_kind = random.permutation(np.flatnonzero(labels == kind))
        held_out[of_kind[: round(DIGITS_TEST_SHARE * len(of_kind))]] = True
    train, test = (_in_memory(pixels[part], labels[part]) for part in (~held_out, held_out))
    return _Source(train, test, tuple("0123456789"))


def _in_memory(pixels: Pixels, labels: Indices) -> _Split:
    return _Split(labels, lambda rows: pixels[rows])


# --- a folder of class folders -------------------------------------------------------------------


def _folder(folder: Path, task: Task | None) -> _Source:
    files = sorted(folder.rglob("*.parquet"))
    if files:
        return _parquet(folder, files, task)
    train, test = folder / "train", folder / "test"
    root = train if train.is_dir() else folder
    names = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    task = task or Task(input=(1,), classes=max(2, len(names)), labels=names)
    numbers = _number_names(names, task, all_there=not task.labels)
    return _Source(
        _class_folders(root, numbers),
        _class_folders(test, numbers) if root == train and test.is_dir() else None,
        names,
    )


def _class_folders(root: Path, numbers: Mapping[str, int]) -> _Split:
    files: list[Path] = []
    labels: list[int] = []
    for name, number in numbers.items():
        found = sorted(p for p in (root / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [number] * len(found)
    if not files:
        raise DataError(
            wrong(
                f"--data {root}",
                got="no images",
                allowed=f"*.parquet, or a folder for each class, with {', '.join(IMAGE_SUFFIXES)}",
            )
        )
    return _Split(
        np.array(labels, dtype=np.int64),
        lambda rows: _decode_all(len(rows), (files[row].read_bytes() for row in rows)),
    )


def _number_names(names: Sequence[str], task: Task, *, all_there: bool) -> dict[str, int]:
    """Returns each class name's number in the session.

    Args:
        names: of the data, in the order of the data's own numbers.
        task: the session's.
        all_there: the data must have every class of the session.
    """
    known = task.labels or tuple(names)
    strange = sorted(set(names) - set(known))
    if strange or len(known) != task.classes or (all_there and len(names) != task.classes):
        raise DataError(
            wrong(
                "classes of the data",
                got=f"{len(names)}: {', '.join(strange or names)}",
                allowed=f"{task.classes}: {', '.join(task.labels) or 'any names'}",
            )
        )
    return {name: known.index(name) for name in names}


# --- parquet -------------------------------------------------------------------------------------


def _parquet(folder: Path, files: Sequence[Path], task: Task | None) -> _Source:
    train = [path for path in files if _split_of(path.relative_to(folder)) == "train"]
    test = [path for path in files if _split_of(path.relative_to(folder)) == "test"]
    if not train and not test:
        train = list(files)
    if not train:
        raise DataError(
            wrong(f"--data {folder}", got="no training split", allowed="train*.parquet")
        )
    return _tables(_read_parquet(train), _read_parquet(test) if test else None, task)


def _split_of(path: Path) -> str:
    """Returns `train` or `test` if a file's name begins with it, or its folder bears it; or ""."""
    for split in ("train", "test"):
        if path.parent.name == split or re.fullmatch(rf"{split}([-_.].*)?", path.stem):
            return split
    return ""


@dataclass(frozen=True, slots=True)
class _Table:
    """Columns by name, read on demand, and what they mean."""

    schema: "pyarrow.Schema"
    read: Callable[[str], "pyarrow.ChunkedArray"]


def _read_parquet(files: Sequence[Path]) -> _Table:
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
    return _Table(schema, read)


def _tables(train: _Table, test: _Table | None, task: Task | None) -> _Source:
    features = _features(train.schema)
    image = _image_column(train.schema, features)
    label, names = _label_column(train.schema, features, task)
    return _Source(
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
    table: _Table, image: str, label: str, names: tuple[str, ...], task: Task | None
) -> _Split:
    labels = table.read(label).to_numpy().astype(np.int64)
    if task and names and task.labels and names != task.labels:
        numbers = _number_names(names, task, all_there=True)
        labels = np.array([numbers[name] for name in names])[labels]

    def read(rows: Indices) -> Pixels:
        column = table.read(image)
        return _decode_all(len(rows), (column[int(row)]["bytes"].as_py() for row in rows))

    return _Split(labels, read)


# --- images --------------------------------------------------------------------------------------


def _decode_all(count: int, encoded: Iterable[bytes | None]) -> Pixels:
    """Returns `count` images as [count, channels, height, width]; all must be alike."""
    try:
        from PIL import Image
    except ModuleNotFoundError as fault:
        raise DataError(f"--data: images need {fault.name}: {NEED_HF}") from fault
    pixels = np.empty((0,), dtype=np.uint8)
    for index, raw in enumerate(encoded):
        try:
            image = Image.open(io.BytesIO(raw or b""), formats=("PNG", "JPEG", "BMP", "WEBP"))
            shape = _shape(image.mode, image.size)
            if not index:
                pixels = np.empty((count, *shape), dtype=np.uint8)
            if shape != pixels.shape[1:]:
                raise DataError(
                    wrong(
                        "images of the data",
                        got=f"{pixels.shape[1:]} and {shape} as (height, width[, 3])",
                        allowed="one shape for all",
                    )
                )
            pixels[index] = np.frombuffer(image.tobytes(), np.uint8).reshape(shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
            raise DataError(f"--data: image {index} of the split is unreadable: {fault}") from fault
    pixels = pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
    scaled = np.ascontiguousarray(pixels, dtype=np.float32)
    scaled /= 255
    return scaled


def _shape(mode: str, size: tuple[int, int]) -> tuple[int, ...]:
    if mode not in ("L", "RGB") or math.prod(size) > MAX_IMAGE_PIXELS:
        raise DataError(
            wrong(
                "image of the data",
                got=f"mode {mode}, {size[0]}x{size[1]}",
                allowed=f"8-bit grey (L) or RGB, at most {MAX_IMAGE_PIXELS} pixels",
                hint="convert it first; nothing is recoloured in silence",
            )
        )
    width, height = size
    return (height, width) if mode == "L" else (height, width, 3)


# --- the Hugging Face hub ------------------------------------------------------------------------


def _hub(ref: str, task: Task | None, data_dir: Path | None) -> _Source:
    try:
        import datasets
        from huggingface_hub import constants
    except ModuleNotFoundError as fault:
        raise DataError(f"--data {ref}: a hub dataset needs {fault.name}: {NEED_HF}") from fault
    if not datasets.config.HF_HUB_OFFLINE:
        _ask_hub(f"{constants.ENDPOINT}/api/datasets/{quote(ref)}", ref, data_dir)
    try:
        splits = datasets.load_dataset(ref)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as fault:
        raise DataError(f"--data {ref}: the hub dataset cannot be loaded: {fault}") from fault
    if "train" not in splits:
        raise DataError(wrong(f"--data {ref}", got=sorted(splits), allowed="a split called train"))
    tables = {name: _hub_table(split) for name, split in splits.items()}
    return _tables(tables["train"], tables.get("test"), task)


def _ask_hub(url: str, ref: str, data_dir: Path | None) -> None:
    """Raises DataError unless the hub answers: `load_dataset` would try for half a minute."""
    try:
        with urlopen(url, timeout=HUB_DEADLINE_S):
            pass
    except HTTPError as fault:
        raise DataError(
            wrong(
                "--data",
                got=ref,
                allowed="digits, an existing folder, or a public dataset id",
                hint=f"the Hugging Face hub answered {fault.code}",
            )
        ) from fault
    except (OSError, ValueError) as fault:
        place = data_dir / ref if data_dir else f"DIR/{ref}, with P2PL_DATA_DIR=DIR"
        raise DataError(
            f"--data {ref}: the Hugging Face hub cannot be reached ({fault}); put the dataset's "
            f"parquet files into {place}, or set HF_HUB_OFFLINE=1 if it was downloaded here before"
        ) from fault


def _hub_table(split: Any) -> _Table:  # noqa: ANN401  # datasets.Dataset, which is not typed
    table = split.data.table
    return _Table(split.features.arrow_schema, table.column)
