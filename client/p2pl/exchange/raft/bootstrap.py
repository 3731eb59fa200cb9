"""Finding out who may vote: named by the session, or agreed by those who meet first.

`p2pl.protocol.raft.bootstrap` decides; this brings the peers together and carries the messages.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeAlias

from p2pl.errors import QuorumError, wrong
from p2pl.exchange.cohort import POLL_S, TRACKER_PATIENCE_S, meet
from p2pl.exchange.node import Node
from p2pl.exchange.raft.leadership import Bell, EventLog, SeatFile
from p2pl.exchange.raft.outbox import Post
from p2pl.protocol.announce import MAX_NUMWANT
from p2pl.protocol.raft import bootstrap as founding
from p2pl.protocol.raft import messages as raft
from p2pl.protocol.raft.bootstrap import Acceptance, Configuration

Step: TypeAlias = tuple[founding.Agreement, founding.Answers]  # the next state, and what to tell

PATIENCE_S = 3.0  # chosen: who has not the lowest id proposes only after three polls
# Everybody who is still looking says so at each poll. Whom the tracker names without a word from it
# may be dead, and a dead peer in a configuration would never accept it.
PRESENT_S = 3 * POLL_S
HEARD_S = 10 * PRESENT_S  # who was heard of within this may stand in what somebody else proposes
# All of a configuration are there when it is proposed. Chosen: the others have then said so three
# times; on a slow network, the next attempts get twice as long each.
PLEDGE_S = 5 * POLL_S
MAX_PLEDGE_S = 60.0
REFUSALS_A_STRIKE = 4  # an honest peer refuses while it has accepted another one


class Founders:
    """A peer's part in agreeing on the members.

    Attributes:
        members: who may vote; empty until it is known, and never changed afterwards.
    """

    def __init__(
        self, node: Node, *, seat: SeatFile, post: Post, bell: Bell, events: EventLog
    ) -> None:
        """Takes up what was agreed before a restart.

        Args:
            node: the peer.
            seat: what of it is on disk.
            post: carries what it says to others.
            bell: rung when the members are known, or may soon be.
            events: told once who the members are.
        """
        exchange = node.session.exchange
        self.members: frozenset[str] = frozenset(exchange.raft.members)
        self._node, self._seat, self._post = node, seat, post
        self._bell, self._events = bell, events
        self._me = node.transport.identity.peer_id
        self._named = bool(self.members)
        self._size = len(self.members) or exchange.min_peers
        self._state = seat.seat.agreement(self._me)
        self._stepping = asyncio.Lock()
        # Which members have said that a configuration is valid.
        self._vouched: dict[Configuration, set[str]] = {}
        self._heard_s: dict[str, float] = {}  # when peers that are looking for members said so
        self._pledged_s: float | None = None  # when what this peer has accepted changed last
        self._attempts = 0  # at which others have let this peer down
        self._faults: Counter[str] = Counter()  # by peer id, in quarters of a strike
        if self._state.valid and self._state.accepted and not self._named:
            self._found(self._state.accepted.members)

    @property
    def charter(self) -> Acceptance | None:
        """What tells others who the members are, if the peer is one of those who agreed on it."""
        state = self._state
        return Acceptance(state.accepted, valid=True) if state.valid and state.accepted else None

    async def agree(self) -> frozenset[str]:
        """Returns the members, once they are known and the tracker has introduced the peer.

        Raises:
            TrackerError: no tracker answered, and no peer is known.
            QuorumError: the members did not meet within the start's deadline.
        """
        node, begun_s = self._node, self._node.clock()
        start_deadline_s = node.session.exchange.start_deadline_s
        self._pledged_s = begun_s
        while True:
            there = await meet(node, begun_s + TRACKER_PATIENCE_S, MAX_NUMWANT)
            if self.members:
                return self.members
            waited_s = node.clock() - begun_s
            if waited_s > start_deadline_s:
                await self._step(lambda state: (founding.give_up(state), ()))
                got = f"{len(self._present()) + 1} peers"
                allowed = f"{self._size} that agree on being the members, at the same time"
                hint = "where strangers disturb it, name the members in the session"
                raise QuorumError(wrong("founding", got=got, allowed=allowed, hint=hint))
            present = self._present()
            node.events.said(f"choosing {self._size} members; {len(present) + 1} peers are here")
            await self._take_back_in_time()
            reliable = [one for one in present if not self._strikes.get(one)]
            idle_s = node.clock() - (self._pledged_s or begun_s)
            first = self._me < min(reliable, default=self._me) or idle_s > PATIENCE_S
            await self._step(partial(self._propose, present if first else ()))
            self._post.send([one.id for one in there], raft.encode(raft.Who()))
            await self._bell.wait(POLL_S)

    async def hear(self, sender: str, message: founding.Message) -> None:
        """Takes in what another peer says about who may vote, and answers it.

        Args:
            sender: the other peer's id, which it has proved.
            message: what it says.
        """
        if self._named:
            return
        if isinstance(message, founding.Refusal) and message.configuration == self._state.accepted:
            self._faults[sender] += 1
        present = self._present(HEARD_S)
        await self._step(lambda state: founding.hear(state, sender, message, self._size, present))
        if isinstance(message, Acceptance) and message.valid:
            self._vouch(sender, message.configuration)

    def notice(self, sender: str) -> None:
        """Takes in that a peer is there and looks for members."""
        known = self._present()
        if not self.members and len(self._heard_s) < MAX_NUMWANT:
            self._heard_s[sender] = self._node.clock()
            if sender not in known and len(known) + 2 >= self._size:
                self._bell.ring()  # now there are enough

    def _present(self, within_s: float = PRESENT_S) -> set[str]:
        """Returns the peers that were heard of late."""
        now_s = self._node.clock()
        self._heard_s = {one: at_s for one, at_s in self._heard_s.items() if now_s - at_s < HEARD_S}
        return {one for one, at_s in self._heard_s.items() if now_s - at_s < within_s}

    async def _take_back_in_time(self) -> None:
        """Withdraws from what others have not accepted for long, and remembers who they are."""
        state, pledged_s = self._state, self._pledged_s
        if state.accepted is None or state.valid or state.withdrew or pledged_s is None:
            return
        patience_s = min(MAX_PLEDGE_S, PLEDGE_S * 2**self._attempts)
        if self._node.clock() - pledged_s < patience_s:
            return
        self._attempts += 1
        for one in state.silent:
            self._faults[one] += REFUSALS_A_STRIKE
        names = ", ".join(sorted(one[:8] for one in state.silent))
        self._node.events.said(f"no word from {names} on who the members are; trying without")
        await self._step(founding.withdraw)

    @property
    def _strikes(self) -> dict[str, int]:
        """How often others have let this peer down, by peer id."""
        return {one: count // REFUSALS_A_STRIKE for one, count in self._faults.items()}

    def _propose(self, present: Collection[str], state: founding.Agreement) -> Step:
        """Returns the state of a peer that proposes those who are there, and what it tells them."""
        state = founding.propose(state, present, self._size, self._strikes)
        return state, founding.say(state)

    async def _step(self, change: Callable[[founding.Agreement], Step]) -> None:
        """Takes a step of the founding: it is on disk before anybody is told, one after another."""
        async with self._stepping:
            state, messages = change(self._state)
            if state.saved != self._state.saved:
                await self._seat.change(lambda seat: seat.agreed(state))
            if state.accepted != self._state.accepted:
                self._pledged_s = self._node.clock()
            self._state = state
            if state.valid and state.accepted and not self.members:
                self._found(state.accepted.members)
            for to, message in messages:
                self._post.send([to], raft.encode(message))

    def _vouch(self, sender: str, configuration: Configuration) -> None:
        """Believes, as a peer that came too late to be one, what a majority of the members say."""
        stranger = self._me not in configuration.members and sender in configuration.members
        if self.members or not stranger or len(configuration.ids) != self._size:
            return
        if configuration in self._vouched or len(self._vouched) < founding.MAX_REMEMBERED:
            said = self._vouched.setdefault(configuration, set())
            said.add(sender)
            if len(said) > self._size // 2:
                self._found(configuration.members)

    def _found(self, members: frozenset[str]) -> None:
        self.members = members
        self._events.note("members", members=sorted(members))
        self._bell.ring()
