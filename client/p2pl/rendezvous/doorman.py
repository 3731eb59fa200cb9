"""A listening socket that lets only so many connections shake hands at the same time.

TLS is negotiated before anybody has said what they want, and costs memory and time from its first
byte on. So who comes too many is hung up on as soon as they are accepted: by address, so that one
machine cannot keep the others out, and in all.
"""

import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

from p2pl.rendezvous.board import group_of

MAX_HANDSHAKES = 512  # at the same time; chosen: some 50 MB
MAX_PER_ADDRESS = 64  # of an IPv4 address or an IPv6 /64; chosen: a whole office may come at once
REFUSED_AT_ONCE = 64  # before the rest of the event loop has its turn


class _Guest(socket.socket):
    """An accepted connection; whether it is still shaking hands, the listener is told."""

    left: Callable[[], None]

    def close(self) -> None:
        """Closes the connection."""
        self.left()
        super().close()


class GuardedListener(socket.socket):
    """A listening socket; asyncio accepts from it.

    Attributes:
        refused: is called for each connection that is hung up on.
    """

    refused: Callable[[], None]

    def __init__(self, listening: socket.socket, refused: Callable[[], None]) -> None:
        """Takes over a socket that listens."""
        super().__init__(fileno=listening.detach())
        self.refused = refused
        self._shaking: dict[int, str] = {}  # by descriptor: what they count under
        self._groups: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, object]:
        """Returns the next connection for which there is room, and where it is from.

        Raises:
            BlockingIOError: nobody has come, or too many were refused in a row.
        """
        for _ in range(REFUSED_AT_ONCE):
            there, address = super().accept()
            group = group_of(str(address[0]))
            if len(self._shaking) < MAX_HANDSHAKES and self._groups[group] < MAX_PER_ADDRESS:
                guest = _Guest(fileno=there.detach())
                guest.left = partial(self.done, guest.fileno())
                self._shaking[guest.fileno()] = group
                self._groups[group] += 1
                return guest, address
            there.close()
            self.refused()
        raise BlockingIOError

    def done(self, descriptor: int) -> None:
        """Takes in that a connection has shaken hands, or is gone.

        Args:
            descriptor: of the connection.
        """
        group = self._shaking.pop(descriptor, None)
        if group is None:
            return
        self._groups[group] -= 1
        if self._groups[group] <= 0:
            del self._groups[group]
