"""Taking part in a session: puts a peer together, runs its exchange, and leaves properly."""

import asyncio
import contextlib
import mmap
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import torch

from p2pl.attacks import peer as attacker
from p2pl.attacks.kinds import Attack
from p2pl.attacks.peer import Attacker
from p2pl.data.examples import Source
from p2pl.data.load import Data
from p2pl.errors import FrameError, InputError, ModelError, PullError, TrackerError
from p2pl.exchange import alone, braintorrent, checkpoint, cohort, gossip
from p2pl.exchange.node import Interrupted, Peer, keep_announcing
from p2pl.exchange.raft import member as raft
from p2pl.learning import device, flower, models, precision
from p2pl.learning.flower import FlowerLearner, NumPyClient
from p2pl.learning.learner import Learner
from p2pl.network.directory import Announcer, Directory
from p2pl.network.keys import Identity
from p2pl.network.wire import CurveWire
from p2pl.privacy import opening as private
from p2pl.privacy.policy import Wanted, check_session
from p2pl.protocol.session import SessionFile
from p2pl.run.files import write_atomically
from p2pl.run.log import MODEL_FILE, PERSONAL_FILE, Marker, RunLog, Summary
from p2pl.run.state import PeerState, load_state
from p2pl.terminal import View

CHECKPOINT_FILE = "initial.safetensors"
CHECKPOINT_DONORS = 8  # peers to ask for the initial checkpoint, in this order
LEAVE_DEADLINE_S = 3.0
KINDS: Mapping[str, Callable[[Peer, PeerState], Awaitable[PeerState]]] = {
    "braintorrent": braintorrent.run,
    "cohort": cohort.run,
    "gossip": gossip.run,
    "raft": raft.run,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What is mine alone: everything that is not in the session file."""

    torrent: Path  # the session file; its checkpoint may lie beside it
    run_dir: Path
    identity: Path
    device: torch.device
    listen: str = "0.0.0.0:0"  # a peer is there to be reached
    rounds: int | None = None  # None = the session's
    trackers: tuple[tuple[str, ...], ...] = ()  # () = the session file's
    seeding_s: float = 60.0
    alone: bool = False
    privacy: Wanted | None = None  # None: parameters say what they like of my data
    threads: int | None = None  # None = one for small models, else all cores
    precision: str = "float32"  # of the layers' computation: one of precision.NAMES
    personal: bool = False  # whether to keep a model of my own distribution beside
    attack: Attack | None = None  # to test a swarm on this machine with; None: I am honest


async def join(
    file: SessionFile, options: Options, data: Data | NumPyClient, open_view: Callable[[str], View]
) -> Summary:
    """Returns how the run ended: after the last round, or when the person interrupted it.

    Args:
        file: the session.
        options: what is mine alone.
        data: mine, checked against the session's task; or a client that has its own.
        open_view: given my peer id, returns what shows the run.

    Raises:
        InputError: something I was given cannot be used.
        TrackerError: no tracker answered, and no peer is known.
        TrainingDiverged: the local loss is no longer finite.
        BudgetSpent: nothing is left of the privacy budget, and no round was done.
    """
    if options.attack:
        attacker.check(options.attack, options.trackers or file.trackers)
    if options.personal and not isinstance(data, Data):
        raise InputError("--personal: allowed without --flower; such a client has no gradients")
    check_session(file.session, options.privacy)
    identity = Identity.load_or_create(options.identity)
    marker = Marker(session_id=file.id, peer_id=identity.peer_id, name=file.name)
    with RunLog(options.run_dir, marker) as log, open_view(identity.peer_id) as view:
        learner = _learner(file, options, identity.peer_id, data)
        _compute_with(options.threads, learner)
        rounds = options.rounds or file.session.exchange.rounds
        state = load_state(options.run_dir, file.id, learner.layout.total)
        book = private.Book.of(options.run_dir, file.id, identity)
        learner = private.made_private(learner, options.privacy, rounds, book, state)
        run = _Run(file, options, identity, learner, log, view, rounds)
        log.drop_after(state.round if state else 0)
        with _stopping_on_signals(run.stopping):
            try:
                state = await (
                    _train_alone(run, state) if options.alone else _take_part(run, state)
                )
            except (asyncio.CancelledError, Interrupted):
                if not run.stopping.is_set():
                    raise
                state = _saved_state(run)
        summary = _sum_up(run, state, data.labels if isinstance(data, Data) else ())
        if state is not None:
            write_atomically(options.run_dir / MODEL_FILE, learner.checkpoint(state.weights))
            summary = _keep_personal(run, state, summary)
        log.finish(summary)
        view.finish(summary)
    return summary


@dataclass(frozen=True, slots=True)
class _Run:
    """What one call of `join` works with."""

    file: SessionFile
    options: Options
    identity: Identity
    learner: Learner
    log: RunLog
    view: View
    rounds: int
    stopping: threading.Event = field(default_factory=threading.Event)


def _saved_state(run: _Run) -> PeerState | None:
    return load_state(run.options.run_dir, run.file.id, run.learner.layout.total)


async def _train_alone(run: _Run, state: PeerState | None) -> PeerState:
    if state is None:
        payload = await checkpoint.find(run.file, _beside(run), _nobody)
        state = PeerState(round=0, weights=run.learner.decode_checkpoint(payload))
    return await alone.run(run.learner, run.log, run.view, state, run.rounds, run.stopping)


async def _take_part(run: _Run, state: PeerState | None) -> PeerState:
    """Returns the state after the last round; the swarm is left properly whatever happens."""
    file, options = run.file, run.options
    wire = CurveWire(
        run.identity,
        session_id=file.id,
        listen=options.listen,
        chunk_bytes=file.session.wire.chunk_bytes,
    )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(wire)
        me = Announcer(file.id, run.identity, wire.curve_key, wire.port)
        tiers = options.trackers or file.trackers
        directory = Directory(tiers, me, state=state.directory if state else None)
        await stack.enter_async_context(directory)
        stack.push_async_callback(_leave, directory)
        donors = partial(_checkpoint_of_the_swarm, wire, directory, file)
        payload = await checkpoint.find(file, _beside(run), donors)
        await wire.publish_checkpoint(_on_disk(run, payload))
        if state is None:
            state = PeerState(round=0, weights=run.learner.decode_checkpoint(payload))
        peer = Peer(
            file=file,
            wire=wire,
            directory=directory,
            learner=run.learner,
            log=run.log,
            view=run.view,
            rounds=run.rounds,
            seeding_s=options.seeding_s,
            stopping=run.stopping,
            attacker=Attacker(options.attack, run.learner) if options.attack else None,
            keeps_personal=options.personal,
            personal=state.personal,
        )
        del payload  # from here on it is on disk
        async with _announcing(peer):
            return await KINDS[file.session.exchange.kind](peer, state)


def _learner(
    file: SessionFile, options: Options, peer_id: str, data: Data | NumPyClient
) -> Learner:
    """Returns the learner of a peer with these data, not private yet."""
    precision.check(options.precision, private=options.privacy is not None)
    model = models.build(file.session).to(options.device)
    names = (file.id, peer_id)
    if not isinstance(data, Data):
        _check_left_to_the_client(options)
        return FlowerLearner.around(file.session, names, model, data)
    if file.session.model.name == flower.MODEL:
        raise ModelError("--flower: missing; the model of this session is for clients of Flower")
    precision.compute_in(options.precision, model, options.device)
    mine: Source = data.train.to(options.device)
    test = data.test and data.test.to(options.device)
    if options.attack:
        mine = attacker.spoilt(options.attack, mine, file.session.task.classes, names)
    return Learner.of(file.session, names, model, mine, test)


def _check_left_to_the_client(options: Options) -> None:
    """Raises InputError for an option about how to train, which a client of Flower does itself."""
    options_of_training = {
        "--dp-epsilon": options.privacy is not None,
        "--attack": options.attack is not None,
        "--precision": options.precision != "float32",
    }
    given = [name for name, is_given in options_of_training.items() if is_given]
    if given:
        raise InputError(
            f"{', '.join(given)}: allowed without --flower; a client of Flower trains by itself, "
            "and nobody sees how"
        )


def _compute_with(threads: int | None, learner: Learner) -> None:
    wanted = threads or device.auto_threads(learner.layout.total, device.cores())
    torch.set_num_threads(wanted)


def _beside(run: _Run) -> Path:
    return run.options.torrent.parent / run.file.checkpoint_name


async def _nobody() -> bytes:
    raise PullError("not asked: training alone")


async def _checkpoint_of_the_swarm(
    wire: CurveWire, directory: Directory, file: SessionFile
) -> bytes:
    """Returns what some peer serves as the initial checkpoint; it is not verified yet.

    Whoever made the session may join a little later than I do, so it is asked for until the start's
    deadline.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + file.session.exchange.start_deadline_s
    reasons: dict[str, str] = {}
    while True:
        with contextlib.suppress(TrackerError):
            await directory.announce("update", numwant=CHECKPOINT_DONORS)
        for address in directory.known.sample(CHECKPOINT_DONORS):
            try:
                return bytes(
                    await wire.pull_checkpoint(
                        address,
                        size=file.checkpoint.size,
                        deadline_s=file.session.exchange.pull_deadline_s,
                    )
                )
            except (PullError, FrameError) as fault:
                reasons[address.id[:8]] = str(fault)
        if loop.time() > until_s:
            said = "; ".join(f"{peer}: {reason}" for peer, reason in reasons.items())
            raise PullError(said or "nobody is there to ask")
        await asyncio.sleep(cohort.POLL_S)


def _on_disk(run: _Run, payload: bytes) -> memoryview:
    """Returns the checkpoint as a mapped file, so that serving it takes no memory of ours."""
    path = run.options.run_dir / CHECKPOINT_FILE
    if not path.exists() or path.stat().st_size != len(payload):
        write_atomically(path, payload)
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped)


async def _leave(directory: Directory) -> None:
    """Tells the tracker that I am gone; it would notice by itself, only later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEAVE_DEADLINE_S):
            await directory.leave()


@contextlib.asynccontextmanager
async def _announcing(peer: Peer) -> AsyncIterator[None]:
    """Keeps the tracker from forgetting a peer whose rounds are long."""
    task = asyncio.create_task(keep_announcing(peer))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def _stopping_on_signals(stopping: threading.Event) -> Iterator[None]:
    """Turns the first Ctrl-C (or SIGTERM) into a proper leave; the second one kills."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        stopping.set()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)
        if task is not None:
            task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    try:
        yield
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)


def _keep_personal(run: _Run, state: PeerState, summary: Summary) -> Summary:
    """Writes my personal model, where I keep one, and returns the summary with its accuracy."""
    saved = _saved_state(run)
    kept = saved.personal if saved else None
    vector = state.weights if run.options.alone else kept
    if not run.options.personal or vector is None:
        return summary
    learner = run.learner
    vector = vector.to(learner.device)
    write_atomically(run.options.run_dir / PERSONAL_FILE, learner.checkpoint(vector))
    accuracy = learner.own_accuracy(learner.judge(vector))
    return msgspec.structs.replace(summary, personal_accuracy=accuracy)


def _sum_up(run: _Run, state: PeerState | None, labels: tuple[str, ...]) -> Summary:
    """Returns the summary of the whole run, rounds before a restart included."""
    totals = run.log.totals
    summary = Summary(
        rounds=state.round if state else 0,
        peer_id=run.identity.peer_id,
        state="interrupted" if run.stopping.is_set() else "finished",
        session_id=run.file.id,
        name=run.file.name,
        peers_met=tuple(sorted(totals.peers_met)),
        bytes_in=totals.bytes_in,
        bytes_out=totals.bytes_out,
        tracker_bytes=totals.tracker_bytes,
        seconds=totals.seconds,
        samples=len(run.learner.own) or run.learner.samples,
        epsilon=run.learner.epsilon,
        trust_epsilon=run.learner.trust_epsilon,
        labels=labels,
    )
    if state is None:
        return summary
    scores = run.learner.judge(state.weights)
    return msgspec.structs.replace(
        summary,
        accuracy=scores.accuracy,
        confusion=tuple(tuple(row) for row in scores.confusion.tolist()),
    )
