"""`p2pl simulate`: many virtual peers in one process."""

import contextlib
import json
import re
import sys
import tomllib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from p2pl.cli import options
from p2pl.cli.app import extra
from p2pl.cli.watch import beside
from p2pl.errors import InputError, wrong
from p2pl.garbage import rarely_collected
from p2pl.protocol.session import changed


def simulate(
    file: options.SessionOrToml,
    data: options.Data,
    peers: Annotated[int, typer.Option(help="Number of virtual peers, 2 to 100000.")],
    partition: options.Partition = "iid",
    partition_seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            help="Random seed of the partition in the run with seed 0; the run with seed K uses K "
            "more.",
        ),
    ] = 0,
    mixing: Annotated[
        str | None,
        typer.Option(
            help="Mixing rule: how a peer combines the models that it received with its own.  "
            "[default: the session's]"
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Number of rounds.  [default: the session's]")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="Number of runs, each with a random seed of its own."),
    ] = 1,
    first_seed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seed of the first run; the following runs count up from it. Seed 0 is the "
            "session as it stands; choose settings with other seeds.",
        ),
    ] = 0,
    cohort: Annotated[
        int | None,
        typer.Option(
            help="Number of peers that each peer pulls from in a round.  [default: the session's]"
        ),
    ] = None,
    local_epochs: Annotated[
        int | None,
        typer.Option(
            help="Number of passes over its own data that each peer trains in a round.  [default: "
            "the session's]"
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What to run instead of peers that exchange models. centralised: one model on "
            "everybody's data, which sees in a round as many examples as all peers together. "
            "isolated: each peer by itself.  [default: the peers exchange models]"
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="KIND:COUNT[:ARG]: the last COUNT peers attack, e.g. sign-flip:2:-3; scores are "
            "those of the honest peers. An unknown KIND lists all kinds.  [default: all peers are "
            "honest]"
        ),
    ] = None,
    participation: Annotated[
        float,
        typer.Option(
            help="Chance, above 0 up to 1, that a peer takes part in a round. One that does not "
            "trains nothing, and nobody gets anything from it."
        ),
    ] = 1.0,
    lost_links: Annotated[
        float,
        typer.Option(help="Chance, from 0 to below 1, that a pull from another peer fails."),
    ] = 0.0,
    delay_rounds: Annotated[
        int,
        typer.Option(
            help="Number of rounds, 0 to 100, that what is pulled may be old: each number up to "
            "it is equally likely."
        ),
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="PATH=VALUE: change one setting of the session, e.g. "
            "training.learning_rate=0.05 or exchange.gossip.mode=push. VALUE is written as in "
            "TOML; a single word needs no quotes. Repeatable.  "
            "[default: the session as it stands]",
        ),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of examples to take out of the training data, the same ones for all "
            "seeds, and to score on instead of the test set: for choosing settings.  "
            "[default: none; peers are scored on the test set]",
        ),
    ] = None,
    test_share: options.TestShare = None,
    tokenizer: options.Tokenizer = None,
    dp_epsilon: options.DpEpsilon = None,
    dp_delta: options.DpDelta = None,
    dp_clip: options.DpClip = None,
    personal: Annotated[
        bool,
        typer.Option(
            "--personal",
            help="Let every peer keep a second model, fitted to the distribution of its own data, "
            "beside the shared one.",
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="How peers are trained: sequential (one after the other), stacked (all of them in "
            "one tensor operation), auto (whichever is faster), ray (by a process for each core of "
            "this machine) or ray:ADDRESS (by the workers of a Ray cluster; HOST:PORT of its head, "
            "or auto)."
        ),
    ] = "auto",
    device: options.Device = "auto",
    precision: options.Precision = "float32",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of CPU threads to compute with, at most.  [default: one per core; with "
            "--engine ray, one per worker]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder to write run directories into, one per peer, for `p2pl report`.  "
            "[default: nothing is written]"
        ),
    ] = None,
    curves: Annotated[
        bool,
        typer.Option(
            help="Score the peers in every round that --score-every names, or after the last round "
            "only. The mean of all models is scored in those rounds either way."
        ),
    ] = True,
    score_every: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of rounds from one that is scored to the next; 0: only the last one is.",
        ),
    ] = 1,
    score_peers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of peers that are scored before and after the mix, evenly spaced; after "
            "the last mix, all are.",
        ),
    ] = 20,
    score_examples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of test examples that peers are scored on before the last round, evenly "
            "spaced.  [default: all; with more than 20 peers so many that scoring takes about a "
            "third of a round]",
        ),
    ] = None,
    as_json: options.AsJson = False,
    log: options.Log = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show the peers as a live page meanwhile, as `p2pl watch OUT` does."
        ),
    ] = False,
) -> None:
    """Run many virtual peers on one machine, or on a cluster.

    This shows what a session would reach. The task's metrics are means over the peers, on the
    whole test set, after the last mix.
    """
    changes = dict(map(_setting, settings or ()))
    named = {
        "mixing.rule": mixing,
        "exchange.rounds": rounds,
        "exchange.cohort": cohort,
        "training.local_epochs": local_epochs,
    }
    changes |= {path: value for path, value in named.items() if value is not None}
    with extra("client"), rarely_collected():
        from rich.console import Console

        from p2pl import pages
        from p2pl.api.simulate import begun_with, bounded, session_to_simulate
        from p2pl.api.simulate import simulate as run_simulation
        from p2pl.learning.task import task_of
        from p2pl.simulation.show import Bar, table

    pages.keep_freed()
    page = _page(out) if watch else contextlib.nullcontext()
    session = session_to_simulate(file)
    asked = changed(session.session, *bounded(changes)[0].items())
    total, metrics = seeds * asked.exchange.rounds, task_of(asked.task).metrics
    with page, extra("dp"), Bar(total, Console(file=sys.stderr), metrics) as bar:
        made = run_simulation(
            session,
            data,
            peers,
            model=begun_with(file, session),
            partition=partition,
            partition_seed=partition_seed,
            seeds=seeds,
            first_seed=first_seed,
            changes=changes,
            baseline=baseline,
            attack=attack,
            participation=participation,
            lost_links=lost_links,
            delay_rounds=delay_rounds,
            held_out=held_out,
            test_share=test_share,
            tokenizer=tokenizer,
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
            score_every=score_every,
            score_peers=score_peers,
            score_examples=score_examples,
            data_dir=options.data_dir(),
            on_begin=bar.show,
            on_round=bar.round,
            log=log or (),
        )
    if as_json:
        print(json.dumps(made.figures))
    else:
        Console().print(table(dict(made.figures)))


def _page(out: Path | None) -> AbstractContextManager[None]:
    """Returns what shows the peers as a live page meanwhile."""
    if out is None:
        raise InputError("--watch: allowed only with --out, whose files the page is made from")
    return beside(out, sys.stderr)


def _setting(text: str) -> tuple[str, object]:
    """Returns the path and the value of `--set PATH=VALUE`."""
    path, equals, value = text.partition("=")
    try:
        read = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", value.strip())
        read = {"value": value.strip()} if is_word else {}
    if not (path.strip() and equals) or list(read) != ["value"]:
        raise InputError(
            wrong("--set", got=text, allowed="PATH=VALUE, with VALUE as in TOML, or one word")
        )
    return path.strip(), read["value"]
