import http.server
import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from p2pl.data import load as data
from p2pl.data.load import Shard, load, load_labels, split_validation
from p2pl.errors import DataError
from p2pl.protocol.session import Task
from p2pl.seeds import seeded

DIGITS = Task(input=(1, 8, 8), classes=10)
GREY = Task(input=(1, 2, 2), classes=3)
NAMES = ("cat", "dog", "eel")


def png(value: int, mode: str = "L", size: tuple[int, int] = (2, 2)) -> bytes:
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
    write(
        folder / "data" / "train-00000-of-00001.parquet", [png(v) for v in (0, 51, 255)], [0, 2, 1]
    )
    write(folder / "data" / "test-00000-of-00001.parquet", [png(102)], [2])
    return folder


# --- digits


def test_digits_are_scaled_and_split_alike_for_everybody() -> None:
    one, two = load("digits", DIGITS), load("digits", DIGITS)
    assert one.train.x.shape == (1_438, 1, 8, 8)
    assert one.test is not None
    assert two.test is not None
    assert torch.equal(one.test.x, two.test.x)
    assert len(one.test.x) == 359
    assert one.train.x.dtype == torch.float32
    assert one.train.y.dtype == torch.int64
    assert (float(one.train.x.min()), float(one.train.x.max())) == (0, 1)
    assert min(torch.bincount(one.test.y).tolist()) >= 34
    assert one.labels == tuple("0123456789")


def test_digits_are_the_ones_that_scikit_learn_loads() -> None:
    bunch = load_digits()
    data = load("digits", DIGITS)
    assert data.test is not None
    ours = torch.cat([data.train.x, data.test.x]).flatten(1).mul(16).long()
    theirs = torch.from_numpy(bunch.data).long()
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_shards_of_digits_are_disjoint_and_share_the_test_set() -> None:
    whole = load("digits", DIGITS)
    shards = [load("digits", DIGITS, shard=Shard(i, 6, "dirichlet:0.5", 3)) for i in range(6)]
    assert sum(len(shard.train.y) for shard in shards) == len(whole.train.y)
    together = torch.cat([shard.train.x for shard in shards]).flatten(1)
    assert torch.equal(together.sum(0), whole.train.x.flatten(1).sum(0))
    assert all(len(shard.test.y) == 359 for shard in shards if shard.test is not None)


def test_inputs_are_normalised_as_the_session_says() -> None:
    plain = load("digits", DIGITS)
    task = Task(input=(1, 8, 8), classes=10, mean=(0.3,), std=(0.5,))
    normalised = load("digits", task)
    assert torch.allclose(normalised.train.x, (plain.train.x - 0.3) / 0.5, atol=1e-6)


def test_each_channel_has_its_own_mean(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(255, "RGB")], [0])
    task = Task(input=(3, 2, 2), classes=3, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    assert load(str(tmp_path), task).train.x[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(input=(1, 28, 28), classes=10), r"\(1, 8, 8\).*allowed \(1, 28, 28\)"),
        (Task(input=(64,), classes=10), r"\(1, 8, 8\).*allowed \(64,\)"),
        (Task(input=(1, 8, 8), classes=9), r"0\.\.9.*allowed 0\.\.8"),
    ],
)
def test_another_shape_or_more_classes_than_the_session_are_refused(
    task: Task, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load("digits", task)


@pytest.mark.parametrize("index", [-1, 6])
def test_a_shard_outside_the_partition_is_refused(index: int) -> None:
    with pytest.raises(DataError, match=r"allowed 0\.\.5"):
        load("digits", DIGITS, shard=Shard(index, 6, "iid"))


@pytest.mark.parametrize("ref", ["", "./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "a/b/c"])
def test_what_is_neither_folder_nor_dataset_is_refused(ref: str) -> None:
    with pytest.raises(DataError, match="allowed digits, an existing folder"):
        load(ref, DIGITS)


# --- parquet


def test_labels_can_be_had_without_a_session_or_an_image(tmp_path: Path) -> None:
    write(small(tmp_path) / "data" / "train-00000-of-00001.parquet", [b"", b""], [2, 1])
    labels, names = load_labels(str(tmp_path))
    assert (labels.tolist(), names) == ([2, 1], ("cat", "dog", "eel"))
    labels, names = load_labels("digits")
    assert (len(labels), names) == (1_438, tuple("0123456789"))


def test_labels_of_a_folder_of_folders_are_its_names(tmp_path: Path) -> None:
    for name, count in (("b", 1), ("a", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(png(number))
    labels, names = load_labels(str(tmp_path))
    assert (labels.tolist(), names) == ([0, 0, 1], ("a", "b"))


def test_labels_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(1)], [0], more={"fine": ([3], list("abcd"))})
    with pytest.raises(DataError, match=r"allowed one column"):
        load_labels(str(tmp_path))


def test_a_folder_of_parquet_is_read_with_its_test_split(tmp_path: Path) -> None:
    read = load(str(small(tmp_path)), GREY)
    assert read.train.x[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert read.train.y.tolist() == [0, 2, 1]
    assert read.test is not None
    assert read.test.x[0].flatten().tolist() == pytest.approx([0.4] * 4)
    assert read.test.y.tolist() == [2]
    assert read.labels == NAMES


def test_a_dataset_id_is_first_looked_for_in_the_data_folder(tmp_path: Path) -> None:
    small(tmp_path / "ylecun" / "tiny")
    assert load("ylecun/tiny", GREY, data_dir=tmp_path).train.y.tolist() == [0, 2, 1]


def test_only_the_rows_of_my_shard_are_decoded(tmp_path: Path) -> None:
    # Class 1 is broken throughout; the peer that holds class 0 alone never notices.
    images = [png(0) if i % 2 else b"broken" for i in range(40)]
    write(tmp_path / "train.parquet", images, [int(not i % 2) for i in range(40)])
    readable = [_readable(tmp_path, Shard(index, 2, "classes:1")) for index in range(2)]
    assert sorted(readable) == [False, True]


def _readable(folder: Path, shard: Shard) -> bool:
    try:
        return len(load(str(folder), GREY, shard=shard).train.y) == 20
    except DataError:
        return False


def test_without_a_test_split_there_is_no_test_set(tmp_path: Path) -> None:
    write(tmp_path / "mine.parquet", [png(1)], [0])
    read = load(str(tmp_path), GREY)
    assert read.test is None
    assert len(read.train.y) == 1


def test_a_test_split_alone_is_nothing_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [png(1)], [0])
    with pytest.raises(DataError, match="no training split"):
        load(str(tmp_path), GREY)


def test_a_split_may_be_told_by_its_folder_and_come_in_parts(tmp_path: Path) -> None:
    write(tmp_path / "train" / "0.parquet", [png(1)], [0])
    write(tmp_path / "train" / "1.parquet", [png(2), png(3)], [1, 2])
    write(tmp_path / "validation" / "0.parquet", [png(9)], [0])
    assert load(str(tmp_path), GREY).train.y.tolist() == [0, 1, 2]


def test_class_names_in_another_order_are_renumbered(tmp_path: Path) -> None:
    task = Task(input=(1, 2, 2), classes=3, labels=("eel", "cat", "dog"))
    read = load(str(small(tmp_path)), task)
    assert read.train.y.tolist() == [1, 0, 2]
    assert read.labels == task.labels


def test_other_class_names_are_refused(tmp_path: Path) -> None:
    task = Task(input=(1, 2, 2), classes=3, labels=("cat", "dog", "fox"))
    with pytest.raises(DataError, match=r"eel.*allowed 3: cat, dog, fox"):
        load(str(small(tmp_path)), task)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label: 3.*allowed one column with 5"):
        load(str(small(tmp_path)), Task(input=(1, 2, 2), classes=5))


def test_of_two_label_columns_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    write(
        tmp_path / "train.parquet", [png(1), png(2)], [2, 0], more={"fine": ([3, 1], list("abcd"))}
    )
    assert load(str(tmp_path), GREY).train.y.tolist() == [2, 0]
    assert load(str(tmp_path), Task(input=(1, 2, 2), classes=4)).train.y.tolist() == [3, 1]


def test_columns_are_found_by_type_where_nobody_noted_them(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(255)], [1], names=None)
    read = load(str(tmp_path), GREY)
    assert read.train.y.tolist() == [1]
    assert read.labels == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1]}, "0 columns of images"),
        ({"image": [{"bytes": b"x"}], "a": [1], "b": [2]}, "2 columns of whole numbers among"),
        ({"image": [{"bytes": b"x"}]}, "0 columns of whole numbers"),
    ],
)
def test_columns_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), GREY)


@pytest.mark.parametrize("noted", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": 3}}'])
def test_a_damaged_note_is_as_good_as_none(tmp_path: Path, noted: bytes) -> None:
    table = pyarrow.table({"image": [{"bytes": png(255)}], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert load(str(tmp_path), GREY).train.y.tolist() == [1]


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="unreadable parquet"):
        load(str(tmp_path), GREY)


def test_a_second_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [png(1)], [0])
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="unreadable parquet"):
        load(str(tmp_path), GREY)


def test_labels_that_are_missing_are_refused(tmp_path: Path) -> None:
    for number, labels in enumerate([[-1], [3]]):
        write(tmp_path / str(number) / "train.parquet", [png(1)], labels)
        with pytest.raises(DataError, match=r"allowed 0\.\.2"):
            load(str(tmp_path / str(number)), GREY)
    write(tmp_path / "empty" / "train.parquet", [], [])
    with pytest.raises(DataError, match="train split: got '0 rows'"):
        load(str(tmp_path / "empty"), GREY)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "image 1 .* unreadable"),
        (b"", "image 1 .* unreadable"),
        (png(1)[:40], "image 1 .* unreadable"),
        (png(1, size=(3, 2)), "one shape for all"),
        (png(1, "RGB"), "one shape for all"),
        (png(1, "RGBA"), "mode RGBA"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(
    tmp_path: Path, raw: bytes | None, message: str
) -> None:
    write(tmp_path / "train.parquet", [png(1), raw], [0, 1])
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), GREY)


def test_colour_is_never_turned_grey_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(1, "RGB")], [0])
    with pytest.raises(DataError, match=r"\(3, 2, 2\).*allowed \(1, 2, 2\).*in silence"):
        load(str(tmp_path), GREY)


# --- folders of classes


def pictures(folder: Path, names: Sequence[str], values: Sequence[int]) -> None:
    for name, value in zip(names, values, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{value}.png").write_bytes(png(value))
        (folder / name / "notes.txt").write_text("not an image")


def test_a_folder_for_each_class_is_read(tmp_path: Path) -> None:
    pictures(tmp_path, NAMES, [0, 51, 255])
    read = load(str(tmp_path), GREY)
    assert read.train.y.tolist() == [0, 1, 2]
    assert read.train.x[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert read.test is None
    assert read.labels == NAMES


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    pictures(tmp_path / "train", NAMES, [0, 51, 255])
    pictures(tmp_path / "test", NAMES[1:], [102, 153])
    read = load(str(tmp_path), GREY)
    assert read.train.y.tolist() == [0, 1, 2]
    assert read.test is not None
    assert read.test.y.tolist() == [1, 2]


def test_a_peer_may_hold_only_some_of_the_named_classes(tmp_path: Path) -> None:
    pictures(tmp_path, ["eel", "cat"], [0, 51])
    task = Task(input=(1, 2, 2), classes=3, labels=("dog", "eel", "cat"))
    assert sorted(load(str(tmp_path), task).train.y.tolist()) == [1, 2]


def test_a_folder_that_is_no_class_of_the_session_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path, ["eel", "fox"], [0, 51])
    with pytest.raises(DataError, match=r"fox.*allowed 3: cat, dog, eel"):
        load(str(tmp_path), Task(input=(1, 2, 2), classes=3, labels=NAMES))


def test_without_names_in_the_session_every_class_must_be_there(tmp_path: Path) -> None:
    pictures(tmp_path, ["eel", "cat"], [0, 51])
    with pytest.raises(DataError, match=r"2: cat, eel.*allowed 3: any names"):
        load(str(tmp_path), GREY)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no images"):
        load(str(tmp_path), GREY)


# --- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("/api/datasets/me/tiny") else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on loopback that has the dataset `me/tiny`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def in_memory(split: dict[str, list[int]]) -> datasets.DatasetDict:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": png(51 * label), "path": None} for label in labels],
                    "label": labels,
                },
                features=features,
            )
            for name, labels in split.items()
        }
    )


@pytest.mark.usefixtures("hub")
def test_a_dataset_of_the_hub_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(ref: str) -> datasets.DatasetDict:
        assert ref == "me/tiny"
        return in_memory({"train": [2, 0], "test": [1]})

    monkeypatch.setattr(datasets, "load_dataset", found)
    read = load("me/tiny", GREY)
    assert read.train.y.tolist() == [2, 0]
    assert read.train.x[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0])
    assert read.test is not None
    assert read.test.y.tolist() == [1]


@pytest.mark.usefixtures("hub")
def test_a_hub_dataset_without_a_training_split_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda ref: in_memory({"test": [1]}))
    with pytest.raises(DataError, match=r"\['test'\], allowed a split called train"):
        load("me/tiny", GREY)


@pytest.mark.usefixtures("hub")
def test_what_the_datasets_library_refuses_is_an_error_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(ref: str) -> datasets.DatasetDict:
        raise ValueError("Config name is missing")

    monkeypatch.setattr(datasets, "load_dataset", failing)
    with pytest.raises(DataError, match="Config name is missing"):
        load("me/tiny", GREY)


@pytest.mark.usefixtures("hub")
def test_a_dataset_the_hub_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"'me/other'.*hub answered 404"):
        load("me/other", GREY)


@pytest.mark.parametrize("data_dir", [None, Path("/the/data")])
def test_without_a_network_one_is_told_where_to_put_the_files(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path | None
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(data, "HUB_DEADLINE_S", 1.0)
    place = "/the/data/me/tiny" if data_dir else "P2PL_DATA_DIR=DIR"
    with pytest.raises(DataError, match=f"cannot be reached.*{place}"):
        load("me/tiny", GREY, data_dir=data_dir)


def test_whoever_works_offline_is_not_asked_for_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda ref: in_memory({"train": [1]}))
    assert load("me/tiny", GREY).train.y.tolist() == [1]


# --- missing extras


@pytest.mark.parametrize(
    ("ref", "module", "extra"),
    [
        ("digits", "sklearn", r"p2pl\[data\]"),
        ("FOLDER", "pyarrow", r"p2pl\[hf\]"),
        ("FOLDER", "PIL", r"p2pl\[hf\]"),
        ("me/tiny", "datasets", r"p2pl\[hf\]"),
    ],
)
def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, module: str, extra: str
) -> None:
    small(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(DataError, match=extra):
        load(str(tmp_path) if ref == "FOLDER" else ref, GREY)


# --- validation


def test_validation_rows_are_random_and_disjoint_from_the_rest() -> None:
    train, held_out = split_validation(50, 0.2, seeded("s", "p", 0, "validation"))
    again, _ = split_validation(50, 0.2, seeded("s", "p", 0, "validation"))
    assert (len(train), len(held_out)) == (40, 10)
    assert torch.equal(train, again)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert held_out.tolist() != list(range(10))


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.05, 1), (2, 0.5, 1), (10, 0.05, 1)])
def test_each_side_keeps_at_least_one_row(count: int, share: float, held: int) -> None:
    train, held_out = split_validation(count, share, torch.Generator())
    assert (len(train), len(held_out)) == (count - held, held)


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"1 rows.*at least 2"):
        split_validation(1, 0.2, torch.Generator())


# --- real data


@pytest.mark.parametrize(
    ("ref", "shape", "mean"),
    [
        ("ylecun/mnist", (1, 28, 28), 0.1307),
        ("zalando-datasets/fashion_mnist", (1, 28, 28), 0.2860),
        ("uoft-cs/cifar10", (3, 32, 32), 0.4734),
    ],
)
def test_published_datasets_have_their_published_mean(
    ref: str, shape: tuple[int, ...], mean: float
) -> None:
    folder = os.environ.get("P2PL_DATA_DIR")
    if folder is None or not (Path(folder) / ref).is_dir():
        pytest.skip(f"P2PL_DATA_DIR does not name a folder with {ref}")
    task = Task(input=shape, classes=10)
    read = load(ref, task, data_dir=Path(folder), shard=Shard(0, 60, "iid"))
    assert float(read.train.x.mean()) == pytest.approx(mean, abs=0.01)
    assert read.test is not None
    assert torch.bincount(read.test.y).tolist() == [1_000] * 10 or ref == "ylecun/mnist"
    assert np.prod(read.train.x.shape[1:]) == np.prod(shape)
