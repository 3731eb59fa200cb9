"""What a study is: a grid of cells, each one command, and what to make of their figures."""

import hashlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SESSIONS = Path("experiments/sessions")  # from ROOT, where every cell is run
MNIST, FASHION, CIFAR = "ylecun/mnist", "zalando-datasets/fashion_mnist", "uoft-cs/cifar10"
NAMES = {MNIST: "MNIST", FASHION: "Fashion-MNIST", CIFAR: "CIFAR-10"}

Figures = Mapping[str, Any]  # what `p2pl simulate --json` prints


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation with all its seeds, one audit, or one run of a script that prints JSON."""

    name: str  # of its row
    arguments: tuple[str, ...]
    minutes: float = 1.0  # that it takes on one core, roughly: for the time left
    home: str = ""  # the study that keeps its figures; "" = this one
    script: str = ""  # from ROOT; "" = p2pl
    verb: str = "simulate"  # of p2pl, which prints a JSON object; or audit
    timed: bool = False  # run when nothing else runs, for its seconds are among the figures

    @property
    def session(self) -> str:
        """A digest of the session file as `--set` changes it, comments left out; "": it has none.

        Figures are stale once the file says something else of what the command leaves to it.
        """
        if self.script or not self.arguments or not self.arguments[0].endswith(".toml"):
            return ""
        spec = tomllib.loads((ROOT / self.arguments[0]).read_text())
        spec.pop("comment", None)
        for option, change in itertools.pairwise(self.arguments):
            if option == "--set":
                place, _, value = change.partition("=")
                section, _, name = place.partition(".")
                spec.setdefault(section, {})[name] = tomllib.loads(f"x = {value}")["x"]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """What a person would type to get the same figures."""
        python = ".venv/bin/python " if self.script.endswith(".py") else ""
        program = f"{python}{self.script}" if self.script else f"p2pl {self.verb}"
        return f"{program} {shlex.join(self.arguments)}"


def hasty(cell: Cell) -> Cell:
    """Returns the cell with so little to do that it shows whether it runs, and nothing else."""
    few = {"simulate": ("--seeds", "2", "--rounds", "2"), "audit": ("--rounds", "2")}
    little = ("--fast",) if cell.script else few[cell.verb]
    return replace(cell, arguments=(*cell.arguments, *little), minutes=cell.minutes / 50)


class NotRun(Exception):
    """A page asks for a cell that has not been run yet."""


class Kept(dict[str, Figures]):
    """Figures by cell."""

    def __missing__(self, cell: str) -> Figures:
        """Says that a cell has not been run."""
        raise NotRun(cell)


@dataclass(frozen=True, slots=True)
class Results:
    """The figures of a study, and the pictures that its page draws."""

    figures: Mapping[str, Figures]  # by cell; of those not run, none
    missing: tuple[str, ...] = ()  # the cells that have not been run
    pictures: dict[str, bytes] = field(default_factory=dict)  # PNG by name, filled while drawing

    def picture(self, name: str, png: bytes) -> str:
        """Returns a picture as Markdown, and keeps it for the folder of the page."""
        self.pictures[name] = png
        return f"![{name}]({name}.png)"


@dataclass(frozen=True, slots=True)
class Study:
    """A grid of cells, and what to make of their figures."""

    name: str
    asks: str  # what it is about, in one line of the index
    cells: tuple[Cell, ...]
    section: Callable[[Results], str]  # Markdown of its page, from the title on
    headline: Callable[[Results], str] | None = None  # Markdown for the index: what matters most


# In the order of the index: what matters first, how settings were chosen last.
STUDIES = (
    *("tables", "trust", "privacy", "flower", "exchanges", "raft", "figures", "cnn", "batchnorm"),
    *("reality", "attacks", "bar"),
    "codecs",
    *("tabular", "segmentation", "text", "trust_tasks", "backdoor"),
    *("privacy_cnn", "audit", "tuning", "trust_tuning", "privacy_tuning"),
)
# What the founding document showed and promised: two hours on two cores.
ALL = ("tuning", "tables", "figures")


def study(name: str) -> Study:
    """Returns the study of that name, one of `STUDIES`."""
    found = import_module(f"experiments.studies.{name}").STUDY
    assert isinstance(found, Study)
    return found


_OLD_SESSIONS = re.compile(r"(?<![\w/])scripts/sessions/")


def normalised(command: str) -> str:
    """Returns a recorded command with the paths of today.

    The session files lay in `scripts/sessions` once. That they moved changes no figure, so a
    command that names the old folder is the same command.
    """
    return _OLD_SESSIONS.sub(f"{SESSIONS}/", command)
