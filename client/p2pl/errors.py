"""Everything p2pl raises on purpose.

P2PLError
├── InputError              what the person gave cannot be used as it stands      exit 2
│   ├── SessionFileError    a session file or its TOML is wrong
│   ├── CheckpointError     an initial checkpoint does not match its session file
│   ├── ModelError          a model name or its arguments are unusable
│   ├── DataError           a dataset is missing, or is not what the session needs
│   ├── IdentityError       a key file is missing, unreadable or not one of p2pl
│   ├── InvitationError     a private session's invitation is missing, over or another's
│   ├── RunDirError         a run directory belongs to another session, or is damaged
│   └── PrivacyError        a privacy budget that cannot be, or that the session forbids
├── TrainingDiverged        the local loss is no longer finite
├── ClientError             a client of Flower failed in its own code
├── BudgetSpent             nothing is left of the privacy budget before round 1  exit 4
├── NetworkError
│   ├── TrackerError        no tracker answered in time and no peer is known      exit 3
│   ├── QuorumError         too few of the peers that decide are there
│   └── PullError           one peer did not deliver in time; it is skipped
│       └── ConnectionLost  what had begun well broke; it may be tried again
└── ProtocolError           bytes from a stranger are unusable
    ├── AnnounceError       one announce is refused; the tracker answers with `status`
    ├── ProofError          a peer's proof that it is invited is unusable
    ├── LogError            what a peer says of its update log is unusable, or does not hold
    └── FrameError          one peer's frame is unusable; that peer is skipped

A message says what was wrong, what it got, what is allowed, and, where that is not obvious, what to
do.
"""

from typing import ClassVar

MAX_GOT_CHARS = 120  # a stranger's value is quoted in messages, but never at length
_MAX_GOT_ITEMS = 60  # of a list or a dictionary: more than are shown


class P2PLError(Exception):
    """Base of every error a caller may want to catch."""

    exit_code: ClassVar[int] = 1


class InputError(P2PLError):
    """What the person gave cannot be used as it stands."""

    exit_code = 2


class NetworkError(P2PLError):
    """Somebody could not be reached, or did not answer in time."""


class ProtocolError(P2PLError):
    """Bytes from a stranger are unusable."""


class TrainingDiverged(P2PLError):
    """Local training left the finite numbers; what is saved is the last good round."""


class ClientError(P2PLError):
    """Code that a person brought failed by itself; what is saved is the last good round."""


class SessionFileError(InputError):
    """A session file, or the TOML it is made from, cannot be used as it stands."""


class CheckpointError(InputError):
    """An initial checkpoint does not match what its session file promises."""


class ModelError(InputError):
    """A model name is unknown here, or its arguments are unusable."""


class DataError(InputError):
    """A dataset is missing, or is not what the session needs."""


class IdentityError(InputError):
    """A key file is missing, unreadable or not one of p2pl."""


class InvitationError(InputError):
    """A private session's invitation is missing, over, taken back, or somebody else's."""


class RunDirError(InputError):
    """A run directory belongs to another session, or is damaged."""


class PrivacyError(InputError):
    """A privacy budget makes no sense, or is laxer than the session demands."""


class BudgetSpent(P2PLError):
    """The privacy budget does not allow a single step before the first round."""

    exit_code = 4


class TrackerError(NetworkError):
    """No tracker answered within the deadline, and no peer is known.

    Attributes:
        is_final: whether all trackers have refused, for reasons that asking again does not change.
    """

    exit_code = 3

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final


class QuorumError(NetworkError):
    """Too few of the peers whose votes decide are there; what was reached is saved."""


class PullError(NetworkError):
    """One peer did not deliver its model in time; that peer is skipped this round."""


class ConnectionLost(PullError):
    """A connection on which both ends had proved who they are broke."""


class AnnounceError(ProtocolError):
    """One announce is refused.

    Attributes:
        status: the HTTP status the tracker answers with.
        retry_in_s: seconds to wait before trying again; None when trying again cannot help.
    """

    def __init__(self, message: str, *, status: int = 400, retry_in_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_in_s = retry_in_s


class ProofError(ProtocolError):
    """A peer's proof that it is invited, or a list of those who no longer are, is unusable."""


class LogError(ProtocolError):
    """What a peer says of its update log is unusable, or does not hold."""


class FrameError(ProtocolError):
    """One peer's frame is unusable; that peer is skipped."""


def wrong(what: str, *, got: object, allowed: str, hint: str = "") -> str:
    """Returns the one form every message takes: what, got, allowed, and what to do.

    Args:
        what: the field, file or thing that is wrong.
        got: the offending value; quoted and cut to `MAX_GOT_CHARS`.
        allowed: what would have been accepted.
        hint: a next step for the person, where it is not obvious.
    """
    shown = repr(_cut(got))
    if len(shown) > MAX_GOT_CHARS:
        shown = shown[:MAX_GOT_CHARS] + "…"
    return f"{what}: got {shown}, allowed {allowed}" + (f"; {hint}" if hint else "")


def _cut(got: object, depth: int = 2) -> object:
    """Returns a value whose `repr` begins like that of `got`, and costs little however large."""
    if isinstance(got, str | bytes):
        return got[: MAX_GOT_CHARS + 1]
    if type(got) not in (list, tuple, dict):
        return got
    if not depth:
        return "…"
    if isinstance(got, dict):
        some = list(got.items())[:_MAX_GOT_ITEMS]
        return {_cut(key): _cut(value, depth - 1) for key, value in some}
    assert isinstance(got, list | tuple)
    return type(got)(_cut(value, depth - 1) for value in got[:_MAX_GOT_ITEMS])


def visible(text: str) -> str:
    """Returns the text on one line, without what could move the cursor of a terminal.

    For whatever a stranger wrote: once, where it arrives.
    """
    return "".join(char if char.isprintable() else "?" for char in text)


def printable(text: str) -> str:
    """Returns the text with its lines, each of them `visible`: what a person is shown passes here.

    Control characters, those that turn the direction of writing about, and others that show nothing
    become question marks.
    """
    return "\n".join(map(visible, text.split("\n")))
