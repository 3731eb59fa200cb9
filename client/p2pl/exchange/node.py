"""A node: one peer in one session, put together from its six doors, and what it holds meanwhile.

A trainer, a task and a mixing rule stand behind `learner`, with the codec; the transport and the
directory reach other peers; events tell whoever wants to know. A node owns none of them.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from p2pl import pages
from p2pl.attacks.peer import Attacker
from p2pl.errors import ClientError
from p2pl.events import Events, Step, Stop
from p2pl.exchange.patience import Patience, Waits
from p2pl.learner import Learner, Scored
from p2pl.learning.train import OnStep, Start, Trained
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.network.transport import Directory, Transport
from p2pl.protocol.announce import Answer, PeerAddress
from p2pl.protocol.session import Session, SessionFile
from p2pl.run.presence import Presence
from p2pl.run.state import Best, PeerState
from p2pl.updates.keeper import Keeper, told

log = logging.getLogger(__name__)

ENDING_S = 5.0  # for transfers that were cancelled; chosen: they end at once, if nothing is wrong

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Held:
    """A version of a peer's model, kept in case it is still the newest when the peer is asked."""

    digest: bytes
    model: PeerModel
    hash: bytes = b""  # SHA-256 of its bytes, in a session with update logs


@dataclass(frozen=True, slots=True)
class Coming:
    """A transfer that is under way."""

    task: asyncio.Task[Held | str]
    begun_s: float  # on the node's clock
    bytes_before: int  # that had come from this peer when it began
    seen_s: float  # when more of it was seen last
    seen_bytes: int  # that had come from this peer by then


class Worker:
    """One thread for all that uses the model, so that two computations never meet in it.

    What is begun is finished, even where nobody waits for it any more; the next one waits for it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="p2pl-learner")

    async def __call__(self, work: Callable[[], T]) -> T:
        """Returns `work()`, done in the thread after all that was asked of it before.

        Raises:
            ClientError: code that a person brought ended in a StopIteration, which no future can
                hold: whoever waits would wait for ever.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, partial(_no_stop_iteration, work)
        )

    def close(self) -> None:
        """Ends the thread, once the work in hand is done; what was not begun is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _no_stop_iteration(work: Callable[[], T]) -> T:
    try:
        return work()
    except StopIteration as fault:
        raise ClientError(
            "code of yours raised StopIteration, as next() does at the end of an iterator; "
            "allowed: any other exception, or next(iterator, None)"
        ) from fault


@dataclass(slots=True)
class Node:
    """One peer in one session.

    Attributes:
        file: the session.
        learner: trains, evaluates, encodes and mixes.
        transport: serves this peer's models and pulls those of others.
        directory: tells the tracker of this peer, and this peer of others.
        events: told what happens.
        run_dir: where the state is saved.
        rounds: to do in all.
        seeding_s: how long others are served at most, once all rounds are done; seconds.
        worker: the thread that computes.
        stopping: set when the person wants to stop.
        announcing: one announce at a time, in order.
        answer: the tracker's last; None before the first.
        held: versions pulled in the last round, by peer id.
        met: peers that asked this one, as last passed on to the directory.
        mine: the version that is served now.
        coming: transfers that are under way, some of which no round waits for, by peer id.
        patience: how long a transfer from each peer may take.
        waits: for whose rounds it is worth waiting.
        seconds: that it waited for each peer's answer in this round, by peer id.
        attacker: makes what is served of what was trained; None: the peer is honest.
        keeps_personal: whether a model of the peer's own distribution is kept beside.
        personal: that model, [P].
        keeps_best: whether the model of the round that did best on validation is kept beside.
        best: that round; None: there is none yet.
        keeper: of the peer's update log, and of what others' say; None: the session has none.
    """

    file: SessionFile
    learner: Learner
    transport: Transport
    directory: Directory
    events: Events
    run_dir: Path
    rounds: int
    seeding_s: float
    worker: Worker = field(default_factory=Worker)
    stopping: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    announcing: asyncio.Lock = field(default_factory=asyncio.Lock)
    answer: Answer | None = None
    held: Mapping[str, Held] = field(default_factory=dict)
    met: dict[str, PeerAddress] = field(default_factory=dict)
    mine: Held | None = None
    coming: dict[str, Coming] = field(default_factory=dict)
    patience: Patience = field(init=False)
    waits: Waits = field(default_factory=Waits)
    seconds: dict[str, float] = field(default_factory=dict)
    attacker: Attacker | None = None
    presence: Presence = field(default_factory=Presence)
    keeps_personal: bool = False
    personal: Tensor | None = None
    keeps_best: bool = False
    best: Best | None = None
    keeper: Keeper | None = None

    def __post_init__(self) -> None:
        """Begins without knowing how fast anybody is."""
        exchange = self.session.exchange
        self.patience = Patience(least_s=exchange.pull_deadline_s, most_s=exchange.slow_deadline_s)

    def took(self, peer_id: str, seconds: float) -> None:
        """Remembers how long a peer's answer took, until the round is over."""
        self.seconds[peer_id] = self.seconds.get(peer_id, 0.0) + seconds

    @property
    def session(self) -> Session:
        """What all peers agreed on."""
        return self.file.session

    @property
    def peer_id(self) -> str:
        """Of this peer, 64 hex digits."""
        return self.learner.peer_id

    async def fit(self, start: Start, index: int) -> Trained:
        """Returns what the local training of round `index` makes.

        Args:
            start: from where to train.
            index: the peer's round, from 1 on.
        """
        step = stepper(self.events, index, self.stopping)
        self.rest()
        return await self.worker(partial(self.learner.fit, start, index, step))

    async def mix(
        self,
        state: PeerState,
        own: Tensor,
        models: Mapping[str, PeerModel],
        index: int,
        start: Tensor | None = None,
    ) -> Mixed:
        """Returns the mix of the peer's parameters and those of others.

        Args:
            state: after the last round.
            own: [P], what the peer has made of it since.
            models: by peer id.
            index: the peer's round, or the age of its model.
            start: [P], from where the peer trained; None where it did not.
        """
        mix = self.learner.mix
        made = await self.worker(partial(mix, own, models, index, state.trust, start=start))
        self.rest()
        return made

    def rest(self) -> None:
        """Gives back the memory of versions in files, which are read again when they are needed."""
        if self.learner.codec.payload_bytes >= pages.LEAST_BYTES:
            pages.rest(*(one.model.vector for one in (self.mine, *self.held.values()) if one))
            pages.trim()

    def shared(self, trained: Trained) -> Trained:
        """Returns what was trained, in the memory of the version served where that is the same."""
        if self.mine is None or not pages.is_in_file(self.mine.model.vector):
            return trained
        served, vector = self.mine.model.vector, trained.vector
        if not torch.equal(served, vector):
            return trained
        return replace(trained, vector=served)

    async def score(self, before: Tensor, after: Tensor) -> Scored:
        """Returns how good the parameters before and after mixing are, [P] each."""
        return await self.worker(partial(self.learner.score, before, after))

    def turned_down(self, peer_id: str) -> str | None:
        """Returns why nothing is taken from a peer: it has two histories. None: there is no proof.

        What was found out since the last call is told.
        """
        if self.keeper is None:
            return None
        for fault in self.keeper.news():
            self.events.said(told(fault))
        return self.keeper.turned_down(peer_id)

    async def stop_coming(self) -> None:
        """Ends the transfers that no round waits for."""
        tasks = [one.task for one in self.coming.values()]
        self.coming.clear()
        await ended(tasks)

    def newly_met(self) -> list[PeerAddress]:
        """Returns the peers that asked this one from an address that was not passed on yet."""
        seen = self.transport.seen
        new = [one for peer_id, one in seen.items() if self.met.get(peer_id) != one]
        self.met = dict(seen)
        return new


async def ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels tasks, and returns when they are over, or after `ENDING_S` in any case.

    A transfer that does not end must cost a round no more than that.
    """
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    over, left = await asyncio.wait(tasks, timeout=ENDING_S)
    for task in over:
        if not task.cancelled():
            task.exception()  # it was asked for: nobody else does, and asyncio would say so
    if left:
        log.warning("%d transfers did not end within %g s of being cancelled", len(left), ENDING_S)


def stepper(events: Events, index: int, stopping: threading.Event) -> OnStep:
    """Returns what training calls between two steps: it shows progress and ends on request.

    Args:
        events: told of each step.
        index: the peer's round.
        stopping: set when the person wants to stop; the next step then raises `Stop`.
    """

    def step(done: int, steps: int) -> None:
        if stopping.is_set():
            raise Stop
        events(Step(index, done, steps))

    return step
