"""Dials peers that say they can be dialled, so that samples are drawn of those that answer first.

What a peer proves by that is that somebody listens as peers of p2pl do at the address that its
announce came from. Whoever makes up a thousand identities at addresses where nobody listens is told
to others last, so that the living are not crowded out. It costs a forger an address that is routed
to a machine that answers, for as long as it wants to be told of; what peers say of each other would
cost it nothing, since it can make up those as well.
"""

import asyncio
import contextlib

from p2pl.errors import AnnounceError
from p2pl_tracker.reach import Dialler
from p2pl_tracker.swarm import Store


class Checker:
    """Dials those who are due, in tasks of its own.

    Args:
        store: that is told who answered.
        dialler: dials, and refuses those of an address that has had too many dialled.
    """

    def __init__(self, store: Store, dialler: Dialler) -> None:
        self._store, self._dialler = store, dialler
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, session: bytes, digest: bytes, host: str, port: int) -> None:
        """Begins to dial a peer; the store is told what came of it.

        Args:
            session: that it is in.
            digest: its id, 32 bytes.
            host: the IP address that it is seen at.
            port: where it says that it listens.
        """
        task = asyncio.create_task(self._check(session, digest, host, port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Ends what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _check(self, session: bytes, digest: bytes, host: str, port: int) -> None:
        # Refused, it stays as it was until it is due again; so it does where the store is away.
        with contextlib.suppress(AnnounceError):
            found = await self._dialler.dial(host, port)
            await self._store.checked(session, digest, answers=found.is_reached)
