"""Figures are kept as the same bytes, and are stale when what made them says something else."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.rows import row_of

from experiments import grid, store
from experiments.grid import Cell


def test_the_same_rows_give_the_same_bytes_in_whatever_order(tmp_path: Path) -> None:
    rows = [row_of(name, {"z": 1, "a": [0.5]}) for name in ("b", "a")]
    one, other = tmp_path / "one.jsonl.gz", tmp_path / "other.jsonl.gz"
    store.write(one, rows)
    store.write(other, rows[::-1])
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes()[4:8] == bytes(4)  # gzip's time
    lines = gzip.decompress(one.read_bytes()).decode().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == ["a", "b"]
    assert list(store.read(one)["a"].figures) == ["z", "a"]  # in their own order


def test_every_file_of_the_project_is_as_it_would_be_written() -> None:
    files = sorted((grid.ROOT / "results" / "raw").iterdir())
    assert [file.name for file in files] == [f"{name}.jsonl.gz" for name in sorted(grid.STUDIES)]
    for file in files:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        assert list(store.read(file)) == sorted(json.loads(line)["cell"] for line in lines)


def test_a_row_is_stale_once_its_session_file_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    file = tmp_path / "a.toml"
    plain = Cell("plain", ("a.toml", "--seeds", "2"))
    fixed = Cell("fixed", ("a.toml", "--set", "training.learning_rate=0.5"))
    file.write_text("[training]\nlearning_rate = 0.1\n")
    rows = {
        cell.name: row_of(cell.name, command=cell.command, session=cell.session)
        for cell in (plain, fixed)
    }
    assert store.is_fresh(rows["plain"], plain)
    file.write_text('comment = "new"\n[training]\nlearning_rate = 0.1  # chosen\n')
    assert store.is_fresh(rows["plain"], plain)
    file.write_text("[training]\nlearning_rate = 0.2\n")
    assert not store.is_fresh(rows["plain"], plain)
    assert store.is_fresh(rows["fixed"], fixed)  # its command says the rate itself
    file.write_text("[training]\nlearning_rate = 0.2\nmomentum = 0.9\n")
    assert not store.is_fresh(rows["fixed"], fixed)


def test_a_row_is_stale_with_another_command_or_another_major_version() -> None:
    cell = Cell("one", ("x",), script="/bin/echo")
    row = row_of("one", command="/bin/echo x", torch="2.0.0")
    assert store.is_fresh(row, cell)
    assert not store.is_fresh(None, cell)
    assert not store.is_fresh(replace(row, command="/bin/echo y"), cell)
    assert not store.is_fresh(row_of("one", command="/bin/echo x", torch="1.13.1"), cell)
    assert store.is_fresh(replace(row, commit="0" * 40), cell)  # a commit alone is no reason


def test_session_files_that_moved_make_nothing_stale() -> None:
    cell = Cell("one", ("experiments/sessions/logreg.toml", "--seeds", "5"))
    old = "p2pl simulate scripts/sessions/logreg.toml --seeds 5"
    assert store.is_fresh(row_of("one", command=old, session=cell.session), cell)
    assert grid.normalised("x /my/scripts/sessions/a.toml") == "x /my/scripts/sessions/a.toml"


def test_a_row_says_which_client_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = {"a" * 40: "same", "b" * 40: "other", "HEAD": "same"}
    monkeypatch.setattr(store, "client_tree", trees.__getitem__)
    monkeypatch.setattr(store, "is_dirty", lambda: False)
    assert store.origin(row_of("one", commit="a" * 40)) == ""
    assert "of commit bbbbbbbbbbbb" in store.origin(row_of("one", commit="b" * 40))
    assert "changed" in store.origin(replace(row_of("one", commit="a" * 40), dirty=True))
    old = replace(row_of("one"), recorded_by="c" * 40)
    assert store.origin(old).endswith("not known; recorded by cccccccccccc")


def test_every_row_of_the_project_knows_its_command_or_what_recorded_it() -> None:
    for name in grid.STUDIES:
        for row in store.read(store.path(grid.ROOT / "results" / "raw", name)).values():
            assert row.commit or row.recorded_by
            assert row.command or name == "raft"
