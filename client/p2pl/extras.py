"""How an extra of p2pl is installed on this machine, for messages that advise it."""

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "p2pl"


def install(extra: str) -> str:
    """Returns the command that installs an extra of p2pl beside what is running.

    Args:
        extra: one of those in pyproject.toml, e.g. "report".
    """
    return command_for(extra, _origin(), Path(sys.prefix), Path(sys.executable))


def command_for(extra: str, origin: str | None, prefix: Path, python: Path) -> str:
    """Returns the command that installs an extra, from where p2pl itself came.

    Args:
        extra: its name.
        origin: what pip wrote down of the origin, direct_url.json (PEP 610); None: an index.
        prefix: the environment that p2pl is installed in.
        python: its interpreter.
    """
    pip = f"{shlex.quote(str(python))} -m pip install"
    said = _decoded(origin)
    url = said.get("url")
    if not isinstance(url, str):
        return f"{pip} {shlex.quote(f'{NAME}[{extra}]')}"
    folder = Path(unquote(urlsplit(url).path))
    if not (said.get("dir_info") or {}).get("editable"):
        vcs = (said.get("vcs_info") or {}).get("vcs")
        where = f"{vcs}+{url}" if vcs else url
        return f"{pip} {shlex.quote(f'{NAME}[{extra}] @ {where}')}"
    if prefix == folder / ".venv" and (folder / "scripts" / "setup").is_file():
        return f"{shlex.quote(str(folder / 'scripts' / 'setup'))} {extra}"
    return f"{pip} -e {shlex.quote(f'{folder}[{extra}]')}"


def _origin() -> str | None:
    try:
        return metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from the source alone
        return None


def _decoded(origin: str | None) -> dict[str, Any]:
    try:
        said = json.loads(origin or "{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
