"""Whether a peer that is to train with others has met any: who has not must be told.

A tracker that answers proves nothing of the kind: it may be reached by addresses at which peers do
not reach each other. A run that ends without a word would look like one that has mixed.
"""

from collections.abc import Callable

from p2pl.events import Event, Merged, Reachable, RoundEnded
from p2pl.run.log import RoundEntry, Totals
from p2pl.run.state import PeerState

FIRST_TOLD = 3  # rounds; then after ten times as many, and so on
ADVICE = (
    "others may not be there, or cannot be reached from here: see --listen, and whether the "
    "tracker is asked at an address of the network that the others are in"
)

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
        self._said, self._advice = said, ADVICE

    def __call__(self, event: Event) -> None:
        """Takes in a round, a merge beside it, or whether others can dial this peer."""
        if isinstance(event, Reachable):
            self._advice = ADVICE if event.is_dialled else event.text
        if isinstance(event, Merged):
            self._met |= bool(event.peers)
        if not isinstance(event, RoundEnded):
            return
        if self._met:
            self._go_on(event.entry)
            return
        self._met = bool(event.entry.received)
        self._rounds += 1
        if self._rounds >= self._tell_at and not self._met:
            self._tell_at = 10 * self._rounds
            self._said(f"nobody met in {self._rounds} rounds, training alone; {self._advice}")

    def _go_on(self, entry: RoundEntry) -> None:
        """Takes in a round after others were met."""
        if entry.received:
            self._alone, self._tell_alone_at = 0, FIRST_TOLD
        elif entry.rejected or entry.resting:  # else there was nobody to ask, and nothing new
            self._alone += 1
        if self._alone >= self._tell_alone_at:
            self._tell_alone_at = 10 * self._alone
            self._said(f"nobody reached in {self._alone} rounds, training alone; {GONE}")


def met_nobody(totals: Totals, state: PeerState | None, *, wanted: bool) -> bool:
    """Returns whether all that a run has trained was mixed with nobody's, though it was to be.

    Args:
        totals: of the run's log.
        state: after the last round.
        wanted: whether the session asks for others, and the person for company.
    """
    return wanted and state is not None and totals.rounds > 0 and not totals.peers_met
