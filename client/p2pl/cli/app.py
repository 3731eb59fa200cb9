"""The command `p2pl` itself: its exit codes, and what it says where a module is missing.

Exit codes: 0 done; 1 `p2pl audit` found the claim to be false, `p2pl check` found something wrong,
or something failed; 2 the input is wrong; 3 no tracker and no known peer; 4 nothing was left of the
privacy budget; 5 `p2pl join` has trained to the end without meeting anybody, though the session is
for several; 130 interrupted.
"""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from p2pl import __version__, extras
from p2pl.errors import InputError, P2PLError, printable, wrong

# What each extra brings, by the names under which it is imported.
_CLIENT = frozenset({"httpx", "numpy", "safetensors", "torch", "xxhash", "zmq"})
EXTRAS: Mapping[str, frozenset[str]] = {
    "client": _CLIENT,
    "anchor": _CLIENT | {"rfc3161_client"},
    "dp": _CLIENT | {"dp_accounting", "opacus", "scipy", "sklearn"},
    "flower": _CLIENT | {"flwr"},
    "onnx": _CLIENT | {"onnx", "onnxscript"},
    "torrent": _CLIENT | {"libtorrent"},
    "report": _CLIENT | {"matplotlib", "sklearn"},
    "watch": frozenset({"plotly", "starlette", "uvicorn"}),
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a model together, with no one in the middle, joined the way you join a torrent.",
)


# Of what is mistyped; typer keeps the class to itself, and names those below it alone.
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]


class Command(TyperCommand):
    """A command whose hints at a mistyped option name none that is hidden."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # typer's own
        """Returns what is left of the words once options and arguments are taken."""
        try:
            return super().parse_args(ctx, args)
        except _USAGE as fault:
            hidden = {one for each in self.params if _is_hidden(each) for one in each.opts}
            hints = getattr(fault, "possibilities", None) or ()
            if hidden & set(hints):
                fault.possibilities = [one for one in hints if one not in hidden]  # type: ignore[attr-defined]
            raise


def _is_hidden(parameter: object) -> bool:
    return bool(getattr(parameter, "hidden", False))


def main() -> None:
    """Runs the command line and exits with the code that this module's docstring promises."""
    try:
        app()
    except P2PLError as fault:
        print(printable(f"p2pl: {fault}"), file=sys.stderr)
        sys.exit(fault.exit_code)
    except OSError as fault:  # of what is written to: a full disk, a closed pipe
        what = "" if fault.filename else "what was to be printed: "
        print(printable(f"p2pl: {what}{fault}"), file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else Python tries once more at its end, and says so
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def show_log(level: int) -> None:
    """Writes log messages from this level on to standard error, fit to be shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _Plain(logging.Formatter):
    """Messages hold what strangers have said."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Says what to install where a module is missing.

    Args:
        name: one of `EXTRAS`, which the code inside needs.

    Raises:
        InputError: a module is missing: one of the extra, which p2pl imports, or any other one,
            which is then named together with the file that imports it.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        raise InputError(_advice(missing, name)) from missing


def _advice(missing: ModuleNotFoundError, name: str) -> str:
    frame, line = _importer(missing)
    importer = _package(frame.f_globals.get("__name__"))
    if _package(missing.name) in EXTRAS[name] and importer in EXTRAS[name] | {"p2pl"}:
        return f"{missing.name} is not installed; it comes with: {extras.install(name)}"
    return wrong(
        f"{frame.f_code.co_filename}, line {line}",
        got=f"import of {missing.name}",
        allowed="modules that are installed here",
        hint=f"the module {missing.name} could not be imported: install it, or correct its name",
    )


def _importer(missing: ModuleNotFoundError) -> tuple[FrameType, int]:
    """Returns the frame that imports what is missing, and the line in its file."""
    frames = list(traceback.walk_tb(missing.__traceback__))
    machinery = ("importlib", "_frozen_importlib", "_frozen_importlib_external")
    ours = [one for one in frames if _package(one[0].f_globals.get("__name__")) not in machinery]
    return ours[-1]


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _version(asked: bool) -> None:
    if asked:
        print(f"p2pl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train a model together, with no one in the middle."""
