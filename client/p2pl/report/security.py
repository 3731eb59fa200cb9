"""The security of a session or of runs: its figures, and how they are shown."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from rich.table import Table

from p2pl.errors import visible
from p2pl.report.tables import terminal_table

FORMAT = "p2pl security 1"
Value: TypeAlias = float | int | str | bool | None


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure.

    Attributes:
        name: by which docs/security-metric.md defines it.
        value: None: it is not known, or nothing bounds it.
        unit: of the value; "" where it has none.
        source: `session`, `run log`, `update log`, `audit`, or `protocol`: a property of the
            program, which the tests named in the documentation show.
        about: what a person should know of this value.
    """

    name: str
    value: Value
    unit: str
    source: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Detection:
    """How long one kind of attack had an influence.

    Attributes:
        attack: its kind, or what was done.
        rounds: with a weight above zero, in the run that took longest; None: never found, or not
            looked for.
        measured: whether that is from the runs; else it is a bound.
        about: on what it rests.
    """

    attack: str
    rounds: int | None
    measured: bool
    about: str


@dataclass(frozen=True, slots=True)
class Security:
    """All figures of a session or of its runs."""

    session_id: str
    name: str
    runs: int  # of peers that say they are honest
    peers: int  # seen in them, those with a run of their own included; of a session: `min_peers`
    faulty: int  # the f of "f of n"
    measures: tuple[Measure, ...]
    detection: tuple[Detection, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        return {"format": FORMAT, **told}


def security_tables(found: Security) -> tuple[Table, Table]:
    """Returns the figures, and how long each kind of attack has an influence, for a terminal."""
    of = f"{found.runs} runs, {found.peers} peers" if found.runs else "a session; nothing has run"
    about = f"security of {found.name or found.session_id[:8]}: {of}, f = {found.faulty}"
    rows = [
        (one.name, _shown(one.value, one.unit), one.source, visible(one.about))
        for one in found.measures
    ]
    attacks = [
        (
            visible(one.attack),
            "not bounded" if one.rounds is None else str(one.rounds),
            "measured" if one.measured else "promised",
            visible(one.about),
        )
        for one in found.detection
    ]
    title = "rounds in which an attack has a weight"
    tables = (
        terminal_table(visible(about), ("measure", "figure", "from", "what it says"), rows),
        terminal_table(title, ("attack", "rounds", "", "what it says"), attacks),
    )
    for table in tables:
        table.columns[-1].justify = "left"
    return tables


def _shown(value: Value, unit: str) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "share" and isinstance(value, float):
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
