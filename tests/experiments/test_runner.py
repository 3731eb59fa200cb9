"""Studies go on where they stopped, and run only what is missing."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, ROOT, wait_until
from support.rows import row_of

from experiments import runner, store
from experiments.grid import Cell
from experiments.store import Row
from p2pl.protocol.session import Task

DIGITS = ("torrentfiles/digits.toml", "--data", "digits", "--peers", "3", "--rounds", "1")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a place for figures; cells run in this process, which has torch loaded."""
    monkeypatch.chdir(ROOT)
    return tmp_path / "raw"


def run(cell: Cell) -> Row:
    """Returns the row of a cell that does not fail."""
    row = runner.run_cell(cell, threads=1)
    assert isinstance(row, Row), row
    return row


def test_experiments_that_start_a_tracker_have_one_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(
        r"p2pl\[(.*?)\]", " ".join(project["optional-dependencies"]["reproduce"])
    )
    assert "tracker" in extras.split(",")


def test_a_row_keeps_what_its_command_prints_and_by_what_it_was_made(raw: Path) -> None:
    cell = Cell("iid", (*DIGITS, "--seeds", "2"))
    assert runner.missing([cell], raw, "small") == [cell]
    row = run(cell)
    assert row.command == f"p2pl simulate {' '.join(cell.arguments)}"
    assert len(row.figures["accuracy"]["per_seed"]) == 2
    assert row.commit == store.commit_now()
    assert row.dirty == store.is_dirty()
    assert set(row.packages) == {"p2pl", "torch", "numpy", "python"}
    store.add(store.path(raw, "small"), row)
    assert runner.missing([cell], raw, "small") == []
    more = Cell("iid", (*DIGITS, "--seeds", "3"))
    assert runner.missing([more], raw, "small") == [more]
    # Another study may show it too, without a second copy.
    assert runner.missing([Cell("iid", cell.arguments, home="small")], raw, "other") == []


def test_a_cell_may_be_any_script_that_prints_json() -> None:
    python = Cell("one", ("--fast",), script="scripts/x.py")
    assert python.command == ".venv/bin/python scripts/x.py --fast"
    other = Cell("two", ('{"x": 0.123456789}',), script="/bin/echo")
    assert other.command == "/bin/echo '{\"x\": 0.123456789}'"
    assert run(other).figures == {"x": 0.1234568}  # 7 digits


def test_a_cell_that_fails_says_why(raw: Path) -> None:
    reason = runner.run_cell(Cell("bad", (*DIGITS, "--partition", "magic")), threads=1)
    assert "magic" in str(reason)


@pytest.mark.slow
def test_cells_run_side_by_side_and_each_is_kept_as_it_is_done(raw: Path) -> None:
    file = store.path(raw, "small")
    store.add(file, row_of("kept", {"x": 1}))
    cells = [Cell("one", ('{"x": 2}',), script="/bin/echo"), Cell("two", ("x",), script="false")]
    assert list(runner.run_cells(cells, raw, "small", jobs=1)) == ["two"]
    figures = {name: row.figures for name, row in store.read(file).items()}
    assert figures == {"kept": {"x": 1}, "one": {"x": 2}}


def test_figures_of_another_client_run_again_only_when_that_is_asked(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "is_dirty", lambda: False)
    cells = [Cell(name, (name,), script="/bin/echo") for name in ("old", "now")]
    commit = store.commit_now()
    for cell, made_by in zip(cells, ("0" * 40, commit), strict=True):
        store.add(store.path(raw, "s"), row_of(cell.name, command=cell.command, commit=made_by))
    assert runner.missing(cells, raw, "s") == []
    again = ["old", "now"] if commit is None else ["old"]
    assert [cell.name for cell in runner.missing(cells, raw, "s", stale=True)] == again


@pytest.mark.timeout(600)
def test_a_worker_ends_with_the_run_that_was_killed(raw: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from experiments import runner, grid\n"
        f"cell = grid.Cell('long', {(*DIGITS[:-1], '100000', '--seeds', '9')})\n"
        "if __name__ == '__main__':\n"
        f"    runner.run_cells([cell], Path({str(raw)!r}), 'small', 1)"
    )
    raw.mkdir()
    script = raw / "run.py"
    script.write_text(code)
    run = subprocess.Popen([sys.executable, script], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: worker_of(run.pid) is not None, PATIENCE_S, "a worker")
        worker = worker_of(run.pid)
    finally:
        run.kill()
        run.wait(10)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), PATIENCE_S, "the end of the worker")


def worker_of(pid: int) -> str | None:
    """Returns the process that a run has started for its cells, once it works on them."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


def test_timed_cells_run_one_at_a_time_and_after_the_others(raw: Path) -> None:
    ran: list[tuple[list[str], int | None]] = []

    def note(cells: Sequence[Cell], jobs: int | None) -> runner.Finished:
        ran.append(([cell.name for cell in cells], jobs))
        return iter(())

    cells = [Cell("one", DIGITS, timed=True), Cell("two", DIGITS)]
    runner.run_cells(cells, raw, "small", jobs=2, running=note)
    assert ran == [(["two"], 2), (["one"], 1)]


def test_an_audit_that_finds_a_claim_false_is_a_result_and_no_failure(
    raw: Path, tmp_path: Path
) -> None:
    spec = (ROOT / "torrentfiles" / "digits.toml").read_text()
    spec = spec.replace('"mlp"\narguments = { hidden = [64] }', '"logreg"')
    spec = spec.replace("batch_size = 16", "batch_size = 256").replace("momentum = 0.9\n", "")
    session = tmp_path / "digits.toml"
    session.write_text(spec)
    words = (str(session), "--data", "digits", "--dp-epsilon", "1", "--models", "0")
    cell = Cell("broken", (*words, "--fault", "no-noise", "--rounds", "40"), verb="audit")
    assert cell.command.startswith("p2pl audit ")
    assert run(cell).figures["verdict"] == "broken"


def test_the_same_data_are_loaded_once_whatever_the_task_says() -> None:
    numbers = iter(range(1, 9))
    load = runner._kept(lambda ref, task: next(numbers))
    settings = [Task(input=(4,), classes=2, arguments={"a": one}) for one in (1, 1, 2)]
    assert [load("digits", task=one) for one in settings] == [1, 1, 2]
