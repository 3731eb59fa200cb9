"""The commands and the programs of docs/data.md, as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
from support.commands import p2pl
from support.processes import ROOT

from p2pl.data.load import load
from p2pl.errors import DataError
from p2pl.protocol.session import decode

PAGE = (ROOT / "docs" / "data.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = PAGE) -> list[str]:
    """Returns the blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder with the files of the page; its table has as many rows as it takes."""
    header, *rows = blocks("csv")[0].splitlines()
    (tmp_path / "mine.csv").write_text("\n".join([header, *rows * 15]))
    (tmp_path / "clinic.toml").write_text(blocks("toml")[0])
    (tmp_path / "words.toml").write_text(blocks("toml")[2])
    (tmp_path / "text.txt").write_text("Peers train locally, and mix what they learned.\n" * 30)
    return tmp_path


def run_all(commands: str, folder: Path) -> str:
    """Returns what commands print, one a line."""
    printed = []
    for line in commands.splitlines():
        done = p2pl(*shlex.split(line, comments=True)[1:], cwd=folder)
        assert done.returncode == 0, (line, done.stderr)
        printed.append(done.stdout)
    return "\n".join(printed)


def test_the_commands_run(folder: Path) -> None:
    printed = run_all(blocks("sh")[0], folder)
    assert "site: categorical, left, right; gaps are told" in printed
    assert "12 drawn to test on" in printed
    assert "AUROC" in printed


def test_what_the_author_adds_is_a_table_and_faults_are_told_as_the_page_says(
    folder: Path,
) -> None:
    lines = [line for line in blocks("toml")[0].splitlines() if not line.startswith("task =")]
    (folder / "clinic.toml").write_text("\n".join([*lines, blocks("toml")[1]]))
    run_all(blocks("sh")[0].splitlines()[0], folder)
    session = decode((folder / "clinic.torrent").read_bytes()).session
    assert session.task.labels == ("no", "unclear", "yes")
    (folder / "clinic.toml").write_text(blocks("toml")[0])
    run_all(f"{blocks('sh')[0].splitlines()[0]} --force", folder)
    session = decode((folder / "clinic.torrent").read_bytes()).session
    rows = ["name,years,site,dose,sick", "A,1,left,1,no", "B,1,left,1,no", "C,1,middle,1,no"]
    (folder / "theirs.csv").write_text("\n".join([*rows, "D,1,left,none,no"]))
    with pytest.raises(DataError) as fault:
        load(str(folder / "theirs.csv"), session.task, form=session.table)
    told = str(fault.value).replace(f"{folder}/", "")
    assert f"p2pl: {told}\n" == blocks("text")[0]


def test_the_programs_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    program = compile("\n\n".join(blocks("python")), "data.md", "exec")
    exec(program, {"__name__": "data"})  # noqa: S102  # our own page


def test_the_readme_shows_a_table_in_ten_lines_at_most(folder: Path) -> None:
    shown = [block for block in blocks("sh", README) if "--schema-from" in block]
    assert len(shown) == 1
    assert len(shown[0].splitlines()) <= 10
    lines = [line for line in shown[0].splitlines() if line.startswith("p2pl create")]
    run_all("\n".join(lines), folder)
