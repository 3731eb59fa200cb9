"""Taking part in a session: puts a node together, runs its exchange, and leaves properly."""

import asyncio
import contextlib
import mmap
import signal
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor

from p2pl import pages
from p2pl.attacks import peer as attackers
from p2pl.attacks.kinds import Attack
from p2pl.attacks.peer import Attacker
from p2pl.data.examples import Examples
from p2pl.errors import FrameError, InputError, InvitationError, PullError, TrackerError
from p2pl.events import Ended, Events, Reachable, Sink, Started, Stop, into
from p2pl.exchange import checkpoint, cohort
from p2pl.exchange.alone import Alone
from p2pl.exchange.base import Exchange, kind_of
from p2pl.exchange.company import Company, met_nobody
from p2pl.exchange.node import Node, Worker
from p2pl.exchange.round import keep_best, run
from p2pl.exchange.swap import keep_announcing
from p2pl.learner import Learner
from p2pl.learning import device, flower
from p2pl.learning.optimizers import check_private
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.trainer import Trainer
from p2pl.learning.weights import flatten
from p2pl.metric import ACCURACY
from p2pl.mixing.base import rule_of
from p2pl.network import web
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import Identity
from p2pl.network.membership import Group, Membership
from p2pl.network.numbering import ANY_NUMBERING, Numbering, digest_of
from p2pl.network.outreach import FromFile, Outreach
from p2pl.network.serve import ServeLimits
from p2pl.network.transport import Directory, Transport
from p2pl.network.ways import RelayMode
from p2pl.network.wire import CurveWire
from p2pl.privacy.ledger import PURPOSE
from p2pl.privacy.opening import Book, made_private
from p2pl.privacy.policy import Wanted, check_session
from p2pl.protocol.endpoint import Endpoint, usable
from p2pl.protocol.invitation import ASK_THE_AUTHOR, Invitation, encode
from p2pl.protocol.session import SessionFile, settings_of
from p2pl.run.files import write_atomically
from p2pl.run.log import (
    BEST_FILE,
    CHECKPOINT_FILE,
    MODEL_FILE,
    PERSONAL_FILE,
    SESSION_FILE,
    Marker,
    RunLog,
    ScoredOn,
    Summary,
)
from p2pl.run.state import Best, PeerState, load_state
from p2pl.tasks.measures import why_no_auroc
from p2pl.updates.keeper import Keeper, finish, sha256
from p2pl.updates.log import UpdateLog, Version
from p2pl.updates.witnessed import EVERY_S, Witnessed

CHECKPOINT_DONORS = 8  # peers to ask for the initial checkpoint, in this order
REVOKED_FILE = "revoked.txt"  # in the run directory: the newest list of a private session
LEAVE_DEADLINE_S = 3.0
LAST_WITNESS_S = 5.0  # chosen: a tracker that does not answer by then cosigns no last head
OTHER_DATA = (
    "the data, or how they are divided, are not those of this run's earlier rounds: what it is "
    "scored on now may have been trained on then; allowed too: a new --run-dir"
)
NOTHING_LEFT = (
    "all rounds were done before, and nobody is asked for more; allowed too: more --rounds, or a "
    "new --run-dir"
)
NOTHING = torch.arange(0)  # rows
SERVE_SLACK_S = 5.0  # beyond a puller's deadline, for the end of what is on its way
SERVE_SHARE = 2 / 3  # of that deadline; then the slowest gives way where others find no place
BLOB_IDLE_SHARE = 0.1  # of the longest transfer between members; chosen: one chunk at 20 kB/s


@dataclass(frozen=True, slots=True)
class Options:
    """What is one peer's alone: everything that is not in the session file.

    Attributes:
        run_dir: where the log, the state and the model go.
        identity: the peer's key file.
        base: a folder with the pretrained model that the session begins with; None: the checkpoint
            comes from elsewhere.
        beside: the folder of the session file, where the checkpoint may lie too; None: nowhere.
        listen: HOST:PORT to serve other peers at.
        rounds: to do in all; None: the session's.
        trackers: tiers of URLs; (): the session file's.
        authorities: a PEM file of those who may vouch for HTTPS servers; None: the usual ones.
        announced: what the person says that others can dial, the best first.
        relay: `always`: others reach the peer by relays alone; `never`: no relay is used.
        seeding_s: how long others are served at most, once all rounds are done; seconds.
        alone: whether the peer trains without anybody.
        privacy: None: parameters say what they like of the peer's examples.
        threads: to compute with; None: one for a small model, else all cores.
        personal: whether to keep a model of the peer's own distribution beside.
        attack: to test a swarm on this machine with; None: the peer is honest.
        labels: names of the classes, in the order of their numbers; (): nobody gave any.
        test_share: of the data, that the test set was drawn from; None: it was given, if any.
        invitation: to a private session, checked; None: it is open, or the peer trains alone.
        fetch: gives the initial checkpoint of a session file, before others are asked for it, as
            `p2pl.network.torrent.fetch` does; None: nothing does.
        witness: whether the tracker is shown the peer's update log, and looked at for others'.
    """

    run_dir: Path
    identity: Path
    base: Path | None = None
    beside: Path | None = None
    listen: str = "0.0.0.0:0"  # a peer is there to be reached
    rounds: int | None = None
    trackers: tuple[tuple[str, ...], ...] = ()
    authorities: Path | None = None
    announced: tuple[Endpoint, ...] = ()
    relay: RelayMode = "auto"
    seeding_s: float = 60.0
    alone: bool = False
    privacy: Wanted | None = None
    threads: int | None = None
    personal: bool = False
    attack: Attack | None = None
    labels: tuple[str, ...] = ()
    test_share: float | None = None
    invitation: Invitation | None = None
    fetch: Callable[..., Awaitable[bytes]] | None = None
    witness: bool = False


async def join(
    file: SessionFile,
    options: Options,
    trainer_for: Callable[[str], Trainer],
    sinks: Sequence[Sink] = (),
    *,
    on_signals: bool = False,
) -> Summary:
    """Returns how the run ended: after the last round, or when it was stopped.

    A run that is cancelled leaves properly as well: its state is saved and the swarm is told, and
    then the cancellation goes on.

    Args:
        file: the session.
        options: what is the peer's alone.
        trainer_for: given the peer's id, returns its trainer.
        sinks: are told what happens, after the run log.
        on_signals: whether Ctrl-C and SIGTERM end the run properly; in the main thread alone.

    Raises:
        InputError: something that was given cannot be used.
        TrackerError: no tracker answered, and no peer is known.
        TrainingDiverged: the local loss is no longer finite.
        BudgetSpent: nothing is left of the privacy budget, and no round was done.
    """
    session = file.session
    if options.attack:
        attackers.check(options.attack, options.trackers or file.trackers)
    check_session(session, options.privacy)
    if options.privacy is not None:
        check_private(session.training)
    exchange = Alone() if options.alone else kind_of(session)()
    identity = Identity.load_or_create(options.identity)
    rounds = options.rounds or session.exchange.rounds
    marker = Marker(
        session_id=file.id,
        peer_id=identity.peer_id,
        name=file.name,
        alone=options.alone,
        attack=options.attack.kind if options.attack else "",
    )
    with RunLog(options.run_dir, marker) as log:
        write_atomically(options.run_dir / SESSION_FILE, file.encode())
        trainer = trainer_for(identity.peer_id)
        _compute_with(options.threads, trainer)
        state = _saved_state(file, options, trainer)
        trainer = _as_asked(file, options, identity, trainer, state)
        learner = Learner.around(session, (file.id, identity.peer_id), trainer)
        events = Events((into(log), *sinks))
        log.drop_after(state.round if state else 0)
        begun = state.round if state else 0
        if _wants_company(file, options):
            company = Company(log.totals, events.said)
            events = Events((*events.sinks, company))
        with contextlib.closing(Worker()) as worker, _Stopping() as stopping:
            one = _Run(
                file=file,
                options=options,
                identity=identity,
                learner=learner,
                exchange=exchange,
                events=events,
                rounds=rounds,
                worker=worker,
                stopping=stopping,
                outreach=_outreach(file, options, identity, events),
            )
            if on_signals:
                stopping.listen()
            try:
                _begin(one, log, begun)
                state = await _take_part(one, state)
            except (asyncio.CancelledError, Stop) as why:
                stopping.stop(why)
                state = await worker(partial(_saved_state, file, options, trainer))
            stopping.ignore()
            summary = await worker(partial(_sum_up, one, log, state))
            with contextlib.suppress(Stop):  # it has ended
                events(Ended(summary))
    stopping.go_on()
    return summary


def _begin(one: "_Run", log: RunLog, begun: int) -> None:
    """Tells that the run begins, and where it goes on with other examples than before."""
    trainer, who = one.learner.trainer, one.identity.peer_id
    wanted = one.options.privacy
    one.events(
        Started(
            one.file.name,
            one.file.id,
            who,
            begun,
            one.rounds,
            trainer.metrics,
            trainer.loss_unit,
            epsilon_budget=wanted.epsilon if wanted else None,
            settings=settings_of(one.file.session),
        )
    )
    if log.take_data_mark(trainer.data_mark) and begun:
        one.events.said(OTHER_DATA)
    if why := _unmeasured(trainer):
        one.events.said(why)


class _Stopping:
    """Whether a run is to end before its last round, and who wants it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._cancelled: asyncio.CancelledError | None = None
        self._listening = False
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()

    def __enter__(self) -> "_Stopping":
        return self

    def __exit__(self, *_: object) -> None:
        self.ignore()

    def listen(self) -> None:
        """Turns the first Ctrl-C (or SIGTERM) into a proper leave; the second one kills."""
        self._listening = True
        for name in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(name, self._on_signal)

    def stop(self, why: BaseException) -> None:
        """Takes in why the run ends early; a cancellation that nobody here made is kept."""
        if isinstance(why, asyncio.CancelledError) and not self.asked.is_set():
            self._cancelled = why
        self.asked.set()

    def go_on(self) -> None:
        """Raises the cancellation again that came from outside, if there was one."""
        if self._cancelled is not None:
            raise self._cancelled

    def _on_signal(self) -> None:
        self.asked.set()
        self.ignore()
        if self._task is not None:
            self._task.cancel()

    def ignore(self) -> None:
        """Gives signals their usual meaning again."""
        if self._listening:
            self._listening = False
            for name in (signal.SIGINT, signal.SIGTERM):
                self._loop.remove_signal_handler(name)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one call of `join` works with."""

    file: SessionFile
    options: Options
    identity: Identity
    learner: Learner
    exchange: Exchange
    events: Events
    rounds: int
    worker: Worker
    stopping: _Stopping
    outreach: Outreach


def _outreach(file: SessionFile, options: Options, identity: Identity, events: Events) -> Outreach:
    """Returns the ways to others and theirs to this peer; nothing is open yet."""
    invited = options.invitation
    return Outreach(
        identity,
        file.id,
        mode=options.relay,
        trust=_trust(file, options),
        from_file=FromFile(
            usable(file.relays),
            author=bytes.fromhex(file.session.author) if invited else b"",
            invitation=encode(invited) if invited else b"",
        ),
        announced=options.announced,
        found=lambda one: events(Reachable(one.where, one.is_dialled, one.said)),
    )


def _trust(file: SessionFile, options: Options) -> ssl.SSLContext | None:
    """Returns whom HTTPS trusts; None: nothing is asked over it, as far as is known."""
    tiers = options.trackers or file.trackers
    is_secure = any(url.startswith("https:") for tier in tiers for url in tier)
    return web.trust(options.authorities) if is_secure or options.authorities else None


def _as_asked(
    file: SessionFile,
    options: Options,
    identity: Identity,
    trainer: Trainer,
    state: PeerState | None,
) -> Trainer:
    """Returns the trainer, private where the person asked for it.

    Raises:
        InputError: it cannot do what was asked for.
    """
    if options.personal and trainer.sample("validation", 1) is None:
        raise InputError("--personal: not allowed with this trainer; it gives no gradients")
    if type(trainer) is not TorchTrainer:
        if options.privacy is not None:
            raise InputError(
                "--dp-epsilon: not allowed with a client of Flower or a training loop of your own; "
                "it trains by itself, and nobody sees how"
            )
        return trainer
    if options.privacy is not None and not isinstance(trainer.own.take(NOTHING).x, Tensor):
        raise InputError("--dp-epsilon: not allowed with a model of several inputs")
    book = Book(options.run_dir, file.id, identity.secret_for(PURPOSE))
    rounds = options.rounds or file.session.exchange.rounds
    return made_private(file.session, trainer, options.privacy, rounds, book, state)


def _saved_state(file: SessionFile, options: Options, trainer: Trainer) -> PeerState | None:
    memory = rule_of(file.session).Memory
    return load_state(options.run_dir, file.id, trainer.layout.total, memory)


def _compute_with(threads: int | None, trainer: Trainer) -> None:
    torch.set_num_threads(threads or device.auto_threads(trainer.layout.total, device.cores()))


async def _take_part(one: _Run, state: PeerState | None) -> PeerState:
    """Returns the state after the last round; the swarm is left properly whatever happens."""
    if state is not None and state.round >= one.rounds:
        one.events.said(NOTHING_LEFT)
        return state
    async with contextlib.AsyncExitStack() as stack:
        transport, directory = await _network(one, state, stack)
        swarm = partial(_checkpoint_of_the_swarm, transport, directory, one)
        donors = _nobody if one.options.alone else swarm
        payload = await checkpoint.find(one.file, _places(one), donors)
        mapped = _on_disk(one, payload)
        served = memoryview(mapped)
        del payload  # from here on it is on disk
        begun = pages.opened(one.options.run_dir / CHECKPOINT_FILE)
        await transport.publish_checkpoint(served)
        begin = await one.worker(partial(one.learner.decode_checkpoint, begun))
        del begun
        if begin.nbytes >= pages.LEAST_BYTES:
            pages.trim()
        mapped.madvise(mmap.MADV_DONTNEED)  # it is read again where somebody asks for it
        if state is None:
            state = PeerState(round=0, weights=begin)
        one = replace(one, learner=one.learner.beginning(begin))
        del begin
        node = _node(one, transport, directory, state)
        node.keeper = await _keeper(one, directory, state)
        if node.keeper is not None:
            stack.callback(node.keeper.close)
            stack.callback(node.keeper.save)
        only = [state]  # nothing here holds the parameters that the peer began with any longer
        del state
        async with _announcing(node), _witnessed(one, node):
            return replace(await run(node, one.exchange, only.pop()), best=node.best)


async def _network(
    one: _Run, state: PeerState | None, stack: contextlib.AsyncExitStack
) -> tuple[Transport, Directory]:
    """Returns how others are reached, until the stack is closed: nobody is, by who trains alone."""
    file, options = one.file, one.options
    if options.alone:
        return MemoryNetwork().join(one.identity)
    membership = _membership(one)
    wire = await stack.enter_async_context(
        CurveWire(
            one.identity,
            session_id=file.id,
            listen=options.listen,
            chunk_bytes=file.session.wire.chunk_bytes,
            limits=_serving(file),
            room=partial(pages.room, options.run_dir),
            dialler=one.outreach.ways,
            membership=membership,
            committed=file.session.ledger,
            numbering=_numbering(one),
        )
    )
    info = file.info if membership is not None else b""
    me = Announcer(file.id, one.identity, wire.curve_key, wire.port, wire.proof, info)
    saved = state.directory if state else None
    tiers = options.trackers or file.trackers
    trust = _trust(file, options)
    directory = TrackerDirectory(tiers, me, state=saved, trust=trust, membership=membership)
    await stack.enter_async_context(directory)
    stack.push_async_callback(_leave, directory)
    await stack.enter_async_context(one.outreach.open(wire, directory, one.events.said))
    return wire, directory


def _numbering(one: _Run) -> Numbering:
    """Returns how the peer's data number their classes, where the session does not."""
    if one.file.session.task.labels:
        return ANY_NUMBERING
    return Numbering(digest_of(one.file.id, one.options.labels), one.events.said)


def _membership(one: _Run) -> Membership | None:
    """Returns who is of a private session, as far as the peer knows; None: the session is open."""
    session, invitation = one.file.session, one.options.invitation
    if not session.private:
        return None
    if invitation is None:
        raise InvitationError("--invitation: missing, and this session is private")
    kept = one.options.run_dir / REVOKED_FILE
    group = Group(one.file.id, bytes.fromhex(session.author), invitation, kept)
    members = Membership(group, said=one.events.said)
    if fault := members.own_fault():  # as the list of an earlier run has it
        raise InvitationError(f"--invitation: {fault}; {ASK_THE_AUTHOR}, for another key")
    return members


def _serving(file: SessionFile) -> ServeLimits:
    """Returns what the peer gives to others: nothing for longer than anybody waits for it."""
    exchange, usual = file.session.exchange, ServeLimits()
    deadline_s = exchange.pull_deadline_s
    return replace(
        usual,
        blob_s=exchange.raft.term_s,
        blob_idle_s=max(usual.idle_s, BLOB_IDLE_SHARE * exchange.raft.term_s),
        transfer_s=max(deadline_s, exchange.slow_deadline_s) + SERVE_SLACK_S,
        share_s=min(usual.share_s, SERVE_SHARE * deadline_s),
    )


def _node(one: _Run, transport: Transport, directory: Directory, state: PeerState) -> Node:
    options = one.options
    return Node(
        file=one.file,
        learner=one.learner,
        transport=transport,
        directory=directory,
        events=one.events,
        run_dir=options.run_dir,
        rounds=one.rounds,
        seeding_s=options.seeding_s,
        worker=one.worker,
        stopping=one.stopping.asked,
        attacker=Attacker(options.attack, one.learner) if options.attack else None,
        keeps_personal=options.personal and not options.alone,
        personal=state.personal,
        keeps_best=one.learner.trainer.spent is None,
        best=_best_of(one, state),
    )


async def _keeper(one: _Run, directory: Directory, state: PeerState) -> Keeper | None:
    """Returns the peer's update log, and what it knows of others'; None where nobody keeps one.

    Raises:
        RunDirError: the log is damaged, or has lost entries.
    """
    if not one.file.session.ledger or one.options.alone:
        return None
    key, folder = one.identity.private_key, one.options.run_dir
    opening = partial(UpdateLog.open, folder, one.file.id, key, least=state.logged)
    log = await one.worker(opening)
    return Keeper(log, folder, one.identity, time.time, directory.known.__contains__)


def _best_of(one: _Run, state: PeerState) -> Best | None:
    """Returns the best round so far; its model is there, if it is the last one: see `keep_best`.

    None in private training: which round it is says something of the validation examples, and is
    not paid for.
    """
    if one.learner.trainer.spent is not None:
        return None
    if state.best is not None and state.best.round == state.round:
        keep_best(one.options.run_dir, one.learner, state.weights)
    return state.best


async def _nobody() -> memoryview:
    raise PullError("not asked: training alone")


def _places(one: _Run) -> checkpoint.Places:
    """Returns where the initial checkpoint may be."""
    options = one.options
    return checkpoint.Places(
        base=options.base,
        beside=options.beside / one.file.checkpoint_name if options.beside else None,
        kept=options.run_dir / CHECKPOINT_FILE,
        module=_as_it_stands(one),
        authorities=options.authorities,
        said=one.events.said,
        fetch=partial(_fetched, one) if options.fetch and not options.alone else None,
    )


async def _fetched(one: _Run) -> bytes:
    """Returns what the person's own way gives as the initial checkpoint; it is not verified yet."""
    options = one.options
    assert options.fetch is not None
    file = replace(one.file, trackers=options.trackers) if options.trackers else one.file
    return await options.fetch(file, folder=options.run_dir, said=one.events.said)


def _as_it_stands(one: _Run) -> Callable[[], memoryview] | None:
    """Returns what makes a checkpoint of the person's own module; None where there is none.

    Who makes a session with a module and joins with the same one needs no file.
    """
    trainer = one.learner.trainer
    if one.file.session.model.name != flower.MODEL or not isinstance(trainer, TorchTrainer):
        return None
    return lambda: trainer.checkpoint(flatten(trainer.model, trainer.layout))


async def _checkpoint_of_the_swarm(
    transport: Transport, directory: Directory, one: _Run
) -> memoryview:
    """Returns what some peer serves as the initial checkpoint; it is not verified yet.

    Whoever made the session may join a little later than this peer, so it is asked for until the
    start's deadline.
    """
    loop, file = asyncio.get_running_loop(), one.file
    until_s = loop.time() + file.session.exchange.start_deadline_s
    reasons: dict[str, str] = {}
    while True:
        left_s = max(0.0, until_s - loop.time())
        one.events.said(f"asking the swarm for the initial checkpoint, {left_s:.0f} s more")
        try:
            await directory.announce("update", numwant=CHECKPOINT_DONORS)
        except TrackerError as fault:
            if fault.is_final and not directory.known.addresses():
                raise
        for address in directory.known.sample(CHECKPOINT_DONORS):
            try:
                return await transport.pull_checkpoint(
                    address,
                    size=file.checkpoint.size,
                    deadline_s=file.session.exchange.pull_deadline_s,
                )
            except (PullError, FrameError) as fault:
                reasons[address.id[:8]] = str(fault)
        if loop.time() > until_s:
            said = "; ".join(f"{peer}: {reason}" for peer, reason in reasons.items())
            raise PullError(said or "nobody is there to ask")
        await asyncio.sleep(cohort.POLL_S)


def _on_disk(one: _Run, payload: bytes | memoryview) -> mmap.mmap:
    """Returns the checkpoint as a mapped file, so that serving it takes no memory of its own."""
    path = one.options.run_dir / CHECKPOINT_FILE
    kept = path.exists() and path.stat().st_size == len(payload)
    if not kept or memoryview(_mapped(path)) != payload:
        write_atomically(path, payload)
    return _mapped(path)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


async def _leave(directory: Directory) -> None:
    """Tells the tracker that the peer is gone; it would notice by itself, only later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEAVE_DEADLINE_S):
            await directory.leave()


@contextlib.asynccontextmanager
async def _announcing(node: Node) -> AsyncIterator[None]:
    """Keeps the tracker from forgetting a peer whose rounds are long."""
    task = asyncio.create_task(keep_announcing(node))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _witnessed(one: _Run, node: Node) -> AsyncIterator[None]:
    """Shows the tracker the peer's update log, where that is wanted: meanwhile, and in the end."""
    keeper, tracker = node.keeper, node.directory
    if keeper is None or not one.options.witness or not isinstance(tracker, TrackerDirectory):
        yield
        return
    witnessed = Witnessed(keeper, tracker, one.events.said)

    async def now_and_then() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await witnessed.show()
            await witnessed.look(tuple(node.held))

    task = asyncio.create_task(now_and_then())
    try:
        yield
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WITNESS_S):
                await witnessed.show()
                await witnessed.look(tuple(node.held))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _sum_up(one: _Run, log: RunLog, state: PeerState | None) -> Summary:
    """Returns the summary of the whole run, rounds before a restart included; saves the models."""
    totals, trainer = log.totals, one.learner.trainer
    spent = trainer.spent
    summary = Summary(
        rounds=state.round if state else 0,
        peer_id=one.identity.peer_id,
        state="interrupted" if one.stopping.asked.is_set() else "finished",
        session_id=one.file.id,
        name=one.file.name,
        peers_met=tuple(sorted(totals.peers_met)),
        left_out=dict(totals.left_out),
        met_nobody=met_nobody(totals, state, wanted=_wants_company(one.file, one.options)),
        undialled=one.outreach.undialled,
        bytes_in=totals.bytes_in,
        bytes_out=totals.bytes_out,
        bytes_relayed=totals.bytes_relayed,
        tracker_bytes=totals.tracker_bytes,
        seconds=totals.seconds,
        samples=trainer.own_samples,
        epsilon=spent.epsilon if spent else None,
        trust_epsilon=spent.trust_epsilon if spent else None,
        delta=spent.delta if spent else None,
        labels=one.options.labels,
        test_set=_test_set(trainer, one.options),
    )
    if state is None:
        return summary
    if state.best is None:
        (one.options.run_dir / BEST_FILE).unlink(missing_ok=True)  # of rounds that were taken back
    scores = one.learner.judge(state.weights)
    written = one.learner.checkpoint(state.weights)
    write_atomically(one.options.run_dir / MODEL_FILE, written)
    if one.file.session.ledger and not one.options.alone:
        version = Version("final", state.round, sha256(written), epsilon=summary.epsilon)
        finish(one.options.run_dir, one.file.id, one.identity, version, time.time())
    pages.rest(state.weights)
    personal = _keep_personal(one, state)
    return msgspec.structs.replace(
        summary,
        accuracy=scores.accuracy,
        metrics=dict(scores.metrics),
        confusion=tuple(tuple(row) for row in scores.confusion.tolist()),
        personal_accuracy=personal if trainer.metrics[0] == ACCURACY else None,
        personal_score=personal,
        best_round=state.best.round if state.best else None,
        best_validation_loss=state.best.validation_loss if state.best else None,
    )


def _wants_company(file: SessionFile, options: Options) -> bool:
    """Returns whether it is news that a peer trains without others."""
    return not options.alone and file.session.exchange.min_peers > 1


def _test_set(trainer: Trainer, options: Options) -> ScoredOn | None:
    """Returns what the models of a run are scored on."""
    if not isinstance(trainer, TorchTrainer):
        return None
    if trainer.test is None:
        return ScoredOn(source="validation", examples=len(trainer.validation))
    share = options.test_share
    source: Literal["given", "drawn"] = "given" if share is None else "drawn"
    return ScoredOn(source=source, examples=len(trainer.test), share=share)


def _unmeasured(trainer: Trainer) -> str:
    """Returns which metric will be missing in each round, and why; "": none that is foreseen."""
    if not isinstance(trainer, TorchTrainer):
        return ""
    scored = trainer.validation if trainer.test is None else trainer.test
    return why_no_auroc(trainer.metrics, scored.y) if isinstance(scored, Examples) else ""


def _keep_personal(one: _Run, state: PeerState) -> float | None:
    """Writes the personal model, where one is kept, and returns its score on the peer's labels."""
    saved = _saved_state(one.file, one.options, one.learner.trainer)
    kept = saved.personal if saved else None
    vector = state.weights if one.options.alone else kept
    if not one.options.personal or vector is None:
        return None
    learner = one.learner
    vector = vector.to(learner.trainer.device)
    write_atomically(one.options.run_dir / PERSONAL_FILE, learner.checkpoint(vector))
    return learner.trainer.own_score(learner.judge(vector))
