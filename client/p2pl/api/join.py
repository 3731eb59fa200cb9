"""Taking part in a session from a script or a notebook."""

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar, get_args

from torch import nn

from p2pl import sinks
from p2pl.api import arguments
from p2pl.api.data import checked
from p2pl.api.private import check_invitation, read_invitation
from p2pl.api.run import Run, load, not_begun
from p2pl.api.session import Given, check_known, read_session
from p2pl.api.trainer import Computing, Who, trainer_for
from p2pl.attacks.kinds import Attack
from p2pl.data import load as datasets
from p2pl.data import own
from p2pl.data.load import Data, Shard
from p2pl.errors import (
    CheckpointError,
    DataError,
    InputError,
    InvitationError,
    ModelError,
    SessionFileError,
    wrong,
)
from p2pl.events import Sink
from p2pl.exchange.join import Options
from p2pl.exchange.join import join as take_part
from p2pl.learning import device as devices
from p2pl.learning import precision as precisions
from p2pl.learning.checkpoint import check_proportion
from p2pl.learning.pretrained import check_base
from p2pl.learning.torch_trainer import Fit
from p2pl.network import web
from p2pl.network.interfaces import parse_announced
from p2pl.network.keys import Identity
from p2pl.network.ways import RelayMode
from p2pl.privacy import policy
from p2pl.protocol import session as session_format
from p2pl.protocol.invitation import Invitation
from p2pl.protocol.session import Session, SessionFile
from p2pl.run.log import (
    CHECKPOINT_FILE,
    LOCK_FILE,
    MARKER_FILE,
    MESSAGES_FILE,
    ROUNDS_FILE,
    SESSION_FILE,
    make_directory,
    read_run,
    session_of,
)

# In a run directory before anything was trained, charged or served.
WRITTEN_BEFORE = frozenset(
    {
        *("identity.pem", CHECKPOINT_FILE, LOCK_FILE, MARKER_FILE, MESSAGES_FILE),
        *(ROUNDS_FILE, SESSION_FILE),
    }
)

Mine: TypeAlias = Data | own.Given | str | os.PathLike[str] | None
P = ParamSpec("P")
T = TypeVar("T")
RUNS = Path("runs")


async def join_async(  # noqa: PLR0913  # keywords, each of them a different thing
    session: Given,
    trainer_or_model: Who = None,
    data: Mine = None,
    *,
    test: own.Given | None = None,
    fit: Fit | None = None,
    on_event: Sink | Sequence[Sink] | None = None,
    log: str | Sequence[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
    listen: str = "0.0.0.0:0",
    trackers: Sequence[str] = (),
    ca: str | os.PathLike[str] | None = None,
    invitation: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    fetch: Callable[..., Awaitable[bytes]] | None = None,
    announce: str | Sequence[str] = (),
    relay: RelayMode = "auto",
    witness: bool = False,
    rounds: int | None = None,
    seed_for: float = 60.0,
    alone: bool = False,
    shard: Shard | None = None,
    test_share: float | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dp_epsilon: float | None = None,
    dp_delta: float | None = None,
    dp_clip: float | None = None,
    personal: bool = False,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    attack: Attack | None = None,
    on_signals: bool = False,
) -> Run:
    """Takes part in a session until its last round, and returns the run with the trained model.

    `p2pl.join` does the same and blocks meanwhile, in a script and in a notebook alike; there,
    Ctrl-C leaves properly and keeps the state. Here, cancelling the task does. The same call goes
    on from what was reached.

    Args:
        session: a session file, or its path.
        trainer_or_model: what is trained: None for the model that the session names; a module of
            the session's names and shapes; a `Trainer`; or a client of Flower.
        data: the peer's own examples, which stay here: what `p2pl join --data` takes, a pair
            (inputs, targets), a map-style data set, or `Data`. Not with a trainer of one's own.
        test: examples to score on that everybody has; None: those of `data`, if it has any.
        fit: a training loop of one's own, `fit(model, round)`; it changes the module in place.
        on_event: a function of one event, or several; see `p2pl.events`. Raise `p2pl.Stop` in it
            to end the run after what was reached.
        log: where else the figures of each round are logged: `tensorboard:DIR`, `mlflow:URI`,
            `wandb:PROJECT`, or by a sink of one's own (`p2pl.sinks`). What fails there is said
            once, and ends no run.
        run_dir: where the log, the state and the model go; the same one resumes. None:
            runs/NAME.
        identity: the peer's key file; None: RUN_DIR/identity.pem.
        listen: HOST:PORT to serve other peers at; port 0 takes any free one.
        trackers: URLs to ask in the place of the session file's.
        ca: a PEM file of certificate authorities that are trusted, and no others, where a tracker
            or `url-list` is asked over HTTPS; None: those of this machine, and the usual ones.
        invitation: to a private session: the file that its author made for this peer, or the
            text in it. None: the session is open.
        base: a folder with the pretrained model that the session begins with, as `save_pretrained`
            of transformers writes it: the initial checkpoint is made of it, on this machine, and
            verified, and nothing is fetched. None: it is looked for elsewhere.
        fetch: gives the initial checkpoint, before `url-list` and peers are asked for it: a
            coroutine function such as `p2pl.network.torrent.fetch`. What it gives is verified.
        announce: where others can dial this peer, beside where it listens, for a port that a router
            forwards: `HOST:PORT`, `[IPV6]:PORT` or `NAME:PORT`, at most two.
        relay: whether others reach this peer by a relay that the tracker names: `always`, `never`,
            or `auto`: where it cannot be dialled.
        witness: whether a tracker that is a witness is shown this peer's update log, and looked at
            for those of others.
        rounds: to do in all; None: the session's.
        seed_for: seconds for which others are served at most, once all rounds are done.
        alone: whether nothing is sent and nobody asked.
        shard: which part of `data` is this peer's; None: all of it.
        test_share: of `data`, above 0 and below 1, to score on, drawn at random and always the
            same; only where neither `data` nor `test` says what to score on. None: where there is
            nothing to score on, it is what is held back for validation.
        tokenizer: the file that the session names by its hash; None: it names none.
        dp_epsilon: budget of differential privacy; None: training is not private.
        dp_delta: chance that the guarantee leaves, below 1/n; None: the session's, or one that
            fits the data.
        dp_clip: largest norm of one example's gradient; None: 1.
        personal: whether a model of the peer's own distribution is kept beside.
        device: auto, cpu or cuda.
        precision: float32 or bfloat16, of the layers' computation.
        threads: CPU threads to compute with; None: one for a small model, else all cores.
        data_dir: folder where data sets are looked for first.
        attack: to test a swarm on this machine with.
        on_signals: whether Ctrl-C and SIGTERM end the run properly; in the main thread alone.

    Raises:
        InputError: something that was given cannot be used.
        TrackerError: no tracker answered, and no peer is known.
        TrainingDiverged: the local loss is no longer finite.
        BudgetSpent: nothing is left of the privacy budget, and no round was done.
        KeyboardInterrupt: of `p2pl.join`: the person pressed Ctrl-C; the state is saved.
    """
    arguments.check(locals(), attack=arguments.ATTACKER)
    file = read_session(session)
    tiers = tuple((url,) for url in trackers)
    session_format.check_trackers(tiers)
    for url in trackers:
        web.parse_url(url)
    if not (tiers or file.trackers or alone):
        raise SessionFileError(
            wrong("--tracker", got="none, and none in the session file", allowed="one URL or more")
        )
    _check_functions(fit, _sinks(on_event))
    if alone and invitation is not None:
        raise InvitationError("--invitation: not allowed with --alone; who is alone asks nobody")
    if relay not in get_args(RelayMode):
        raise InputError(wrong("relay", got=relay, allowed="auto, always or never"))
    if witness and (alone or not file.session.ledger):
        got = "--alone" if alone else "a session whose peers keep no update logs"
        raise InputError(wrong("--witness", got=got, allowed="a session with ledger = true"))
    check_known(file.session, alone=alone)
    check_proportion(file.session, file.checkpoint)
    if base is not None:
        check_base(file.session, Path(base))
    private = policy.wanted(dp_epsilon, dp_delta, dp_clip)
    precisions.check(precision, private=private is not None)
    reading = Reading(
        shard,
        Path(data_dir) if data_dir else None,
        test_share,
        Path(tokenizer) if tokenizer else None,
    )
    mine = read_data(file.session, data, test, reading)
    devices.check_threads(threads)
    computing = Computing(
        devices.pick(device),
        precision,
        fit,
        attack,
        is_private=private is not None,
        partition=(shard.index, shard.count) if shard else (0, 1),
    )
    trainer = trainer_for(file, trainer_or_model, mine, computing)
    where = (
        Path(run_dir)
        if run_dir
        else default_run_dir(file.name, shard, alone=alone, session_id=file.id)
    )
    key = Path(identity) if identity else where / "identity.pem"
    invited = None if alone else _invited(file, key, where, invitation)
    chosen = Options(
        run_dir=where,
        identity=key,
        base=Path(base) if base is not None else None,
        beside=None if isinstance(session, SessionFile) else Path(session).parent,
        listen=listen,
        rounds=rounds,
        trackers=tiers,
        authorities=Path(ca) if ca else None,
        announced=parse_announced([announce] if isinstance(announce, str) else announce),
        relay=relay,
        seeding_s=seed_for,
        alone=alone,
        privacy=private,
        threads=threads,
        personal=personal,
        attack=attack,
        labels=mine.labels if mine else (),
        test_share=mine.test_share if mine else None,
        invitation=invited,
        fetch=fetch,
        witness=witness,
    )
    told = _sinks(on_event)
    with (
        _made(where),
        sinks.opened([log] if isinstance(log, str) else log, told) as logs,
    ):
        summary = await take_part(file, chosen, trainer, (*told, *logs), on_signals=on_signals)
    model = trainer_or_model if isinstance(trainer_or_model, nn.Module) else None
    return not_begun(where, model, summary) or load(where, model=model)


@contextlib.contextmanager
def _made(run_dir: Path) -> Iterator[None]:
    """Makes a run directory, and removes it again where what the run is to begin with is refused.

    One that was there before stays, and so does one in which there is anything else than what is
    written before a run begins: what was spent, served or logged is never removed.
    """
    is_new = not run_dir.exists()
    make_directory(run_dir)
    try:
        yield
    except (CheckpointError, ModelError):
        if is_new:
            _remove_unused(run_dir)
        raise


def _remove_unused(run_dir: Path) -> None:
    """Removes a run directory in which no run has begun."""
    there = {path.name for path in run_dir.iterdir()}
    has_rounds = (run_dir / ROUNDS_FILE).exists() and (run_dir / ROUNDS_FILE).stat().st_size > 0
    if there <= WRITTEN_BEFORE and not has_rounds:
        for name in there:
            (run_dir / name).unlink()
        with contextlib.suppress(OSError):  # somebody has put something there meanwhile
            run_dir.rmdir()


def _invited(
    file: SessionFile, key: Path, run_dir: Path, given: str | os.PathLike[str] | None
) -> Invitation | None:
    """Returns the invitation with which the peer joins; None where the session is open.

    Raises:
        InvitationError: there is none where one is needed, or it does not count.
    """
    read = read_invitation(given) if given is not None else None
    if not file.session.private and read is None:
        return None
    if key.parent == run_dir:
        make_directory(run_dir)
    who = Identity.load_or_create(key).peer_id
    return check_invitation(file, read, who, time.time())


def _sinks(given: Sink | Sequence[Sink] | None) -> tuple[Sink, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _check_functions(fit: Fit | None, sinks: Sequence[Sink]) -> None:
    """Raises InputError for what is no function, or one that would only return a coroutine."""
    named = [("fit", fit)] if fit is not None else []
    for name, function in (*named, *(("on_event", sink) for sink in sinks)):
        if not callable(function) or inspect.iscoroutinefunction(function):
            allowed = "a function that is not async, or None"
            raise InputError(wrong(name, got=function, allowed=allowed))


@dataclass(frozen=True, slots=True)
class Reading:
    """How the peer's data are read."""

    shard: Shard | None
    data_dir: Path | None
    test_share: float | None
    tokenizer: Path | None


def read_data(
    session: Session, given: Mine, test: own.Given | None, reading: Reading
) -> Data | None:
    """Returns the peer's own examples; None where nobody gave any.

    Args:
        session: that they are for.
        given: as the person gave them.
        test: a test set, likewise.
        reading: how they are read.

    Raises:
        DataError: they cannot be used, or what was given does not go together.
    """
    shard, test_share = reading.shard, reading.test_share
    if given is None:
        return None
    if test is not None and test_share is not None:
        raise DataError("test_share: allowed only without a test set; leave one of them out")
    if isinstance(given, str | os.PathLike):
        made = datasets.load(
            os.fspath(given),
            session.task,
            form=datasets.form_of(session, reading.tokenizer),
            data_dir=reading.data_dir,
            shard=shard,
            test_share=test_share,
        )
    elif shard is not None:
        raise DataError("shard: allowed only with data that have a name; divide your own yourself")
    elif isinstance(given, Data):
        made = given
    else:
        made = own.data_of(given, session.task)
    if test is not None:
        tested = own.examples_of(test, session.task, "test set")
        made = Data(made.train, tested, made.labels)
    elif test_share is not None and made.test_share is None:
        made = datasets.with_test_share(made, test_share)
    return checked(made, session.task)


def default_run_dir(name: str, shard: Shard | None, *, alone: bool, session_id: str = "") -> Path:
    """Returns the directory of a run that was interrupted, or a new one beside the others.

    Those are finished, or of other sessions of this name.

    Args:
        name: of the session.
        session_id: of the session; "": whichever has this name.
        shard: which part of the data is the peer's; None: all of it.
        alone: whether the peer trains alone: such runs have directories of their own.

    Raises:
        InputError: there are 10,000 finished runs already.
    """
    base = f"{name}-shard-{shard.index}-of-{shard.count}" if shard else name
    base += "-alone" if alone else ""
    for number in range(1, 10_000):
        found = RUNS / (base if number == 1 else f"{base}-{number}")
        if session_id and session_of(found) not in ("", session_id):
            continue
        if not (found / "summary.json").exists() or read_run(found).state != "finished":
            return found
    raise InputError(
        wrong("runs", got="10000 finished runs", allowed="fewer", hint="use another run directory")
    )


_JOIN = """Takes part in a session until its last round, and returns the run with the trained model.

    It blocks meanwhile, in a script and in a notebook alike. Ctrl-C leaves properly and keeps the
    state, and the same call goes on from what was reached. `p2pl.join_async` does the same for
    whoever has an event loop of their own.

"""


def _blocking(work: Callable[P, Coroutine[Any, Any, Run]]) -> Callable[P, Run]:
    """Returns the same function for those who wait for it: typed alike, documented as its own."""

    @wraps(work)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> Run:
        return run_blocking(lambda: work(*args, **kwargs))

    waiting.__name__ = waiting.__qualname__ = "join"
    # Else `help` tells of the other function: that it is a coroutine, and how it is cancelled.
    del waiting.__wrapped__
    waiting.__signature__ = inspect.signature(work)  # type: ignore[attr-defined]
    _, _, arguments_on = (work.__doc__ or "").partition("    Args:")
    waiting.__doc__ = _JOIN + "    Args:" + arguments_on if arguments_on else _JOIN
    return waiting


join = _blocking(join_async)


def run_blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Returns what a coroutine returns, from a thread with an event loop of its own or without.

    Raises:
        KeyboardInterrupt: the person pressed Ctrl-C; the coroutine was cancelled and has ended.
    """
    if _has_a_loop():
        return _in_a_thread(work)
    return asyncio.run(work())


def _has_a_loop() -> bool:
    """Returns whether an event loop runs in this thread, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_a_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Returns what a coroutine returns, run in a thread beside the loop that waits for it here."""
    begun: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []
    ended: list[T | BaseException] = []

    async def main() -> T:
        task = asyncio.ensure_future(work())
        begun.append((asyncio.get_running_loop(), task))
        return await task

    def target() -> None:
        try:
            ended.append(asyncio.run(main()))
        except BaseException as fault:  # noqa: BLE001  # raised again in the thread that waits
            ended.append(fault)

    thread = threading.Thread(target=target, name="p2pl-join")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        for loop, task in begun:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    result = ended[0]
    if isinstance(result, BaseException):
        raise result
    return result
