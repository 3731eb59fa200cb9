"""Short messages on their way: one after the other to each peer, and the oldest give way."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

from p2pl.errors import FrameError, PullError
from p2pl.exchange.node import Node

log = logging.getLogger(__name__)

WAITING = 16  # messages to one peer; chosen: two seconds of heartbeats, older ones are no news
TELL_S = 1.0  # for one message; chosen: a connection that is made anew on a path of 200 ms
MAX_TELL_S = 4.0  # for the next one, after some that were late: on a link that something else fills
# A message may take so many times as long as the one before: a packet of it may be lost and sent
# again, and a connection that is given up for that takes six ways there and back to be made anew.
TELL_TIMES = 4.0

MAX_LATE = 1_024  # peers that are remembered to be late


class Post:
    """Takes messages without waiting, and never more than `WAITING` for one peer.

    Attributes:
        sent, lost: messages that reached a peer's inbox, and those that did not in time.
    """

    def __init__(self, node: Node) -> None:
        self.sent = self.lost = 0
        self._node = node
        self._waiting: dict[str, deque[bytes]] = {}
        self._carrying: dict[str, asyncio.Task[None]] = {}
        self._patience_s: dict[str, float] = {}  # with peers that were late, the newest last

    def send(self, receivers: Iterable[str], payload: bytes) -> None:
        """Tells peers something as soon as the messages before it are there, or given up.

        Args:
            receivers: their ids; who is not known, or no longer there, gets nothing.
            payload: the encoded message.
        """
        for peer_id in receivers:
            waiting = self._waiting.setdefault(peer_id, deque(maxlen=WAITING))
            waiting.append(payload)
            if peer_id not in self._carrying:
                self._carrying[peer_id] = asyncio.create_task(self._carry(peer_id, waiting))

    async def close(self) -> None:
        """Gives up what is still on its way."""
        tasks = list(self._carrying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, peer_id: str, waiting: deque[bytes]) -> None:
        try:
            while waiting:
                payload = waiting.popleft()
                try:
                    await self._tell(peer_id, payload)
                    self.sent += 1
                except (PullError, FrameError) as fault:
                    self.lost += 1
                    log.debug("not told peer=%s reason=%s", peer_id, fault)
        finally:
            del self._carrying[peer_id], self._waiting[peer_id]

    async def _tell(self, peer_id: str, payload: bytes) -> None:
        known = self._node.directory.known
        known.hear(self._node.newly_met())
        address = known.find(peer_id)
        if address is None:
            raise PullError("nobody has said where this peer is")
        patience_s, begun_s = self._patience_s.pop(peer_id, TELL_S), self._node.clock()
        try:
            await self._node.transport.tell(address, payload, deadline_s=patience_s)
        except PullError:
            self._patience_s[peer_id] = min(MAX_TELL_S, 2 * patience_s)
            if len(self._patience_s) > MAX_LATE:
                del self._patience_s[next(iter(self._patience_s))]
            raise
        took_s = self._node.clock() - begun_s
        patience_s = min(MAX_TELL_S, max(patience_s / 2, TELL_TIMES * took_s))
        if patience_s > TELL_S:
            self._patience_s[peer_id] = patience_s
