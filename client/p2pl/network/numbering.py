"""Whether a class's number means the same to two peers, where their session names no classes.

Data that name their classes number them by themselves, so `dog` may be 1 for one peer and 0 for
another, and either would undo what the other has learned. Such a peer's listener says a digest of
the names in their order, in the handshake, and whoever dials it and has another one turns it down
before anything is asked. Where a session names the classes, or the data do not, nothing is said.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from p2pl.errors import PullError

CLASSES = "X-p2pl-classes"  # of a listener's READY
DIGEST_CHARS = 16  # chosen: no two peers differ by accident and agree in 64 bits
MAX_TOLD = 16  # peers; chosen: by then it is known what is amiss, and identities cost nothing
OTHER_CLASSES = "its data have other classes, or number them otherwise"
WHAT_TO_DO = (
    "neither learns from the other. The session names no classes: a new one with task.labels "
    "makes the numbers the same for all"
)


def digest_of(session_id: str, names: Sequence[str]) -> str:
    """Returns what peers compare: "" where the data give no names but numbers.

    The session's id is in it, so that one data set is not known again in another session.

    Args:
        session_id: 64 hex digits.
        names: of the classes, in the order of their numbers; () where nobody gave any.
    """
    if tuple(names) == tuple(map(str, range(len(names)))):
        return ""
    said = json.dumps(["p2pl classes 1", session_id, *names])
    return hashlib.sha256(said.encode()).hexdigest()[:DIGEST_CHARS]


def _nobody(text: str) -> None:
    del text


@dataclass(frozen=True, slots=True)
class Numbering:
    """How this peer's data number their classes, and what it makes of others'.

    Attributes:
        digest: of `digest_of`; "": nothing is said, and nobody turned down.
        said: told once of each of the first `MAX_TOLD` peers that are turned down.
    """

    digest: str = ""
    said: Callable[[str], None] = _nobody
    _told: set[str] = field(default_factory=set)

    def check(self, peer_id: str, properties: Mapping[bytes, bytes]) -> None:
        """Raises PullError where the other end's data number their classes otherwise.

        Args:
            peer_id: of the other end.
            properties: that its READY says, by name in small letters.
        """
        there = properties.get(CLASSES.lower().encode(), b"")
        if not self.digest or not there or there == self.digest.encode():
            return
        if peer_id not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(peer_id)
            self.said(f"peer {peer_id[:8]} is turned down: {OTHER_CLASSES}; {WHAT_TO_DO}")
        raise PullError(f"turned down: {OTHER_CLASSES}")


ANY_NUMBERING = Numbering()
