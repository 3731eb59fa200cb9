"""Tables in CSV and parquet files: encoded as the session says, and every fault named."""

import math
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from p2pl.data import frames
from p2pl.data.load import Shard, load
from p2pl.errors import DataError
from p2pl.protocol.session import Column, Table, Task

TASK = Task(input=(6,), classes=2, labels=("no", "yes"))
TABLE = Table(
    target="sick",
    columns=(
        Column(name="age", mean=50.0, std=10.0, missing="indicator"),
        Column(name="site", kind="categorical", categories=("left", "right"), missing="indicator"),
        Column(name="dose", mean=1.0, std=2.0, missing="refused"),
    ),
)
HEADER = "age,site,dose,sick"


def table(tmp_path: Path, *lines: str, name: str = "a.csv") -> str:
    """Returns the path of a CSV file of these lines."""
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return str(tmp_path / name)


def fault(ref: str, task: Task = TASK, columns: Table = TABLE) -> str:
    """Returns what is said of a file that cannot be used."""
    with pytest.raises(DataError) as told:
        load(ref, task, form=columns)
    return str(told.value)


def test_a_row_becomes_one_vector_as_the_session_says(tmp_path: Path) -> None:
    ref = table(
        tmp_path, "more,sick,site,age,dose", "x,yes,right,70,1", 'y,no,"left", NA ,5', "z,no,,50,1"
    )
    data = load(ref, TASK, form=TABLE)
    # age, whether it is missing; left, right, whether there is none; dose
    assert data.train.x.tolist() == [[2, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 2], [0, 0, 0, 0, 1, 0]]
    assert data.train.y.tolist() == [1, 0, 0]
    assert (data.test, data.labels) == (None, ("no", "yes"))


def test_a_gap_is_the_mean_where_the_session_says_nothing_else(tmp_path: Path) -> None:
    columns = Table(target="sick", columns=(Column(name="age", mean=50.0, std=10.0),))
    ref = table(tmp_path, "age,sick", "null,yes", ",no", "60,no")
    data = load(ref, Task(input=(1,), classes=2, labels=("no", "yes")), form=columns)
    assert data.train.x.tolist() == [[0], [0], [1]]


def test_parquet_gives_the_same_vectors_as_csv(tmp_path: Path) -> None:
    rows = {
        "age": pyarrow.array([70.5, None, float("nan")]),
        "site": pyarrow.array(["right", "left", None]).dictionary_encode(),
        "dose": pyarrow.array([1, 5, 2], pyarrow.int8()),
        "sick": ["yes", "no", "no"],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    ref = table(tmp_path, HEADER, "70.5,right,1,yes", ",left,5,no", "NaN,,2,no")
    one, other = load(ref, TASK, form=TABLE), load(str(tmp_path / "a.parquet"), TASK, form=TABLE)
    assert one.train.x.equal(other.train.x)
    assert one.train.y.equal(other.train.y)


def test_numbers_that_stand_for_categories_may_have_become_floats(tmp_path: Path) -> None:
    rows = {"on": [True, False, None], "grade": [1.0, None, 2.0], "y": [1, 0, 1]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    columns = Table(
        target="y",
        columns=(
            Column(name="on", kind="categorical", categories=("false", "true")),
            Column(name="grade", kind="categorical", categories=("1", "2")),
        ),
    )
    data = load(str(tmp_path / "a.parquet"), Task(input=(4,), classes=2), form=columns)
    assert data.train.x.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert data.train.y.tolist() == [1, 0, 1]


def test_pieces_of_a_long_file_are_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [HEADER, *(f"{50 + number},left,1,no" for number in range(10))]
    ref = table(tmp_path, *lines)
    whole = load(ref, TASK, form=TABLE)
    monkeypatch.setattr(frames, "PIECE_ROWS", 3)
    assert load(ref, TASK, form=TABLE).train.x.equal(whole.train.x)
    broken = table(tmp_path, *lines, "x,left,1,no", name="b.csv")
    assert "column 'age': row 12: got 'x', allowed a number" in fault(broken)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            (HEADER.replace("age", "years"), "1,left,1,no"),
            "column 'age': missing; the file has years",
        ),
        (
            (HEADER, "1,left,1,no", "1,up,1,no"),
            "column 'site': row 3: got 'up', allowed left, right",
        ),
        ((HEADER, "old,left,1,no"), "column 'age': row 2: got 'old', allowed a number"),
        ((HEADER, "1_0,left,1,no"), "column 'age': row 2: got '1_0', allowed a number"),
        (
            (HEADER, '"1,5",left,1,no'),
            "column 'age': row 2: got '1,5', allowed a number, with a point",
        ),
        ((HEADER, "inf,left,1,no"), "column 'age': row 2: got 'inf', allowed a number"),
        (
            (HEADER, "1e9,left,1,no"),
            "row 2: got '1e9', allowed 50, give or take a million times 10",
        ),
        ((HEADER, "1,left,,no"), "column 'dose': row 2: got 'no value', allowed one"),
        ((HEADER, "1,left,1,"), "column 'sick': row 2: got 'no value', allowed a target in every"),
        ((HEADER, "1,left,1,maybe"), "column 'sick': row 2: got 'maybe', allowed no, yes"),
        ((HEADER + ",age", "1,left,1,no,2"), "header: a name: got 'age', allowed each name once"),
        (
            (HEADER.replace(",", ";"), "1;left;1;no"),
            "between two columns: got ';', allowed a comma",
        ),
        ((HEADER.replace(",", "\t"), "1\tleft\t1\tno"), r"got '\t', allowed a comma"),
        ((HEADER, "1,left,1"), "rows: row 2: got '3 cells', allowed 4, as the header has"),
        ((HEADER,), "rows below the header: got 0, allowed at least one"),
        ((HEADER, '1,"left,1,no'), "unexpected end of data"),
        (("",), "got 'an empty first row', allowed a header"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, lines: tuple[str, ...], told: str) -> None:
    assert told in fault(table(tmp_path, *lines))


def test_files_that_are_no_text_and_no_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    assert "got 'an empty file', allowed a header" in fault(str(tmp_path / "empty.csv"))
    (tmp_path / "latin.csv").write_bytes("age,größe\n1,2\n".encode("latin-1"))
    assert "allowed UTF-8" in fault(str(tmp_path / "latin.csv"))
    (tmp_path / "bad.parquet").write_bytes(b"age,size\n1,2\n")
    assert "unreadable parquet" in fault(str(tmp_path / "bad.parquet"))
    parquet.write_table(pyarrow.table({"age": [1], "sick": ["no"]}), tmp_path / "odd.parquet")
    whole = (tmp_path / "odd.parquet").read_bytes()
    (tmp_path / "odd.parquet").write_bytes(whole.replace(b"sick", b"\xffick"))
    assert "unreadable parquet" in fault(str(tmp_path / "odd.parquet"))
    (tmp_path / "a.xlsx").touch()
    assert "allowed a file .csv or .parquet" in fault(str(tmp_path / "a.xlsx"))
    assert "the session is for a table" in fault(str(tmp_path / "nowhere.csv"))
    rows = {"age": [[1.0]], "site": ["left"], "dose": [1], "sick": ["no"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "list.parquet")
    assert "column 'age': type: got 'list<" in fault(str(tmp_path / "list.parquet"))


def test_all_faults_are_told_at_once_and_not_at_any_length(tmp_path: Path) -> None:
    rows = [f"old,up,{number},perhaps" for number in range(100)]
    told = fault(table(tmp_path, "age,site,size,sick", *rows))
    assert "301 faults" in told
    assert "column 'dose': missing" in told
    age = "column 'age': row 4: got 'old', allowed a number, with a point where it has decimals"
    assert f"{age} (and 97 more)" in told
    assert "column 'sick': row 2: got 'perhaps'" in told
    assert len(told.splitlines()) == 1 + 1 + 3 * 3


def test_many_columns_with_faults_are_counted(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(30)]
    columns = Table(target="y", columns=tuple(Column(name=name) for name in names))
    ref = table(tmp_path, ",".join([*names, "y"]), ",".join(["x"] * 30 + ["0"]))
    told = fault(ref, Task(input=(30,), classes=2), columns)
    assert "30 faults" in told
    assert "and 10 faults in other places" in told


def test_a_file_with_a_byte_order_mark_blank_lines_and_windows_line_ends_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbf" + f"{HEADER}\r\n\r\n50,left,1,no\r\n\r\n".encode()
    )
    assert load(str(tmp_path / "a.csv"), TASK, form=TABLE).train.x.tolist() == [[0, 0, 1, 0, 0, 0]]


def test_a_folder_has_files_to_train_on_and_files_to_score_on(tmp_path: Path) -> None:
    table(tmp_path, HEADER, "50,left,1,no", name="train-1.csv")
    table(tmp_path, HEADER, "60,left,1,yes", name="train-2.csv")
    table(tmp_path, HEADER, "70,right,1,no", name="test.csv")
    data = load(str(tmp_path), TASK, form=TABLE)
    assert data.train.x[:, 0].tolist() == [0, 1]
    assert data.test is not None
    assert data.test.x[:, 0].tolist() == [2]
    (tmp_path / "train-1.csv").unlink()
    (tmp_path / "train-2.csv").unlink()
    assert "got 'test.csv', allowed files .csv, .parquet" in fault(str(tmp_path))


def test_a_share_becomes_the_test_set_always_the_same_and_before_shards_are_dealt(
    tmp_path: Path,
) -> None:
    ref = table(tmp_path, HEADER, *(f"{number},left,1,no" for number in range(50)))
    whole = load(ref, TASK, form=TABLE, test_share=0.2)
    shards = [load(ref, TASK, form=TABLE, test_share=0.2, shard=Shard(i, 2, "iid")) for i in (0, 1)]
    assert whole.test is not None
    assert len(whole.test) == 10
    assert whole.test_share == 0.2
    tests = [shard.test.x for shard in shards if shard.test is not None]
    assert all(test.equal(whole.test.x) for test in tests)
    ages = [row for part in (*shards, whole) for row in part.train.x[:, 0].tolist()]
    assert sorted(ages[:40]) == sorted(ages[40:])
    assert not set(ages) & set(whole.test.x[:, 0].tolist())
    for wrong in (1.0, math.nan, math.inf):
        with pytest.raises(DataError, match=f"--test-share: got {wrong}, allowed above 0 and"):
            load(ref, TASK, form=TABLE, test_share=wrong)
    with pytest.raises(DataError, match="have a test split of their own"):
        load("digits", Task(input=(1, 8, 8), classes=10), test_share=0.2)


def test_a_table_is_for_sessions_with_one_and_its_classes_can_be_dealt(tmp_path: Path) -> None:
    ref = table(tmp_path, HEADER, *["50,left,1,no", "50,left,1,yes"] * 20)
    data = load(ref, TASK, form=TABLE, shard=Shard(0, 2, "classes:1"))
    assert len(set(data.train.y.tolist())) == 1
    with pytest.raises(DataError, match="--schema-from FILE"):
        load(ref, TASK)


def test_numbers_are_scaled_in_float64(tmp_path: Path) -> None:
    columns = Table(target="y", columns=(Column(name="time", mean=1.7e9, std=0.5),))
    ref = table(tmp_path, "time,y", "1700000000.25,0", "1700000001,1")
    data = load(ref, Task(input=(1,), classes=2), form=columns)
    assert data.train.x.tolist() == [[0.5], [2.0]]
    assert not math.isclose(np.float32(1700000000.25), 1700000000.25, rel_tol=1e-12)
