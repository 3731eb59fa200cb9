"""The notebooks run from top to bottom, and what is committed in them is what a reader wants."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import PATIENCE_S, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_000_000
# An absolute path that is not part of an address, e.g. of this machine's home folders.
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:[\w.+-]+/)+[\w.+-]+")


def script(*arguments: str, limit_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs `scripts/notebooks` in this interpreter, with one thread to compute with."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/notebooks.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the cells of one kind, as they are in the file."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def shown(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (kind, content) of everything that a reader sees below a cell."""
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            kind = output["output_type"]
            if kind == "stream":
                yield output["name"], "".join(output["text"])
            for mime, content in output.get("data", {}).items():
                yield mime, "".join(content)
            if kind == "error":
                yield kind, output["ename"]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS][:1] == ["01_quickstart"]


@pytest.mark.slow
@pytest.mark.swarm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    done = script("run", path.stem, "--fast", "--out", str(tmp_path), limit_s=800)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {kind for kind, _ in shown(tmp_path / path.name)}
    assert "image/png" in kinds
    assert path.read_bytes() == before, "a fast run must not replace what a full one showed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_reader_finds_outputs_and_what_run_they_are_of(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    outputs = list(shown(path))
    assert any(kind == "image/png" for kind, _ in outputs)
    assert any(kind == "text/markdown" and "| ---" in content for kind, content in outputs)
    said = ("full run", "fast mode")  # the README names those that show the fast mode so far
    assert any(kind == "stdout" and content.startswith(said) for kind, content in outputs)
    assert not {"stderr", "error"} & {kind for kind, _ in outputs}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_says_nothing_about_the_machine_it_ran_on(path: Path) -> None:
    texts = [content for kind, content in shown(path) if kind != "image/png"]
    assert not [found for text in texts for found in MACHINE_PATH.findall(text)]
    assert not [text for text in texts if os.uname().nodename in text]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_written_to_be_read(path: Path) -> None:
    assert len(cells(path, "markdown")) >= 5
    for cell in cells(path, "code"):
        lines = "".join(cell["source"]).splitlines()
        assert len(lines) <= 35, f"cell {cell['id']}: what is that long belongs into the package"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_ends_with_a_floor_and_a_ceiling(path: Path) -> None:
    last = "".join(cells(path, "code")[-1]["source"])
    assert re.search(r"assert [^\n]+ < [^\n]+ < ", last)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({"p2pl", "torch", "fastapi", "zmq", "sklearn", "matplotlib", "datasets"}, ["[dp]"]),
        ({"p2pl", "torch", "zmq", "opacus"}, ["[tracker,data,report,hf]"]),
        (set(), ["torch==", "[tracker,client,data,report,hf,dp]"]),
        ({"p2pl", "torch", "fastapi", "zmq", "sklearn", "matplotlib", "datasets", "opacus"}, []),
    ],
)
def test_the_first_cell_installs_what_is_missing_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, there: set[str], wanted: list[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no GPU
    monkeypatch.setattr(subprocess, "run", lambda words, check: asked.append(words))
    cell = "".join(cells(ROOT / "notebooks" / "04_privacy.ipynb", "code")[0]["source"])
    exec(cell, {"__name__": "cell"})  # noqa: S102  # our own notebook
    assert len(asked) == len(wanted)
    assert all(words in " ".join(command) for words, command in zip(wanted, asked, strict=True))


def test_the_figures_of_the_tables_are_those_of_the_results_or_nearly() -> None:
    """The notebook has half the rounds, and says so."""
    page = (ROOT / "docs" / "results" / "tables.md").read_text()
    notebook = ROOT / "notebooks" / "02_tables.ipynb"
    tables = [text for kind, text in shown(notebook) if "in the document" in text]
    assert len(tables) == 2
    for name, table in zip(("MNIST", "Fashion-MNIST"), tables, strict=True):
        there = page.split(f": {name}\n")[1].split("##")[0]
        for split in ("iid balanced", "non-iid balanced", "iid non-balanced"):
            ours = re.search(rf"^\| {split} \|(.*)\|$", table, re.MULTILINE)
            theirs = re.search(rf"^\| {split} \|(.*)\|$", there, re.MULTILINE)
            assert ours is not None
            assert theirs is not None
            learned = float(ours[1].split("|")[2].split("±")[0])
            full = float(theirs[1].split("|")[3].split("±")[0])
            assert abs(learned - full) < 0.7, (name, split)
    said = "".join("".join(cell["source"]) for cell in cells(notebook, "markdown"))
    assert "RESULTS.md" in said


def test_a_release_has_an_address() -> None:
    command = [sys.executable, str(ROOT / "scripts/check_version.py"), "--release"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    is_known = "_" not in project["urls"]["Repository"].split("/")[3]
    assert (done.returncode == 0) == is_known
    assert is_known or "[project.urls]" in done.stderr
    assert subprocess.run(command[:-1], timeout=PATIENCE_S).returncode == 0


def test_badges_and_install_cells_are_made_from_the_projects_address() -> None:
    done = script("badges", "--check")
    assert done.returncode == 0, done.stderr
