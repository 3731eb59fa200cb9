"""Whether a peer that is to train with others has met any: who has not must be told.

A tracker that answers proves nothing of the kind: it may be reached by addresses at which peers do
not reach each other. A run that ends without a word would look like one that has mixed.
"""

from collections.abc import Callable, Mapping

from p2pl.events import Event, Merged, Reachable, RoundEnded
from p2pl.run.log import LeftOut, RoundEntry, Totals
from p2pl.run.state import PeerState

FIRST_TOLD = 3  # rounds; then after ten times as many, and so on
ADVICE = (
    "others may not be there, or cannot be reached from here: see --listen, and whether the "
    "tracker is asked at an address of the network that the others are in"
)

NAMED = 2  # peers, of those that were there and could not be met

GONE = "others may have ended, or a relay or the line to them is down; they are tried again"


class Company:
    """A sink that tells the person, now and then, that nobody was met, or nobody is any more.

    Args:
        before: what the run's log says of the rounds before.
        said: tells the person.
    """

    def __init__(self, before: Totals, said: Callable[[str], None]) -> None:
        self._met = bool(before.peers_met)
        self._rounds = before.rounds
        self._tell_at = FIRST_TOLD
        self._alone, self._tell_alone_at = 0, FIRST_TOLD  # rounds since somebody was reached
        self._said, self._shut = said, ""
        self._absent = {peer_id: one.why for peer_id, one in before.left_out.items()}

    def __call__(self, event: Event) -> None:
        """Takes in a round, a merge beside it, or whether others can dial this peer."""
        if isinstance(event, Reachable):
            self._shut = "" if event.is_dialled else event.text
        if isinstance(event, Merged):
            self._met |= bool(event.peers)
        if not isinstance(event, RoundEnded):
            return
        if self._met:
            self._go_on(event.entry)
            return
        self._met = bool(event.entry.received)
        self._absent = {**event.entry.resting, **event.entry.rejected} or self._absent
        self._rounds += 1
        if self._rounds >= self._tell_at and not self._met:
            self._tell_at = 10 * self._rounds
            why = "; ".join(filter(None, (in_the_way(self._absent), self._shut))) or ADVICE
            self._said(f"nobody met in {self._rounds} rounds, training alone; {why}")

    def _go_on(self, entry: RoundEntry) -> None:
        """Takes in a round after others were met."""
        if entry.received:
            self._alone, self._tell_alone_at = 0, FIRST_TOLD
        elif entry.rejected or entry.resting:  # else there was nobody to ask, and nothing new
            self._alone += 1
        if self._alone >= self._tell_alone_at:
            self._tell_alone_at = 10 * self._alone
            self._said(f"nobody reached in {self._alone} rounds, training alone; {GONE}")


def in_the_way(absent: Mapping[str, str]) -> str:
    """Returns who was there and was not met, and why; "" where nobody was there.

    Args:
        absent: by peer id, why its model was not to be had.
    """
    if not absent:
        return ""
    named = [f"{peer_id[:8]}: {why}" for peer_id, why in list(absent.items())[:NAMED]]
    more = f", and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
    return f"others are there, and none could be met ({'; '.join(named)}{more})"


def why_alone(left_out: Mapping[str, LeftOut]) -> str:
    """Returns why a run has met nobody, and what to do.

    Args:
        left_out: whose models the run was to have and did not get.
    """
    found = in_the_way({peer_id: one.why for peer_id, one in left_out.items()})
    return found or (
        "others must be there at the same time, and be able to reach it: "
        "--listen names where it is reached"
    )


def met_nobody(totals: Totals, state: PeerState | None, *, wanted: bool) -> bool:
    """Returns whether all that a run has trained was mixed with nobody's, though it was to be.

    Args:
        totals: of the run's log.
        state: after the last round.
        wanted: whether the session asks for others, and the person for company.
    """
    return wanted and state is not None and totals.rounds > 0 and not totals.peers_met
