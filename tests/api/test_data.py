"""Data of one's own through the API: tables, data sets, and what models are scored on."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import p2pl as command
from torch import nn
from torch.utils.data import TensorDataset, random_split

import p2pl
from p2pl.errors import DataError, ModelError
from p2pl.events import Event, Said
from p2pl.report.run import write_report
from p2pl.run.log import ScoredOn, Summary, read_run

ROWS = [
    f"p{n},{n},{'NA' if n % 7 == 0 else 'ab'[n % 2]},{'yes' if n > 30 else 'no'}" for n in range(60)
]
SPEC: dict[str, Any] = {
    "name": "clinic",
    "task": {},
    "model": {"name": "mlp", "arguments": {"hidden": [8]}},
    "training": {"learning_rate": 0.5, "batch_size": 16},
    "exchange": {"rounds": 10, "cohort": 1},
}
TOML = """
name = "clinic"
task = {}
model = { name = "logreg" }
training = { learning_rate = 0.5, batch_size = 16 }
exchange = { rounds = 2, cohort = 1 }
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Returns a CSV file of sixty people."""
    (tmp_path / "a.csv").write_text("\n".join(["id,age,site,sick", *ROWS]))
    return tmp_path / "a.csv"


def session(table: Path) -> p2pl.SessionFile:
    """Returns a session for tables like this one."""
    out = table.with_name("clinic.torrent")
    return p2pl.create(SPEC, out, schema_from=table, target="sick", leave_out=["id"])


def summary_of(run: p2pl.Run) -> Summary:
    """Returns how a run ended."""
    assert run.summary is not None
    return run.summary


def test_one_name_may_stand_for_a_list_of_one(table: Path, tmp_path: Path) -> None:
    listed = session(table)
    one = p2pl.create(
        SPEC, tmp_path / "b.torrent", schema_from=table, target="sick", leave_out="id"
    )
    assert one.id == listed.id


@pytest.mark.parametrize(("later", "is_said"), [(None, False), (0.25, True)])
def test_a_run_that_goes_on_with_other_data_is_told_so(
    table: Path, tmp_path: Path, later: float | None, is_said: bool
) -> None:
    said: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Said):
            said.append(event.text)

    def join(rounds: int, share: float | None) -> None:
        p2pl.join(
            session(table),
            data=table,
            alone=True,
            run_dir=tmp_path / "run",
            rounds=rounds,
            test_share=share,
            on_event=note,
        )

    join(2, None)
    assert not any("earlier rounds" in one for one in said)
    join(3, later)
    assert any("earlier rounds" in one for one in said) == is_said


@pytest.mark.parametrize("share", [None, 0.25])
def test_the_summary_and_the_report_say_what_models_are_scored_on(
    table: Path, tmp_path: Path, share: float | None
) -> None:
    run = p2pl.join(
        session(table), data=table, alone=True, run_dir=tmp_path / "run", test_share=share
    )
    drawn = ScoredOn(source="drawn", examples=15, share=0.25)
    expected = drawn if share else ScoredOn(source="validation", examples=12)
    assert summary_of(run).test_set == expected
    assert (summary_of(run).accuracy or 0) > 70
    report = write_report([tmp_path / "run"], tmp_path / "report")
    assert f"Scored on {expected.said}." in report.page.read_text()
    assert json.loads(report.numbers_file.read_text())["test_sets"][0]["source"] == expected.source


def test_a_test_file_and_the_second_of_a_pair_are_given(table: Path, tmp_path: Path) -> None:
    file, given = session(table), ScoredOn(source="given", examples=20)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.csv").write_text("\n".join(["id,age,site,sick", *ROWS[:40]]))
    (folder / "test.csv").write_text("\n".join(["id,age,site,sick", *ROWS[40:]]))
    run = p2pl.join(file, data=folder, alone=True, rounds=1, run_dir=tmp_path / "folder")
    assert summary_of(run).test_set == given
    own = TensorDataset(torch.rand(60, 4), torch.arange(60) % 2)
    one, other = random_split(own, [40, 20])
    pair = (one, other)
    run = p2pl.join(file, data=pair, alone=True, rounds=1, run_dir=tmp_path / "pair")
    assert summary_of(run).test_set == given
    with pytest.raises(DataError, match="have a test set of their own"):
        p2pl.join(file, data=pair, alone=True, run_dir=tmp_path / "no", test_share=0.5)
    with pytest.raises(DataError, match="leave one of them out"):
        p2pl.join(file, data=own, test=own, alone=True, run_dir=tmp_path / "no", test_share=0.5)


def test_a_table_is_simulated_and_its_run_directories_say_so(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = p2pl.simulate(session(table), table, 3, test_share=0.2, out=out, curves=False)
    assert found.figures["test_share"] == 0.2
    summary = read_run(out / "seed-0" / "peer-0").summary
    assert summary is not None
    assert summary.test_set == ScoredOn(source="drawn", examples=12, share=0.2)
    with pytest.raises(DataError, match="no test split"):
        p2pl.simulate(session(table), table, 3)


def test_the_command_line_makes_shows_and_joins_a_session_for_a_table(
    table: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(TOML)
    make = ("create", "s.toml", "--out", "c.torrent", "--schema-from", "a.csv")
    done = command(*make, "--target", "sick", cwd=tmp_path)
    assert done.returncode == 2
    assert "column 'id': 60 different texts, e.g. 'p0'; leave it out" in done.stderr
    assert "--schema-from a.csv: 1 fault" in done.stderr  # as the author knows the file
    assert "--data" not in done.stderr
    assert not (tmp_path / "c.torrent").exists()
    done = command(*make, "--target", "sick", "--leave-out", "id", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = command("inspect", "c.torrent", cwd=tmp_path).stdout
    for line in (
        "target sick; 2 columns, of which a row becomes",
        "age: numeric, mean 29.5, std 17.3",
        "site: categorical, a, b; gaps",
    ):
        assert line in done.stdout
        assert line in shown
    join = ("join", "c.torrent", "--alone", "--run-dir", "run", "--data")
    done = command(*join, "a.csv", "--test-share", "0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a.csv, 48 examples, 12 drawn to test on" in done.stdout
    (tmp_path / "b.csv").write_text("id,age,site,sick\np,old,c,no\n")
    done = command(*join, "b.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "b.csv: 2 faults" in done.stderr
    assert "column 'age': row 2: got 'old', allowed a number" in done.stderr
    assert "column 'site': row 2: got 'c', allowed a, b" in done.stderr
    done = command("create", "s.toml", "--out", "d.torrent", "--target", "sick", cwd=tmp_path)
    assert "allowed only with --schema-from" in done.stderr


def test_a_private_run_is_for_tables_too(table: Path, tmp_path: Path) -> None:
    file = session(table)
    run = p2pl.join(
        file,
        data=table,
        alone=True,
        rounds=1,
        run_dir=tmp_path / "run",
        dp_epsilon=5,
        test_share=0.2,
    )
    assert summary_of(run).epsilon
    assert summary_of(run).delta == pytest.approx(1e-5)
    assert summary_of(run).test_set == ScoredOn(source="drawn", examples=12, share=0.2)


def test_a_module_that_cannot_take_the_rows_of_the_table_is_refused(table: Path) -> None:
    spec = SPEC | {"model": {"name": "arrays"}}
    width = session(table).session.table.width  # type: ignore[union-attr]
    for taken, fits in ((width, True), (99, False)):
        made = nn.Sequential(nn.Linear(taken, 2), nn.Dropout(0.5).eval())
        told = rf"given \[2, {width}\].* row of the session's table is {width} numbers"
        with contextlib.nullcontext() if fits else pytest.raises(ModelError, match=told):
            p2pl.create(
                spec,
                table.with_name("clinic.torrent"),
                model=made,
                schema_from=table,
                target="sick",
                leave_out=["id"],
            )
        assert [part.training for part in made.modules()] == [True, True, False]  # as it was
