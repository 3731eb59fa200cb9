"""The command line: parses, calls one function, maps errors to exit codes.

Heavy modules are imported inside the commands, so that `p2pl --help` is instant and a missing extra
is explained. Exit codes: 0 done; 2 the input is wrong; 3 no tracker and no known peer; 4 nothing
was left of the privacy budget; 130 interrupted.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pl import __version__
from p2pl.errors import InputError, P2PLError, SessionFileError, wrong
from p2pl.protocol import session as session_format
from p2pl.protocol.session import Session, SessionFile, Spec
from p2pl.run.files import write_atomically

if TYPE_CHECKING:
    from p2pl.data.load import Data
    from p2pl.learning.flower import NumPyClient

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


def _read_spec(path: Path) -> Spec:
    """Returns the spec in the TOML file at `path`, checked."""
    try:
        text = _read(path, session_format.MAX_SESSION_FILE_BYTES, "spec").decode()
    except UnicodeDecodeError as fault:
        raise SessionFileError(f"{path}: not UTF-8 text: {fault.reason}") from fault
    try:
        return session_format.read_spec(text)
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
    flower: Annotated[
        str | None,
        typer.Option(
            help="MODULE:CLIENT, a client written for Flower: the session is for clients like it, "
            "and begins with its parameters. The model in the TOML is then 'arrays'."
        ),
    ] = None,
) -> None:
    """Make a session file, and its initial checkpoint beside it, from a TOML spec."""
    with _extra("client"):
        from p2pl.api.session import create as make
        from p2pl.learning import flower as clients
    model = clients.load(flower) if flower else None
    made = make(spec, out, trackers=tracker or (), model=model)
    promised = made.checkpoint
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


@app.command()
def join(
    file: Annotated[Path, typer.Argument(help="A session file: NAME.torrent.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="My data: 'digits', a Hugging Face dataset id (looked for in $P2PL_DATA_DIR "
            "first), or a folder of parquet files or of one folder of images a class.  [required, "
            "except with --flower]"
        ),
    ] = None,
    flower: Annotated[
        str | None,
        typer.Option(
            help="MODULE:CLIENT, a client that I wrote for Flower and that has its own data: a "
            "NumPyClient, or a client_fn, which is told --shard. Its code runs here."
        ),
    ] = None,
    partition: Annotated[
        str,
        typer.Option(help="With --shard: iid, unbalanced, dirichlet:A or classes:K."),
    ] = "iid",
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: my data is the I-th of N parts of the dataset; I counts from 0 "
            "(N/N is 0/N, so counting from 1 works too). Without it all of the data is mine."
        ),
    ] = None,
    partition_seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the log, the state and the model go; joining again with the same one "
            "resumes.  [default: runs/NAME[-shard-I-of-N]]"
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to serve other peers at; port 0 takes any free one.")
    ] = "0.0.0.0:0",
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds to do in all.  [default: the session's]")
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            help="My key file, made if there is none; keep it to be the same peer in another "
            "session.  [default: RUN_DIR/identity.pem]"
        ),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="Ask this tracker in the place of the session file's; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="float32, or bfloat16: layers in half precision, which new processors and GPUs "
            "compute up to twice as fast; what I send stays as it was."
        ),
    ] = "float32",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="To compute with.  [default: 1 for small models, else all cores]"),
    ] = None,
    seed_for: Annotated[
        float,
        typer.Option(
            min=0,
            help="When done, go on serving peers that still train for so many seconds at most.",
        ),
    ] = 60.0,
    dp_epsilon: Annotated[
        float | None,
        typer.Option(
            help="Train privately: everything that I ever send says at most so much about any one "
            "of my examples (differential privacy, DP-SGD); 1 is strong, 8 weak."
        ),
    ] = None,
    dp_delta: Annotated[
        float | None,
        typer.Option(
            help="With --dp-epsilon: the chance that the guarantee leaves, below 1/n.  [default: "
            "the session's, or 1e-5, or a tenth of 1/n where that is less]"
        ),
    ] = None,
    dp_clip: Annotated[
        float | None,
        typer.Option(
            help="With --dp-epsilon: the largest norm of one example's gradient.  [default: 1]"
        ),
    ] = None,
    personal: Annotated[
        bool,
        typer.Option(
            "--personal",
            help="Keep a model of my own distribution beside the shared one; nobody else gets it.",
        ),
    ] = False,
    attack: Annotated[str | None, typer.Option(hidden=True)] = None,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Send nothing, ask nobody: what would I reach by myself?"),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log to standard error.")
    ] = False,
) -> None:
    """Train the session's model on my data, together with the others who joined.

    My data stays here. What others get are my parameters, which say something about the data: see
    "Who can see, change or stop what" in the README. Ctrl-C leaves properly and keeps the state.
    """
    read = read_session_file(file)
    part = _shard(shard, partition, partition_seed)
    with _extra("client"):
        from p2pl.api.join import default_run_dir, join_async
        from p2pl.attacks import kinds as attacks
        from p2pl.data.load import Shard
        from p2pl.terminal import Screen
    from rich.console import Console

    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(name)s %(message)s"
    )
    client, mine, shown = _mine(read.session, data, flower, part)
    where = run_dir or default_run_dir(read.name, Shard(*part) if part else None, alone=alone)
    with _extra("dp"), Screen(Console(), model=read.session.model.name, data=shown) as screen:
        run = asyncio.run(
            join_async(
                file,
                client,
                mine,
                on_event=screen,
                run_dir=where,
                identity=identity,
                listen=listen,
                trackers=tracker or (),
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
    summary = run.summary
    print(f"run directory {where}")
    if summary and summary.state == "interrupted":
        print("interrupted; the same command resumes", file=sys.stderr)
        raise typer.Exit(130)


def _mine(
    session: Session,
    data: str | None,
    flower: str | None,
    part: tuple[int, int, str, int] | None,
) -> "tuple[NumPyClient | None, Data | None, str]":
    """Returns my data, or my client of Flower, and what to call them."""
    from p2pl.data import load as datasets
    from p2pl.learning import flower as clients

    if flower is not None:
        if data is not None:
            raise InputError("--data: not allowed with --flower; a client of Flower has its own")
        return clients.load(flower, part[:2] if part else (0, 1)), None, f"flower {flower}"
    if data is None:
        raise InputError("--data: missing; allowed: a data set, or --flower MODULE:CLIENT")
    mine = datasets.load(
        data,
        session.task,
        data_dir=_data_dir(),
        shard=datasets.Shard(*part) if part else None,
    )
    share = f" {part[0]}/{part[1]} {part[2]}" if part else ""
    return None, mine, f"{data}{share}, {len(mine.train)} examples"


def _data_dir() -> Path | None:
    """Returns where data sets are looked for first, if the person said so."""
    home = os.environ.get("P2PL_DATA_DIR")
    return Path(home) if home else None


def _shard(text: str | None, partition: str, seed: int) -> tuple[int, int, str, int] | None:
    """Returns (index, count, partition, seed) of `--shard I/N`; None without it."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 < int(count) <= 100_000):
        raise InputError(wrong("--shard", got=text, allowed="I/N with N in 1..100000"))
    if int(index) > int(count):
        raise InputError(wrong("--shard", got=text, allowed=f"0/{count} to {count}/{count}"))
    return int(index) % int(count), int(count), partition, seed


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="A session file, or the TOML it is made from.")],
    data: Annotated[str, typer.Option(help="The data of all peers; as for `p2pl join`.")],
    peers: Annotated[int, typer.Option(help="How many virtual peers.")],
    partition: Annotated[
        str, typer.Option(help="Who holds what: iid, unbalanced, dirichlet:A or classes:K.")
    ] = "iid",
    partition_seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the first seed; each further one adds 1.")
    ] = 0,
    mixing: Annotated[
        str | None, typer.Option(help="Mixing rule.  [default: the session's]")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="[default: the session's]")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="How many seeds to run.")] = 1,
    first_seed: Annotated[
        int, typer.Option(min=0, help="Seed 0 is the session as it stands; tune on others.")
    ] = 0,
    cohort: Annotated[
        int | None, typer.Option(help="Peers pulled from in a round.  [default: the session's]")
    ] = None,
    local_epochs: Annotated[int | None, typer.Option(help="[default: the session's]")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="centralised: one model on everybody's data, which sees in a round as many "
            "examples as all peers together. isolated: nobody exchanges anything."
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="KIND:COUNT[:ARG]: the last COUNT peers are bad, e.g. sign-flip:2:-3; accuracies "
            "are those of the others. A KIND that does not exist lists them all."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="SECTION.FIELD=VALUE: change the session, e.g. training.learning_rate=0.05; "
            "the value as in TOML. Repeatable.",
        ),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Judge on so many examples taken out of the training data, the same ones for all "
            "seeds, and leave the test set unread: to choose settings by.",
        ),
    ] = None,
    dp_epsilon: Annotated[
        float | None, typer.Option(help="Every peer trains privately; as for `p2pl join`.")
    ] = None,
    dp_delta: Annotated[float | None, typer.Option(help="As for `p2pl join`.")] = None,
    dp_clip: Annotated[float | None, typer.Option(help="As for `p2pl join`.")] = None,
    personal: Annotated[
        bool, typer.Option("--personal", help="Every peer keeps one; as for `p2pl join`.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="How peers are trained: auto (whichever is faster), stacked, sequential."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="float32 or bfloat16; as for `p2pl join`.")
    ] = "float32",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="To compute with, at most.  [default: all cores]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write run directories, one a peer, that `p2pl report` reads."),
    ] = None,
    curves: Annotated[
        bool, typer.Option(help="Score the peers after every round, and not after the last alone.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run many virtual peers on this machine, in one process: what would a session come to?

    Accuracies are means over the peers, on the whole test set, after the last mix.
    """
    changes = dict(map(_setting, settings or ()))
    named = {
        "mixing.rule": mixing,
        "exchange.rounds": rounds,
        "exchange.cohort": cohort,
        "training.local_epochs": local_epochs,
    }
    changes |= {path: value for path, value in named.items() if value is not None}
    with _extra("client"):
        from p2pl.api.simulate import session_to_simulate
        from p2pl.api.simulate import simulate as run_simulation
        from p2pl.simulate.show import Bar, table
    from rich.console import Console

    session = session_to_simulate(file)
    total = seeds * int(str(changes.get("exchange.rounds", session.session.exchange.rounds)))
    with _extra("dp"), Bar(total, Console(file=sys.stderr)) as bar:
        made = run_simulation(
            session,
            data,
            peers,
            partition=partition,
            partition_seed=partition_seed,
            seeds=seeds,
            first_seed=first_seed,
            changes=changes,
            baseline=baseline,
            attack=attack,
            held_out=held_out,
            dp_epsilon=dp_epsilon,
            dp_delta=dp_delta,
            dp_clip=dp_clip,
            personal=personal,
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
            out=out,
            curves=curves,
            data_dir=_data_dir(),
            on_round=bar.round,
        )
    if as_json:
        print(json.dumps(made.figures))
    else:
        Console().print(table(dict(made.figures)))


def _setting(text: str) -> tuple[str, object]:
    """Returns the path and the value of `--set SECTION.FIELD=VALUE`."""
    import tomllib

    path, _, value = text.partition("=")
    section, _, field = path.strip().rpartition(".")
    try:
        read = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        read = {}
    if not section or list(read) != ["value"]:
        raise InputError(
            wrong("--set", got=text, allowed="SECTION.FIELD=VALUE, with VALUE as in TOML")
        )
    return f"{section}.{field}", read["value"]


def _session_to_simulate(path: Path) -> tuple[str, Session, str]:
    """Returns the name, the session and its id of a session file or of the TOML it is made from."""
    if path.suffix != ".toml":
        read = read_session_file(path)
        return read.name, read.session, read.id
    spec = _read_spec(path)
    with _extra("client"):
        from p2pl.learning import checkpoint
    session = spec.session()
    made = SessionFile(spec.name, session, checkpoint.build(session)[1], trackers=())
    return spec.name, session, made.id


@app.command()
def partition(
    data: Annotated[str, typer.Option(help="The dataset to divide; as for `p2pl join`.")],
    peers: Annotated[int, typer.Option(min=1, max=100_000, help="Among how many.")],
    how: Annotated[
        str, typer.Option("--partition", help="iid, unbalanced, dirichlet:A or classes:K.")
    ] = "iid",
    partition_seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the rows of each class by peer into this PNG file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which peer holds how many rows of which class, and the partition's hash.

    `p2pl join --shard I/N` and `p2pl simulate` divide the data in the same way.
    """
    with _extra("client"):
        from p2pl.data import load as datasets
        from p2pl.report.shards import divide, shards_table
    labels, names = datasets.load_labels(data, data_dir=_data_dir())
    shards = divide(labels, names, how, peers, partition_seed)
    if plot:
        with _extra("report"):
            from p2pl.report.plots import draw_shards
        title = f"{data}, {how}, {peers} peers, seed {partition_seed}"
        write_atomically(plot, draw_shards(shards.counts, shards.labels, title=title))
    if as_json:
        print(json.dumps({"data": data, **shards.as_dict()}))
        return
    from rich.console import Console

    Console().print(shards_table(shards))
    if plot:
        print(f"picture {plot}")


@app.command()
def privacy(
    examples: Annotated[int, typer.Option(min=2, help="How many I have, validation included.")],
    session: Annotated[
        Path | None, typer.Option(help="A session, .torrent or .toml, for what is not given here.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples expected in a step.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Of the whole session.")] = None,
    local_epochs: Annotated[int | None, typer.Option(min=1, help="In a round.")] = None,
    cohort: Annotated[int | None, typer.Option(min=0, help="Models mixed with mine.")] = None,
    parameters: Annotated[int | None, typer.Option(min=1, help="Of the model.")] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Repeatable.  [default: 1, 2, 3 and 8]")
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(help="The other way round: what epsilon has this noise? Repeatable."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="As for `p2pl join`.")] = None,
    clip: Annotated[float, typer.Option(help="As for `p2pl join`.")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="Draw noise by epsilon into this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan private training: how much noise does a budget need, and what is left beside it?

    Noise multiplier: in clipping norms, the most that one example can add to a step. Norm a step:
    of the noise on a step's mean gradient. The percentages set the noise beside the most that all
    examples together can move the model, in a step and in the whole session, over which noise adds
    up by a square root only, and once it is mixed with models whose noise is independent.
    """
    read = _session_to_simulate(session)[1] if session else None
    with _extra("client"):
        from p2pl.privacy import plan as private
        from p2pl.report.privacy import plan_table
    base = private.Setting.of(read, examples) if read else private.Setting(examples)
    setting = base.changed(
        batch=batch,
        rounds=rounds,
        epochs=local_epochs,
        cohort=cohort,
        parameters=parameters,
        delta=delta,
        clip=clip,
    )
    with _extra("dp"):
        made = private.plan(setting, epsilon or (() if noise else private.EPSILONS), noise or ())
    if plot:
        with _extra("report"):
            from p2pl.report.plots import draw_plan
        write_atomically(plot, draw_plan(made.curves(), title="What privacy costs"))
    if as_json:
        print(json.dumps(made.as_dict()))
        return
    from rich.console import Console

    Console().print(plan_table(made))
    if plot:
        print(f"picture {plot}")


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="A session file, or the TOML it is made from.")],
    data: Annotated[str, typer.Option(help="As for `p2pl join`.")],
    partition: Annotated[str, typer.Option(help="As for `p2pl join`.")] = "iid",
    shard: Annotated[str | None, typer.Option(help="As for `p2pl join`.")] = None,
    partition_seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    rounds: Annotated[int | None, typer.Option(min=1, help="[default: the session's]")] = None,
    dp_epsilon: Annotated[
        float | None, typer.Option(help="As for `p2pl join`; none: what leaks without privacy?")
    ] = None,
    dp_delta: Annotated[float | None, typer.Option(help="As for `p2pl join`.")] = None,
    dp_clip: Annotated[float | None, typer.Option(help="As for `p2pl join`.")] = None,
    canaries: Annotated[
        int, typer.Option(min=20, help="To plant, at most; a coin decides who is in.")
    ] = 1_000,
    models: Annotated[
        int, typer.Option(min=0, help="To train for the attacks on membership; 0: leave them out.")
    ] = 16,
    confidence: Annotated[float, typer.Option(help="That the bound is true.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the coins; never of the noise.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="To compute with.  [default: 1 for small models, else all cores]"),
    ] = None,
    fault: Annotated[str, typer.Option(hidden=True)] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Attack my own training: is it as private as --dp-epsilon claims?

    Canaries are planted among my examples, and guessed from the versions that others would get:
    what they betray is a bound from below on epsilon. Who was in the training data is guessed from
    the final model. Nothing is sent. Exit code 1 if the claim is false.
    """
    session = _session_to_simulate(file)[1]
    part = _shard(shard, partition, partition_seed)
    with _extra("client"):
        from p2pl.data import load as datasets
        from p2pl.privacy.audit import run as audits
        from p2pl.privacy.policy import budget, wanted
        from p2pl.report.privacy import audit_table
    asked = wanted(dp_epsilon, dp_delta, dp_clip)
    mine = datasets.load(
        data,
        session.task,
        data_dir=_data_dir(),
        shard=datasets.Shard(*part) if part else None,
    ).train
    what = audits.Audit(
        budget=budget(session.privacy, asked, len(mine)) if asked else None,
        rounds=rounds or session.exchange.rounds,
        canaries=canaries,
        models=models,
        confidence=confidence,
        seed=seed,
        fault=fault,
        threads=threads,
        **({"clip": asked.clip} if asked else {}),
    )
    with _extra("dp"):
        verdict, attacks = audits.audit(session, mine, what)
    if as_json:
        print(json.dumps(audits.as_dict(verdict, attacks)))
    else:
        from rich.console import Console

        Console().print(audit_table(verdict, attacks))
    if verdict.broken:
        raise typer.Exit(1)


@app.command()
def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories of `p2pl join`, or one directory of `p2pl simulate --out`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the tables.")],
) -> None:
    """Draw what happened: accuracy by round, trust, confusion, bytes, and a table by class."""
    with _extra("report"):
        from rich.console import Console

        from p2pl.report.run import report_tables, write_report
        from p2pl.report.simulation import is_simulation, simulation_tables, write_simulation_report
    if len(run_dirs) == 1 and is_simulation(run_dirs[0]):
        simulated = write_simulation_report(run_dirs[0], out)
        Console().print(simulation_tables(simulated))
        print(f"page {simulated.page}")
        return
    written = write_report(run_dirs, out)
    Console().print(report_tables(written))
    print(f"page {written.page}")


if __name__ == "__main__":
    main()
