"""How models get from member to member over slow links: each gets longer, and none for ever."""

from collections.abc import Callable

from p2pl.errors import QuorumError, wrong


class Transfers:
    """What is remembered of models that did not get through.

    A model that is late once gets twice as long the next time, up to the patience of the session. A
    failure begins a wait that only a newer model ends; where it lasts longer than that patience,
    the run ends and says for whom it has waited.

    Args:
        deadline_s: of a transfer, at first.
        patience_s: how long the members may fail to give each other anything.
        now: a clock that never steps back, in seconds.
    """

    def __init__(self, *, deadline_s: float, patience_s: float, now: Callable[[], float]) -> None:
        self._deadline_s, self._patience_s, self._now = deadline_s, patience_s, now
        self._late: dict[str, int] = {}  # member -> how often
        self._since_s: float | None = None  # the first failure since a model came
        self._last = ""

    def deadline_s(self, member: str) -> float:
        """Returns how long a model from this member may take."""
        longer_s = self._deadline_s * 2.0 ** min(self._late.get(member, 0), 30)
        return min(longer_s, max(self._deadline_s, self._patience_s))

    def late(self, member: str, why: str) -> None:
        """Takes in that a model from this member did not come in time."""
        self._late[member] = self._late.get(member, 0) + 1
        self.interrupted(member, why)

    def interrupted(self, member: str, why: str) -> None:
        """Takes in that a model from this member did not come, for whatever reason."""
        if self._since_s is None:
            self._since_s = self._now()
        self._last = f"{member[:8]}: {why}"

    def came(self) -> None:
        """Takes in that there is a newer model: whatever failed is over."""
        self._since_s = None

    def check(self) -> None:
        """Raises QuorumError where nothing has got through for too long."""
        if self._since_s is None or self._now() - self._since_s <= self._patience_s:
            return
        raise QuorumError(
            wrong(
                "models between members",
                got=f"none that got through for {self._patience_s:.0f} s, the last from "
                + self._last,
                allowed="a link on which one takes less than exchange.raft.patience_s",
                hint="the state is saved; run the same command again on a faster link, or make "
                "the session with a larger exchange.pull_deadline_s or a smaller model",
            )
        )
