"""`p2pl join`: one peer's part in a session."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pl.api.files import read_session
from p2pl.cli import options
from p2pl.cli.app import extra, show_log
from p2pl.cli.watch import beside
from p2pl.errors import InputError, visible
from p2pl.protocol.session import Session

if TYPE_CHECKING:
    from p2pl.data.load import Data
    from p2pl.learning.flower import NumPyClient


class Relay(StrEnum):
    """Whether others reach this peer by a relay."""

    auto = "auto"
    always = "always"
    never = "never"


class Fetch(StrEnum):
    """Whom to ask first for the initial checkpoint."""

    own = "own"
    torrent = "torrent"


MAX_SHOWN = 10  # classes on one line; chosen


MET_NOBODY_CODE = 5
MET_NOBODY = (
    "nobody was met: this peer trained all its rounds alone, though the session is for several; "
    "what it has learned is kept"
)


def _fetching(fetch: Fetch) -> Callable[..., Awaitable[bytes]] | None:
    """Returns what fetches the checkpoint first; None: nothing beside what always does."""
    if fetch is Fetch.own:
        return None
    with extra("torrent"):
        from p2pl.network import torrent
    return torrent.fetch


def join(
    file: options.SessionPath,
    data: Annotated[
        str | None,
        typer.Option(help=f"Your data: {options.DATA_SETS}  [required, except with --flower]"),
    ] = None,
    flower: Annotated[
        str | None,
        typer.Option(
            help="MODULE:CLIENT: a client that you wrote for Flower and that has its own data: a "
            "NumPyClient, or a client_fn or a ClientApp, which are told --shard. Its code runs on "
            "this machine.  "
            "[default: the session's model is trained on --data]"
        ),
    ] = None,
    partition: options.Partition = "iid",
    shard: options.Shard = None,
    partition_seed: options.PartitionSeed = 0,
    test_share: options.TestShare = None,
    tokenizer: options.Tokenizer = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the log, the state and the model. Joining again with the same folder "
            "resumes the run.  [default: runs/NAME[-shard-I-of-N][-alone]; where that run is "
            "finished, or of another session, the same with -2, -3, …]"
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to serve other peers at; port 0 takes any free port.")
    ] = "0.0.0.0:0",
    rounds: options.Rounds = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            "--key",
            help="Key file of this peer, created if it does not exist. Keep it to be the same peer "
            "in another session.  [default: RUN_DIR/identity.pem; in a private session, where "
            "there is none, this machine's, as `p2pl id` shows it]",
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
            help="Where others can dial this peer from elsewhere: an address or a name, where a "
            "router forwards a port to the one of --listen. Repeatable, the best first.",
        ),
    ] = None,
    ca: options.Authorities = None,
    base: options.Base = None,
    fetch: Annotated[
        Fetch,
        typer.Option(
            help="Whom to ask first for the initial checkpoint, where it is not on this machine: "
            "url-list and peers (own), or clients of BitTorrent (torrent) through libtorrent."
        ),
    ] = Fetch.own,
    relay: Annotated[
        Relay,
        typer.Option(
            help="Whether others reach this peer by a relay the tracker names: by no other way "
            "(always), where it cannot be dialled (auto), or never. What passes a relay stays "
            "encrypted between peers."
        ),
    ] = Relay.auto,
    witness: Annotated[
        bool,
        typer.Option(
            "--witness",
            help="Show a tracker that is a witness this peer's update log, so that it cosigns it, "
            "and look there at those of others.",
        ),
    ] = False,
    device: options.Device = "auto",
    precision: options.Precision = "float32",
    threads: options.Threads = None,
    seed_for: Annotated[
        float,
        typer.Option(
            min=0,
            help="Number of seconds, at most, to go on serving peers that still train, once this "
            "peer has done its rounds.",
        ),
    ] = 60.0,
    dp_epsilon: options.DpEpsilon = None,
    dp_delta: options.DpDelta = None,
    dp_clip: options.DpClip = None,
    personal: Annotated[
        bool,
        typer.Option(
            "--personal",
            help="Keep a second model, fitted to the distribution of your own data, beside the "
            "shared one. No other peer gets it.",
        ),
    ] = False,
    attack: Annotated[str | None, typer.Option(hidden=True)] = None,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="Send nothing and ask nobody: shows what your data reach without the others.",
        ),
    ] = False,
    log: options.Log = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show the run as a live page meanwhile, as `p2pl watch RUN_DIR` does."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Write log messages to standard error.")
    ] = False,
) -> None:
    """Train a session's model on your data, together with others.

    Your data stay on this machine. Other peers get the parameters of your model, which say
    something about your data: see "Who can see, change or stop what" in the README. Ctrl-C leaves
    properly and keeps the state; the same command resumes.
    """
    read = read_session(file)
    part = options.part_of(shard, partition, partition_seed)
    with extra("client"):
        from p2pl.api.join import default_run_dir, join_async
        from p2pl.attacks import kinds as attacks
        from p2pl.data.load import Shard
        from p2pl.exchange.company import why_alone
        from p2pl.terminal import RunConsole, Screen

    show_log(logging.INFO if verbose else logging.ERROR)
    client, mine, shown = _trains_with(read.session, data, flower, part, (test_share, tokenizer))
    where = run_dir or default_run_dir(
        read.name, Shard(*part) if part else None, alone=alone, session_id=read.id
    )
    page = beside(where, sys.stdout) if watch else contextlib.nullcontext()
    with (
        page,
        extra("dp"),
        Screen(RunConsole(), model=read.session.model.name, data=shown) as screen,
    ):
        run = asyncio.run(
            join_async(
                file,
                client,
                mine,
                on_event=screen,
                log=log or (),
                run_dir=where,
                identity=identity or key_of(read.session, where, alone=alone),
                invitation=invitation,
                listen=listen,
                trackers=tracker or (),
                ca=ca,
                base=base,
                fetch=_fetching(fetch),
                announce=announce or (),
                relay=relay.value,
                witness=witness,
                rounds=rounds,
                seed_for=seed_for,
                alone=alone,
                dp_epsilon=dp_epsilon,
                dp_delta=dp_delta,
                dp_clip=dp_clip,
                personal=personal,
                device=device,
                precision=precision,
                threads=threads,
                attack=attacks.parse_kind(attack) if attack else None,
                on_signals=True,
            )
        )
    print(f"run directory {where}")
    if run.summary and run.summary.state == "interrupted":
        print("interrupted; the same command resumes", file=sys.stderr)
        raise typer.Exit(130)
    if run.summary and run.summary.met_nobody:
        undialled = run.summary.undialled
        shut = f"; nobody could dial this peer: {undialled}" if undialled else ""
        why = f"{why_alone(run.summary.left_out)}{shut}; --alone trains alone on purpose"
        print(f"p2pl: {MET_NOBODY}; {why}", file=sys.stderr)
        raise typer.Exit(MET_NOBODY_CODE)


def key_of(session: Session, run_dir: Path, *, alone: bool) -> Path | None:
    """Returns the key file of a peer that named none; None: that of the run directory."""
    is_there = (run_dir / "identity.pem").exists()
    return None if alone or is_there or not session.private else options.machine_identity()


def _trains_with(
    session: Session,
    data: str | None,
    flower: str | None,
    part: options.Part | None,
    more: tuple[float | None, Path | None],
) -> "tuple[NumPyClient | None, Data | None, str]":
    """Returns the person's client of Flower, or their data, and what to call them on the screen."""
    test_share, tokenizer = more
    with extra("flower"):
        from p2pl.data import load as datasets
        from p2pl.learning import flower as clients

        if flower is not None:
            if data is not None or test_share is not None:
                raise InputError(
                    "--data, --test-share: not allowed with --flower; a client of Flower has data "
                    "of its own"
                )
            return clients.load(flower, part[:2] if part else (0, 1)), None, f"flower {flower}"
    if data is None:
        raise InputError("--data: missing; allowed: a data set, or --flower MODULE:CLIENT")
    mine = datasets.load(
        data,
        session.task,
        form=datasets.form_of(session, tokenizer),
        data_dir=options.data_dir(),
        shard=datasets.Shard(*part) if part else None,
        test_share=test_share,
    )
    are_numbers = mine.labels == tuple(map(str, range(len(mine.labels))))
    if not (session.task.labels or are_numbers):
        print(f"classes {_numbered(mine.labels)}: so these data number them. The session names")
        print("        none; peers whose data number them otherwise are turned down")
    share = f" {part[0]}/{part[1]} {part[2]}" if part else ""
    tested = f", {len(mine.test)} drawn to test on" if mine.test and test_share else ""
    return None, mine, f"{data}{share}, {len(mine.train)} examples{tested}"


def _numbered(names: Sequence[str]) -> str:
    """Returns the names of classes with their numbers, as far as a line holds them."""
    shown = ", ".join(f"{number} {visible(name)}" for number, name in enumerate(names[:MAX_SHOWN]))
    return shown + (f", … {len(names) - 1}" if len(names) > MAX_SHOWN else "")
