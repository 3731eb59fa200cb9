"""`p2pl ledger`: the update logs of runs, for whoever wants to check them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from p2pl.cli.app import Command, extra
from p2pl.errors import InputError, wrong

if TYPE_CHECKING:
    from p2pl.api.ledger import Finding

group = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show and check which models runs have committed to.",
)

MAX_COLUMNS = 100_000  # of a table with whatever a mix may hold

Log: TypeAlias = Annotated[
    Path,
    typer.Argument(help="Run directory of `p2pl join`, or a file that `p2pl ledger export` wrote."),
]
Authorities: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--ca", help="PEM file of the time-stamping authorities that are trusted, for time stamps."
    ),
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="File to write.  [default: standard output]")
]


@group.command("show", cls=Command)
def show(log: Log) -> None:
    """List the entries of an update log, and what each version was made of."""
    with extra("client"):
        from rich.console import Console

        from p2pl.api.ledger import read_log, shown
        from p2pl.report.tables import terminal_table
    read = read_log(log)
    about = f"update log of peer {read.peer_id[:8]}, session {read.session_id[:8]}"
    table, console = terminal_table(about, *shown(read)), Console()
    # Half a hash is none: lines longer than those of the terminal are left to it, or to `less -S`.
    wide = console.options.update(width=MAX_COLUMNS)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


@group.command("verify", cls=Command)
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, folders of them, exports, and proofs: logs of one session are "
            "checked against each other too."
        ),
    ],
    every: Annotated[
        bool,
        typer.Option(
            "--every-signature",
            help="Check the signature of every entry. Without it the last one of a log stands for "
            "all, because each entry has the hash of the one before.",
        ),
    ] = False,
    ca: Authorities = None,
) -> None:
    """Check update logs and proofs; the exit code is 1 where something does not hold.

    It is 2 where there is nothing to check. Nothing is asked of anybody: what is there is enough.
    """
    with extra("client"):
        from p2pl.api.ledger import is_anchor, verified
    anchors = [path for path in paths if is_anchor(path)]
    findings = verified([path for path in paths if path not in anchors], every=every)
    if anchors:
        findings += _stamped(anchors, paths, ca)
    for one in findings:
        print(f"{'holds' if one.holds else 'WRONG'}  {one.source}: {one.text}")
    if not all(one.holds for one in findings):
        sys.exit(1)


@group.command("anchor", cls=Command)
def anchor(
    log: Log,
    authority: Annotated[
        str, typer.Option(help="URL of a time-stamping authority (RFC 3161), http or https.")
    ],
    ca: Authorities = None,
    out: Out = None,
) -> None:
    """Have an authority stamp the time on an update log's checkpoint (needs p2pl[anchor]).

    It is sent the hash of the checkpoint, and nothing else. `p2pl ledger verify` checks the file
    offline.
    """
    with extra("client"):
        from p2pl.api.ledger import read_log
    with extra("anchor"):
        from p2pl.api.anchor import anchored, roots_in
    _write(out, anchored(read_log(log), authority, roots_in(_given(ca))))


def _given(ca: Path | None) -> Path:
    if ca is not None:
        return ca
    hint = "a time stamp is worth what its authority is"
    allowed = "a PEM file of the authorities that you trust"
    raise InputError(wrong("--ca", got="nothing", allowed=allowed, hint=hint))


def _stamped(anchors: list[Path], paths: list[Path], ca: Path | None) -> list["Finding"]:
    """Returns what time stamps come to, and whether they are of the logs that are given."""
    with extra("client"):
        from p2pl.api.ledger import logs_in, read_log
        from p2pl.updates.file import LOG_FILE
    with extra("anchor"):
        from p2pl.api.anchor import checked, roots_in
    roots = roots_in(_given(ca))
    folders = [one for path in paths for one in logs_in(path) if (one / LOG_FILE).exists()]
    logs = [read_log(one) for one in folders]
    return [finding for one in anchors for finding in checked(one, roots, logs)]


@group.command("prove", cls=Command)
def prove(
    log: Log,
    entry: Annotated[int, typer.Option(help="Index of the entry, as `p2pl ledger show` has it.")],
    out: Out = None,
) -> None:
    """Write a proof that an entry is in an update log; `p2pl ledger verify` checks it."""
    with extra("client"):
        from p2pl.api.ledger import inclusion, read_log
    _write(out, inclusion(read_log(log), entry))


@group.command("export", cls=Command)
def export(log: Log, out: Out = None) -> None:
    """Write an update log as JSON lines, with what was signed in each and its checkpoint.

    It says whose models were mixed with which weights: read "Privacy" in the documentation before
    you publish the log of a private run.
    """
    with extra("client"):
        from p2pl.api.ledger import exported, read_log
    _write(out, "".join(f"{line}\n" for line in exported(read_log(log))))


@group.command("graph", cls=Command)
def graph(
    log: Log,
    others: Annotated[
        list[Path] | None,
        typer.Argument(help="Logs of other peers of the session: without them, their part ends."),
    ] = None,
    entry: Annotated[
        int | None,
        typer.Option(help="Index of the model's entry.  [default: the last one, the final model]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="PNG file to draw into: versions by peer and round (needs p2pl[report])."
        ),
    ] = None,
) -> None:
    """Say who made a model: which peers, in which rounds, with which weights.

    It goes back through the mixes that the logs have. The influence of a peer is the share of all
    training in the model that was done by it.
    """
    with extra("client"):
        from rich.console import Console

        from p2pl.api.ledger import logs_in, read_log
        from p2pl.api.provenance import picture, provenance
        from p2pl.report.tables import terminal_table
        from p2pl.run.files import write_atomically
    if out is not None and out.suffix.lower() != ".png":
        raise InputError(wrong("--out", got=out.name, allowed="a name that ends in .png"))
    found = [one for given in others or () for one in logs_in(given)]
    made = provenance(read_log(log), [read_log(one) for one in found], index=entry)
    row = made.last_mix
    influence = {**dict.fromkeys(row, None), **made.influence}
    most = "at most " if made.unknown else ""  # others have a part that nobody can say
    rows = [
        (
            who[:8],
            "not known" if share is None else f"{most}{100 * share:.1f} %",
            f"{100 * row[who]:.1f} %" if who in row else "",
        )
        for who, share in sorted(influence.items(), key=lambda one: -(one[1] or 0.0))
    ]
    about = f"{len(made.versions)} versions are in it"
    if made.unknown:
        about += f"; of {made.unknown} more the log is not given: name it as well"
    Console().print(terminal_table(about, ("peer", "influence", "weight in the last mix"), rows))
    if out is not None:
        with extra("report"):
            write_atomically(out, picture(made, {}))
        print(f"picture {out}")


def _write(out: Path | None, text: str) -> None:
    with extra("client"):
        from p2pl.run.files import write_atomically
    if out is None:
        sys.stdout.write(text)
        return
    write_atomically(out, text.encode())
    print(f"written {out}")
