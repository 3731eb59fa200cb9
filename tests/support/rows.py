"""Rows of figures, as experiments keep them."""

from experiments.grid import Figures
from experiments.store import Row


def row_of(
    cell: str,
    figures: Figures | None = None,
    *,
    command: str | None = None,
    session: str | None = None,
    commit: str | None = None,
    seconds: float | None = None,
    cpu_seconds: float | None = None,
    torch: str | None = None,
) -> Row:
    """Returns a row of which little is known."""
    packages = {"p2pl": None, "torch": torch, "numpy": None, "python": None}
    return Row(
        cell=cell,
        command=command,
        session=session,
        commit=commit,
        dirty=None if commit is None else False,
        recorded_by=None,
        packages=packages,
        threads=2,
        seconds=seconds,
        figures=figures or {},
        cpu_seconds=cpu_seconds,
    )
