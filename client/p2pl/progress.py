"""How far long work is, on the screen."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RoundsBar:
    """A progress bar over rounds, with the time left; there once it is shown.

    Args:
        doing: what is done, in a word.
        rounds: all of them.
        console: where it is drawn.
    """

    def __init__(self, doing: str, rounds: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(doing, total=rounds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def show(self) -> None:
        """Draws the bar, with no round done yet."""
        self._progress.start()

    def advance(self) -> None:
        """Shows that a round is over."""
        self._progress.advance(self._task)

    def describe(self, doing: str) -> None:
        """Shows what is done now.

        Args:
            doing: a few words, safe to print.
        """
        self._progress.update(self._task, description=doing)
