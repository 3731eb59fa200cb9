"""Dials back to whoever asks whether it can be dialled.

It is the one connection that a tracker opens. It goes to the address that the question came from
and to no other, sends nothing, reads `GREETING_BYTES` at most, and ends within `DIAL_S`. So nobody
can have another machine dialled, and what is learned of one's own address is whether ZeroMQ greets
there. An address may ask seldom, and few are dialled at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from p2pl.errors import AnnounceError
from p2pl.protocol.address import dialled
from p2pl.protocol.reach import GREETING_BYTES, Reached, is_greeting
from p2pl_tracker.address import AddressLimit

DIAL_S = 3.0  # chosen: one lost SYN (1 s) and a slow path
ASKS_PER_S = 0.1  # of one address, in the long run
ASKS_AT_ONCE = 50  # chosen: as many peers as may start together behind one address
MAX_AT_A_TIME = 64
RETRY_S = 1.0  # told where as many are being dialled


class DialBack:
    """Dials whoever asks, within limits.

    Args:
        now: a clock that never steps back, in seconds.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limit = AddressLimit(ASKS_PER_S, ASKS_AT_ONCE, now=now)
        self._under_way = 0

    async def __call__(self, host: str, port: int) -> Reached:
        """Returns whether a peer listens at the address that asked.

        Args:
            host: where the question came from, an IP address.
            port: that was asked for.

        Raises:
            AnnounceError: the address asks too often, or can be no peer's, or too many are being
                dialled now.
        """
        self._limit.check(host)
        try:
            where = dialled(host)
        except ValueError as fault:
            raise AnnounceError(f"reach from here: {fault}", status=403) from fault
        if self._under_way >= MAX_AT_A_TIME:
            message = "reach: many peers are being dialled now"
            raise AnnounceError(message, status=503, retry_in_s=RETRY_S)
        self._under_way += 1
        try:
            reason = await _fault_at(where, port)
        finally:
            self._under_way -= 1
        return Reached(host=where, port=port, is_reachable=not reason, reason=reason)


async def _fault_at(host: str, port: int) -> str:
    """Returns why no peer can be dialled there; "" where one can."""
    try:
        async with asyncio.timeout(DIAL_S):
            reader, writer = await asyncio.open_connection(host, port, limit=GREETING_BYTES)
    except TimeoutError:
        return f"no answer within {DIAL_S:g} s; a firewall or an address translation drops it"
    except OSError:
        return "the connection was refused; nothing is forwarded to this peer's port"
    try:
        async with asyncio.timeout(DIAL_S):
            first = await reader.readexactly(GREETING_BYTES)
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        first = b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return "" if is_greeting(first) else "something else than a peer answers at this port"
