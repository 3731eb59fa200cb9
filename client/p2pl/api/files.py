"""Session files and their TOML, read from disk; light, for whoever only looks at them."""

import os
from pathlib import Path
from typing import Any, TypeAlias

from p2pl import regular
from p2pl.errors import SessionFileError, wrong
from p2pl.protocol import session as session_format
from p2pl.protocol.session import SessionFile, Spec

Given: TypeAlias = SessionFile | str | os.PathLike[str]


def read_session(given: Given) -> SessionFile:
    """Returns a session file, decoded and checked.

    Args:
        given: its path, or the file itself.

    Raises:
        SessionFileError: it cannot be read, or is no session file.
    """
    if isinstance(given, SessionFile):
        return given
    if not isinstance(given, str | os.PathLike):
        allowed = "the path of a session file, or what p2pl.read_session returns"
        raise SessionFileError(wrong("session", got=given, allowed=allowed))
    path = Path(given)
    data = read_bytes(path, session_format.MAX_SESSION_FILE_BYTES, "session file")
    try:
        return session_format.decode(data)
    except SessionFileError as fault:
        raise SessionFileError(f"{path}: {fault}") from fault


def read_spec(path: Path) -> Spec:
    """Returns the spec in the TOML file at `path`, checked.

    Raises:
        SessionFileError: it cannot be read, or a field is missing, unknown or out of range.
    """
    raw = read_toml(path)
    try:
        return session_format.spec_of(raw)
    except SessionFileError as fault:
        raise SessionFileError(f"{path}: {fault}") from fault


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the tables of the TOML file at `path`, unchecked.

    Raises:
        SessionFileError: it cannot be read, or is not TOML.
    """
    data = read_bytes(path, session_format.MAX_SESSION_FILE_BYTES, "spec")
    try:
        return session_format.read_toml(data.decode())
    except UnicodeDecodeError as fault:
        raise SessionFileError(f"{path}: not UTF-8 text: {fault.reason}") from fault
    except SessionFileError as fault:
        raise SessionFileError(f"{path}: {fault}") from fault


def read_bytes(path: Path, limit: int, what: str) -> bytes:
    """Returns the file's bytes, at most `limit` and one; raises SessionFileError."""
    try:
        with regular.opened(path) as opened:
            return opened.read(limit + 1)
    except OSError as fault:
        raise SessionFileError(f"{what} {path}: cannot be read: {fault.strerror}") from fault
