"""Dials a peer that asks whether it can be dialled: once, and where it asks from.

Whoever asks can make the tracker open one connection to the asker's own address, at most so often;
nothing is sent over it, and what comes back is not passed on: only whether its first bytes are
those of a peer.
"""

import asyncio
import contextlib
import errno
from collections.abc import Callable

from p2pl.errors import AnnounceError
from p2pl.protocol.reach import GREETING, Reached, is_greeting
from p2pl_tracker.address import AddressLimit

CONNECT_S = 5.0  # chosen: as long as a peer tries
GREETING_S = 3.0
MAX_DIALS = 64  # under way at once
DIALS_PER_S = 0.2  # of one address; many peers may be behind it, and each asks once or twice
DIALS_AT_ONCE = 32
BUSY_RETRY_S = 5.0

SILENT = "nothing answered"
REFUSED = "nobody takes connections there"
OTHER = "another program answered"
_REASONS = {errno.ECONNREFUSED: REFUSED, errno.EHOSTUNREACH: "there is no way to that address"}


class Dialler:
    """Dials askers back.

    Args:
        now: a clock that never steps back, in seconds.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._limit = AddressLimit(DIALS_PER_S, DIALS_AT_ONCE, now=now)
        self._under_way = 0

    async def dial(self, host: str, port: int) -> Reached:
        """Returns whether a peer takes connections at an address.

        Args:
            host: the IP address that the question came from.
            port: where the peer listens.

        Raises:
            AnnounceError: the address asks too often (429), or too many are dialled now (503).
        """
        self._limit.check(host)
        if self._under_way >= MAX_DIALS:
            raise AnnounceError(
                "reach: too many are dialled now", status=503, retry_in_s=BUSY_RETRY_S
            )
        self._under_way += 1
        try:
            reason = await _dial(host, port)
        finally:
            self._under_way -= 1
        return Reached(host=host, port=port, is_reached=not reason, reason=reason)


async def _dial(host: str, port: int) -> str:
    """Returns why no peer could be reached; "" where one was."""
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port, limit=len(GREETING))
    except TimeoutError:
        return SILENT
    except OSError as fault:
        return _REASONS.get(fault.errno or 0, "it could not be dialled")
    try:
        async with asyncio.timeout(GREETING_S):
            data = await reader.readexactly(len(GREETING))
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return OTHER
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return "" if is_greeting(data) else OTHER
