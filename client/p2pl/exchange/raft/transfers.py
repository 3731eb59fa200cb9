"""How models get from member to member over slow links: none is given up that moves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from p2pl.errors import PullError, QuorumError, wrong

T = TypeVar("T")

LOOK_S = 0.25  # between two looks at what has come
# Less than this is what members say to each other beside a model. Chosen: four times what a leader
# with a short pulse says.
LEAST_BYTES_S = 2_048.0
PATIENT_TIMES = 2.0  # longer are the timeouts of an election, after each transfer that it cut off
MAX_TIMES = 32.0
FORGIVEN_AFTER = 4  # models that came in a row; chosen: a link that is slow stays slow for a while


class Transfers:
    """What is remembered of models that did not get through.

    A model that comes fast enough to be there within `longest_s` is waited for. One that does not
    move is late after `deadline_s`, twice as long the next time, up to the patience of the session.
    A failure begins a wait that only a newer model ends; where it lasts longer than that patience,
    the run ends and says for whom it has waited.

    On a link that models fill, heartbeats come late, and a leader is lost that is there. So after
    each failure members have more patience with each other for a while.

    Args:
        deadline_s: of a transfer that stands still, at first.
        patience_s: how long the members may fail to give each other anything.
        longest_s: of one transfer, however well it goes.
        now: a clock that never steps back, in seconds.

    Attributes:
        longest_s: of one transfer, however well it goes.
    """

    def __init__(
        self, *, deadline_s: float, patience_s: float, longest_s: float, now: Callable[[], float]
    ) -> None:
        self._deadline_s, self._patience_s, self._now = deadline_s, patience_s, now
        self.longest_s = max(deadline_s, longest_s)
        self._late: dict[str, int] = {}  # member -> how often
        self._since_s: float | None = None  # the first failure since a model came
        self._unanswered_s: float | None = None  # the first request since then without an answer
        self._moved_s = now()  # when something came last that is part of a model
        self._last = ""
        self._times = 1.0
        self._in_a_row = 0

    def deadline_s(self, member: str) -> float:
        """Returns how long a model from this member may stand still."""
        longer_s = self._deadline_s * 2.0 ** min(self._late.get(member, 0), 30)
        return min(longer_s, max(self._deadline_s, self._patience_s))

    def times(self, timeout_s: float) -> float:
        """Returns how many times as long as usual a leader may be silent.

        Args:
            timeout_s: the longest that is usual; it gets no longer than half of the patience.
        """
        return max(1.0, min(self._times, self._patience_s / 2 / timeout_s))

    async def while_moving(
        self, member: str, size: int, came: Callable[[], int], work: Awaitable[T]
    ) -> T:
        """Returns what `work` returns, which takes in a model.

        Args:
            member: whose model it is.
            size: of the model, bytes.
            came: returns how many bytes have come from this member so far, whatever they were.
            work: cancelled where too little comes.

        Raises:
            PullError: it stands still, or would take longer than any transfer may.
        """
        working = asyncio.ensure_future(work)
        begun_s = window_s = seen_s = self._now()
        before = seen = came()
        try:
            while True:
                await asyncio.wait({working}, timeout=LOOK_S)
                if working.done():
                    return working.result()
                now_s, span_s = self._now(), self.deadline_s(member)
                if came() - seen > LEAST_BYTES_S * (now_s - seen_s):
                    self._moved_s = seen_s = now_s  # a window may be longer than the patience
                    seen = came()
                if now_s - window_s < span_s:
                    continue
                moved = came() - before
                if moved < min(size, span_s * max(size / self.longest_s, LEAST_BYTES_S)):
                    raise PullError(f"late: {moved} of {size} bytes in {span_s:g} s")
                if now_s - begun_s > self.longest_s:
                    raise PullError(f"late: not all of {size} bytes in {self.longest_s:g} s")
                window_s, before = now_s, came()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    def late(self, member: str, why: str) -> None:
        """Takes in that a model from this member did not come in time."""
        self._late[member] = self._late.get(member, 0) + 1
        self.interrupted(member, why)

    def interrupted(self, member: str, why: str) -> None:
        """Takes in that a model from this member did not come, for whatever reason."""
        if self._since_s is None:
            self._since_s = self._now()
        self._last = f"{member[:8]}: {why}"
        self._times, self._in_a_row = min(MAX_TIMES, self._times * PATIENT_TIMES), 0

    def unanswered(self, member: str) -> None:
        """Takes in that a request to this member had no answer so far."""
        if self._unanswered_s is None:
            self._unanswered_s = self._now()
        if self._since_s is None:
            self._last = f"{member[:8]}: no answer to a request"

    def answered(self) -> None:
        """Takes in that a request had its answer."""
        self._unanswered_s = None

    def moves(self) -> None:
        """Takes in that a part of a model went to the one who is waited for."""
        self._moved_s = self._now()

    def came(self) -> None:
        """Takes in that there is a newer model: whatever failed is over."""
        self._since_s = self._unanswered_s = None
        self._in_a_row += 1
        if self._in_a_row >= FORGIVEN_AFTER:
            self._times, self._in_a_row = max(1.0, self._times / PATIENT_TIMES), 0

    def check(self) -> None:
        """Raises QuorumError where nothing has got through for too long.

        What moves is waited for beyond the patience, but not for longer than two transfers take.
        """
        begun = [since_s for since_s in (self._since_s, self._unanswered_s) if since_s is not None]
        if not begun:
            return
        since_s = min(begun)
        moved_s = min(self._moved_s, since_s + 2 * self.longest_s)
        if self._now() - max(since_s, moved_s) <= self._patience_s:
            return
        raise QuorumError(
            wrong(
                "models between members",
                got=f"none that got through for {self._now() - since_s:.0f} s, the last from "
                + self._last,
                allowed="a link on which something comes within exchange.raft.patience_s, and a "
                "model within exchange.raft.term_s",
                hint="the state is saved; run the same command again on a faster link, or make "
                "the session with a larger exchange.pull_deadline_s or a smaller model",
            )
        )
