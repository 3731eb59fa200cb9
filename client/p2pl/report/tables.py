"""Tables of words and numbers, for a terminal and in Markdown."""

from collections.abc import Sequence
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from p2pl.errors import visible
from p2pl.report.classes import ClassScore

Rows: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]  # names of the columns, and rows


def terminal_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table for a terminal: the first column to the left, the others to the right.

    Args:
        title: above the table.
        head: names of the columns, at least one.
        rows: as many cells each; they are shown as they are, whatever rich makes of them.
    """
    table = Table(
        title=Text(title, "bold"), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
    )
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown: the first column to the left, the others to the right.

    Args:
        head: names of the columns, at least one.
        rows: as many cells each; they are shown as they are, whatever Markdown makes of them.
    """
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """Returns the text so that Markdown shows it as it is; part of it comes from strangers."""
    shown = visible(text)
    for char in "\\`*_[]<>|":
        shown = shown.replace(char, "\\" + char)
    return shown


def class_rows(classes: Sequence[ClassScore], macro: ClassScore | None) -> Rows:
    """Returns head and rows of a table of scores by class.

    Args:
        classes: in the order of their rows.
        macro: the last row, their mean; None: there is none.
    """
    scores = [*classes, *([macro] if macro else [])]
    return ("class", "precision", "recall", "F1", "samples"), [
        (
            visible(score.label),
            f"{score.precision:.3f}",
            f"{score.recall:.3f}",
            f"{score.f1:.3f}",
            str(score.support),
        )
        for score in scores
    ]
