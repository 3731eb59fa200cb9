"""Exchange kind `raft`: one peer at a time aggregates, elected for a term; any peer may be next.

Behera et al. 2021 ("Federated Learning using Peer-to-peer Network for Decentralized Orchestration
of Model Weights"). The first peers agree on who votes (`p2pl.protocol.founding`) and elect a leader
(`p2pl.protocol.election`), which resigns after a term. Everybody is a participant: it fetches the
global model, trains it on its own data, and gives the result to the leader. The leader is an
aggregator besides: it mixes the results by the session's rule, and announces the next model.

A model counts once a majority holds it, and the next one is made of the results of a majority, so
whoever is cut off with a minority can make none. What a leader had in hand when it died is
not lost: participants keep their results until there is a newer model, and give them to the next
leader.

Requests and replies are sealed (figure 3 of the paper): S1 seal to the leader's key, S2 the leader
opens, S3 it seals to the key that came with the request, S4 the participant opens. All members get
every sealed message, and pass over what they cannot open.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from p2pl.errors import FrameError, PullError, QuorumError, RunDirError, TrackerError, wrong
from p2pl.exchange.cohort import POLL_S, TRACKER_PATIENCE_S, meet
from p2pl.exchange.leadership import Bell, EventLog, Leadership, SeatFile
from p2pl.exchange.linger import linger
from p2pl.exchange.peer import Meter, Outcome, Peer, Pulls, announce, remember, save, stepper
from p2pl.exchange.post import Post
from p2pl.exchange.state import PeerState
from p2pl.learning.learner import Mixed, Model
from p2pl.learning.train import Start, Trained
from p2pl.network.sealed import KeyPair, Locked, lock, locked_bytes, seal, unlock
from p2pl.protocol import election, founding, raft
from p2pl.protocol.announce import MAX_NUMWANT
from p2pl.protocol.election import Stamp
from p2pl.protocol.founding import Roll
from p2pl.protocol.frame import PARCEL_NAME_BYTES
from p2pl.protocol.raft import Announce, Fetch, Newest, Reply, Request, Sealed, Taken, Update, Who

log = logging.getLogger(__name__)
T = TypeVar("T")

FOUNDING_PATIENCE_S = 3.0  # chosen: who has not the lowest id proposes only after three polls
ASK_AGAIN_S = 3.0  # chosen: a request whose answer is lost is made anew, with a new key
MAX_GUESTS = 256  # peers without a vote that the leader speaks to; as many as a cohort at most
GUEST_S = 10.0  # a guest that was not heard for so long is gone
KEPT_KEYS = 2  # of a leader: the announced one and the one before, for requests on their way
MAX_ANSWERED = 4_096  # reply keys remembered for each of them, so that no request counts twice


@dataclass(frozen=True, slots=True)
class Done:
    """What I trained last, and from which model."""

    base: Stamp
    trained: Trained
    meter: Meter


@dataclass(slots=True)
class OwnKey:
    """A key that I announced as leader, and the requests that it has opened."""

    pair: KeyPair
    term: int
    answered: set[bytes] = field(default_factory=set)  # their reply keys


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of mine that waits for its answer."""

    pair: KeyPair
    term: int
    answer: asyncio.Future[Reply]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A model that I give to those who know its name and key."""

    stamp: Stamp
    name: bytes
    key: bytes


class Moved(Exception):  # no error: the world went on
    """There is another leader or another model than the one this was about."""


async def run(peer: Peer, state: PeerState) -> PeerState:
    """Returns the peer's state once it holds the last global model, and the others do, or left.

    Raises:
        TrackerError: no tracker answered at the start, and no peer is known.
        QuorumError: the members did not meet, or no majority of them was there for too long.
        RunDirError: what was saved is damaged, or of another kind of exchange.
    """
    member = Member(peer, state)
    try:
        return await first_of(member.take_part(), member.read_inbox())
    finally:
        await member.post.close()


class Member:
    """One peer of a raft session: participant always, aggregator while it leads."""

    def __init__(self, peer: Peer, state: PeerState) -> None:
        self.peer, self.state = peer, state
        self.me = peer.wire.identity.peer_id
        self.exchange = peer.file.session.exchange
        self.held = stamp_of(state)
        self.post, self.bell = Post(peer), Bell()
        self.events = EventLog(peer.log.directory, self.me)
        self.seat = SeatFile(peer.log.directory, peer.file.id)
        self.founding = self.seat.seat.agreement(self.me)
        self.size = len(self.exchange.raft.members) or self.exchange.min_peers
        self.roll: frozenset[str] = frozenset()  # who may vote, once it is known
        self.vouched: dict[Roll, set[str]] = {}  # for guests: who has said that this roll is valid
        self.leadership: Leadership | None = None  # None: I have no vote
        self.notices: dict[str, Announce] = {}  # the newest, of each member that has led
        self.done: Done | None = None
        self.adopting = asyncio.Lock()  # one model after the other
        self.asked: list[Asked] = []
        self.passed_over = 0  # sealed messages that were not for me
        # As leader:
        self.keys: list[OwnKey] = []  # the newest last
        self.parcels: list[Parcel] = []  # the newest last
        self.results: dict[str, tuple[Stamp, Model]] = {}  # by peer id
        self.coming: dict[str, asyncio.Task[None]] = {}  # results on their way, by peer id
        self.guests: dict[str, float] = {}  # peer id -> when last heard

    async def take_part(self) -> PeerState:
        """Returns the state after the last round."""
        await self.agree_on_members()
        helpers: list[Coroutine[Any, Any, None]] = [
            self.keep_announcing(),
            self.lead_when_elected(),
        ]
        if self.me in self.roll:
            self.leadership = self.take_seat()
            helpers.append(self.leadership.run())
        else:
            self.peer.view.message("the members are chosen; taking part without a vote")
        return await first_of(self.participate_to_the_end(), *helpers)

    # --- who may vote ---------------------------------------------------------------------------

    async def agree_on_members(self) -> None:
        """Returns once `roll` is known: named by the session, or agreed with those who are here.

        Raises:
            TrackerError: no tracker answered, and no peer is known.
            QuorumError: the members did not meet within the start's deadline.
        """
        begun_s = self.peer.clock()
        self.roll = frozenset(self.exchange.raft.members)
        if self.founding.valid and self.founding.pledge:
            self.found(self.founding.pledge.members)
        there = await meet(self.peer, begun_s + TRACKER_PATIENCE_S, MAX_NUMWANT)
        while not self.roll:
            await self.propose_members([one.id for one in there], self.peer.clock() - begun_s)
            self.post.send([one.id for one in there], raft.encode(Who()))
            if not self.roll and self.peer.clock() - begun_s > self.exchange.start_deadline_s:
                got = f"{len(there) + 1} peers"
                allowed = f"{self.size} that agree on being the members, at the same time"
                raise QuorumError(wrong("founding", got=got, allowed=allowed))
            self.peer.view.message(f"choosing {self.size} members; {len(there) + 1} peers are here")
            await self.bell.wait(POLL_S)
            there = await meet(self.peer, begun_s + TRACKER_PATIENCE_S, MAX_NUMWANT)

    async def propose_members(self, there: Sequence[str], waited_s: float) -> None:
        """Proposes a roll if it is on me to do so, and repeats what I have said."""
        if self.me < min(there, default=self.me) or waited_s > FOUNDING_PATIENCE_S:
            await self.agreed(founding.propose(self.founding, there, self.size))
        self.tell_all(founding.say(self.founding))

    async def agreed(self, state: founding.State) -> None:
        """Takes in a step of the founding; it is on disk when this returns."""
        changed = state.saved != self.founding.saved
        self.founding = state
        if changed:
            await self.seat.change(lambda seat: seat.agreed(state))
        if state.valid and state.pledge and not self.roll:
            self.found(state.pledge.members)

    def found(self, members: frozenset[str]) -> None:
        """Goes by these members from now on."""
        self.roll = members
        self.events.note("members", members=sorted(members))
        self.bell.ring()

    async def on_founding(self, sender: str, message: founding.Message) -> None:
        """Takes in what another peer says about who may vote."""
        if self.exchange.raft.members:
            return
        state, answers = founding.hear(self.founding, sender, message, self.size)
        await self.agreed(state)
        self.tell_all(answers)
        if isinstance(message, founding.Pledge) and message.valid and not self.roll:
            self.vouch(sender, message.roll)

    def vouch(self, sender: str, roll: Roll) -> None:
        """Takes in that a member says who the members are; a majority of them is believed."""
        proper = (
            len(roll.ids) == self.size and sender in roll.members and self.me not in roll.members
        )
        if proper and (roll in self.vouched or len(self.vouched) < founding.MAX_REMEMBERED):
            said = self.vouched.setdefault(roll, set())
            said.add(sender)
            if len(said) > self.size // 2:
                self.found(roll.members)

    def take_seat(self) -> Leadership:
        """Returns my part in the election, which begins now."""
        settings = self.exchange.raft
        rules = election.Rules(
            me=self.me,
            members=self.roll,
            heartbeat_s=settings.heartbeat_s,
            timeout_s=(settings.shortest_timeout_s, settings.longest_timeout_s),
            term_s=settings.term_s,
        )

        def tell(to: str, message: election.Message) -> None:
            self.post.send([to], raft.encode(message))

        return Leadership(
            rules,
            self.seat,
            self.held,
            tell=tell,
            bell=self.bell,
            events=self.events,
            now=self.peer.clock,
        )

    # --- what others say ------------------------------------------------------------------------

    async def read_inbox(self) -> None:
        """Takes in what others say until cancelled; nonsense costs its sender one message."""
        while True:
            told = await self.peer.wire.inbox.take()
            try:
                await self.on_message(told.peer_id, raft.decode(told.payload))
            except FrameError as fault:
                self.peer.wire.traffic.broke(told.peer_id)
                log.debug("broken message peer=%s reason=%s", told.peer_id, fault)

    async def on_message(self, sender: str, message: raft.Clear) -> None:
        """Takes in one message."""
        if isinstance(message, Announce):
            self.on_announce(message)
        elif isinstance(message, Sealed):
            self.on_sealed(sender, message.box)
        elif isinstance(message, Who):
            self.on_who(sender)
        elif isinstance(message, founding.Pledge | founding.Refusal):
            await self.on_founding(sender, message)
        elif self.leadership:
            self.leadership.hear(sender, message)

    def on_announce(self, message: Announce) -> None:
        """Keeps what the leader announces, if it is newer than what I have."""
        known = self.notices.get(message.leader)
        if message.leader not in self.roll - {self.me} or message == known:
            return
        if known is None or (message.term, message.stamp) >= (known.term, known.stamp):
            message.check(self.peer.file.id)
            self.notices[message.leader] = message
            self.bell.ring()

    @property
    def notice(self) -> Announce | None:
        """What the present leader has announced last, as far as I know."""
        if self.leadership is None:
            newest = max(self.notices.values(), key=lambda one: (one.term, one.stamp), default=None)
            return newest
        seen = self.leadership.state
        notice = self.notices.get(seen.leader or "")
        return notice if notice and notice.term == seen.term else None

    def on_who(self, sender: str) -> None:
        """Tells a peer who votes and who leads; as leader, goes on telling it for a while."""
        if self.founding.valid and self.founding.pledge:
            self.post.send([sender], raft.encode(founding.Pledge(self.founding.pledge, valid=True)))
        if self.leads and sender not in self.roll:
            self.guests = {
                guest: at_s
                for guest, at_s in self.guests.items()
                if at_s > self.peer.clock() - GUEST_S
            }
            if sender in self.guests or len(self.guests) < MAX_GUESTS:
                self.guests[sender] = self.peer.clock()
        if self.notice:
            self.post.send([sender], raft.encode(self.notice))

    def tell_all(self, messages: Sequence[tuple[str, founding.Message]]) -> None:
        for to, message in messages:
            self.post.send([to], raft.encode(message))

    def broadcast(self, message: raft.Clear, *more: str) -> None:
        """Tells all other members, and `more`."""
        self.post.send((self.roll | set(more)) - {self.me}, raft.encode(message))

    # --- participant ----------------------------------------------------------------------------

    async def participate_to_the_end(self) -> PeerState:
        """Returns my state once I hold the last model and have served it long enough."""
        await self.participate()

        async def nothing_new(peer: Peer, state: PeerState) -> PeerState:
            return state

        return await linger(self.peer, self.state, nothing_new)

    async def participate(self) -> None:
        """Fetches, trains, and gives the result to whoever leads, until the last model is here."""
        while self.held.round < self.peer.rounds:
            try:
                notice = await self.current_notice()
                if notice.leader != self.me and notice.stamp != self.held:
                    await self.fetch(notice)
                    continue
                if self.done is None or self.done.base != self.held:
                    self.done = await self.train()
                    continue  # much may have happened meanwhile
                await self.give_result(notice, self.done)
                await self.while_current(notice, asyncio.Event().wait())
            except Moved:
                continue

    async def current_notice(self) -> Announce:
        """Returns what the present leader announces, as soon as there is one.

        Raises:
            QuorumError: there was none for too long.
        """
        until_s = self.peer.clock() + self.exchange.raft.patience_s
        while (notice := self.notice) is None:
            if self.peer.clock() > until_s:
                raise QuorumError(
                    wrong(
                        "leader",
                        got=f"none for {self.exchange.raft.patience_s:.0f} s",
                        allowed=f"one that more than half of the {len(self.roll)} members elect",
                        hint="the state is saved; run the same command again when they are there",
                    )
                )
            self.peer.view.message("waiting for a leader")
            if not self.leadership:
                await self.look_for_the_leader()
            await self.bell.wait(self.exchange.raft.announce_s)
        return notice

    async def look_for_the_leader(self) -> None:
        """Asks all members and all I know who leads; for a peer without a vote."""
        with contextlib.suppress(TrackerError):
            await announce(self.peer, "update", MAX_NUMWANT)
        self.broadcast(Who())

    async def while_current(self, notice: Announce, work: Awaitable[T]) -> T:
        """Returns what `work` returns; raises Moved as soon as `notice` is not current any more."""
        working = asyncio.ensure_future(work)
        try:
            while not working.done():
                if notice is not self.notice:
                    raise Moved
                ringing = asyncio.create_task(self.bell.wait(self.exchange.raft.announce_s))
                await asyncio.wait({working, ringing}, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def train(self) -> Done:
        """Returns what I make of the model that I hold, on my own data."""
        peer, state, base = self.peer, self.state, self.held
        meter = Meter.read(peer)
        index = base.round + 1
        start = Start(state.weights, state.optimizer)
        on_step = stepper(peer.view, index, peer.stopping)
        trained = await peer.worker(partial(peer.learner.train, start, index, on_step))
        return Done(base, trained, meter)

    async def fetch(self, notice: Announce) -> None:
        """Takes over the leader's model, by S1 to S4."""
        reply = await self.ask(notice, Fetch)
        if not isinstance(reply, Newest):
            raise Moved
        size = locked_bytes(self.peer.learner.payload_bytes)
        try:
            box = await self.while_current(notice, self.collect(notice.leader, reply.parcel, size))
            vector = await self.peer.worker(partial(self.open_model, reply.lock_key, box))
        except (PullError, FrameError) as fault:
            self.peer.view.message(f"the leader's model did not come: {fault}")
            await self.bell.wait(POLL_S)
            raise Moved from fault
        model = Model(reply.stamp.round, 1, vector)
        pulls = Pulls((notice.leader,), {notice.leader: model}, {})
        mixed = Mixed(vector, {notice.leader: 1.0}, {}, self.state.trust)
        async with self.adopting:
            if notice is not self.notice:
                raise Moved
            await self.adopt(reply.stamp, mixed, pulls)
        self.events.note("fetched", term=reply.stamp.term, round=reply.stamp.round)

    async def give_result(self, notice: Announce, done: Done) -> None:
        """Gives my result to the leader, by S1 to S4; to myself, if I lead."""
        learner = self.peer.learner
        if notice.leader == self.me:
            model = Model(done.base.round + 1, learner.samples, done.trained.vector)
            self.results[self.me] = done.base, model
            self.bell.ring()
            return
        locked = await self.peer.worker(lambda: lock(learner.encode(done.trained.vector)))
        name = os.urandom(PARCEL_NAME_BYTES)
        await self.peer.wire.put_parcel(name, locked.box)
        try:
            await self.ask(
                notice,
                lambda key: Update(key, done.base, learner.samples, name, locked.key),
            )
        finally:
            self.peer.wire.drop_parcel(name)

    async def ask(self, notice: Announce, request: Callable[[bytes], Request]) -> Reply:
        """Returns the leader's answer to a sealed request.

        Every attempt has a key of its own, and any of them may be answered. S1 is here, S4 where
        sealed messages come in.

        Raises:
            Moved: there is another leader or another model meanwhile.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        before = len(self.asked)
        try:
            while True:
                await self.send_request(notice, request, answer)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN_S):
                        return await self.while_current(notice, asyncio.shield(answer))
        finally:
            del self.asked[before:]
            answer.cancel()

    async def send_request(
        self,
        notice: Announce,
        request: Callable[[bytes], Request],
        answer: asyncio.Future[Reply],
    ) -> None:
        suite = self.exchange.raft.suite
        pair = await asyncio.to_thread(KeyPair.generate, suite)
        about = raft.about(self.peer.file.id, notice.term, "request")
        box = seal(suite, notice.key, raft.encode(request(pair.public)), about)
        self.asked.append(Asked(pair, notice.term, answer))
        self.broadcast(Sealed(box), notice.leader)

    def on_sealed(self, sender: str, box: bytes) -> None:
        """Opens what is for me: S2 of a request if I lead, S4 of an answer if I asked."""
        about = partial(raft.about, self.peer.file.id)
        for asked in self.asked:
            plain = asked.pair.open(box, about(asked.term, "reply"))
            if plain is not None:
                if not asked.answer.done():
                    asked.answer.set_result(raft.decode_reply(plain))
                return
        for key in self.keys if self.leads else ():
            plain = key.pair.open(box, about(key.term, "request"))
            if plain is not None:
                self.on_request(sender, key, raft.decode_request(plain))
                return
        self.passed_over += 1

    # --- aggregator -----------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        return self.leadership is not None and self.leadership.leads

    async def lead_when_elected(self) -> None:
        """Runs the aggregator whenever I am elected, for as long as I lead that term."""
        while True:
            if self.leadership and self.leads:
                term = self.leadership.state.term
                leading = asyncio.create_task(self.aggregate(term))
                await self.while_leading(term, leading)
            await self.bell.wait(POLL_S)

    async def while_leading(self, term: int, leading: asyncio.Task[None]) -> None:
        try:
            while self.leadership and self.leads and self.leadership.state.term == term:
                if leading.done():
                    leading.result()  # raises what went wrong
                await self.bell.wait(POLL_S)
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            for task in self.coming.values():
                task.cancel()
            self.results.clear()
            self.keys.clear()
            for parcel in self.parcels:
                self.peer.wire.drop_parcel(parcel.name)
            self.parcels.clear()

    async def aggregate(self, term: int) -> None:
        """Makes one global model after the other of what participants give, while I lead."""
        async with self.adopting:
            await self.serve(term)
        while self.held.round < self.peer.rounds:
            base = self.held
            received = await self.gather(base)
            own = received.pop(self.me)
            async with self.adopting:
                mixing = partial(
                    self.peer.learner.mix, own.vector, received, own.round, self.state.trust
                )
                mixed = await self.peer.worker(mixing)
                pulls = Pulls(tuple(received), received, {})
                made = Stamp(term, base.round + 1)
                await self.adopt(made, mixed, pulls)
                self.events.note(
                    "aggregated", term=term, round=made.round, received=[self.me, *received]
                )
                await self.serve(term)

    async def serve(self, term: int) -> None:
        """Gives what I hold to whoever asks, and announces it with a new key."""
        peer, held, vector = self.peer, self.held, self.state.weights
        pair = await asyncio.to_thread(KeyPair.generate, self.exchange.raft.suite)
        locked: Locked = await peer.worker(lambda: lock(peer.learner.encode(vector)))
        parcel = Parcel(held, os.urandom(PARCEL_NAME_BYTES), locked.key)
        await peer.wire.put_parcel(parcel.name, locked.box)
        for old in self.parcels[:-1]:
            peer.wire.drop_parcel(old.name)
        self.parcels = [*self.parcels[-1:], parcel]
        self.keys = [*self.keys, OwnKey(pair, term)][-KEPT_KEYS:]
        key = peer.wire.identity.private_key
        notice = raft.announce(key, peer.file.id, term, held, pair.public)
        self.notices[self.me] = notice
        self.broadcast(notice, *self.guests)
        self.bell.ring()

    async def gather(self, base: Stamp) -> dict[str, Model]:
        """Returns the results of a majority of the members at least, mine among them.

        Of all who are there, if they give theirs within `exchange.wait_s` of the majority.
        """
        enough_s: float | None = None
        while True:
            given = {one: model for one, (stamp, model) in self.results.items() if stamp == base}
            if self.me in given and len(given.keys() & self.roll) > len(self.roll) // 2:
                enough_s = enough_s or self.peer.clock()
                waited_s = self.peer.clock() - enough_s
                if self.present() <= given.keys() or waited_s >= self.exchange.wait_s:
                    self.results = {}
                    return given
            await self.bell.wait(self.exchange.raft.heartbeat_s)

    def present(self) -> set[str]:
        """Returns the members that answer my heartbeats, and the guests I have heard of late."""
        if self.leadership is None:
            return set()
        fresh_s = self.peer.clock() - self.exchange.raft.longest_timeout_s
        members = {one for one, (at_s, _) in self.leadership.state.echoes.items() if at_s > fresh_s}
        guests = {one for one, at_s in self.guests.items() if at_s > self.peer.clock() - GUEST_S}
        return members | guests

    def on_request(self, sender: str, key: OwnKey, request: Request) -> None:
        """Answers a participant: the newest model, or that its result was taken (S3)."""
        if request.reply_key in key.answered or len(key.answered) >= MAX_ANSWERED:
            return  # somebody plays it again
        key.answered.add(request.reply_key)
        if sender not in self.roll:
            self.on_who(sender)
        if isinstance(request, Fetch):
            parcel = self.parcels[-1]
            newest = Newest(parcel.stamp, parcel.name, parcel.key)
            self.answer(sender, key.term, request.reply_key, newest)
            return
        known = self.results.get(sender)
        if request.stamp != self.held or (known and known[0] == request.stamp):
            self.answer(sender, key.term, request.reply_key, Taken(self.held))
        elif sender not in self.coming and len(self.coming) < len(self.roll) + MAX_GUESTS:
            self.coming[sender] = asyncio.create_task(self.take_result(sender, key.term, request))

    async def take_result(self, sender: str, term: int, update: Update) -> None:
        """Fetches a participant's result, and tells it so."""
        size = locked_bytes(self.peer.learner.payload_bytes)
        try:
            box = await self.collect(sender, update.parcel, size)
            vector = await self.peer.worker(partial(self.open_model, update.lock_key, box))
            self.results[sender] = (
                update.stamp,
                Model(update.stamp.round + 1, update.samples, vector),
            )
            self.answer(sender, term, update.reply_key, Taken(self.held))
            self.bell.ring()
        except (PullError, FrameError) as fault:
            self.peer.view.message(f"no result from {sender[:8]}: {fault}")
        finally:
            del self.coming[sender]

    def answer(self, sender: str, term: int, reply_key: bytes, reply: Reply) -> None:
        """Seals an answer to the key that came with the request, and tells everybody."""
        about = raft.about(self.peer.file.id, term, "reply")
        try:
            box = seal(self.exchange.raft.suite, reply_key, raft.encode(reply), about)
        except FrameError as fault:
            log.debug("no answer peer=%s reason=%s", sender, fault)
            return
        self.broadcast(Sealed(box), sender)

    async def keep_announcing(self) -> None:
        """Repeats, as leader, what is newest; as a guest, that I am listening."""
        while True:
            await asyncio.sleep(self.exchange.raft.announce_s)
            notice = self.notice
            if notice and notice.leader == self.me:
                self.broadcast(notice, *self.guests)
            elif notice and not self.leadership:
                self.post.send([notice.leader], raft.encode(Who()))

    # --- both -----------------------------------------------------------------------------------

    async def adopt(self, stamp: Stamp, mixed: Mixed, pulls: Pulls) -> None:
        """Holds this model from now on; it is on disk before anybody is told."""
        peer, done = self.peer, self.done
        optimizer = done.trained.optimizer if done else self.state.optimizer
        after = PeerState(
            round=stamp.round,
            weights=mixed.vector,
            optimizer=optimizer,
            trust=mixed.trust,
            memory={"term": stamp.term},
        )
        if stamp.round <= self.held.round:
            peer.log.drop_after(stamp.round - 1)  # what I had is not what was decided
        if done and done.base.round + 1 == stamp.round:
            scored = await peer.worker(
                partial(peer.learner.score, done.trained.vector, mixed.vector)
            )
            outcome = Outcome(stamp.round, done.trained, pulls, mixed, scored)
            await remember(peer, after, outcome, done.meter)
        else:
            await save(peer, after)
        self.state, self.held = after, stamp
        if self.leadership:
            await self.leadership.hold(stamp)
        self.bell.ring()

    async def collect(self, peer_id: str, name: bytes, size: int) -> memoryview:
        """Returns a parcel of another peer, still locked."""
        address = self.peer.directory.known.find(peer_id)
        if address is None:
            raise PullError("nobody has said where this peer is")
        deadline_s = self.exchange.pull_deadline_s
        return await self.peer.wire.collect(address, name, size=size, deadline_s=deadline_s)

    def open_model(self, key: bytes, box: memoryview) -> Tensor:
        """Returns the parameters in a locked parcel, [P]."""
        return self.peer.learner.decode(unlock(key, box))


def stamp_of(state: PeerState) -> Stamp:
    """Returns which model a saved state holds.

    Raises:
        RunDirError: it was saved by another kind of exchange.
    """
    term = state.memory.get("term", 0)
    if not isinstance(term, int) or (state.round and "term" not in state.memory):
        raise RunDirError(wrong("saved state", got=dict(state.memory), allowed="one of raft"))
    return Stamp(term, state.round)


async def first_of(main: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, Any]) -> T:
    """Returns what `main` returns, while `helpers` run; what any of them raises ends them all."""
    leading = asyncio.ensure_future(main)
    tasks = [leading, *(asyncio.ensure_future(helper) for helper in helpers)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()
        return await leading
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
