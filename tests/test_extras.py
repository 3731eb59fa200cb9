"""What a message advises to install: a command that works from where p2pl was installed."""

import os
import shlex
from pathlib import Path

import pytest

from p2pl.extras import command_for, install

PREFIX, PYTHON = Path("/home/ada/env"), Path("/home/ada/env/bin/python")
PIP = "/home/ada/env/bin/python -m pip install"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, f"{PIP} 'p2pl[watch]'"),
        ("no JSON", f"{PIP} 'p2pl[watch]'"),
        (
            '{"url": "file:///tmp/p2pl-1-py3-none-any.whl", "archive_info": {}}',
            f"{PIP} 'p2pl[watch] @ file:///tmp/p2pl-1-py3-none-any.whl'",
        ),
        (
            '{"url": "https://example.org/p2pl", "vcs_info": {"vcs": "git", "commit_id": "1"}}',
            f"{PIP} 'p2pl[watch] @ git+https://example.org/p2pl'",
        ),
        (
            '{"url": "file:///home/ada/p2pl", "dir_info": {}}',
            f"{PIP} 'p2pl[watch] @ file:///home/ada/p2pl'",
        ),
        (
            '{"url": "file:///home/ada/my%20clone", "dir_info": {"editable": true}}',
            f"{PIP} -e '/home/ada/my clone[watch]'",
        ),
    ],
)
def test_an_extra_comes_from_where_p2pl_came_from(origin: str | None, command: str) -> None:
    assert command_for("watch", origin, PREFIX, PYTHON) == command


def test_a_clone_with_its_own_environment_has_a_script_for_it(tmp_path: Path) -> None:
    origin = f'{{"url": "{tmp_path.as_uri()}", "dir_info": {{"editable": true}}}}'
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup").touch()
    said = command_for("watch", origin, tmp_path / ".venv", PYTHON)
    assert shlex.split(said) == [str(tmp_path / "scripts" / "setup"), "watch"]


def test_what_is_advised_here_is_a_program_that_is_there() -> None:
    assert os.access(shlex.split(install("watch"))[0], os.X_OK)
