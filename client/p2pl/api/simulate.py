"""Many virtual peers in one process, from a script or a notebook."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from p2pl import regular, sinks
from p2pl.api import arguments
from p2pl.api.data import checked
from p2pl.api.run import check_layout
from p2pl.api.session import Given, check_known, read_session, read_spec
from p2pl.attacks import kinds as attacks
from p2pl.data import load as datasets
from p2pl.data import own
from p2pl.data.load import Data
from p2pl.errors import DataError, ModelError, wrong
from p2pl.exchange.checkpoint import verify
from p2pl.learner import Learner
from p2pl.learning import checkpoint, flower, models, pretrained, whole
from p2pl.learning import device as devices
from p2pl.learning.flower import Clients
from p2pl.learning.parts import Layout, load_into
from p2pl.privacy import policy
from p2pl.protocol import session as session_format
from p2pl.protocol.announce import MAX_NUMWANT
from p2pl.protocol.session import Session, SessionFile
from p2pl.simulation import cluster
from p2pl.simulation.engine import Result, Running, SimulatedRound, run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.reality import Reality
from p2pl.simulation.rundirs import SeedLogs, check_out, write_numbers
from p2pl.simulation.scoring import MAX_SCORED, Scoring
from p2pl.simulation.setup import Setup, check, is_ray
from p2pl.simulation.told import Told
from p2pl.sinks import Log

# All of the data: by name; a pair (train, test) of what `p2pl.join` takes; or given a peer's number
# and how many there are, its client of Flower.
Everything: TypeAlias = Data | tuple[own.Given, own.Given] | str | os.PathLike[str] | Clients


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a simulation.

    Attributes:
        figures: as `p2pl simulate --json` prints them: plain values, for JSON.
        results: one a seed, with the final parameters of every peer.
    """

    figures: Mapping[str, Any]
    results: tuple[Result, ...] = field(repr=False)


def simulate(  # noqa: PLR0913  # keywords, each of them a different thing
    session: Given | Mapping[str, Any],
    data: Everything,
    peers: int,
    *,
    model: nn.Module | None = None,
    partition: str = "iid",
    partition_seed: int = 0,
    seeds: int = 1,
    first_seed: int = 0,
    changes: Mapping[str, object] | None = None,
    baseline: str | None = None,
    attack: str | None = None,
    held_out: int | None = None,
    test_share: float | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dp_epsilon: float | None = None,
    dp_delta: float | None = None,
    dp_clip: float | None = None,
    personal: bool = False,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    curves: bool = True,
    score_every: int = 1,
    score_peers: int = MAX_SCORED,
    score_examples: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on_begin: Callable[[], None] | None = None,
    on_round: Callable[[SimulatedRound], None] | None = None,
    log: str | Sequence[str] = (),
    participation: float = 1.0,
    lost_links: float = 0.0,
    delay_rounds: int = 0,
) -> Simulation:
    """Runs many virtual peers, here or on a cluster, and returns what a session would come to.

    Args:
        session: a session file, its path, the path of the TOML file that it is made from, or a
            dictionary of the tables of that file.
        data: of all peers together, with a test set; see `Everything`.
        peers: how many virtual peers, 2..100,000.
        model: a module of the session's names and shapes; None: the session's own.
        partition: who holds what: iid, unbalanced, dirichlet:A or classes:K.
        partition_seed: of the first seed; each further one adds 1.
        seeds: how many to run, 1..10,000.
        first_seed: seed 0 is the session as it stands.
        changes: of the session, by path, e.g. {"exchange.rounds": 5, "mixing.rule": "uniform"}.
        baseline: `centralised` or `isolated`; None: the peers exchange.
        attack: KIND:COUNT[:ARG], the last COUNT peers are bad; None: all are honest.
        held_out: so many training examples are scored on, and the test set stays unread.
        test_share: of `data` by name, above 0 and below 1, that is the test set where they have
            none; drawn at random, and always the same. None: the data have one.
        tokenizer: the file that the session names by its hash; None: it names none.
        dp_epsilon: budget of every peer; None: training is not private.
        dp_delta: chance that the guarantee leaves; None: the session's, or one that fits the data.
        dp_clip: largest norm of one example's gradient; None: 1.
        personal: whether every peer keeps a model of its own distribution beside.
        engine: auto, stacked or sequential, in this process; ray or ray:ADDRESS, by the workers of
            a Ray cluster, of this machine or of the address.
        device: auto, cpu or cuda.
        precision: float32 or bfloat16.
        threads: CPU threads, at most; None: all cores, on a cluster one a worker.
        out: a new folder to write run directories into; None: nothing is written.
        curves: whether the peers are scored in every round that `score_every` names, and not after
            the last alone.
        score_every: rounds from one that is scored to the next; 0: only the last one is. The mean
            model is scored in these rounds, whatever `curves` says.
        score_peers: so many are scored before and after the mix; after the last mix, all are.
        score_examples: of the test set, on which they are scored before the last round; None: all,
            and of more than 20 peers so many that scoring takes about a third of a round.
        data_dir: folder where data sets are looked for first.
        on_begin: called once, when all but the data has been checked.
        on_round: called after every round of every seed.
        log: where else means over the honest peers are logged, as in `p2pl.join`; a run a seed.
        participation: above 0, up to 1; the chance that a peer takes part in a round.
        lost_links: from 0, below 1; the chance that a pull fails.
        delay_rounds: 0..100; how many rounds old what is pulled may be.

    Raises:
        InputError: something that was given cannot be used.
        NetworkError: a cluster cannot be joined, or no worker of it is left.
        TrainingDiverged: a peer's loss is no longer finite.
    """
    arguments.check(
        locals(),
        attack=arguments.ATTACK_TEXT,
        model=arguments.MODULE,
        out=arguments.OUT_OR_NONE,
    )
    devices.check_threads(threads)
    file = session_to_simulate(session)
    if model is None:
        model = begun_with(session, file)
    made, bad = attacks.parse(attack) if attack is not None else (None, 0)
    changed, large = _changed(file.session, changes or {})
    setup = Setup(
        session=changed,
        session_id=file.id,
        peers=peers,
        partition=partition,
        partition_seed=partition_seed,
        seed=first_seed,
        baseline=baseline,
        engine=engine,
        attack=made,
        bad=bad,
        privacy=policy.wanted(dp_epsilon, dp_delta, dp_clip),
        curves=curves,
        cohort=large,
        scoring=Scoring(score_every, score_peers, score_examples),
        personal=personal,
        precision=precision,
        reality=Reality(participation, lost_links, delay_rounds),
    )
    check(setup)
    check_known(changed, alone=baseline is not None)
    folder = Path(out) if out is not None else None
    if folder:
        check_out(folder)
    if model is not None:
        check_layout(file, model)
    elif changed.model.name == flower.MODEL and not callable(data):
        raise ModelError("model: missing; the session is for modules of your own: pass one")
    else:
        models.check(changed)
    torch.set_num_threads(threads or devices.cores())
    with contextlib.ExitStack() as held:
        workers = None
        if is_ray(engine):
            workers = held.enter_context(cluster.opened(setup, device, threads))
        where = devices.pick("cpu" if workers else device)
        if on_begin:
            on_begin()
        reading = (data_dir, test_share, Path(tokenizer) if tokenizer is not None else None)
        whole = _everything(setup.session, data, *reading)
        if held_out is not None and isinstance(whole, Data):
            whole = datasets.hold_out(whole, held_out)
        setups = [replace(setup, seed=first_seed + number) for number in range(seeds)]
        running = workers.spread(setups, whole, model) if workers else run
        logs = held.enter_context(sinks.opened([log] if isinstance(log, str) else log))
        told = (on_round, folder, file.name, logs)
        results = [_run_seed(seeded, whole, where, model, told, running) for seeded in setups]
    figures = {
        "name": file.name,
        "data": os.fspath(data) if isinstance(data, str | os.PathLike) else "own",
        "held_out": held_out,
        "test_share": test_share,
        **numbers(results),
        "device": workers.device if workers else where.type,
        "threads": torch.get_num_threads(),
    }
    if folder:
        write_numbers(folder, figures)
    return Simulation(figures, tuple(results))


def _changed(session: Session, changes: Mapping[str, object]) -> tuple[Session, int | None]:
    """Returns the session with its changes, and a cohort that is beyond what one may have."""
    usual, large = bounded(changes)
    return session_format.changed(session, *usual.items()), large


def bounded(changes: Mapping[str, object]) -> tuple[Mapping[str, object], int | None]:
    """Returns the changes with a cohort that a session may have, and the one that was asked for.

    The bound is what a tracker and real peers can bear; peers of a simulation can bear more.
    """
    wanted = changes.get("exchange.cohort")
    if not isinstance(wanted, int) or wanted <= MAX_NUMWANT:
        return changes, None
    return {**changes, "exchange.cohort": MAX_NUMWANT}, wanted


def _run_seed(
    setup: Setup,
    data: Data | Clients,
    device: torch.device,
    model: nn.Module | None,
    told: "_Told",
    running: Running,
) -> Result:
    """Returns what came of one seed, which is written and told as it goes on.

    Args:
        setup: of the seed.
        data: of all peers.
        device: to compute on.
        model: in the place of the session's; None: the session's own.
        told: what else happens after each round.
        running: runs it.
    """
    on_round, folder, name, logs = told
    if folder is None and not logs:
        return running(setup, data, device, on_round, model)
    with contextlib.ExitStack() as held:
        tellers: list[SeedLogs | Told] = []
        if folder is not None:
            kept = held.enter_context(SeedLogs(setup, folder, name))
            tellers.append(kept)
        if logs:
            tellers.append(Told(setup, name, logs))

        def begin(learners: Sequence[Learner]) -> None:
            for one in tellers:
                one.begin(learners)

        def after(done: SimulatedRound) -> None:
            for one in tellers:
                one.round(done)
            if on_round is not None:
                on_round(done)

        result = running(setup, data, device, after, model, begin)
        for one in tellers:
            one.finish(result, data if isinstance(data, Data) else None)
    return result


# What is called after each round, where to write, the session's name, and who else is told.
_Told: TypeAlias = tuple[Callable[[SimulatedRound], None] | None, Path | None, str, tuple[Log, ...]]


def session_to_simulate(given: Given | Mapping[str, Any]) -> SessionFile:
    """Returns a session file; of a TOML file or a dictionary, the one that would be made from it.

    Raises:
        InputError: it cannot be read, or is none of these.
    """
    if isinstance(given, Mapping):
        spec = session_format.spec_of(given)
    elif not isinstance(given, str | os.PathLike) or Path(given).suffix != ".toml":
        return read_session(given)
    else:
        spec = read_spec(Path(given))
    session = spec.session()
    return SessionFile(spec.name, session, checkpoint.build(session)[1], trackers=())


def begun_with(given: Given | Mapping[str, Any], file: SessionFile) -> nn.Module | None:
    """Returns the model with which a session for one of transformers begins; None: its seed's.

    Args:
        given: the path of the session file; its checkpoint lies beside it.
        file: what it holds.

    Raises:
        InputError: the session begins with weights that only its checkpoint has, and it is not
            there, or another one is.
    """
    if file.session.model.name != pretrained.NAME:
        return None
    model = models.build(file.session)
    if checkpoint.of(model)[1].root == file.checkpoint.root:
        return None
    if isinstance(given, SessionFile | Mapping):
        raise ModelError("model: missing; the session begins with weights of its author's")
    path = Path(given).parent / file.checkpoint_name
    try:
        payload = regular.read(path)
    except OSError as fault:
        raise ModelError(f"checkpoint {path}: cannot be read: {fault.strerror}") from fault
    layout = Layout.of(model)
    held = bytearray(verify(payload, file.checkpoint, str(path)))
    load_into(model, whole.decode(held, model, layout), layout)
    return model


def _everything(
    session: Session,
    given: Everything,
    data_dir: str | os.PathLike[str] | None,
    test_share: float | None,
    tokenizer: Path | None,
) -> Data | Clients:
    if isinstance(given, str | os.PathLike):
        given = datasets.load(
            os.fspath(given),
            session.task,
            form=datasets.form_of(session, tokenizer),
            data_dir=Path(data_dir) if data_dir else None,
            test_share=test_share,
        )
    elif test_share is not None:
        raise DataError("test_share: allowed only with data by name; divide your own yourself")
    elif isinstance(given, tuple) and len(given) == 2:
        train, test = (own.examples_of(part, session.task) for part in given)
        given = Data(train, test, session.task.labels)
    if isinstance(given, Data):
        return checked(given, session.task)
    if not callable(given):
        allowed = (
            "the name of data, p2pl.Data, a pair (train, test), or a function of a peer's number"
        )
        raise DataError(wrong("data", got=type(given).__name__, allowed=allowed))
    return given
