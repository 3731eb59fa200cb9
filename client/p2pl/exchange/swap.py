"""Models between peers: served to whoever asks, pulled from whom the tracker named."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from p2pl import pages
from p2pl.errors import FrameError, PullError, TrackerError
from p2pl.exchange.node import Coming, Held, Node, ended
from p2pl.mixing.base import PeerModel
from p2pl.network.pull import Unchanged
from p2pl.network.version import Commits, Version, sha256_of
from p2pl.protocol.announce import Event, PeerAddress
from p2pl.protocol.updates.entry import Stage
from p2pl.updates import log as updates

log = logging.getLogger(__name__)

FIRST_INTERVAL_S = 30.0  # until a tracker has said how often it wants to hear from the peer
MAX_SPARE = 8  # asked for beyond the cohort, in the place of peers that will not be asked
TOLD_AFTER_S = 3.0  # of waiting for others: a person should know for whom
PROGRESS_BYTES = 4_096  # more than any header: a chunk has come
MAX_WAITED_LAG = 2  # rounds; who is further behind is not waited for, and so holds nobody up


@dataclass(frozen=True, slots=True)
class Pulls:
    """What one round's pulls brought."""

    cohort: tuple[str, ...]  # ids of the peers asked
    models: Mapping[str, PeerModel]  # by peer id, the usable ones
    rejected: Mapping[str, str]  # peer id -> why there is nothing usable from it
    resting: Mapping[str, str] = field(default_factory=dict)  # peer id -> why it was not asked


async def publish(
    node: Node, index: int, vector: Tensor, notes: bytes = b"", *, stage: Stage = "trained"
) -> None:
    """Serves `vector` as the peer's newest version from now on, with its notes on others.

    Args:
        node: the peer.
        index: the version's round, or its age.
        vector: [P], what an honest peer serves.
        notes: opinions of others, at most 1 KiB.
        stage: whether it is what the peer has trained in that round, or what it has mixed.

    Raises:
        RunDirError: the peer's update log cannot be written; nothing is served then.
    """
    if node.attacker is not None:
        pulled = {peer_id: held.model for peer_id, held in node.held.items()}
        vector = await node.worker(partial(node.attacker.lie, index, vector, pulled))
        notes = node.attacker.gossip(notes, pulled)
    payload = await asyncio.to_thread(_payload, node, vector)
    samples = node.learner.samples
    keep_last = node.session.exchange.lockstep
    hashed = await sha256_of(payload) if node.keeper else b""
    commits = await committed(node, updates.Version(stage, index, hashed), hashed)
    digest = await node.transport.publish(
        Version(index, samples, payload, notes, commits), keep_last=keep_last
    )
    vector = node.learner.codec.served(payload, vector)
    node.mine = Held(digest, PeerModel(index, samples, vector))


async def committed(node: Node, version: updates.Version, hashed: bytes = b"") -> Commits | None:
    """Returns what commits the peer to a version, once it is on disk; None where nothing does.

    Args:
        node: the peer.
        version: that is to be served; what is spent of privacy is added here.
        hashed: SHA-256 of the bytes that travel; b"" = they are not those of the version.

    Raises:
        RunDirError: the peer's update log cannot be written; nothing may be served then.
    """
    if node.keeper is None:
        return None
    spent = node.learner.trainer.spent
    version = replace(version, epsilon=spent.epsilon if spent else None)
    return Commits(version.digest, hashed, await node.keeper.commit(version))


def _payload(node: Node, vector: Tensor) -> memoryview:
    """Returns what to serve; a large one is in a file, for it is served long and read seldom."""
    codec = node.learner.codec
    if codec.payload_bytes < pages.LEAST_BYTES:
        return codec.encode(vector)
    node.rest()
    room = pages.room(node.run_dir, codec.payload_bytes)
    codec.fill(room, vector)
    pages.rest(vector)
    return room.toreadonly()


async def announce(
    node: Node, event: Event, wanted: int, *, without: Collection[str] = ()
) -> list[PeerAddress]:
    """Returns up to `wanted` peers: a random cohort from the tracker, or from those known.

    A peer that could not be reached lately is left out, and so costs no round a deadline; so are
    those of the ids `without`.

    Args:
        node: the peer.
        event: what it announces.
        wanted: how many peers, at least 0.
        without: ids of peers that are not to be among them.

    Raises:
        TrackerError: no tracker answered, and no peer is known.
    """
    known = node.directory.known
    known.hear(node.newly_met())
    resting = {one.id for one in known.addresses() if known.rests(one.id)}
    spare = min(MAX_SPARE, len(resting.union(without))) if wanted else 0
    try:
        async with node.announcing:
            node.answer = await node.directory.announce(event, numwant=wanted + spare)
        if node.answer.warning:
            node.events.said(f"the tracker says: {node.answer.warning}")
    except TrackerError as fault:
        cohort = known.sample(wanted, without=without)
        if not cohort:
            raise
        log.info("no tracker: going on with %d known peers; %s", len(cohort), fault)
        return cohort
    avoided = resting.union(without, node.keeper.watch.faults if node.keeper else ())
    there = [address for address in node.answer.peers if address.id not in avoided]
    if known.missing():
        # A tracker may name more dead peers than living ones: half of the places are for those who
        # were met.
        met = known.sample(wanted // 2, without=avoided, met=True)
        ids = {one.id for one in met}
        there = met + [address for address in there if address.id not in ids]
    # A tracker that was just restarted knows fewer peers than this one does.
    taken = avoided.union(one.id for one in there)
    there += known.sample(max(0, wanted - len(there)), without=taken)
    return there[:wanted]


async def keep_announcing(node: Node) -> None:
    """Announces whenever a round takes longer than the tracker remembers a silent peer."""
    while True:
        await asyncio.sleep(node.answer.interval_s if node.answer else FIRST_INTERVAL_S)
        with contextlib.suppress(TrackerError):
            await announce(node, "update", 0)


async def pull_all(node: Node, cohort: Sequence[PeerAddress], index: int) -> Pulls:
    """Returns what the cohort serves, within one deadline; a late or lying peer is only named.

    What has begun to come when the deadline is over goes on to come beside the rounds that follow,
    and is among the models of the round in which it is there.

    Args:
        node: the peer that asks.
        cohort: whom to ask, all at the same time.
        index: the peer's round; who is not far behind it gets `exchange.wait_s` to reach it.
    """
    answers = await answers_of(node, {one.id: partial(_pull, node, one, index) for one in cohort})
    held = {peer_id: answer for peer_id, answer in answers.items() if isinstance(answer, Held)}
    node.held = held
    models = {peer_id: one.model for peer_id, one in held.items()}
    rejected = {peer_id: answer for peer_id, answer in answers.items() if isinstance(answer, str)}
    return Pulls(tuple(answers), models, rejected)


async def answers_of(
    node: Node, asks: Mapping[str, Callable[[], Coroutine[Any, Any, Held | str]]]
) -> dict[str, Held | str]:
    """Returns what each peer gives within a round's deadline, or why there is nothing.

    Transfers that are under way from a round before are not waited for again: what of them is there
    is among the answers, and so is how far the others are. What takes long is told.

    Args:
        node: the peer that waits.
        asks: by peer id, what asks that peer.
    """
    fresh = {who: _begin(node, who, ask()) for who, ask in asks.items() if who not in node.coming}
    node.coming |= fresh  # where they are ended, should this peer be stopped meanwhile
    if fresh:
        tasks = {one.task: who for who, one in fresh.items()}
        deadline_s = node.session.exchange.pull_deadline_s
        first_s = min(TOLD_AFTER_S, deadline_s)
        _, late = await asyncio.wait(tasks, timeout=first_s)
        if late:
            names = ", ".join(who[:8] for task, who in tasks.items() if task in late)
            node.events.said(f"waiting for the models of {names}")
            await asyncio.wait(late, timeout=deadline_s - first_s)
    answers: dict[str, Held | str] = {}
    for peer_id, one in list(node.coming.items()):
        if one.task.done():
            del node.coming[peer_id]
            answers[peer_id] = one.task.result()
        else:
            answers[peer_id] = await _late(node, peer_id, one)
    for peer_id in answers:  # what came from one may prove another's fault
        answers[peer_id] = node.turned_down(peer_id) or answers[peer_id]
    return answers


def _begin(node: Node, peer_id: str, asking: Coroutine[Any, Any, Held | str]) -> Coming:
    now_s, before = node.clock(), node.transport.traffic.bytes_in_by_peer.get(peer_id, 0)
    return Coming(asyncio.create_task(asking), now_s, before, now_s, before)


async def _late(node: Node, peer_id: str, one: Coming) -> str:
    """Returns why a peer's model is not here; ends a transfer that does not move.

    Args:
        node: the peer that waits.
        peer_id: of the other one.
        one: the transfer.
    """
    size, now_s = node.learner.codec.payload_bytes, node.clock()
    there = node.transport.traffic.bytes_in_by_peer.get(peer_id, 0)
    came, after = there - one.bytes_before, f"after {now_s - one.begun_s:.0f} s"
    why = f"late: {mebibytes(came)} of {mebibytes(size)} MiB {after}"
    if came <= PROGRESS_BYTES:
        why = f"late: no answer {after}"
    elif there > one.seen_bytes:
        node.coming[peer_id] = replace(one, seen_s=now_s, seen_bytes=there)
        return f"{why}, and going on"
    elif now_s - one.seen_s < node.session.exchange.pull_deadline_s:
        return f"{why}, and going on"
    del node.coming[peer_id]
    await ended([one.task])
    node.directory.known.blame(peer_id, why=why)
    return why


def mebibytes(count: int) -> str:
    """Returns bytes in MiB, to three digits."""
    return f"{count / (1 << 20):.3g}"


async def _pull(node: Node, address: PeerAddress, index: int) -> Held | str:
    """Returns one peer's newest version, or why there is none."""
    known, exchange = node.held.get(address.id), node.session.exchange
    lags = known is not None and known.model.round < index - MAX_WAITED_LAG
    waits = exchange.lockstep or node.waits.is_worth(address.id, index)
    wait_s = exchange.wait_s if waits and not lags else 0.0
    before = known or node.mine  # at the start, everybody has the initial checkpoint
    answer = await _ask_for(node, address, index, wait_s, before)
    if isinstance(answer, Held) and (wait_s or answer.model.round >= index):
        node.waits.ended(address.id, index, in_vain=answer.model.round < index)
    return answer


async def pull_next(node: Node, addresses: Sequence[PeerAddress]) -> None:
    """Asks peers for the round after the one that is held of them; what comes is held."""
    wait_s = node.session.exchange.wait_s

    async def one(address: PeerAddress) -> Held | str:
        before = node.held.get(address.id)
        index = before.model.round + 1 if before else 0
        return await _ask_for(node, address, index, wait_s, before)

    answers = await asyncio.gather(*map(one, addresses))
    came = {at.id: it for at, it in zip(addresses, answers, strict=True) if isinstance(it, Held)}
    node.held = {**node.held, **came}


async def fetch(node: Node, address: PeerAddress, before: Held | None = None) -> Held | str:
    """Returns a peer's newest version as it is now, or why there is none.

    Args:
        node: the peer that asks.
        address: whom to ask.
        before: a version that need not be sent again.
    """
    return await _ask_for(node, address, 0, 0.0, before)


async def _ask_for(
    node: Node, address: PeerAddress, index: int, wait_s: float, before: Held | None
) -> Held | str:
    """Returns a peer's version, or why there is none; whose fault that is rests for a while.

    Args:
        node: the peer that asks.
        address: whom to ask.
        index: the round that it is to have reached.
        wait_s: how long to wait for that.
        before: a version that need not be sent again.
    """
    begun_s = node.clock()
    try:
        return await _answer_of(node, address, index, wait_s, before, begun_s)
    finally:
        node.took(address.id, node.clock() - begun_s)


async def _answer_of(  # its last argument: when the peer began to ask, of the node's clock
    node: Node,
    address: PeerAddress,
    index: int,
    wait_s: float,
    before: Held | None,
    begun_s: float,
) -> Held | str:
    known = node.directory.known
    if why := node.turned_down(address.id):
        return why
    asked = node.keeper.question(address.id) if node.keeper else None
    deadline_s = node.patience.deadline_s(address.id)
    try:
        pulled = await node.transport.pull(
            address,
            have=before.digest if before else None,
            round=index,
            wait_s=wait_s,
            deadline_s=deadline_s,
            size=node.learner.codec.payload_bytes,
            said=asked.data if asked else None,
        )
        if isinstance(pulled, Unchanged):
            if before is None:
                raise FrameError("answer: got 'not modified', though nothing of it is held")
            # The same bytes are of no later round, whatever it says: a round changes a model.
            model = replace(before.model, round=min(pulled.round, before.model.round))
            held = replace(before, model=model)
        else:
            node.patience.came(address.id, node.clock() - begun_s)
            if node.keeper and asked:
                node.keeper.take(address.id, asked, pulled.commitment, pulled.hash)
            vector = await asyncio.to_thread(node.learner.codec.decode, pulled.payload)
            if node.mine:
                vector = node.learner.at_home(vector, node.mine.model.vector)
            model = PeerModel(pulled.round, pulled.samples, vector, pulled.notes)
            held = Held(pulled.digest, model, pulled.hash)
    except PullError as fault:
        if (took_s := node.clock() - begun_s) >= deadline_s:
            node.patience.failed(address.id, took_s)
        known.blame(address.id, why=str(fault))
        return str(fault)
    except FrameError as fault:
        why = node.turned_down(address.id) or str(fault)
        known.blame(address.id, answered=True, why=why)
        return why
    known.learn(address)
    return held
