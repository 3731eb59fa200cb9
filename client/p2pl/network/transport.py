"""The door `Transport`: how bytes reach other peers, and how a peer learns who they are.

`p2pl.network.wire` is the real one, ZeroMQ with CURVE; `p2pl.network.in_memory` joins many
peers of one process. Addresses are opaque to whoever uses a transport.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from p2pl.network.connections import Inbox
from p2pl.network.keys import Identity
from p2pl.network.known import KnownPeers
from p2pl.network.pull import Pulled, Unchanged
from p2pl.network.traffic import Traffic
from p2pl.network.version import Commits, Payload, Version
from p2pl.protocol.announce import Answer, Event, PeerAddress
from p2pl.protocol.frame import Newest


class Transport(Protocol):
    """Serves this peer's newest model to others, and reaches theirs; each call has a deadline."""

    @property
    def identity(self) -> Identity:
        """Who this peer is to others."""
        ...

    @property
    def traffic(self) -> Traffic:
        """Bytes and transfers so far."""
        ...

    @property
    def seen(self) -> Mapping[str, PeerAddress]:
        """Peers that have asked this one and proved who they are, by id, most recent last."""
        ...

    @property
    def inbox(self) -> Inbox:
        """What others have told this peer."""
        ...

    async def publish(self, version: Version, *, keep_last: bool = False) -> bytes:
        """Gives `version` to all who ask from now on, and returns its digest.

        Args:
            version: of the peer's model; its payload must not change any more.
            keep_last: whoever asks for the very round of the version before still gets that one.
        """
        ...

    async def publish_checkpoint(self, payload: Payload) -> None:
        """Gives the session's initial checkpoint to all who ask for it."""
        ...

    async def pull(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        address: PeerAddress,
        *,
        have: bytes | None,
        round: int,
        wait_s: float,
        deadline_s: float,
        size: int,
        said: bytes | None = None,
    ) -> Pulled | Unchanged:
        """Returns the newest version of the peer at `address`.

        Args:
            address: whom to ask.
            have: digest of its version that this peer holds, if any.
            round: hoped for; the other peer answers as soon as it has reached it…
            wait_s: …or after this time with what it has; 0..60.
            deadline_s: for all of it.
            size: of every version in this session, bytes.
            said: goes with the question, in a session with update logs; None: nothing does.

        Raises:
            PullError: the other peer is late, cannot be reached or refuses.
            FrameError: it is not who it should be, or sends what it must not.
        """
        ...

    async def pull_checkpoint(
        self, address: PeerAddress, *, size: int, deadline_s: float
    ) -> memoryview:
        """Returns the bytes that a peer says are the initial checkpoint; they must be verified.

        Args:
            address: whom to ask.
            size: that the session file promises, bytes.
            deadline_s: for all of it.

        Raises:
            PullError: the other peer is late, cannot be reached or refuses.
            FrameError: it is not who it should be, or sends what it must not.
        """
        ...

    async def put_blob(self, name: bytes, payload: Payload, commits: Commits | None = None) -> None:
        """Gives `payload` to those who know its name, until it is dropped.

        Args:
            name: that only those who may have it know; `BLOB_NAME_BYTES` long, drawn at random.
            payload: bytes, which must not change any more.
            commits: in a session with update logs, to what is locked in the payload.
        """
        ...

    def drop_blob(self, name: bytes) -> None:
        """Gives a blob to nobody any more."""
        ...

    async def fetch_blob(
        self,
        address: PeerAddress,
        name: bytes,
        *,
        size: int,
        deadline_s: float,
        said: bytes | None = None,
    ) -> Pulled:
        """Returns the blob of this name that the peer at `address` has for this one.

        Args:
            address: whom to ask.
            name: of the blob.
            size: that it must have, bytes.
            deadline_s: for all of it.
            said: as in `pull`.

        Raises:
            PullError: the other peer is late, cannot be reached or refuses.
            FrameError: it is not who it should be, or sends what it must not.
        """
        ...

    async def ping(self, address: PeerAddress, *, deadline_s: float) -> Newest:
        """Returns which version the peer at `address` would give to a pull.

        Args:
            address: whom to ask.
            deadline_s: for all of it.

        Raises:
            PullError: the other peer is late, cannot be reached or refuses.
            FrameError: it is not who it should be, or sends what it must not.
        """
        ...

    async def tell(self, address: PeerAddress, payload: bytes, *, deadline_s: float) -> None:
        """Puts `payload` into the inbox of the peer at `address`, and returns when it is there.

        Args:
            address: whom to tell.
            payload: a short message, at most what the frame holds.
            deadline_s: for all of it.

        Raises:
            PullError: the other peer is late, cannot be reached or refuses.
            FrameError: it is not who it should be, or sends what it must not.
        """
        ...


class Directory(Protocol):
    """Tells a tracker that this peer is there, and learns who else is.

    Attributes:
        known: all peers heard of.
        seconds: spent talking to trackers so far.
        bytes_in: from trackers so far.
        bytes_out: to trackers so far.
    """

    known: KnownPeers
    seconds: float
    bytes_in: int
    bytes_out: int

    async def announce(self, event: Event = "update", *, numwant: int) -> Answer:
        """Returns the tracker's answer: up to `numwant` peers, drawn at random.

        Args:
            event: `started`, `update`, `completed` or `stopped`.
            numwant: how many peers at most, at least 0.

        Raises:
            TrackerError: no tracker answered within the deadline.
        """
        ...

    async def leave(self) -> None:
        """Tells the tracker that this peer is gone."""
        ...

    def state(self) -> Mapping[str, Any] | None:
        """Returns what a restarted peer goes on with, in builtins; None: nothing."""
        ...
