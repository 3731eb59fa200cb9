"""Everything by which a peer is reached and reaches others, put together for one run.

It is made before the wire, which dials through it, and opened once there are a wire and a
directory. From then on it keeps the endpoints that the directory announces up to date.
"""

import asyncio
import contextlib
import logging
import math
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable

from p2pl.errors import TrackerError
from p2pl.network.dial import Direct
from p2pl.network.directory import TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.network.relay import MEET, Meeting, Pumps, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.ways import Places, Reception, RelayMode, Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol.address import dialled
from p2pl.protocol.announce import PeerAddress
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
        is_dialled: whether others can dial this peer, as far as is known.
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
        self.is_dialled = mode != "always"
        self._directory: TrackerDirectory | None = None
        self._pumps = Pumps(Traffic())
        self._speaker = Speaker(identity, session, self._ticket, trust)
        meeting = None if mode == "always" else Meeting(session)
        self.ways = Ways(
            Direct(), self._speaker, self._pumps, meeting=meeting, uses_relays=mode != "never"
        )

    @contextlib.asynccontextmanager
    async def open(
        self,
        wire: CurveWire,
        directory: TrackerDirectory,
        said: Callable[[str], None] = log.info,
    ) -> AsyncIterator[None]:
        """Is reached, and reaches others, within the context.

        Args:
            wire: open.
            directory: announces the endpoints.
            said: is told in words how this peer is reached, where that is not plain.
        """
        self._directory, self._pumps.traffic = directory, wire.traffic
        wire.takes_relayed(self._pumps.ports)
        host, meeting = wire.host, self.ways.meeting
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._pumps.close)
            if not self.is_dialled:
                directory.endpoints = ()
            if meeting is not None:
                await self._meet(meeting, host, stack)
            reception = None
            if self._mode != "never":
                here = ("127.0.0.1" if host in ("0.0.0.0", "::") else host, wire.port)
                places = Places(lambda: directory.relays, self._others)
                reception = Reception(self._speaker, here, self._pumps, random.Random())
                await stack.enter_async_context(reception.open(places))
            telling = asyncio.create_task(self._tell(wire, directory, reception, said))
            stack.callback(telling.cancel)
            yield

    async def _meet(self, meeting: Meeting, host: str, stack: contextlib.AsyncExitStack) -> None:
        """Lets others wait here; a peer that cannot offer it does without."""
        try:
            at = "::" if host == "0.0.0.0" and socket.has_dualstack_ipv6() else host
            await stack.enter_async_context(meeting.open(at))
        except OSError as fault:
            log.info("nobody can wait here to be called: %s", fault.strerror)

    def _others(self) -> list[PeerAddress]:
        """Returns the peers at whose meetings this one waits: all, where it cannot be dialled."""
        if self.is_dialled or self._directory is None:
            return []
        return self._directory.known.addresses()

    async def _tell(
        self,
        wire: CurveWire,
        directory: TrackerDirectory,
        reception: Reception | None,
        said: Callable[[str], None],
    ) -> None:
        """Keeps the announced endpoints right; a change is announced at once."""
        loop, asked_s, told = asyncio.get_running_loop(), -math.inf, ""
        while True:
            own = self._own(wire, directory) if self.is_dialled else ()
            relays = reception.endpoints if reception else ()
            if own is not None and (*own, *relays) != directory.endpoints:
                directory.endpoints = (*own, *relays)
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            elif not self.is_dialled and not relays and loop.time() - asked_s > ASK_AGAIN_S:
                asked_s = loop.time()
                with contextlib.suppress(TrackerError):
                    await directory.announce(numwant=0)
            words = "" if self.is_dialled else _in_words(relays, directory, reception)
            if words not in ("", told):
                told = words
                said(words)
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


def _in_words(
    relays: tuple[Endpoint, ...], directory: TrackerDirectory, reception: Reception | None
) -> str:
    """Returns how a peer is reached that cannot be dialled."""
    if relays:
        return f"others reach this peer by {' '.join(map(str, relays))}"
    if not directory.external_host:
        return ""  # no tracker has answered yet
    if not directory.relays:
        return "others cannot reach this peer: its tracker names no relay"
    why = "; ".join(reception.reasons) if reception else "--relay never"
    return f"others cannot reach this peer: {why}" if why else ""
