"""Every row of SECURITY.md names what shows it, and that is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hostile import LIES
from support.processes import ROOT

ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (ROOT / "SECURITY.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| who |"))
]


def test_every_row_says_who_can_do_what_and_what_holds() -> None:
    assert len(ROWS) > 50
    assert [row[:2] for row in ROWS if len(row) != 5 or not all((*row[:3], row[4]))] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}"[:80])
def test_what_shows_a_row_is_there(row: list[str]) -> None:
    named = list(named_in(row[4]))
    assert named
    assert [str(one) for one in named if not (ROOT / one).exists()] == []
    lies = re.findall(r"`([a-z]+)`", "".join(re.findall(r"`tests/hostile` \(([^)]*)\)", row[4])))
    assert set(lies) <= set(LIES)


def named_in(cell: str) -> Iterator[Path]:
    """Yields the files that a cell names; a name without a folder is in that of the one before."""
    folder = Path()
    for word in re.findall(r"`([^` ]+\.py|tests/[^` ]+|scripts/[^` ]+)", cell):
        named = Path(word) if "/" in word else folder / word
        folder = named.parent
        yield named
