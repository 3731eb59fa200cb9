"""`--log tensorboard:DIR`: event files for TensorBoard, DIR/NAME-PEER for each run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2pl.events import Started
from p2pl.sinks.base import SINKS, Journal, run_name, settings_of


@SINKS.builtin("tensorboard")
def open_tensorboard(place: str) -> Journal:
    """Returns the journal that writes event files.

    Args:
        place: the folder that `tensorboard --logdir` is given.

    Raises:
        ModuleNotFoundError: the package tensorboard is not installed.
    """
    from torch.utils.tensorboard import SummaryWriter

    return _TensorBoard(Path(place), SummaryWriter)


class _TensorBoard:
    """Writes a file a run; the same peer's next part of a run goes beside its first one."""

    def __init__(self, folder: Path, writer: Any) -> None:  # noqa: ANN401  # it has no types
        self._folder, self._make_writer = folder, writer
        self._writer: Any = None

    def begin(self, run: Started) -> None:
        # What was logged of later rounds is out of date: they are done again.
        self._writer = self._make_writer(self._folder / run_name(run), purge_step=run.round + 1)
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings_of(run).items())
        self._writer.add_text("session", f"| setting | value |\n|---|---|\n{rows}", run.round)
        self._writer.flush()

    def round(self, index: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, index)
        self._writer.flush()

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        self._writer.add_text("ended", state)
        for name, value in figures.items():
            self._writer.add_scalar(name, value)
        self._writer.close()
