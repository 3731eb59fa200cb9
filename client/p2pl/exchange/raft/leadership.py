"""A peer's seat in the election: its timers, its messages, and what of it survives a crash.

`p2pl.protocol.raft.election` and `p2pl.protocol.raft.bootstrap` decide; this carries it out.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec

from p2pl.errors import RunDirError
from p2pl.protocol.raft import bootstrap as founding
from p2pl.protocol.raft import election
from p2pl.protocol.raft.election import (
    Ballot,
    Event,
    MessageReceived,
    ModelId,
    Rules,
    Save,
    Send,
    State,
    Tick,
)
from p2pl.run.files import write_atomically

SEAT_FILE = "seat.json"
EVENTS_FILE = "raft.jsonl"
MAX_BEHIND = 256  # events that wait to be taken in; the network loses messages anyway

Tell: TypeAlias = Callable[[str, election.Message], None]  # to whom, what


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What must survive a crash: whom the peer agreed to vote with, and how it has voted."""

    session: str
    pledge: founding.Configuration | None = None
    dead: tuple[founding.Configuration, ...] = ()
    valid: bool = False
    term: int = 0
    voted_for: str | None = None
    led: dict[str, int] = {}
    counted: int = 0

    @property
    def ballot(self) -> Ballot:
        """The peer's part in the election."""
        return Ballot(self.term, self.voted_for, self.led, self.counted)

    def agreement(self, me: str) -> founding.Agreement:
        """Returns the part of the peer `me` in the founding."""
        return founding.Agreement(me, self.pledge, frozenset(self.dead), self.valid)

    def agreed(self, state: founding.Agreement) -> "Seat":
        """Returns the seat after a step of the founding."""
        pledge, dead, valid = state.saved
        return msgspec.structs.replace(self, pledge=pledge, dead=tuple(sorted(dead)), valid=valid)

    def voted(self, ballot: Ballot) -> "Seat":
        """Returns the seat after a step of the election."""
        return msgspec.structs.replace(
            self,
            term=ballot.term,
            voted_for=ballot.voted_for,
            led=dict(ballot.led),
            counted=ballot.counted,
        )


class SeatFile:
    """The seat on disk: replaced whole, and on the disk when a change returns."""

    def __init__(self, run_dir: Path, session_id: str) -> None:
        """Reads the seat; a new one where there is none.

        Args:
            run_dir: where the file is.
            session_id: of the session being joined.

        Raises:
            RunDirError: it is damaged, or of another session.
        """
        self._path = run_dir / SEAT_FILE
        self._writing = asyncio.Lock()
        self.seat = Seat(session=session_id)
        if self._path.exists():
            try:
                self.seat = msgspec.json.decode(self._path.read_bytes(), type=Seat)
            except (OSError, ValueError, RecursionError) as fault:
                raise RunDirError(
                    f"{self._path}: damaged ({fault}). It says how this peer has voted; without "
                    "it, take another --run-dir, and with it another identity"
                ) from fault
            if self.seat.session != session_id:
                raise RunDirError(f"{self._path}: of session {self.seat.session}")

    async def change(self, change: Callable[[Seat], Seat]) -> None:
        """Replaces the seat by `change(seat)`."""
        async with self._writing:
            seat = change(self.seat)
            data = msgspec.json.encode(seat)
            await asyncio.to_thread(partial(write_atomically, self._path, data))
            self.seat = seat


class EventLog:
    """Who led when, and what was decided: one line an event, in `raft.jsonl`."""

    def __init__(self, run_dir: Path, me: str) -> None:
        self._path, self._me = run_dir / EVENTS_FILE, me

    def note(self, what: str, **details: object) -> None:
        """Writes down that something happened now.

        Args:
            what: the event's name.
            details: plain values, for JSON.
        """
        line = msgspec.json.encode(
            {"time": time.time(), "peer": self._me, "event": what, **details}
        )
        with self._path.open("ab") as log:
            log.write(line + b"\n")


class Bell:
    """Wakes everybody who waits for something to change."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wakes those who wait now."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Returns when the bell is rung, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()


class Leadership:
    """One member's election, run on a clock and a network.

    Attributes:
        state: of now; replaced at each event.
    """

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        rules: Rules,
        file: SeatFile,
        held: ModelId,
        *,
        tell: Tell,
        bell: Bell,
        events: EventLog,
        times: Callable[[], float] = lambda: 1.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins as a follower.

        Args:
            rules: who votes, and how long everything takes.
            file: how the peer has voted, on disk.
            held: the model that it holds.
            tell: sends a message to another member.
            bell: rung when the role, the leader or the decided model changes.
            events: told of the same.
            times: returns how many times as long as the rules say a leader may be silent now.
            now: the clock of all deadlines, seconds.
        """
        self._rules, self._file, self._tell, self._bell = rules, file, tell, bell
        self._events = events
        self._times, self._now = times, now
        self._draw: Callable[[], float] = random.SystemRandom().random
        self._arrived: asyncio.Queue[Event] = asyncio.Queue(MAX_BEHIND)
        self._decided: ModelId | None = None
        self.state = election.begin(rules, file.seat.ballot, held, self._now(), self._draw())
        events.note("role", role=self.state.role, term=self.state.term, leader=None)

    def leads(self, term: int) -> bool:
        """Returns whether the peer leads this term now."""
        return (self.state.role, self.state.term) == ("leader", term)

    def hear(self, sender: str, message: election.Message) -> None:
        """Takes in what another member said; what comes too fast is lost.

        Args:
            sender: the member's id, which it has proved.
            message: what it said.
        """
        with contextlib.suppress(asyncio.QueueFull):
            self._arrived.put_nowait(MessageReceived(sender, message))

    def moves(self, sender: str) -> None:
        """Takes in that a part of a model came from a member, or went to it, just now."""
        with contextlib.suppress(asyncio.QueueFull):
            self._arrived.put_nowait(election.Moves(sender))

    async def hold(self, model_id: ModelId) -> None:
        """Takes in that the peer holds this model now, and will after a crash."""
        await self._arrived.put(election.Holds(model_id))

    async def run(self) -> None:
        """Takes part until cancelled."""
        while True:
            event: Event = Tick()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self.state.wake_s - self._now())):
                    event = await self._arrived.get()
            await self._step(event)

    async def _step(self, event: Event) -> None:
        before = self.state
        shortest_s, longest_s = self._rules.timeout_s
        times = self._times()
        rules = replace(self._rules, timeout_s=(times * shortest_s, times * longest_s))
        after, actions = election.step(rules, before, event, self._now(), self._draw())
        sends = [action for action in actions if isinstance(action, Send)]
        for action in actions:
            if isinstance(action, Save):
                ballot = action.ballot
                await self._file.change(lambda seat, ballot=ballot: seat.voted(ballot))  # type: ignore[misc]
        self.state = after
        for send in sends:
            self._tell(send.to, send.message)
        self._look_at(before, after)

    def _look_at(self, before: State, after: State) -> None:
        """Writes down and tells what has changed for others in this process."""
        if (before.role, before.term, before.leader) != (after.role, after.term, after.leader):
            self._events.note("role", role=after.role, term=after.term, leader=after.leader)
            self._bell.ring()
        decided = election.committed(self._rules, after)
        if decided is not None and decided != self._decided:
            self._decided = decided
            self._events.note("decided", term=decided.term, round=decided.round)
            self._bell.ring()
