"""The folder that a report is written into: a page, its numbers, and its pictures."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from p2pl.errors import InputError, wrong
from p2pl.run.files import write_atomically

PAGE_FILE = "report.md"
NUMBERS_FILE = "report.json"


def picture_file(kind: str) -> str:
    """Returns the name of the file of a kind of picture."""
    return f"{kind}.png"


def make_folder(out: Path) -> None:
    """Makes the folder, and those around it, where they do not exist.

    Raises:
        InputError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(
            wrong("--out", got=str(out), allowed=f"a directory ({fault.strerror})")
        ) from fault


def write_pictures(out: Path, drawn: Mapping[str, bytes], kinds: Iterable[str]) -> dict[str, Path]:
    """Returns where the pictures are, by kind, once they are written.

    Args:
        out: the folder of the report; it exists.
        drawn: a PNG file's bytes, by kind.
        kinds: that a report may have; where one is not drawn, that of an earlier report goes.

    Raises:
        InputError: a file cannot be written.
    """
    for kind in kinds:
        if kind not in drawn:
            (out / picture_file(kind)).unlink(missing_ok=True)
    for kind, png in drawn.items():
        write_atomically(out / picture_file(kind), png)
    return {kind: out / picture_file(kind) for kind in drawn}


def write_text(out: Path, page: str, numbers: object) -> None:
    """Writes the page and the numbers.

    Args:
        out: the folder of the report; it exists.
        page: in Markdown.
        numbers: what JSON can hold.

    Raises:
        InputError: a file cannot be written.
    """
    raw = msgspec.json.format(msgspec.json.encode(numbers), indent=2)
    write_atomically(out / NUMBERS_FILE, raw + b"\n")
    write_atomically(out / PAGE_FILE, page.encode())
