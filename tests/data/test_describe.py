"""The table of a session, read off the author's file."""

from pathlib import Path
from typing import Any

import pytest

from p2pl.data.describe import Wanted, completed, describe
from p2pl.data.load import Data, Shard, load
from p2pl.errors import DataError
from p2pl.protocol.session import Column, Table, spec_of

ROWS = [
    "id,age,site,dose,sick",
    *(
        f"p{n},{40 + n},{'' if n == 3 else 'ba'[n % 2]},{n % 3},{'yes' if n > 30 else 'no'}"
        for n in range(61)
    ),
]
SPEC: dict[str, Any] = {
    "name": "clinic",
    "task": {},
    "model": {"name": "mlp"},
    "training": {"learning_rate": 0.1},
    "exchange": {"rounds": 3, "cohort": 1},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Returns a table of 61 people."""
    (tmp_path / "a.csv").write_text("\n".join(ROWS))
    return tmp_path / "a.csv"


def test_columns_are_described_as_they_are(file: Path) -> None:
    table, task = describe(Wanted(file, ("sick",), ("dose",), ("id",)), "classification")
    assert table == Table(
        target="sick",
        columns=(
            Column(name="age", mean=70.0, std=17.6),
            Column(name="site", kind="categorical", categories=("a", "b"), missing="indicator"),
            Column(name="dose", kind="categorical", categories=("0", "1", "2")),
        ),
    )
    assert task == {"classes": 2, "labels": ["no", "yes"]}


def test_the_authors_file_is_one_that_the_session_takes(file: Path) -> None:
    session = spec_of(completed(SPEC, Wanted(file, ("sick",), (), ("id",)))).session()
    assert session.task.input == (5,)
    data = load(str(file), session.task, form=session.table)
    assert abs(float(data.train.x[:, 0].mean())) < 0.01
    assert float(data.train.x[:, 0].std()) == pytest.approx(1, abs=0.02)


def test_what_the_author_wrote_stays(file: Path) -> None:
    spec = {**SPEC, "task": {"labels": ["yes", "no"]}}
    session = spec_of(completed(spec, Wanted(file, ("sick",), (), ("id",)))).session()
    assert session.task.labels == ("yes", "no")
    assert load(str(file), session.task, form=session.table).train.y[0] == 1


def test_the_author_adds_what_the_file_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,site,sick\n40,a,no\n50,b,no\n")
    wanted = Wanted(tmp_path / "a.csv", ("sick",))
    with pytest.raises(DataError, match=r"classes: got 1, allowed 2 or more; write all of them"):
        completed(SPEC, wanted)
    site = {"name": "site", "kind": "categorical", "categories": ["a", "b", "c"]}
    told = {"task": {"labels": ["no", "yes"]}, "table": {"columns": [site]}}
    session = spec_of(completed({**SPEC, **told}, wanted)).session()
    assert session.task.classes == 2
    assert session.table is not None
    assert [column.width for column in session.table.columns] == [1, 3]


def test_numbers_to_predict_have_a_scale(file: Path) -> None:
    spec = {**SPEC, "task": {"kind": "regression", "unit": "years"}}
    session = spec_of(completed(spec, Wanted(file, ("age",), (), ("id",)))).session()
    assert (session.task.outputs, session.task.target_mean) == (1, (70.0,))
    assert session.task.target_std == (17.6,)
    data = load(str(file), session.task, form=session.table, test_share=0.5)
    assert data.train.y.shape == (31, 1)
    assert {40, 41, 100} <= {*data.train.y.flatten().tolist(), *checked_test(data)}
    with pytest.raises(DataError, match="iid or unbalanced"):
        load(str(file), session.task, form=session.table, shard=Shard(0, 2, "classes:1"))


def checked_test(data: Data) -> list[float]:
    """Returns the targets of the test set."""
    assert data.test is not None
    return [float(target) for target in data.test.y.flatten()]


def test_several_labels_are_several_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,cough,fever\n40,1,0\n50,0,1\n")
    spec = {**SPEC, "task": {"kind": "multilabel"}}
    wanted = Wanted(tmp_path / "a.csv", ("cough", "fever"))
    session = spec_of(completed(spec, wanted)).session()
    assert (session.task.outputs, session.task.labels) == (2, ("cough", "fever"))
    data = load(str(tmp_path / "a.csv"), session.task, form=session.table)
    assert data.train.y.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"targets": ("ill",)}, "column 'ill': missing; the file has id, age, site, dose, sick"),
        ({"targets": ()}, "--target: missing"),
        ({"targets": ("sick",)}, "column 'id': 61 different texts, e.g. 'p0'; leave it out"),
        ({"targets": ("age",), "left_out": ("id",)}, "column 'age': classes: got 61, allowed 2"),
        (
            {"targets": ("sick",), "left_out": ("id", "age", "site", "dose")},
            "columns: none but the target",
        ),
    ],
)
def test_what_cannot_be_described_is_named(
    file: Path, wanted: dict[str, tuple[str, ...]], told: str
) -> None:
    with pytest.raises(DataError) as fault:
        describe(Wanted(file, **wanted), "classification")
    assert told in str(fault.value)


def test_a_folder_of_images_is_told_where_its_classes_are_written_down(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--schema-from .*got 'a folder'.*as labels in \[task\]"):
        describe(Wanted(tmp_path, ("sick",)), "classification")


def test_a_text_among_numbers_is_told_as_what_it_is(tmp_path: Path) -> None:
    rows = [f"{n},no" for n in range(60)] + ["unknown,yes"]
    (tmp_path / "a.csv").write_text("\n".join(["age,sick", *rows]))
    with pytest.raises(DataError, match=r"e\.g\. 'unknown', 60 of its 61 rows are numbers"):
        describe(Wanted(tmp_path / "a.csv", ("sick",)), "classification")


def test_a_column_of_one_value_and_one_of_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("c,n,y\n5,,0\n5,,1\n")
    with pytest.raises(DataError, match="column 'n': no value in any row"):
        describe(Wanted(tmp_path / "a.csv", ("y",)), "classification")
    table, _ = describe(Wanted(tmp_path / "a.csv", ("y",), (), ("n",)), "classification")
    assert table.columns == (Column(name="c", mean=5.0, std=1.0),)
