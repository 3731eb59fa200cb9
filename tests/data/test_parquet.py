"""Parquet files: which columns, which split, which rows, which class numbers."""

import json
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from support.image_sets import GREY, NAMES, png, small, write

from p2pl.data.load import Shard, load, load_labels
from p2pl.errors import DataError
from p2pl.protocol.session import Task


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


def test_a_dataset_id_is_looked_for_in_the_data_folder_before_the_hub_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small(tmp_path / "ylecun" / "tiny")
    assert load("ylecun/tiny", GREY, data_dir=tmp_path).train.y.tolist() == [0, 2, 1]
    assert not caplog.messages


def test_what_is_here_comes_before_what_has_its_name_in_the_data_folder_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small(tmp_path / "mine")
    write(tmp_path / "data" / "mine" / "train.parquet", [png(0)], [1])
    monkeypatch.chdir(tmp_path)
    assert load("mine", GREY, data_dir=tmp_path / "data").train.y.tolist() == [0, 2, 1]
    there = tmp_path / "data" / "mine"
    assert caplog.messages == [f"--data mine: what is here is taken, and not {there}"]
    caplog.clear()
    assert load("mine", GREY, data_dir=tmp_path).train.y.tolist() == [0, 2, 1]  # the same folder
    assert not caplog.messages


def test_the_digits_that_come_with_a_package_are_taken_and_a_folder_of_that_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load("digits", Task(input=(1, 8, 8), classes=10)).train)
    assert "write ./digits" in caplog.text


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


@pytest.mark.parametrize("labels", [(), NAMES, NAMES[::-1]])
def test_a_number_means_what_its_own_file_says(tmp_path: Path, labels: tuple[str, ...]) -> None:
    # Class 0, 1, 2 are 0, 100, 200 bright: as the first file has it, then backwards.
    write(tmp_path / "train-0.parquet", [png(v) for v in (0, 100, 200)], [0, 1, 2])
    write(tmp_path / "train-1.parquet", [png(v) for v in (0, 200)], [2, 0], NAMES[::-1])
    write(tmp_path / "test.parquet", [png(100), png(200)], [0, 1], ("dog", "eel", "cat"))
    read = load(str(tmp_path), Task(input=(1, 2, 2), classes=3, labels=labels))
    order = labels or NAMES
    assert read.labels == order
    assert [order[y] for y in read.train.y] == ["cat", "dog", "eel", "cat", "eel"]
    assert read.train.x[:, 0, 0, 0].mul(255).round().tolist() == [0, 100, 200, 0, 200]
    assert read.test is not None
    assert [order[y] for y in read.test.y] == ["dog", "eel"]


def test_a_file_with_other_names_than_the_first_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [png(1)], [0])
    for names, got in ((("cat", "dog", "fox"), "cat, dog, fox"), (None, "column label, without")):
        write(tmp_path / "train-1.parquet", [png(1)], [0], names)
        with pytest.raises(DataError, match=rf"train-1.*got '{got}.*as in train-0.*cat, dog, eel"):
            load(str(tmp_path), GREY)


def test_a_file_may_lack_a_class_that_the_session_names(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(1), png(2)], [0, 1], ("eel", "cat"))
    read = load(str(tmp_path), Task(input=(1, 2, 2), classes=3, labels=NAMES))
    assert read.train.y.tolist() == [2, 0]


def test_a_note_may_count_the_classes_and_not_name_them(tmp_path: Path) -> None:
    noted = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "num_classes": 3}}
    for labels in ([0, 2], [0, 3]):
        table = pyarrow.table({"image": [{"bytes": png(1)}] * 2, "label": labels})
        noted_table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": noted}})}
        )
        pyarrow.parquet.write_table(noted_table, tmp_path / "train.parquet")
        if labels == [0, 2]:
            assert load(str(tmp_path), GREY).train.y.tolist() == labels
    with pytest.raises(DataError, match=r"got '0..3', allowed 0..2"):
        load(str(tmp_path), GREY)


def test_files_may_write_their_numbers_in_different_types(tmp_path: Path) -> None:
    for number, kind in enumerate((pyarrow.int64(), pyarrow.uint8())):
        columns = {"image": [{"bytes": png(1)}], "label": pyarrow.array([number], kind)}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"train-{number}.parquet")
    assert load(str(tmp_path), GREY).train.y.tolist() == [0, 1]


def test_a_row_without_a_class_is_refused(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": png(1)}] * 2, "label": pyarrow.array([0, None])}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"labels of train\.parquet: got '1 rows without one'"):
        load(str(tmp_path), GREY)


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_of_another_type_than_noted_is_refused(tmp_path: Path, column: str) -> None:
    noted = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
    columns = {"image": [{"bytes": png(1)}], "label": [0]} | {column: ["text"]}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": noted}})}
    )
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"column {column} of train.parquet: got 'string'"):
        load(str(tmp_path), GREY)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("mnist_train", "mnist_test"),
        ("training-0", "testing-0"),
        ("Train", "TEST"),
        ("mnistTrain", "mnistTest"),
        ("training/0", "testing/0"),
        ("mnist/Train/part/0", "mnist/Test/part/0"),
    ],
)
def test_what_is_to_test_on_is_never_trained_on(tmp_path: Path, train: str, test: str) -> None:
    write(tmp_path / f"{train}.parquet", [png(1)] * 3, [0, 1, 2])
    write(tmp_path / f"{test}.parquet", [png(2)], [1])
    read = load(str(tmp_path), GREY)
    assert read.train.y.tolist() == [0, 1, 2]
    assert read.test is not None
    assert read.test.y.tolist() == [1]


def test_a_name_that_says_two_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-test.parquet", [png(1)], [0])
    with pytest.raises(DataError, match="train and test in one name"):
        load(str(tmp_path), GREY)


def test_of_two_data_sets_in_one_folder_one_must_be_named(tmp_path: Path) -> None:
    for home, labels in (("clean", [0, 1]), ("noisy", [1, 0])):
        write(tmp_path / home / "train-0.parquet", [png(1), png(2)], labels)
    with pytest.raises(DataError, match="a train split in each of clean, noisy"):
        load(str(tmp_path), GREY)
    assert load(str(tmp_path / "noisy"), GREY).train.y.tolist() == [1, 0]


def test_one_parquet_file_is_all_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "mine.parquet", [png(1), png(2)], [2, 0])
    read = load(str(tmp_path / "mine.parquet"), GREY)
    assert (read.train.y.tolist(), read.test) == ([2, 0], None)
    for name in ("other.parquet", "me/other.parquet"):  # the hub is not asked for such a name
        with pytest.raises(DataError, match="allowed digits, an existing folder or parquet file"):
            load(name, GREY)
    (tmp_path / "mine.zip").write_bytes(b"")
    with pytest.raises(DataError, match="allowed a folder or a parquet file"):
        load(str(tmp_path / "mine.zip"), GREY)


def test_a_link_to_a_folder_is_followed_and_a_circle_is_not(tmp_path: Path) -> None:
    write(tmp_path / "real" / "train.parquet", [png(1)], [2])
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(tmp_path / "real")
    (data / "self").symlink_to(data)
    assert load(str(data), GREY).train.y.tolist() == [2]


def test_other_class_names_are_refused(tmp_path: Path) -> None:
    task = Task(input=(1, 2, 2), classes=3, labels=("cat", "dog", "fox"))
    with pytest.raises(DataError, match=r"eel.*allowed 3: cat, dog, fox"):
        load(str(small(tmp_path)), task)


def test_a_class_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(0), png(100)], [0, 1], ("cat", "cat", "dog"))
    task = Task(input=(1, 2, 2), classes=3, labels=("cat", "dog", "eel"))
    with pytest.raises(DataError, match="got 'cat 2 times', allowed each name once"):
        load(str(tmp_path), task)


def test_an_accent_may_stand_in_its_letter_or_beside_it(tmp_path: Path) -> None:
    names = ("cat", "b\u00e9b\u00e9", "eel")
    beside = tuple(unicodedata.normalize("NFD", name) for name in names)
    assert beside != names
    write(tmp_path / "train.parquet", [png(0), png(100)], [1, 2], beside)
    task = Task(input=(1, 2, 2), classes=3, labels=names[::-1])
    assert load(str(tmp_path), task).train.y.tolist() == [1, 0]


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


@pytest.mark.parametrize(
    "noted", [b"{", b"[]", b"[" * 100_000, b'{"info": 3}', b'{"info": {"features": 3}}']
)
def test_a_damaged_note_is_as_good_as_none(tmp_path: Path, noted: bytes) -> None:
    table = pyarrow.table({"image": [{"bytes": png(255)}], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert load(str(tmp_path), GREY).train.y.tolist() == [1]


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="unreadable parquet"):
        load(str(tmp_path), GREY)


@pytest.mark.parametrize("found", [b"label", b"image"])
def test_a_column_whose_name_is_damaged_is_refused(tmp_path: Path, found: bytes) -> None:
    write(tmp_path / "train.parquet", [png(1)], [0])
    path = tmp_path / "train.parquet"
    path.write_bytes(path.read_bytes().replace(found, b"\xff" + found[1:]))
    with pytest.raises(DataError, match="unreadable parquet"):
        load(str(path), GREY)


def test_a_second_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [png(1)], [0])
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="unreadable parquet"):
        load(str(tmp_path), GREY)


def test_labels_that_are_missing_are_refused(tmp_path: Path) -> None:
    reverse = Task(input=(1, 2, 2), classes=3, labels=NAMES[::-1])
    for number, labels in enumerate([[-1], [3]]):
        for split in ("train", "test"):
            folder = tmp_path / f"{number}-{split}"
            write(folder / "train.parquet", [png(1)], [0])
            write(folder / f"{split}.parquet", [png(1)], labels)
            for task in (GREY, reverse):  # in another order, -1 would be the last class
                with pytest.raises(DataError, match=rf"{split}.parquet: got .*allowed 0\.\.2"):
                    load(str(folder), task)
    write(tmp_path / "empty" / "train.parquet", [], [])
    with pytest.raises(DataError, match="train split: got '0 rows'"):
        load(str(tmp_path / "empty"), GREY)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (None, "unreadable: not of PNG"),
        (b"", "unreadable: not of PNG"),
        (png(1)[:48], "unreadable: image file is truncated"),
        (png(1, size=(3, 2)), r"shape: got \(1, 2, 3\), allowed \(1, 2, 2\)"),
        (png(1, "RGB"), r"shape: got \(3, 2, 2\), allowed \(1, 2, 2\)"),
        (png(1, "RGBA"), "mode: got 'RGBA, partly transparent', allowed opaque images"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(
    tmp_path: Path, raw: bytes | None, message: str
) -> None:
    write(tmp_path / "train.parquet", [png(1), raw], [0, 1])
    with pytest.raises(DataError, match=rf"1 of 2 images .*: train.parquet row 1: {message}"):
        load(str(tmp_path), GREY)


def test_colour_is_never_turned_grey_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(1, "RGB")], [0])
    with pytest.raises(DataError, match=r"\(3, 2, 2\).*allowed \(1, 2, 2\).*in silence"):
        load(str(tmp_path), GREY)
