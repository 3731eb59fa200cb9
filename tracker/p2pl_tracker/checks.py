"""Finds out which peers answer, so that samples are drawn of those first.

What a peer proves is that somebody greets as peers of p2pl do: at the address that its announce
came from, where it says that it can be dialled there; else by a relay that the operator names.
Whatever else a peer names is never dialled. Whoever makes up a thousand identities that nobody
answers for is told of last, so that the living are not crowded out. It costs a forger an address
that is routed to a machine that answers, or a connection to a relay for each identity, for as long
as it wants to be told of; what peers say of each other would cost it nothing, since it can make up
those as well.
"""

import asyncio
import contextlib
from collections.abc import Callable

from p2pl.errors import AnnounceError
from p2pl_tracker.calls import Caller
from p2pl_tracker.reach import MAX_DIALS, Dialler
from p2pl_tracker.swarm import Entry, Pool, Store

# To be checked; beyond, a peer stays as it was until it is due again, after `CHECK_EVERY_S`.
MAX_WAITING = 1_024


class Checker:
    """Checks those who are due, in tasks of its own.

    Args:
        store: that is told who answered.
        dialler: dials, and refuses those of an address that has had too many dialled.
        caller: calls by relays, and refuses as the dialler does.
        count: is told what was found of each.
    """

    def __init__(
        self, store: Store, dialler: Dialler, caller: Caller, count: Callable[[Pool], None]
    ) -> None:
        self._store, self._dialler, self._caller, self._count = store, dialler, caller, count
        self._dials = asyncio.Semaphore(MAX_DIALS)
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, entry: Entry) -> None:
        """Begins to check a peer; the store is told what came of it.

        Args:
            entry: what the peer said of itself.
        """
        if len(self._tasks) >= MAX_WAITING:
            return
        task = asyncio.create_task(self._check(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Ends what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _check(self, entry: Entry) -> None:
        try:
            found = await self._found(entry)
        except AnnounceError:  # too many of its address
            found = Pool.UNKNOWN
        self._count(found)
        with contextlib.suppress(AnnounceError):  # where the store is away, it stays as it was
            await self._store.checked(entry.session, entry.digest, found)

    async def _found(self, entry: Entry) -> Pool:
        """Returns what is found of a peer; by a relay only where it cannot be dialled."""
        if entry.dialled_port:
            async with self._dials:
                reached = await self._dialler.dial(entry.listing.host, entry.dialled_port)
            if reached.is_reached or not entry.relays:
                return Pool.ANSWERS if reached.is_reached else Pool.SILENT
        return await self._caller.call(entry)
