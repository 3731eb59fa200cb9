"""Commands as a person runs them, in this process: torch and Opacus take seconds to load."""

from dataclasses import dataclass

from typer.testing import CliRunner

from p2pl.cli import app
from p2pl.errors import P2PLError


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def p2pl(*words: str) -> Done:
    """Returns how `p2pl WORDS` ends."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "100"})
    if isinstance(result.exception, P2PLError):  # what `main` makes of it
        return Done(result.exception.exit_code, result.stdout, str(result.exception))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)
