"""Imports point down: cli, api, the node, its doors, what they are made of, protocol, errors."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import PATIENCE_S

ROOT = Path(__file__).parents[1]
LEVELS = {
    "p2pl.__main__": 12,
    "p2pl.cli": 11,
    "p2pl.api": 10,
    "p2pl.exchange": 9,
    "p2pl.simulation": 9,
    "p2pl.attacks": 8,
    "p2pl.report": 8,
    "p2pl.watch": 8,
    "p2pl.learner": 7,
    "p2pl.privacy": 6,
    "p2pl.mixing": 5,
    "p2pl.tasks": 5,
    "p2pl.learning": 4,
    "p2pl.sinks": 4,
    "p2pl.terminal": 4,
    "p2pl.updates": 4,
    "p2pl.network": 3,
    "p2pl.events": 3,
    "p2pl.run": 2,
    "p2pl.data": 2,
    "p2pl.rendezvous": 2,
    "p2pl.registry": 1,
    "p2pl.protocol": 1,
    "p2pl.metric": 1,
    "p2pl.seeds": 1,
    "p2pl.pace": 1,
    "p2pl.progress": 1,
    "p2pl.pages": 1,
    "p2pl.garbage": 1,
    "p2pl.reasons": 1,
    "p2pl.regular": 0,
    "p2pl.errors": 0,
    "p2pl.extras": 0,
}
TRACKER_MAY_IMPORT = (
    "p2pl.protocol",
    "p2pl.rendezvous",
    "p2pl.errors",
    "p2pl.extras",
    "p2pl.pace",
    "p2pl.regular",
    "p2pl_tracker",
)


def unit(module: str) -> str:
    """Returns the unit that a module belongs to: `p2pl.network.wire` is in `p2pl.network`."""
    return ".".join(module.split(".")[:2])


def imports(path: Path) -> Iterator[str]:
    """Yields every module that the file imports from this project, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("p2pl", "p2pl_tracker"))


def sources(folder: str) -> list[Path]:
    """Returns the Python files below a folder of the project."""
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("client/p2pl"), ids=lambda path: path.stem)
def test_the_client_imports_downwards_only(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "client").with_suffix("").parts)
    importer = unit(module.removesuffix(".__init__"))
    if importer == "p2pl":
        return
    for name in imports(path):
        imported = unit(name)
        if imported in (importer, "p2pl.__version__"):
            continue
        assert imported in LEVELS, f"{module} imports {name}, which has no level"
        assert LEVELS[imported] < LEVELS[importer], f"{module} must not import {name}"


@pytest.mark.parametrize("path", sources("tracker/p2pl_tracker"), ids=lambda path: path.stem)
def test_the_tracker_imports_what_is_below_the_client_and_nothing_else_of_it(path: Path) -> None:
    for name in imports(path):
        allowed = unit(name) in TRACKER_MAY_IMPORT or name.startswith("p2pl_tracker")
        assert allowed or name == "p2pl.__version__", f"{path.name} must not import {name}"


def loaded_by(statement: str) -> set[str]:
    """Returns the top-level modules that are loaded after `statement` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import p2pl.cli", {"torch", "numpy", "zmq", "httpx", "fastapi", "matplotlib"}),
        ("import p2pl.protocol.session", {"torch", "numpy", "zmq", "httpx", "fastapi", "typer"}),
        ("import p2pl_tracker.app", {"torch", "numpy", "zmq", "matplotlib"}),
        ("import p2pl_tracker.cli", {"torch", "numpy", "zmq", "fastapi", "uvicorn"}),
        ("import p2pl.network.wire, p2pl.network.directory", {"torch", "fastapi"}),
        (
            "import p2pl.mixing.trust.row, p2pl.data.load",
            {"zmq", "httpx", "datasets", "huggingface_hub", "sklearn"},
        ),
        (
            "import p2pl.privacy.plan, p2pl.privacy.audit.run",
            {"rich", "dp_accounting", "opacus", "scipy", "sklearn"},
        ),
        (
            "import p2pl.report.privacy",
            {"matplotlib", "dp_accounting", "opacus", "scipy", "sklearn"},
        ),
    ],
)
def test_a_command_loads_only_what_it_uses(statement: str, forbidden: set[str]) -> None:
    assert not loaded_by(statement) & forbidden
