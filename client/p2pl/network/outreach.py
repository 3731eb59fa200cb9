"""Everything by which a peer is reached and reaches others, put together for one run.

It is made before the wire, which dials through it, and opened once there are a wire and a
directory. From then on it keeps the endpoints that the directory announces up to date.
"""

import asyncio
import contextlib
import logging
import math
import random
import ssl
from collections.abc import AsyncIterator

from p2pl.errors import TrackerError
from p2pl.network.dial import Direct
from p2pl.network.directory import TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.network.relay import MEET, Meeting, Pumps, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.ways import Places, Reception, RelayMode, Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol.address import dialled
from p2pl.protocol.endpoint import Endpoint

log = logging.getLogger(__name__)

POLL_S = 0.5
ASK_AGAIN_S = 5.0  # for relays, where no tracker has named one


class Outreach:
    """The ways to others, and theirs to this peer.

    Args:
        identity: of this peer.
        session_id: 64 hex digits.
        mode: `always` takes calls at relays and is dialled by nobody; `never` uses none.
        trust: whom TLS trusts, for relays by WebSocket; None: the authorities of this machine.

    Attributes:
        ways: what the wire dials by.
    """

    def __init__(
        self,
        identity: Identity,
        session_id: str,
        *,
        mode: RelayMode = "auto",
        trust: ssl.SSLContext | None = None,
    ) -> None:
        session = bytes.fromhex(session_id)
        self._mode = mode
        self._directory: TrackerDirectory | None = None
        self._pumps = Pumps(Traffic())
        self._speaker = Speaker(identity, session, self._ticket, trust)
        meeting = None if mode == "always" else Meeting(session)
        self.ways = Ways(
            Direct(), self._speaker, self._pumps, meeting=meeting, uses_relays=mode != "never"
        )

    @contextlib.asynccontextmanager
    async def open(self, wire: CurveWire, directory: TrackerDirectory) -> AsyncIterator[None]:
        """Is reached, and reaches others, within the context.

        Args:
            wire: open.
            directory: announces the endpoints.
        """
        self._directory, self._pumps.traffic = directory, wire.traffic
        host = wire.host
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._pumps.close)
            reception = None
            if self._mode == "always":
                wire.takes_relayed()
                here = ("127.0.0.1" if host in ("0.0.0.0", "::") else host, wire.port)
                places = Places(lambda: directory.relays, directory.known.addresses)
                reception = Reception(self._speaker, here, self._pumps, random.Random())
                directory.endpoints = ()
                await stack.enter_async_context(reception.open(places))
            elif self.ways.meeting is not None:
                await self._meet(self.ways.meeting, host, stack)
            telling = asyncio.create_task(self._tell(wire, directory, reception))
            stack.callback(telling.cancel)
            yield

    async def _meet(self, meeting: Meeting, host: str, stack: contextlib.AsyncExitStack) -> None:
        """Lets others wait here; a peer that cannot offer it does without."""
        try:
            await stack.enter_async_context(meeting.open(host))
        except OSError as fault:
            log.info("nobody can wait here to be called: %s", fault.strerror)

    async def _tell(
        self, wire: CurveWire, directory: TrackerDirectory, reception: Reception | None
    ) -> None:
        """Keeps the announced endpoints right; a change is announced at once."""
        loop, asked_s = asyncio.get_running_loop(), -math.inf
        while True:
            found = reception.endpoints if reception else self._own(wire, directory)
            if found is not None and found != directory.endpoints:
                directory.endpoints = found
                log.info("reached by %s", " ".join(map(str, found)) or "nothing")
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            elif reception and not directory.relays and loop.time() - asked_s > ASK_AGAIN_S:
                asked_s = loop.time()
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            await asyncio.sleep(POLL_S)

    def _own(self, wire: CurveWire, directory: TrackerDirectory) -> tuple[Endpoint, ...] | None:
        """Returns how a peer is dialled that can be; None where it does not know its address."""
        try:
            host = dialled(directory.external_host)
        except ValueError:
            return None
        meeting = self.ways.meeting
        met = (Endpoint(MEET, host, meeting.port),) if meeting and meeting.port else ()
        return (Endpoint("tcp", host, wire.port), *met)

    def _ticket(self) -> bytes:
        return self._directory.ticket if self._directory else b""
