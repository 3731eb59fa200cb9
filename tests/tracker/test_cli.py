"""The command `p2pl-tracker` itself: its version, its help, and the module that it is."""

import subprocess
import sys

import pytest
from support.processes import PATIENCE_S

import p2pl


@pytest.mark.parametrize("module", ["p2pl_tracker", "p2pl_tracker.cli"])
def test_the_module_is_the_command_and_says_its_version(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, f"p2pl-tracker {p2pl.__version__}\n")


def test_help_on_a_narrow_terminal_names_every_option_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = subprocess.run(
        [sys.executable, "-m", "p2pl_tracker", "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "--max-connections-per-address" in done.stdout
    assert "--max-sessions-per-address" in done.stdout
    assert "…" not in done.stdout
