"""Commands as a person runs them, in this process: torch and Opacus take seconds to load."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2pl import cli


@dataclass(frozen=True)
class Done:
    """What one command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def p2pl(*words: object, cwd: Path | None = None, columns: int = 100) -> Done:
    """Returns how `p2pl WORDS` ends, in a terminal of so many columns.

    Args:
        words: of the command.
        cwd: folder to run it in; None: this one.
        columns: of the terminal.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["p2pl", *map(str, words)])
        patch.setenv("COLUMNS", str(columns))
        try:
            cli.main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    return Done(
        code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue()
    )
