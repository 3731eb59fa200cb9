"""The columns of a table, in a session."""

from typing import Any

import pytest

from p2pl.errors import SessionFileError
from p2pl.protocol import session
from p2pl.protocol.session import Checkpoint, SessionFile

COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "mean": 51.25, "std": 12.0, "missing": "indicator"},
    {"name": "site", "kind": "categorical", "categories": ["left", "right"]},
]
SPEC: dict[str, Any] = {
    "name": "clinic",
    "task": {"classes": 2, "labels": ["no", "yes"]},
    "model": {"name": "logreg"},
    "training": {"learning_rate": 0.1},
    "exchange": {"rounds": 3, "cohort": 1},
    "table": {"target": "sick", "columns": COLUMNS},
}


def spec(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # tables of TOML
    """Returns the spec with fields of its table replaced."""
    return {**SPEC, "table": {**SPEC["table"], **changes}}


def test_the_input_follows_from_the_columns() -> None:
    assert session.spec_of(SPEC).session().task.input == (4,)
    given = {**SPEC, "task": {**SPEC["task"], "input": [4]}}
    assert session.spec_of(given) == session.spec_of(SPEC)


def test_a_table_reads_back_as_itself_and_its_id_never_changes() -> None:
    made = SessionFile("clinic", session.spec_of(SPEC).session(), Checkpoint(8, "ab" * 32), ())
    assert session.decode(made.encode()) == made
    assert made.id == "e9daa359f257fbe95da9172c873410e07a707716b1422fe7ebdb79744f88e7e1"
    task = {"kind": "multilabel", "outputs": 2}
    several = session.spec_of({**spec(target=["sick", "old"]), "task": task}).session()
    made = SessionFile("clinic", several, Checkpoint(8, "ab" * 32), ())
    assert session.decode(made.encode()).session.table == several.table


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (spec(target="age"), "got 'age', allowed each name once"),
        (spec(columns=[*COLUMNS, COLUMNS[0]]), "got 'age', allowed each name once"),
        (spec(columns=[]), "table.columns"),
        (spec(target=[]), "table.target"),
        (spec(target=["sick", "old"]), "table.target: got '2 columns', allowed 1"),
        (
            {**SPEC, "task": {"kind": "regression", "outputs": 2}},
            r"table\.target: got '1 columns', allowed 2",
        ),
        ({**SPEC, "task": {"kind": "language", "classes": 9}}, "task.kind, with a table: got"),
        (spec(columns=[{"name": "a", "kind": "date"}]), "table.columns.*date"),
        (spec(columns=[{"name": "a", "std": 0.0}]), r"table.columns\[0\].std"),
        (spec(columns=[{"name": "a", "kind": "categorical"}]), "'a': .*at least one category"),
        (spec(columns=[{"name": "a", "categories": ["b"]}]), "'a': .*kind is numeric"),
        (
            spec(columns=[{"name": "a", "kind": "categorical", "categories": ["b", "b"]}]),
            "a category stands there twice",
        ),
        (
            spec(columns=[{"name": "a", "kind": "categorical", "categories": ["NA"]}]),
            "got 'NA', allowed none of table.gaps",
        ),
        (
            spec(columns=[{"name": "a", "kind": "categorical", "categories": ["b"], "mean": 1.0}]),
            "mean and std",
        ),
        ({**SPEC, "task": {"classes": 2, "input": [5]}}, r"got \(5,\), allowed \(4,\)"),
        ({**SPEC, "task": {"classes": 2, "mean": [0.5], "std": [1.0]}}, "task.mean: not allowed"),
        ({**SPEC, "task": {"labels": 3}}, "task"),
        ({key: value for key, value in SPEC.items() if key != "task"}, "task"),
    ],
)
def test_what_contradicts_itself_is_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(SessionFileError, match=told):
        session.spec_of(raw)
