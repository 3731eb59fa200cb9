"""`p2pl id`, `p2pl invite` and `p2pl revoke`: who takes part in a private session."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from p2pl.cli import options
from p2pl.cli.app import extra
from p2pl.errors import visible

AuthorKey = Annotated[
    Path | None,
    typer.Option(
        "--author",
        help="Key file of the session's author.  [default: NAME.author.pem beside the session "
        "file, where `p2pl create --private` put it]",
    ),
]


def show_id(
    identity: options.Identity = None,
) -> None:
    """Print the peer id by which an author invites this machine.

    Its key is made where it has none.

    The id alone goes to standard output, for use in a script; where the key is, to standard error.
    The key file stays on this machine: the id is all that the author of a private session needs.
    """
    with extra("client"):
        from p2pl.api.private import peer_id

    path = identity or options.machine_identity()
    is_new = not path.exists()
    print(peer_id(path))
    about = "new: keep it, and give it to nobody" if is_new else "it stays here"
    print(f"p2pl: the id above is of the key {path} ({about})", file=sys.stderr)


def invite(
    file: options.SessionPath,
    peer: Annotated[str, typer.Option(help="Id of the peer, as its `p2pl id` prints it.")],
    expires: Annotated[
        str | None,
        typer.Option(
            help="When the invitation ends: a date such as 2027-01-31 (that day included, UTC), or "
            "a span from now such as 12h, 7d or 4w.  [default: it does not end]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; send it to the peer, by any way: it is of no use to others.  "
            "[default: NAME.PEER.invitation beside the session file, with the first 8 digits of "
            "the peer's id]"
        ),
    ] = None,
    author: AuthorKey = None,
) -> None:
    """Invite a peer to a private session of yours."""
    with extra("client"):
        from p2pl.api.private import beside, read_invitation
        from p2pl.api.private import invite as make

    where = out or beside(file, f".{peer[:8]}.invitation")
    text = make(file, peer, expires=expires, out=where, author=author)
    print(f"invited  {peer}")
    print(f"ends     {read_invitation(text).end}")
    print(f"file     {where}")
    print(f"to join  p2pl join {file.name} --data … --invitation {where.name}")


def revoke(
    file: options.SessionPath,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Id of a peer whose invitation counts no longer. Repeatable.  [default: none; the "
            "list as it is goes to trackers once more]"
        ),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of a tracker to tell instead of those in the session file. Repeatable.  "
            "[default: the session file's]"
        ),
    ] = None,
    ca: options.Authorities = None,
    author: AuthorKey = None,
) -> None:
    """Take invitations to a private session of yours back.

    Your signed list of all that were taken back goes to the trackers, which hand it to every peer
    when it announces itself next. Exit code 3: no tracker took it; the same command tries again.
    """
    with extra("client"):
        from p2pl.api.private import revoke as take_back

    done = take_back(file, peer or (), trackers=tracker or (), ca=ca, author=author)
    print(f"list     number {done.number}, {len(done.peers)} taken back")
    print(f"file     {done.file}")
    for url in done.told:
        print(f"told     {url}")
    for url, why in done.silent.items():
        print(f"not told {url}: {visible(why)}", file=sys.stderr)
    if not done.told:
        print("p2pl: no tracker took the list; the same command tries again", file=sys.stderr)
        raise typer.Exit(3)
