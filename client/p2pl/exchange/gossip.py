"""Exchange kind `gossip`: a list of neighbours, a way to discover them, and an averaging step.

Flower's FED 0002, in both of its forms. *Hybrid*: a coordinator that knows everybody, here the
tracker, names my neighbours in each round. *Client to client*: I draw them among the peers I know,
and peers tell each other of a few more, so that nobody is needed once the first have met.

I pull from my neighbours, or tell them that I have something new and they pull from me, or both
(Hegedus et al. 2021, "Decentralized learning works: an empirical comparison of gossip learning and
federated learning"). A model carries its age, how many rounds of training are in it; mixing rule
`age` weighs by it. An age is what a stranger says of itself, so none counts for more than the
rounds since the session began, as I have counted them.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import msgspec
from torch import Tensor

from p2pl.errors import FrameError, PullError, RunDirError, TrackerError
from p2pl.exchange.cohort import enter, swarm_round
from p2pl.exchange.linger import linger
from p2pl.exchange.node import (
    MAX_WAITED_LAG,
    Meter,
    Outcome,
    Peer,
    announce,
    publish,
    pull_all,
    remember,
    save,
    stepper,
)
from p2pl.learning.learner import Mixed, Model
from p2pl.learning.train import Start
from p2pl.protocol import gossip as messages
from p2pl.protocol.announce import PeerAddress
from p2pl.run.state import PeerState

PACE_POLL_S = 0.1
PUSH_DEADLINE_S = 5.0  # chosen: what a TCP connection and a CURVE handshake take on a bad path
MIN_PUSHES = 8  # pulled a round at least, if so many told me; else twice the neighbours
# Hints are taken only while I know so few: a liar can fill this table, and nothing beyond it.
HINTS_UNTIL = 32


class Age(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many rounds of training are in my model."""

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
    """The list of neighbours: whom I talk to, for `keep_rounds` rounds."""

    addresses: list[PeerAddress] = field(default_factory=list)
    until: int = 0  # the last round of this list


async def run(peer: Peer, state: PeerState) -> PeerState:
    """Returns the peer's state after the session's last round.

    Raises:
        TrackerError: no tracker answered at the start, and no peer is known.
        RunDirError: the saved state is of another kind of exchange.
    """
    age = Age.of(state)
    entered = await enter(peer, state)
    if entered.weights is not state.weights:  # the swarm's, as old as its round
        age = entered.round
    state = replace(entered, memory={"age": age})
    neighbours = Neighbours()
    while state.round < peer.rounds:
        state = await run_round(peer, state, neighbours)
    return await linger(peer, state, merge_pushes)


async def run_round(peer: Peer, state: PeerState, neighbours: Neighbours) -> PeerState:
    """Returns the peer's state after one round: train, discover, push, pull, average."""
    index, age = state.round + 1, Age.of(state) + 1
    mode = peer.file.session.exchange.gossip.mode
    meter = Meter.read(peer)
    start = Start(state.weights, state.optimizer)
    on_step = stepper(peer.view, index, peer.stopping)
    trained = await peer.worker(partial(peer.learner.train, start, index, on_step))
    await publish(peer, age, trained.vector, peer.learner.notes(state.trust))
    await discover(peer, neighbours, index)
    if mode != "pull":
        await push(peer, neighbours.addresses, age)
    if mode == "push":
        await keep_pace(peer, neighbours.addresses, age)
    pulled = take_pushes(peer) if mode == "push" else [*neighbours.addresses, *take_pushes(peer)]
    pulls = await pull_all(peer, awake(peer, pulled), age)
    mixed = await peer.worker(partial(average, peer, state, trained.vector, pulls.models, age))
    scored = await peer.worker(partial(peer.learner.score, trained.vector, mixed.vector))
    after = PeerState(
        round=min(peer.rounds, swarm_round(index, pulls.models)),
        weights=mixed.vector,
        optimizer=peer.learner.follow(start, trained, mixed.vector, index),
        trust=mixed.trust,
        memory={"age": age_of(mixed, pulls.models, age, index)},
    )
    await remember(peer, after, Outcome(index, trained, pulls, mixed, scored), meter)
    return after


def average(
    peer: Peer, state: PeerState, own: Tensor, models: Mapping[str, Model], age: int
) -> Mixed:
    """Returns my model averaged with others by the session's rule, their ages capped.

    Args:
        peer: me.
        state: after my last round.
        own: what I have made of it since, [P].
        models: of others, by peer id; their `round` is their age.
        age: of my own model.
    """
    cap = state.round + 1
    capped = {who: replace(model, round=min(model.round, cap)) for who, model in models.items()}
    start = None if own is state.weights else state.weights  # where my training began, if any
    return peer.learner.mix(own, capped, age, state.trust, start=start)


def age_of(mixed: Mixed, models: Mapping[str, Model], age: int, cap: int) -> int:
    """Returns the age of an average: that of the oldest model in it."""
    used = [models[who].round for who, weight in mixed.row.items() if weight and who in models]
    return min(cap, max([age, *used]))


async def discover(peer: Peer, neighbours: Neighbours, index: int) -> None:
    """Keeps the list of neighbours up to date; one that cannot be reached is replaced at once."""
    known, exchange = peer.directory.known, peer.file.session.exchange
    known.hear(peer.newly_met())
    if index <= neighbours.until and len(awake(peer, neighbours.addresses)) == exchange.cohort:
        return
    neighbours.until = index + exchange.gossip.keep_rounds - 1
    if exchange.gossip.form == "client-to-client":
        neighbours.addresses = known.sample(exchange.cohort)
        if neighbours.addresses:
            return
    try:
        neighbours.addresses = await announce(peer, "update", exchange.cohort)
    except TrackerError as fault:
        neighbours.addresses = []
        peer.view.message(f"without neighbours this round: {fault}")


def awake(peer: Peer, addresses: Sequence[PeerAddress]) -> list[PeerAddress]:
    """Returns each peer once, without those that could not be reached lately."""
    known = peer.directory.known
    return list({one.id: one for one in addresses if not known.rests(one.id)}.values())


async def push(peer: Peer, neighbours: Sequence[PeerAddress], age: int) -> None:
    """Tells the neighbours that I have a new model; whoever wants it pulls it."""
    await asyncio.gather(*(_push(peer, address, age) for address in awake(peer, neighbours)))


async def _push(peer: Peer, address: PeerAddress, age: int) -> None:
    known = peer.directory.known
    deadline_s = min(PUSH_DEADLINE_S, peer.file.session.exchange.pull_deadline_s)
    payload = messages.push(age, known.sample(messages.MAX_HINTS, without={address.id}))
    try:
        await peer.wire.tell(address, payload, deadline_s=deadline_s)
    except PullError:
        known.blame(address.id)
    except FrameError:
        pass  # counted by the wire; a pull will name it


async def keep_pace(peer: Peer, neighbours: Sequence[PeerAddress], age: int) -> None:
    """Waits a little for neighbours that are a round or two behind, as a pull from them would."""
    until_s = peer.clock() + peer.file.session.exchange.wait_s
    await asyncio.gather(*(_wait(peer, at, age, until_s) for at in awake(peer, neighbours)))


async def _wait(peer: Peer, address: PeerAddress, age: int, until_s: float) -> None:
    with contextlib.suppress(PullError, FrameError):
        while peer.clock() < until_s:
            newest = await peer.wire.ping(address, deadline_s=PUSH_DEADLINE_S)
            if not age - MAX_WAITED_LAG <= newest.round < age:
                return
            await asyncio.sleep(PACE_POLL_S)


def take_pushes(peer: Peer) -> list[PeerAddress]:
    """Returns where those are who have told me of a new model, and takes in their hints."""
    known, seen = peer.directory.known, peer.wire.seen
    pushers: dict[str, None] = {}
    for message in peer.wire.inbox.take_all():
        try:
            told = messages.read(message.payload)
        except FrameError:
            peer.wire.traffic.broke(message.peer_id)
            continue
        pushers.pop(message.peer_id, None)
        pushers[message.peer_id] = None  # the newest last
        if len(known) < HINTS_UNTIL:
            known.hear(one for one in told.addresses() if one.id not in known)
    limit = max(MIN_PUSHES, 2 * peer.file.session.exchange.cohort)
    return [seen[peer_id] for peer_id in list(pushers)[-limit:] if peer_id in seen]


async def merge_pushes(peer: Peer, state: PeerState) -> PeerState:
    """Returns the state averaged once more, with those who have told me of a new model since."""
    pushers = awake(peer, take_pushes(peer))
    if not pushers:
        return state
    age = Age.of(state)
    pulls = await pull_all(peer, pushers, 0)
    if not pulls.models:
        return state
    mixed = await peer.worker(partial(average, peer, state, state.weights, pulls.models, age))
    reached = age_of(mixed, pulls.models, age, state.round)
    after = replace(state, weights=mixed.vector, trust=mixed.trust, memory={"age": reached})
    await save(peer, after)
    return after
