"""Exchange kind `braintorrent`: ask everybody for versions, fetch what moved, merge, fine-tune.

Roy et al. 2019 (arXiv:1905.06731). A peer keeps a version vector: how often it has fine-tuned, and
which version of every other it used last; all zero at the start. It asks everybody for theirs, and
exactly those that moved since send their weights. There is no round in common: nobody is stale,
nobody waits for a slower one, and a peer may come, crash and come back at any time.

The paper leaves open how peers find each other, and lets one of them at a time begin. Here the
tracker introduces them, and everybody begins whenever it has fine-tuned.

It leaves open too what becomes of the last. Who has done all its rounds moves no more, and those
behind it would each end with what it makes alone. So a last version is merged in every round, and
whoever is done merges it again, each time another has moved: what comes late is then one of many,
and judged beside the others.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import msgspec

from p2pl.errors import FrameError, PullError, RunDirError, TrackerError
from p2pl.events import Merged
from p2pl.exchange.base import EXCHANGES, Collected, Exchange
from p2pl.exchange.cohort import POLL_S, TRACKER_PATIENCE_S, meet, waiting_for
from p2pl.exchange.linger import linger
from p2pl.exchange.node import Held, Node
from p2pl.exchange.round import note_mix, save
from p2pl.exchange.swap import Pulls, announce, answers_of, fetch, publish
from p2pl.learning.train import Trained
from p2pl.mixing.base import PeerModel
from p2pl.network.known import MAX_KNOWN
from p2pl.protocol.announce import MAX_NUMWANT, PeerAddress
from p2pl.protocol.frame import Newest
from p2pl.run.state import PeerState

PING_DEADLINE_S = 5.0  # chosen: what a TCP connection and a CURVE handshake take on a bad path
NEWS_POLL_S = 0.25  # between two questions to the same peer; each takes some tens of bytes


class VersionVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version vector without the peer's own entry, which is the number of its rounds."""

    used: dict[str, Annotated[int, msgspec.Meta(ge=0)]] = {}  # peer id -> version merged last

    @classmethod
    def of(cls, state: PeerState) -> "VersionVector":
        """Returns the vector in a saved state; an empty one in a new state.

        Raises:
            RunDirError: the state holds something else.
        """
        try:
            return msgspec.convert(dict(state.memory), cls)
        except msgspec.ValidationError as fault:
            raise RunDirError(f"saved version vector: {fault}") from fault

    def moved(self, peer_id: str, version: int) -> bool:
        """Returns whether another peer's version is not the one that was merged last.

        A lower one counts too: a peer that lost its state begins again. But not the one before: a
        peer that was killed before it had saved its newest makes it once more.

        Args:
            peer_id: of the other peer.
            version: that it says it has; 0 is what everybody began with.
        """
        used = self.used.get(peer_id, 0)
        return version not in (used, used - 1)

    def is_newer(self, peer_id: str, version: int) -> bool:
        """Returns whether another peer's version is later than the one that was merged last."""
        return version > self.used.get(peer_id, 0)

    def after(self, models: Mapping[str, PeerModel]) -> "VersionVector":
        """Returns the vector once these models have been merged."""
        used = {peer_id: was for peer_id, was in self.used.items() if peer_id not in models}
        used |= {peer_id: model.round for peer_id, model in models.items()}
        return VersionVector(
            dict(list(used.items())[-MAX_KNOWN:])
        )  # those merged longest ago go first

    def memory(self) -> dict[str, object]:
        """Returns the vector as it is saved."""
        return {"used": dict(self.used)}


@dataclass(frozen=True, slots=True)
class News:
    """What everybody said when asked for their version."""

    here: tuple[PeerAddress, ...]  # who answered
    said: Mapping[str, int]  # peer id -> the version that it says it has
    moved: tuple[PeerAddress, ...]  # those of them whose version has not been merged yet
    final: tuple[PeerAddress, ...]  # those whose version has, and is the last of all
    begun: bool  # somebody has fine-tuned at least once
    silent: Mapping[str, str]  # peer id -> why there is no answer


@EXCHANGES.builtin("braintorrent")
class BrainTorrent(Exchange):
    """Everybody is asked for its version, and those that moved send their weights."""

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state once enough peers are there."""
        await enter(node, state)
        return state

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Serves what was trained, and returns the models of those that have moved since."""
        index = state.round + 1  # the peer's own entry of the version vector
        await publish(node, index, trained.vector, node.learner.notes(state.trust))
        vector = VersionVector.of(state)
        pulls = await fetch_newest(node, await wait_for_news(node, vector))
        return Collected(
            pulls,
            of_this_round(node, pulls, index),
            age=index,
            reached=index,
            memory=lambda mixed: vector.after(pulls.models).memory(),
        )

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state once the others are done, with what they have made meanwhile."""
        return await linger(node, state, merge_news)


def of_this_round(node: Node, pulls: Pulls, index: int) -> dict[str, PeerModel]:
    """Returns the models, by peer id, as if of round `index`; a last one stays of the last round.

    Versions count each peer's own fine-tunes and are no clock, so none is older than another.
    """
    last = max(node.rounds, node.session.exchange.rounds)
    return {
        who: replace(model, round=last if is_last(node, model.round) else index)
        for who, model in pulls.models.items()
    }


def is_last(node: Node, version: int) -> bool:
    """Returns whether a peer has done all rounds of the session; it may do more if it likes."""
    return version >= node.session.exchange.rounds


async def enter(node: Node, state: PeerState) -> None:
    """Returns when enough peers are there, or when it shows that the others have begun.

    Args:
        node: the peer.
        state: as saved, or new; a peer that has done a round does not wait.

    Raises:
        TrackerError: no tracker answered, and no peer is known.
    """
    exchange = node.session.exchange
    begun_s = node.clock()
    await publish(node, state.round, state.weights, stage="mixed")
    while True:
        await meet(node, begun_s + TRACKER_PATIENCE_S)
        there = node.answer.alive if node.answer else 0
        late = node.clock() - begun_s > exchange.start_deadline_s
        if state.round or late or there >= exchange.min_peers:
            return
        if (await ask_everybody(node, await find_everybody(node), VersionVector())).begun:
            return
        node.events.said(waiting_for(there, exchange.min_peers, exchange.start_deadline_s))
        await asyncio.sleep(POLL_S)


async def find_everybody(node: Node) -> list[PeerAddress]:
    """Returns all peers that tracker and directory know; empty, and said so, if there is none."""
    try:
        return await announce(node, "update", MAX_NUMWANT)
    except TrackerError as fault:
        node.events.said(f"alone for now: {fault}")
        return []


async def ask_everybody(
    node: Node, everybody: list[PeerAddress], vector: VersionVector, *, blame: bool = True
) -> News:
    """Returns which version each peer says it has; who cannot be reached is skipped.

    Args:
        node: the peer.
        everybody: whom to ask.
        vector: which versions have been merged.
        blame: whether those who cannot be reached rest for a while, and count as missing.
    """
    answers = await asyncio.gather(*(_ask(node, address, blame) for address in everybody))
    told = list(zip(everybody, answers, strict=True))
    here = tuple(address for address, it in told if isinstance(it, Newest))
    said = {address.id: it.round for address, it in told if isinstance(it, Newest)}
    moved = tuple(one for one in here if vector.moved(one.id, said[one.id]))
    return News(
        here=here,
        said=said,
        moved=moved,
        final=tuple(one for one in here if one not in moved and is_last(node, said[one.id])),
        begun=any(said.values()),
        silent={address.id: it for address, it in told if isinstance(it, str)},
    )


async def _ask(node: Node, address: PeerAddress, blame: bool) -> Newest | str:
    deadline_s = min(PING_DEADLINE_S, node.session.exchange.pull_deadline_s)
    try:
        newest = await node.transport.ping(address, deadline_s=deadline_s)
    except PullError as fault:
        if blame:
            node.directory.known.blame(address.id)
        return str(fault)
    except FrameError as fault:
        return str(fault)
    node.directory.known.learn(address)
    return newest


async def wait_for_news(node: Node, vector: VersionVector) -> News:
    """Returns the news as soon as anybody has moved, or after a while without any.

    Fine-tuning again on what is merged already only leads away from the others.

    Args:
        node: the peer; the session's `wait_s` says how long it waits.
        vector: which versions have been merged.
    """
    found_s = node.clock()
    everybody = await find_everybody(node)
    news = await ask_everybody(node, everybody, vector)
    silent = dict(news.silent)
    begun_s = node.clock()  # what one waits for a peer that is silent is none of the others' time
    while True:
        late = node.clock() - begun_s > node.session.exchange.wait_s
        last = node.answer is not None and node.answer.training <= 1  # the others only listen
        if news.moved or not news.here or late or last:
            return replace(news, silent=silent)
        await asyncio.sleep(NEWS_POLL_S)
        everybody = list(news.here)
        if node.clock() - found_s > POLL_S:
            found_s, everybody = node.clock(), await find_everybody(node)
        news = await ask_everybody(node, everybody, vector)
        silent |= news.silent


async def fetch_newest(node: Node, news: News) -> Pulls:
    """Returns the models of those that moved and the last ones, and why others gave none."""
    asks = {one.id: partial(fetch, node, one) for one in news.moved}
    asks |= {one.id: partial(fetch, node, one, node.held.get(one.id)) for one in news.final}
    fetched = await answers_of(node, asks)
    for who, it in fetched.items():
        least = news.said.get(who, 0)
        if isinstance(it, Held) and it.model.round < least:
            fetched[who] = why = f"answer: got version {it.model.round}, and it said {least}"
            node.directory.known.blame(who, answered=True, why=why)
    node.held = {peer_id: it for peer_id, it in fetched.items() if isinstance(it, Held)}
    models = {peer_id: held.model for peer_id, held in node.held.items()}
    failed = {peer_id: it for peer_id, it in fetched.items() if isinstance(it, str)}
    asked = (*(address.id for address in news.here), *news.silent)
    return Pulls(asked, models, {**news.silent, **failed})


async def merge_news(node: Node, state: PeerState) -> PeerState:
    """Returns the state after one more merge without a fine-tune; the same where nobody moved.

    A version that was merged is not merged again by itself, nor one that came before it.

    Args:
        node: the peer.
        state: after its last round.
    """
    vector = VersionVector.of(state)
    # Who is done leaves, and is not missing for that.
    others = node.directory.known.sample(MAX_NUMWANT)
    news = await ask_everybody(node, others, vector, blame=False)
    newer = tuple(one for one in news.moved if vector.is_newer(one.id, news.said[one.id]))
    news = replace(news, moved=newer)
    if not news.moved:
        return state
    pulls = await fetch_newest(node, news)
    fresh = [who for who, model in pulls.models.items() if vector.is_newer(who, model.round)]
    if not fresh:
        return state
    index = state.round + 1
    mixed = await node.mix(state, state.weights, of_this_round(node, pulls, index), index)
    await note_mix(node, state.round, mixed, pulls.rejected)
    after = replace(
        state,
        weights=mixed.vector,
        trust=mixed.memory,
        memory=vector.after(pulls.models).memory(),
    )
    await save(node, after)
    merged = [f"merged version {pulls.models[who].round} of {who[:8]}" for who in fresh]
    node.events(Merged(tuple(pulls.models), ", ".join(merged)))
    return after
