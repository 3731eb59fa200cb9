"""The command `p2pl` itself: how fast it starts, its help, and what it says of missing modules."""

import re
import subprocess
import sys
import types
from typing import Any

import pytest
import typer
from support.commands import p2pl
from support.processes import BIN, PATIENCE_S

from p2pl.cli import app
from p2pl.cli.app import EXTRAS, extra
from p2pl.errors import InputError
from p2pl.extras import install


def test_the_installed_command_starts_without_loading_torch() -> None:
    command = [str(BIN / "p2pl"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert "join" in done.stdout


def test_help_names_every_command() -> None:
    done = p2pl("--help")
    assert done.returncode == 0
    for command in ("create", "inspect", "join", "partition", "report"):
        assert command in done.stdout


def test_the_version_is_printed() -> None:
    assert p2pl("--version").stdout == "p2pl 0.1.0\n"


def test_it_runs_as_a_module_too() -> None:
    command = [sys.executable, "-m", "p2pl.cli", "--version"]
    assert subprocess.check_output(command, text=True, timeout=PATIENCE_S) == "p2pl 0.1.0\n"


COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
FIRST_PERSON = re.compile(r"(?<!part )(?<!shard-)\b(I(?!/N)|my|mine|me)\b")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does_by_itself(name: str) -> None:
    command = COMMANDS[name]
    for option in command.params:
        if getattr(option, "hidden", False):
            continue
        assert option.help, f"{name} {option.name}: no help"
        assert not FIRST_PERSON.search(option.help), option.help
        assert "s for `p2pl" not in option.help
        assert option.help[0].isupper() or ":" in option.help, option.help
        # Whatever has no default to show must say what happens without it.
        said = option.required or option.default is not None or option.is_flag
        assert (
            said
            or "[default: " in option.help
            or "[required" in option.help
            or ("Repeatable" in option.help)
        ), f"{name} {option.name}: {option.help}"
    assert not FIRST_PERSON.search(command.help), command.help


def test_a_mistyped_option_is_met_with_hints_and_with_none_of_what_is_hidden() -> None:
    said = p2pl("join", "some.torrent", "--atack", "x")
    assert said.returncode == 2
    assert "--data" in said.stderr
    assert "--attack" not in said.stderr


def test_the_list_of_commands_has_room_for_what_each_does() -> None:
    assert "..." not in p2pl("--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_module_of_an_extra_is_explained_by_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = max(EXTRAS[name] - (EXTRAS["client"] if name != "client" else set()))
    monkeypatch.setitem(sys.modules, module, None)
    wanted = re.escape(f"{module} is not installed; it comes with: {install(name)}")
    with pytest.raises(InputError, match=wanted), extra(name):
        exec_as("p2pl.somewhere", f"import {module}")


@pytest.mark.parametrize(
    ("source", "line", "missing"),
    [("import nowhere", 1, "nowhere"), ("\nimport p2pl.nowhere", 2, "p2pl.nowhere")],
)
def test_any_other_missing_module_is_named_with_who_imports_it(
    source: str, line: int, missing: str
) -> None:
    wanted = re.escape(f"theirs.py, line {line}: got 'import of {missing}'")
    with pytest.raises(InputError, match=wanted), extra("dp"):
        exec_as("theirs", source)


def exec_as(module: str, source: str) -> None:
    """Runs source as if it stood in a module of this name."""
    # Coverage looks for the file of whatever is of p2pl, except for a name in brackets.
    code = compile(source, f"<{module}>" if module.startswith("p2pl.") else f"{module}.py", "exec")
    types.FunctionType(code, {"__name__": module})()
