"""`p2pl create` and `p2pl inspect`: session files, made and shown."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from p2pl.api.files import read_session
from p2pl.cli.app import extra
from p2pl.cli.options import AsJson, SessionPath
from p2pl.errors import InputError, printable
from p2pl.protocol import session as session_format
from p2pl.protocol.session import Session, SessionFile, Table


def create(
    spec: Annotated[
        Path,
        typer.Argument(help="TOML file that describes the session; torrentfiles/ has examples."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Session file to write: NAME.torrent. The checkpoint beside it has the name that "
            "the session itself has (`name` in the TOML file), by which peers know it."
        ),
    ],
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of a tracker. Repeat it to name fallbacks, which are tried in this order "
            "(BEP 12).  [default: none; whoever joins must then name one]"
        ),
    ] = None,
    flower: Annotated[
        str | None,
        typer.Option(
            help="MODULE:CLIENT: a client written for Flower. The session begins with its "
            "parameters and is for clients like it. Of a ClientApp, the parameters are those that "
            "the ServerApp sends first which the pyproject.toml in this folder names; or name that "
            "ServerApp here. The TOML file must name the model 'arrays'.  [default: the model that "
            "the TOML file names]"
        ),
    ] = None,
    schema_from: Annotated[
        Path | None,
        typer.Option(
            help="CSV or parquet file of yours. Its columns become the session's table, with their "
            "means, standard deviations and categories: everybody can read these. For images, "
            "`labels` in [task] says the classes and their order instead.  [default: the TOML file "
            "says it, or the data are no table]"
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of that file that is to be predicted. Repeat it for several labels or "
            "outputs.  [default: none]"
        ),
    ] = None,
    categorical: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of that file whose numbers stand for categories. Repeatable.  [default: "
            "columns of text]"
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="File of the library tokenizers (tokenizer.json). The session takes over its "
            "SHA-256 and its number of tokens; whoever joins needs the same file.  [default: none; "
            "tokens are bytes, or the session is not for text]"
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of that file that no model is to see, such as a name or a date. "
            "Repeatable.  [default: none]"
        ),
    ] = None,
    from_folder: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Folder of a causal model of the library transformers: config.json and, where the "
            "session is to begin with its weights, model.safetensors. Nothing else of it is read, "
            "and nothing is fetched.  [default: the model that the TOML file names]",
        ),
    ] = None,
    relay_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A relay for peers that cannot be dialled, relay://HOST:PORT or "
            "relays://HOST:443; in a private session, invitations are tickets to it where it runs "
            "with `p2pl-tracker relay --author`. Repeatable.  [default: those that the tracker "
            "names]",
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Only peers that you invite take part (`p2pl invite`). Your key is made beside "
            "the session file.  [default: as the TOML file says; else anybody who has the file]",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace the file that --out names, where it is another session or no session "
            "file, and weights beside it that are no session's.  [default: it is refused]",
        ),
    ] = False,
) -> None:
    """Make a session file and its initial checkpoint from TOML.

    The checkpoint is written beside the session file.
    """
    with extra("client"):
        from p2pl.api.session import create as make
        from p2pl.learning import flower as clients
        from p2pl.network import web
    with extra("flower"):
        model = clients.load_model(flower) if flower else None
        made = make(
            spec,
            out,
            trackers=tracker or (),
            model=model,
            schema_from=schema_from,
            target=target,
            categorical=categorical or (),
            leave_out=leave_out or (),
            tokenizer=tokenizer,
            from_folder=from_folder,
            relays=relay_url or (),
            private=private,
            replace=force,
        )
    print(f"session    {made.name}")
    print(f"id         {made.id}")
    print(f"file       {out} ({decimal(out.stat().st_size)})")
    print(f"checkpoint {out.parent / made.checkpoint_name} ({decimal(made.checkpoint.size)})")
    _show_author(made, out)
    if made.session.table is not None:
        _show_table(made.session.table)
    for tier in made.trackers:
        print(f"tracker    {' '.join(tier)}")
    if not made.trackers:
        print("tracker    none: whoever joins must name one with --tracker")
    for url in (*(url for tier in made.trackers for url in tier), *made.url_list):
        try:
            web.parse_url(url)
        except InputError as fault:
            print(f"note       nobody will get an answer there: {fault}")
    for relay in made.relays:
        print(f"relay      {relay}")
    task = made.session.task
    if task.classes and not task.labels and made.session.text is None:
        print("classes    not named: each peer numbers them as its data do, and turns down whoever")
        print("           numbers them otherwise; task.labels names them for all")


def inspect(file: SessionPath, as_json: AsJson = False) -> None:
    """Check a session file and show what is in it.

    Nothing in the file is ever executed.
    """
    read = read_session(file)
    unknown = _unknown_here(read.session)
    if as_json:
        print(json.dumps(_as_dict(read, unknown), indent=2))
        return
    _show(f"id          {read.id}")
    _show(f"name        {read.name}")
    _show(f"trackers    {', '.join(url for tier in read.trackers for url in tier) or 'none'}")
    if read.url_list:
        _show(f"mirrors     {', '.join(read.url_list)}")
    if read.relays:
        _show(f"relays      {', '.join(read.relays)}")
    _show(f"checkpoint  {decimal(read.checkpoint.size)}, root {read.checkpoint.root}")
    for key, value in session_format.as_dict(read.session).items():
        if key == "table":
            continue
        if key == "exchange":  # the settings of other kinds say nothing of this session
            others = {"gossip", "raft"} - {read.session.exchange.kind}
            value = {name: item for name, item in value.items() if name not in others}
        _show(f"{key:<11} {_said(value)}")
    if read.session.table is not None:
        _show_table(read.session.table)
    if read.comment:
        _show(f"comment     {read.comment}")
    for field, name in (unknown or {}).items():
        _show(f"note        {field} {name!r} is unknown here: whoever joins must have installed it")


def _show(line: str) -> None:
    """Prints a line, part of which a stranger has written."""
    print(printable(line))


def _said(value: object) -> str:
    """Returns a value of a session for reading; of a table, what is said and not empty."""
    if isinstance(value, dict):
        told = _flat(value).items()
        return "  ".join(f"{name}={_said(one)}" for name, one in told) or "-"
    if isinstance(value, list | tuple):
        return ",".join(map(_said, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what stands in a table, and in tables in it by TABLE.NAME, and is not empty."""
    found: dict[str, Any] = {}
    for name, one in table.items():
        if isinstance(one, dict):
            found |= {f"{name}.{below}": value for below, value in _flat(one).items()}
        elif one not in ([], None, ""):
            found[name] = one
    return found


def _show_author(made: SessionFile, out: Path) -> None:
    """Prints where the author's key of a private session is, and what hangs on it."""
    if not made.session.private:
        return
    from p2pl.api.private import AUTHOR_SUFFIX, beside

    key = beside(out, AUTHOR_SUFFIX)
    print(f"private    only whom the author invites: p2pl invite {out} --peer ID")
    if key.exists():
        print(f"author     {key}")
        print("           Keep this key, and a copy of it, and give it to nobody: whoever has it")
        print("           decides who takes part, and without it nobody can be invited any more.")


def _show_table(table: Table) -> None:
    """Prints what a session says of a table, a line a column."""
    columns = f"{len(table.columns)} columns, of which a row becomes {table.width} numbers"
    _show(f"table       target {', '.join(table.targets)}; {columns}")
    for column in table.columns:
        values = ", ".join(column.categories) or f"mean {column.mean:g}, std {column.std:g}"
        gaps = {"zero": "", "indicator": "; gaps are told", "refused": "; no gaps"}[column.missing]
        _show(f"            {column.name}: {column.kind}, {values}{gaps}")


def _as_dict(read: SessionFile, unknown: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        "id": read.id,
        "name": read.name,
        "trackers": [list(tier) for tier in read.trackers],
        "p2pl": session_format.as_dict(read.session),
        "checkpoint": {"bytes": read.checkpoint.size, "root": read.checkpoint.root},
        "url_list": list(read.url_list),
        "relays": list(read.relays),
        "comment": read.comment,
        "created_by": read.created_by,
        "created_at": read.created_at,
        "unknown_here": unknown,
    }


def _unknown_here(session: Session) -> dict[str, str] | None:
    """Returns the names that nothing here has, by field; None where only the client would know."""
    try:
        from p2pl.api.session import unknown_names
    except ModuleNotFoundError:  # a machine that only looks at session files needs no torch
        return None
    return unknown_names(session)
