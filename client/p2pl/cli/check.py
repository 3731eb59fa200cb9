"""`p2pl check`: what joining with the same options would meet."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pl.api.files import read_session
from p2pl.cli import options
from p2pl.cli.app import extra, show_log
from p2pl.cli.join import Relay, key_of
from p2pl.errors import visible

if TYPE_CHECKING:
    from p2pl.api.check import Preflight

WRONG_CODE = 1
ID_CHARS = 64
BORDERS = 10  # characters of a line of the table that are in none of its three cells
SIGNS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("wrong", "bold red")}


def check(
    file: options.SessionPath,
    data: Annotated[
        str | None,
        typer.Option(help=f"Your data: {options.DATA_SETS}  [required, except with --flower]"),
    ] = None,
    flower: Annotated[
        str | None,
        typer.Option(help="MODULE:CLIENT: a client written for Flower.  [default: none; --data]"),
    ] = None,
    partition: options.Partition = "iid",
    shard: options.Shard = None,
    partition_seed: options.PartitionSeed = 0,
    test_share: options.TestShare = None,
    tokenizer: options.Tokenizer = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the run would have; nothing is written there.  [default: as of p2pl "
            "join]"
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to serve other peers at; port 0 takes any free port.")
    ] = "0.0.0.0:0",
    rounds: options.Rounds = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity", "--key", help="Key file of this peer.  [default: as of p2pl join]"
        ),
    ] = None,
    invitation: options.Invitation = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of a tracker to ask instead of those in the session file. Repeatable.  "
            "[default: the session file's]"
        ),
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where others can dial this peer, as of p2pl join; a tracker tries. Repeatable.",
        ),
    ] = None,
    ca: options.Authorities = None,
    base: options.Base = None,
    relay: Annotated[
        Relay, typer.Option(help="Whether others reach this peer by a relay, as of p2pl join.")
    ] = Relay.auto,
    device: options.Device = "auto",
    precision: options.Precision = "float32",
    threads: options.Threads = None,
    dp_epsilon: options.DpEpsilon = None,
    dp_delta: options.DpDelta = None,
    dp_clip: options.DpClip = None,
) -> None:
    """See whether joining with these options would work.

    Your data are read, the trackers are asked, a few steps of training are timed, and one screen
    says what was found, before anything is trained. Nothing is written, and no tracker lists you.
    Exit code 0, or 1 and what to do.
    """
    read = read_session(file)
    part = options.part_of(shard, partition, partition_seed)
    with extra("client"):
        from rich.console import Console

        from p2pl.api.check import check_async
        from p2pl.api.join import default_run_dir
        from p2pl.data.load import Shard
        from p2pl.learning import flower as clients

    show_log(logging.ERROR)
    mine = Shard(*part) if part else None
    where = run_dir or default_run_dir(read.name, mine, alone=False, session_id=read.id)
    with extra("flower"):
        client = clients.load(flower, part[:2] if part else (0, 1)) if flower else None
        found = asyncio.run(
            check_async(
                file,
                client,
                data,
                run_dir=where,
                identity=identity or key_of(read.session, where, alone=False),
                listen=listen,
                trackers=tracker or (),
                ca=ca,
                base=base,
                invitation=invitation,
                announce=announce or (),
                relay=relay.value,
                rounds=rounds,
                shard=mine,
                test_share=test_share,
                tokenizer=tokenizer,
                dp_epsilon=dp_epsilon,
                dp_delta=dp_delta,
                dp_clip=dp_clip,
                device=device,
                precision=precision,
                threads=threads,
                data_dir=options.data_dir(),
            )
        )
    _show(found, Console(), f"p2pl check {file.name}")
    if not found.is_ready:
        raise typer.Exit(WRONG_CODE)


def _show(found: "Preflight", console: object, title: str) -> None:
    """Prints what was found, and then what to do."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table(title=Text(title, "bold"), title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "", "found"):
        table.add_column(name, justify="left", overflow="fold")
    before = BORDERS
    for one in found.findings:
        word, style = SIGNS.get(one.state, ("not known", "dim"))
        table.add_row(Text(one.name), Text(word, style), Text(visible(one.said)))
        before = max(before, BORDERS + len(one.name) + len(word))
    if before + ID_CHARS <= console.width:  # a wider one would be cut off at the console's edge
        table.columns[-1].min_width = ID_CHARS  # so that an id can be marked and copied
    console.print(table)
    for one in found.findings:
        if one.todo:
            console.print(Text(f"{one.name}: {visible(one.todo)}"), soft_wrap=True)
    if found.is_ready:
        console.print(Text("ready: p2pl join with the same options"))
