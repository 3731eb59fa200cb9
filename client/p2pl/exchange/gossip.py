"""Exchange kind `gossip`: a list of neighbours, a way to discover them, and an averaging step.

Flower's FED 0002, in both of its forms. *Hybrid*: a coordinator that knows everybody, here the
tracker, names a peer's neighbours in each round. *Client to client*: the peer draws them among the
peers it knows, and peers tell each other of a few more, so that nobody is needed once the first
have met.

A peer pulls from its neighbours, or tells them that it has something new and they pull from it, or
both (Hegedus et al. 2021, "Decentralized learning works: an empirical comparison of gossip learning
and federated learning"). A model carries its age, how many rounds of training are in it; mixing
rule `age` weighs by it. An age is what a stranger says of itself, so none counts for more than the
rounds since the session began, as the peer has counted them.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import msgspec

from p2pl.errors import FrameError, PullError, RunDirError, TrackerError
from p2pl.events import Merged
from p2pl.exchange.base import EXCHANGES, Collected, Exchange
from p2pl.exchange.cohort import enter, swarm_round
from p2pl.exchange.linger import linger
from p2pl.exchange.node import Node
from p2pl.exchange.round import note_mix, save
from p2pl.exchange.swap import MAX_WAITED_LAG, announce, publish, pull_all
from p2pl.exchange.witness import Envelope
from p2pl.learning.train import Trained
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.protocol import gossip as messages
from p2pl.protocol.address import reach_of
from p2pl.protocol.announce import PeerAddress
from p2pl.run.state import PeerState

PACE_POLL_S = 0.1
PUSH_DEADLINE_S = 5.0  # chosen: what a TCP connection and a CURVE handshake take on a bad path
MIN_PUSHES = 8  # pulled a round at least, if so many told of one; else twice the neighbours
# Hints are taken only while so few peers are known: a liar can fill this table, and nothing more.
HINTS_UNTIL = 32


class Age(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many rounds of training are in the peer's model."""

    age: Annotated[int, msgspec.Meta(ge=0)] = 0

    @classmethod
    def of(cls, state: PeerState) -> int:
        """Returns the age in a saved state; 0 in a new state.

        Raises:
            RunDirError: the state holds something else.
        """
        try:
            return msgspec.convert(dict(state.memory), cls).age
        except msgspec.ValidationError as fault:
            raise RunDirError(f"saved age: {fault}") from fault


@dataclass(slots=True)
class Neighbours:
    """The list of neighbours: whom the peer talks to, for `keep_rounds` rounds."""

    addresses: list[PeerAddress] = field(default_factory=list)
    until: int = 0  # the last round of this list


@EXCHANGES.builtin("gossip")
class GossipExchange(Exchange):
    """Neighbours that a peer pulls from, or tells to pull, or both."""

    def __init__(self) -> None:
        self._neighbours = Neighbours()
        self._envelope = Envelope()

    async def enter(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state to begin with, with the age of its model.

        Raises:
            RunDirError: the saved state is of another kind of exchange.
            TrackerError: no tracker answered, and no peer is known.
        """
        age = Age.of(state)
        entered = await enter(node, state)
        if entered.weights is not state.weights:  # the swarm's, as old as its round
            age = entered.round
        self._envelope.limit(entered.round, node.clock())  # from here on it trains at its pace
        return replace(entered, memory={"age": age})

    async def collect(self, node: Node, state: PeerState, trained: Trained) -> Collected:
        """Discovers neighbours, tells them, and returns what they have: push, pull, or both."""
        index, age = state.round + 1, Age.of(state) + 1
        mode, neighbours = node.session.exchange.gossip.mode, self._neighbours
        await publish(node, age, trained.vector, node.learner.notes(state.trust))
        await discover(node, neighbours, index)
        if mode != "pull":
            await push(node, neighbours.addresses, age)
        if mode == "push":
            await keep_pace(node, neighbours.addresses, age)
        pushers = [] if mode == "pull" else take_pushes(node)
        pulled = pushers if mode == "push" else [*neighbours.addresses, *pushers]
        pulls = await pull_all(node, awake(node, pulled), age)
        models = pulls.models
        believed = self._envelope.believed(index, node.clock(), models)
        return Collected(
            pulls,
            capped(models, index),
            age=age,
            reached=swarm_round(index, believed),
            memory=lambda mixed: {"age": age_of(mixed, models, age, index)},
        )

    async def finish(self, node: Node, state: PeerState) -> PeerState:
        """Returns the state once the others are done, with what they have pushed meanwhile."""
        cap = state.round + 1
        merged = {who: min(held.model.round, cap) for who, held in node.held.items()}
        return await linger(node, state, partial(merge_pushes, merged=merged))


def capped(models: Mapping[str, PeerModel], cap: int) -> dict[str, PeerModel]:
    """Returns the models with ages of at most `cap` rounds: an age is what a stranger says.

    Args:
        models: by peer id; `round` is their age.
        cap: in rounds.
    """
    return {who: replace(model, round=min(model.round, cap)) for who, model in models.items()}


def age_of(mixed: Mixed, models: Mapping[str, PeerModel], age: int, cap: int) -> int:
    """Returns the age of an average, in rounds: that of the oldest model in it.

    Args:
        mixed: the average, and each model's weight in it.
        models: of others, by peer id.
        age: of the peer's own model, in rounds.
        cap: the most that the age can be.
    """
    used = [models[who].round for who, weight in mixed.row.items() if weight and who in models]
    return min(cap, max([age, *used]))


async def discover(node: Node, neighbours: Neighbours, index: int) -> None:
    """Keeps the list of neighbours up to date; one that cannot be reached is replaced at once.

    Args:
        node: the peer.
        neighbours: the list, changed in place.
        index: the peer's round.
    """
    known, exchange = node.directory.known, node.session.exchange
    known.hear(node.newly_met())
    if index <= neighbours.until and len(awake(node, neighbours.addresses)) == exchange.cohort:
        return
    neighbours.until = index + exchange.gossip.keep_rounds - 1
    if exchange.gossip.form == "client-to-client":
        neighbours.addresses = known.sample(exchange.cohort)
        if neighbours.addresses:
            return
    try:
        neighbours.addresses = await announce(node, "update", exchange.cohort)
    except TrackerError as fault:
        neighbours.addresses = []
        node.events.said(f"without neighbours this round: {fault}")


def awake(node: Node, addresses: Sequence[PeerAddress]) -> list[PeerAddress]:
    """Returns each peer once, without those that could not be reached lately."""
    known = node.directory.known
    return list({one.id: one for one in addresses if not known.rests(one.id)}.values())


async def push(node: Node, neighbours: Sequence[PeerAddress], age: int) -> None:
    """Tells the neighbours that the peer has a new model; whoever wants it pulls it.

    Args:
        node: the peer.
        neighbours: whom to tell; one that rests is left out.
        age: of the new model, in rounds.
    """
    await asyncio.gather(*(_push(node, address, age) for address in awake(node, neighbours)))


async def _push(node: Node, address: PeerAddress, age: int) -> None:
    known = node.directory.known
    deadline_s = min(PUSH_DEADLINE_S, node.session.exchange.pull_deadline_s)
    payload = messages.push(age, known.sample(messages.MAX_HINTS, without={address.id}))
    try:
        await node.transport.tell(address, payload, deadline_s=deadline_s)
    except PullError:
        known.blame(address.id)
    except FrameError:
        pass  # counted by the wire; a pull will name it


async def keep_pace(node: Node, neighbours: Sequence[PeerAddress], age: int) -> None:
    """Waits a little for neighbours that are a round or two behind, as a pull from them would.

    Args:
        node: the peer; the session's `wait_s` says how long it waits.
        neighbours: whom to wait for.
        age: of the peer's own model, in rounds.
    """
    until_s = node.clock() + node.session.exchange.wait_s
    await asyncio.gather(*(_wait(node, at, age, until_s) for at in awake(node, neighbours)))


async def _wait(node: Node, address: PeerAddress, age: int, until_s: float) -> None:
    with contextlib.suppress(PullError, FrameError):
        while node.clock() < until_s:
            newest = await node.transport.ping(address, deadline_s=PUSH_DEADLINE_S)
            if not age - MAX_WAITED_LAG <= newest.round < age:
                return
            await asyncio.sleep(PACE_POLL_S)


def take_pushes(node: Node) -> list[PeerAddress]:
    """Returns where those are who have told of a new model, and takes in their hints."""
    known, seen = node.directory.known, node.transport.seen
    pushers: dict[str, None] = {}
    for message in node.transport.inbox.take_all():
        try:
            told = messages.read(message.payload)
        except FrameError:
            node.transport.traffic.broke(message.peer_id)
            continue
        pushers.pop(message.peer_id, None)
        pushers[message.peer_id] = None  # the newest last
        if len(known) < HINTS_UNTIL and message.peer_id in seen:
            near = reach_of(seen[message.peer_id].host)  # a nearer address is another machine here
            hints = [one for one in told.addresses() if reach_of(one.host) >= near]
            known.hear(one for one in hints if one.id not in known)
    found = (_where(node, peer_id) for peer_id in list(pushers)[-_most_pulled(node) :])
    return [address for address in found if address is not None]


def _where(node: Node, peer_id: str) -> PeerAddress | None:
    """Returns where a peer is reached that was heard: as it says itself, or where it was seen."""
    told = node.directory.known.find(peer_id)
    if told is not None and told.version > 1:
        return told
    return node.transport.seen.get(peer_id)


async def merge_pushes(node: Node, state: PeerState, merged: dict[str, int]) -> PeerState:
    """Returns the state averaged once more, if one of those who tell has a model of a later age.

    What others gave before is in the average too, so that what comes late is one of many, and
    judged beside them. Ages have an end, so nobody can go on for ever.

    Args:
        node: the peer.
        state: after its last round.
        merged: by peer id, the highest age of its models in the average; changed in place.
    """
    pushers = awake(node, take_pushes(node))
    if not pushers:
        return state
    age, cap, before = Age.of(state), state.round + 1, node.held
    pulls = await pull_all(node, pushers, 0)
    came = capped(pulls.models, cap)
    later = {who: node.held[who] for who, one in came.items() if one.round > merged.get(who, -1)}
    older = {who: held for who, held in before.items() if who not in later}
    node.held = dict([*older.items(), *later.items()][-_most_pulled(node) :])
    if not later:
        return state
    merged |= {who: came[who].round for who in later}
    models = capped({who: held.model for who, held in node.held.items()}, cap)
    mixed = await node.mix(state, state.weights, models, age)
    reached = age_of(mixed, models, age, state.round)
    await note_mix(node, state.round, mixed, pulls.rejected)
    after = replace(state, weights=mixed.vector, trust=mixed.memory, memory={"age": reached})
    await save(node, after)
    names = ", ".join(who[:8] for who in later)
    node.events(Merged(tuple(models), f"merged what {names} made of it"))
    return after


def _most_pulled(node: Node) -> int:
    """Returns of how many that told of a model the newest are looked at."""
    return max(MIN_PUSHES, 2 * node.session.exchange.cohort)
