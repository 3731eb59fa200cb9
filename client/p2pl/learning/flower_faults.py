"""Faults in code that a person wrote for Flower: shown as theirs, with their place."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pl.errors import ClientError, P2PLError

MAX_MESSAGE_CHARS = 500  # of the fault's own text
OURS = frozenset({"p2pl", "flwr"})  # packages that stand between the person's code and what called

log = logging.getLogger(__name__)


@contextmanager
def theirs(name: str, doing: str) -> Iterator[None]:
    """Turns whatever the person's code raises into one error that says what, where and why.

    Args:
        name: of the client, MODULE:CLIENT; code of that module and its package is theirs.
        doing: what was asked of it, e.g. `fit`.

    Raises:
        ClientError: the code inside raised something.
        ModuleNotFoundError: as it is, because what is missing can be installed.
    """
    try:
        yield
    except (P2PLError, ModuleNotFoundError):
        raise
    except Exception as fault:
        log.info("%s failed in %s", name, doing, exc_info=fault)
        text = f"{type(fault).__name__}: {fault}".rstrip(": ")[:MAX_MESSAGE_CHARS]
        raise ClientError(
            f"client of Flower {name}: its own code failed in {doing}: {place(fault, name)}: {text}"
        ) from fault


def place(fault: Exception, name: str) -> str:
    """Returns where in the person's code a fault was raised: file, line and function.

    That is the innermost line of theirs, which may have called a library that raised it; where no
    line of theirs is known, the innermost one of all.

    Args:
        fault: as it was caught.
        name: MODULE:CLIENT.
    """
    if isinstance(fault, SyntaxError) and fault.filename:
        return f"{fault.filename}, line {fault.lineno}"
    frames = [
        (frame.f_globals.get("__name__") or "", frame.f_code, line)
        for frame, line in traceback.walk_tb(fault.__traceback__)
    ]
    outside = [one for one in frames if _package(one[0]) not in OURS] or frames
    own = [one for one in outside if _package(one[0]) == _package(name) or _is_near(one[1])]
    _, code, line = (own or outside)[-1]
    return f"{code.co_filename}, line {line}, in {code.co_name}"


def _package(module: str) -> str:
    return module.partition(":")[0].partition(".")[0]


def _is_near(code: object) -> bool:
    """Returns whether code is in the folder that the person works in, and not installed there."""
    path = Path(getattr(code, "co_filename", ""))
    return path.is_relative_to(Path.cwd()) and "site-packages" not in path.parts
