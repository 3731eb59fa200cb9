"""The README and the site: short enough, true to the code, and without a dead end."""

import re
from pathlib import Path

import docs_reference
import pytest
from support.processes import ROOT

README = (ROOT / "README.md").read_text()
MAX_WORDS = 1_500
RESULTS = ROOT / "docs" / "results"


def test_a_newcomer_can_finish_the_readme() -> None:
    assert len(README.split()) <= MAX_WORDS


@pytest.mark.parametrize("name", ["session.md", "commands.md", "attacks.md", "python.md"])
def test_a_page_of_the_reference_is_as_it_is_made(name: str) -> None:
    made = docs_reference.pages()[name]
    stale = "stale; run: scripts/docs reference"
    assert (docs_reference.FOLDER / name).read_text() == made, stale


def test_every_field_of_a_session_says_what_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", docs_reference.session_page(), re.M)
    assert len(rows) > 60
    assert [name for name, means in rows if not means.strip()] == []


def test_every_figure_of_the_readme_stands_on_the_page_of_its_study() -> None:
    rows = re.findall(r"^\|(.*)\| `scripts/reproduce (\w+)` \|$", README, re.MULTILINE)
    assert len(rows) >= 4
    for row, study in rows:
        page = (RESULTS / f"{study}.md").read_text()
        figures = re.findall(r"\d+\.\d\d", row)
        assert figures
        assert [one for one in figures if one not in page] == []


@pytest.mark.parametrize("page", [Path("README.md"), Path("CONTRIBUTING.md"), Path("SECURITY.md")])
def test_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [one for one in targets if "://" not in one]
    assert [one for one in local if not (ROOT / page.parent / one).exists()] == []


def test_the_messages_that_the_page_of_errors_explains_are_said_somewhere() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    code = [ROOT / "client", ROOT / "tracker"]
    said = "".join(file.read_text() for folder in code for file in folder.rglob("*.py"))
    said += (ROOT / "scripts" / "setup").read_text()
    joined = re.sub(r'"\s*\n\s*f?"', "", said)  # a text that goes over two lines
    quoted = re.findall(r"^\| [^|`]*`([^`|]+)`", page, re.MULTILINE)
    assert len(quoted) > 10
    assert [one for one in quoted if one not in joined and "not found" not in one] == []
