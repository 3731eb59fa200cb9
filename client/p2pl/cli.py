"""The command line: parses, calls one function, maps errors to exit codes.

Heavy modules are imported inside the commands, so that `p2pl --help` is instant and a missing extra
is explained. Exit codes: 0 done; 2 the input is wrong; 3 no tracker and no known peer;
130 interrupted.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from p2pl import __version__
from p2pl.errors import InputError, P2PLError, SessionFileError, wrong
from p2pl.network.files import write_atomically
from p2pl.protocol import session as session_format
from p2pl.protocol.session import SessionFile

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a model together, with no one in the middle, joined the way you join a torrent.",
)


def main() -> None:
    """Runs the command line and exits with the code that its docstring promises."""
    try:
        app()
    except P2PLError as fault:
        print(f"p2pl: {fault}", file=sys.stderr)
        sys.exit(fault.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turns a missing module into a message that says which extra to install."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("p2pl"):
            raise
        raise InputError(
            f"{missing.name} is not installed; it comes with: pip install 'p2pl[{name}]'"
        ) from missing


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


def _read(path: Path, limit: int, what: str) -> bytes:
    """Returns the file's bytes, at most `limit` and one, or raises an error that names the file."""
    try:
        with path.open("rb") as opened:
            return opened.read(limit + 1)
    except OSError as fault:
        raise SessionFileError(f"{what} {path}: cannot be read: {fault.strerror}") from fault


def read_session_file(path: Path) -> SessionFile:
    """Returns the session file at `path`, decoded and checked."""
    data = _read(path, session_format.MAX_SESSION_FILE_BYTES, "session file")
    try:
        return session_format.decode(data)
    except SessionFileError as fault:
        raise SessionFileError(f"{path}: {fault}") from fault


@app.command()
def create(
    spec: Annotated[Path, typer.Argument(help="The session in TOML; torrentfiles/ has examples.")],
    out: Annotated[Path, typer.Option(help="The session file to write: NAME.torrent.")],
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="A tracker's URL; repeat for fall-backs, tried in this order (BEP 12)."),
    ] = None,
) -> None:
    """Make a session file, and its initial checkpoint beside it, from a TOML spec."""
    try:
        text = _read(spec, session_format.MAX_SESSION_FILE_BYTES, "spec").decode()
    except UnicodeDecodeError as fault:
        raise SessionFileError(f"{spec}: not UTF-8 text: {fault.reason}") from fault
    try:
        wanted = session_format.read_spec(text)
    except SessionFileError as fault:
        raise SessionFileError(f"{spec}: {fault}") from fault
    tiers = tuple((url,) for url in tracker or ())
    session_format.check_trackers(tiers)
    if not out.parent.is_dir():
        raise SessionFileError(
            wrong("--out", got=str(out), allowed="a file in a folder that exists")
        )
    with _extra("client"):
        from p2pl.exchange import checkpoint
    payload, promised = checkpoint.build(wanted.session())
    made = SessionFile(
        name=wanted.name,
        session=wanted.session(),
        checkpoint=promised,
        trackers=tiers,
        url_list=wanted.url_list,
        comment=wanted.comment,
        created_by=f"p2pl {__version__}",
        created_at=int(time.time()),
    )
    write_atomically(out.parent / made.checkpoint_name, payload)
    write_atomically(out, made.encode())
    print(f"session    {made.name}")
    print(f"id         {made.id}")
    print(f"file       {out} ({out.stat().st_size} bytes)")
    print(f"checkpoint {out.parent / made.checkpoint_name} ({promised.size} bytes)")
    for tier in made.trackers:
        print(f"tracker    {' '.join(tier)}")
    if not made.trackers:
        print("tracker    none: whoever joins must name one with --tracker")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A session file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a session file and show what is in it. Nothing in it is ever run."""
    read = read_session_file(file)
    shown = {
        "id": read.id,
        "name": read.name,
        "trackers": [list(tier) for tier in read.trackers],
        "p2pl": session_format.as_dict(read.session),
        "checkpoint": {"bytes": read.checkpoint.size, "root": read.checkpoint.root},
        "url_list": list(read.url_list),
        "comment": read.comment,
        "created_by": read.created_by,
        "created_at": read.created_at,
    }
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    print(f"id          {read.id}")
    print(f"name        {read.name}")
    print(f"trackers    {', '.join(url for tier in read.trackers for url in tier) or 'none'}")
    print(f"checkpoint  {read.checkpoint.size} bytes, root {read.checkpoint.root}")
    for key, value in shown["p2pl"].items():
        if isinstance(value, dict):
            value = "  ".join(
                f"{name}={item}" for name, item in value.items() if item not in ([], None)
            )
        print(f"{key:<11} {value}")
    if read.comment:
        print(f"comment     {read.comment}")


if __name__ == "__main__":
    main()
