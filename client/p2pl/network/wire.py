"""The wire: everything a peer says to other peers, over ZeroMQ with CURVE, always.

One event loop owns every socket. One ROUTER serves strangers (`serve`), each pull has a connection
of its own (`pull`), and short messages go over kept ones (`connections`); both are dialled (`dial`)
and speak what a ROUTER understands (`zmtp`). In an open session any CURVE key may connect; who is
behind it is settled by the credential in the first message, which both ends check against the key
that this connection was made with. In a private one, the key alone decides whether there is a
connection at all (`admission`, `membership`).
"""

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import Any, Self, TypeVar, cast

import zmq
import zmq.asyncio

from p2pl.errors import FrameError, InputError, PullError, wrong
from p2pl.network.admission import Admission, everybody
from p2pl.network.connections import Connections, Inbox
from p2pl.network.dial import Dialler, Direct
from p2pl.network.gate import EVENTS, Gate
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.membership import Membership
from p2pl.network.memory import reuse_freed_memory
from p2pl.network.numbering import ANY_NUMBERING, CLASSES, Numbering
from p2pl.network.pull import Pulled, Puller, Room, Unchanged
from p2pl.network.serve import SEND_MARK, ServeLimits, Server
from p2pl.network.traffic import Traffic
from p2pl.network.version import Commits, Payload, Version, prepare
from p2pl.network.zmtp import HANDSHAKE_S, KEY_REFUSED
from p2pl.protocol import invitation
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    MAX_HEADER_BYTES,
    MAX_TELL_BYTES,
    PROPERTY,
    PROPERTY_VALUE,
    Newest,
    Ping,
    Tell,
    issue_credential,
)

T = TypeVar("T")

ANY = "0.0.0.0:0"
CLOSED = "the wire was closed"
ZAP_DOMAIN = b"p2pl"
MAX_PORT = 65_535
RECEIVE_MARK = 64  # messages from one puller that may wait
FRAMING_BYTES = 128  # what CURVE adds to a frame: 33 bytes, and its handshake commands
STUCK_MS = 20_000  # the kernel closes a connection whose other end takes nothing for so long
_LISTEN = re.compile(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([\w.-]+)):(\d{1,5})")


class CurveWire:
    """Serves the newest version to others, and pulls theirs; an async context manager.

    Attributes:
        traffic: bytes and transfers so far.
        curve_key: the public CURVE key to announce, in Z85.
        host: the IP address that it serves at, once it is open; 0.0.0.0 or :: is all.
        port: where it serves, once it is open.
        gate: bounds the connections of others.
    """

    gate: Gate

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        identity: Identity,
        *,
        session_id: str,
        listen: str = ANY,
        chunk_bytes: int = 1 << 20,
        limits: ServeLimits | None = None,
        room: Callable[[int], memoryview] | None = None,
        dialler: Dialler | None = None,
        membership: Membership | None = None,
        committed: bool = False,
        numbering: Numbering = ANY_NUMBERING,
    ) -> None:
        """Makes the keys of its connections; nothing is open yet.

        Args:
            identity: of this peer.
            session_id: 64 hex digits; whoever is of another session is refused.
            listen: `HOST:PORT` or `[IPV6]:PORT`; port 0 takes a free one, and 0.0.0.0 is all
                addresses of this machine, those of IPv6 as well.
            chunk_bytes: of the session, the same for all its peers.
            limits: what this peer gives to others at most.
            room: returns so many writable bytes to receive a model in; None: usual memory.
            dialler: opens streams to other peers; None: by TCP, where their addresses say.
            membership: who is of the session, where it is private; None: it is open.
            committed: whether peers of the session keep update logs.
            numbering: how this peer's data number their classes; who differs is not asked.

        Raises:
            P2PLError: this libzmq has no CURVE.
        """
        self.traffic = Traffic()
        self.host, self.port = "", 0
        self._identity = identity
        self._session_id = session_id
        self._listen = listen
        self._chunk_bytes = chunk_bytes
        self._limits = limits or ServeLimits()
        self._room = room
        self._membership = membership
        self._committed = committed
        self._numbering = numbering
        self._dialler = dialler or Direct()
        self._keys = (
            CurveKeys.generate() if membership is None else lasting_keys(identity, session_id)
        )
        self._asking: set[asyncio.Task[Any]] = set()
        self._is_open = False

    @property
    def identity(self) -> Identity:
        """Who this peer is to others."""
        return self._identity

    @property
    def curve_key(self) -> str:
        """The public CURVE key of all its connections, in Z85; to be announced."""
        return self._keys.public

    @property
    def proof(self) -> bytes:
        """What shows others that this peer is invited, once it is open; b"" in an open session."""
        if self._membership is None:
            return b""
        return self._membership.proof_of(self.curve_key, self._identity.peer_id)

    @property
    def revoked(self) -> frozenset[str]:
        """The ids of peers whose invitations were taken back, as far as is known."""
        return frozenset() if self._membership is None else self._membership.revoked

    @property
    def seen(self) -> Mapping[str, PeerAddress]:
        """Peers that have asked this one and proved who they are, by id, most recent last."""
        return self._server.seen

    async def __aenter__(self) -> Self:
        """Returns the wire, serving.

        Raises:
            InputError: `listen` is not an address of this machine, or its port is in use.
        """
        host, port = await _resolve(self._listen)
        self.host = host.strip("[]")
        reuse_freed_memory()
        async with contextlib.AsyncExitStack() as stack:
            context = zmq.asyncio.Context()
            stack.callback(context.destroy, linger=0)
            await self._guard(context, stack)
            router = context.socket(zmq.ROUTER)
            self._secure(router)
            self.port = _bind(router, host, port)
            self._start(router, stack)
            self._stack = stack.pop_all()
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends all transfers at once, in both directions."""
        await self._stack.aclose()

    def takes_relayed(self, ports: Collection[int]) -> None:
        """Says that connections from some ports of this machine are of peers elsewhere.

        They came by a relay; where those peers are is not remembered.

        Args:
            ports: of this machine; what is in it may change.
        """
        self._server.relayed_ports = ports

    async def publish(self, version: Version, *, keep_last: bool = False) -> bytes:
        """Gives `version` to all who ask from now on, and returns its digest.

        Its payload must not change any more. Transfers that have begun end with the version that
        they began with.

        Args:
            version: of this peer's model.
            keep_last: whether the version before is still given to those who ask for its round.

        Raises:
            ValueError: the payload is empty or not contiguous, or the notes are too long.
        """
        published = await prepare(version, committed=self._committed)
        self._server.publish("model", published, keep_last=keep_last)
        return published.digest

    async def publish_checkpoint(self, payload: Payload) -> None:
        """Gives the session's initial checkpoint, which must not change, to all who ask for it.

        Raises:
            ValueError: the payload is empty or not contiguous.
        """
        version = Version(round=0, samples=0, payload=payload)
        checkpoint = await prepare(version, committed=self._committed)
        self._server.publish("checkpoint", checkpoint)

    async def pull(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        address: PeerAddress,
        *,
        have: bytes | None,
        round: int,
        wait_s: float,
        deadline_s: float,
        size: int,
        into: memoryview | None = None,
        said: bytes | None = None,
    ) -> Pulled | Unchanged:
        """Returns the newest version of the peer at `address`.

        Args:
            address: whom to ask; the peer there must prove to be that very one.
            have: digest of its version that this peer holds, if any.
            round: that is hoped for; the peer answers as soon as it has reached it…
            wait_s: …or after so many seconds with what it has; 0..60.
            deadline_s: seconds for all of it.
            size: of every version in this session, in bytes.
            into: writable memory of `size` bytes to receive in, which saves the cost of new pages
                (a second a GiB); None = new memory. After an error anything may stand in it.
            said: goes with the question, in a session with update logs; None: nothing does.

        Raises:
            PullError: the peer is late, unreachable, busy until the deadline, or refuses.
            FrameError: the peer is not who it should be, or what it sent is not what it promised.
        """
        question = self._puller.question("model", have=have, round=round, wait_s=wait_s)
        room = Room(size, into, self._room)
        return await self._run(
            address,
            self._puller.pull(address, question, room=room, deadline_s=deadline_s, said=said),
        )

    async def pull_checkpoint(
        self, address: PeerAddress, *, size: int, deadline_s: float
    ) -> memoryview:
        """Returns the bytes that a peer says are the initial checkpoint; check them (merkle root).

        Args:
            address: whom to ask; the peer there must prove to be that very one.
            size: that it must have, in bytes.
            deadline_s: seconds for all of it.

        Raises:
            PullError, FrameError: as `pull`.
        """
        question = self._puller.question("checkpoint", have=None, round=0, wait_s=0)
        answer = await self._run(
            address, self._puller.pull(address, question, room=Room(size), deadline_s=deadline_s)
        )
        if isinstance(answer, Unchanged):
            raise FrameError("answer: not modified, to someone who holds no version")
        return answer.payload

    async def put_blob(self, name: bytes, payload: Payload, commits: Commits | None = None) -> None:
        """Gives `payload` to those who know its name, until it is dropped.

        Args:
            name: `BLOB_NAME_BYTES` random bytes; tell them to nobody but the receiver.
            payload: at least one byte; must not change any more.
            commits: in a session with update logs, to what is locked in the payload.

        Raises:
            ValueError: the payload is empty or not contiguous.
        """
        blob = await prepare(Version(0, 0, payload, commits=commits), committed=self._committed)
        self._server.put_blob(name, blob)

    def drop_blob(self, name: bytes) -> None:
        """Gives a blob to nobody any more; transfers that have begun go on to their end."""
        self._server.drop_blob(name)

    async def fetch_blob(
        self,
        address: PeerAddress,
        name: bytes,
        *,
        size: int,
        deadline_s: float,
        said: bytes | None = None,
    ) -> Pulled:
        """Returns the blob of this name, of the peer at `address`.

        Args:
            address: whom to ask; the peer there must prove to be that very one.
            name: as its owner told it.
            size: that it must have, in bytes.
            deadline_s: seconds for all of it.
            said: as in `pull`.

        Raises:
            PullError, FrameError: as `pull`.
        """
        question, room = self._puller.blob_question(name), Room(size)
        answer = await self._run(
            address,
            self._puller.pull(address, question, room=room, deadline_s=deadline_s, said=said),
        )
        if isinstance(answer, Unchanged):
            raise FrameError("answer: not modified, to someone who asked for a blob")
        return answer

    async def ping(self, address: PeerAddress, *, deadline_s: float) -> Newest:
        """Returns which version the peer at `address` would give to a pull, for some tens of bytes.

        Args:
            address: whom to ask; the peer there must prove to be that very one.
            deadline_s: seconds for all of it.

        Raises:
            PullError: the peer is late, unreachable, busy until the deadline, or refuses.
            FrameError: the peer is not who it should be, or answers something else.
        """
        return cast(
            "Newest", await self._run(address, self._connections.ask(address, Ping(), deadline_s))
        )

    async def tell(self, address: PeerAddress, payload: bytes, *, deadline_s: float) -> None:
        """Puts `payload` into the inbox of the peer at `address`; when this returns, it is there.

        Args:
            address: whom to tell; the peer there must prove to be that very one.
            payload: at most `MAX_TELL_BYTES`; what it means is for the exchange to say.
            deadline_s: seconds for all of it.

        Raises:
            PullError, FrameError: as `ping`; then the peer may or may not have been told.
            ValueError: the payload is too long.
        """
        if len(payload) > MAX_TELL_BYTES:
            raise ValueError(f"payload: got {len(payload)} bytes, allowed {MAX_TELL_BYTES}")
        await self._run(address, self._connections.ask(address, Tell(payload), deadline_s))

    @property
    def inbox(self) -> Inbox:
        """What others have told this peer, each with the id that its sender has proved."""
        return self._server.inbox

    async def _run(self, address: PeerAddress, asking: Coroutine[None, None, T]) -> T:
        """Returns what `asking` returns; closing the wire ends it with a PullError."""
        if not self._is_open:  # what is opened now would be closed by nobody
            asking.close()
            raise PullError(CLOSED)
        task = asyncio.create_task(self._of_the_session(address, asking))
        self._asking.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task in self._asking or (caller and caller.cancelling()):
                raise
            raise PullError(CLOSED) from None
        except PullError as fault:
            if self._membership is None or str(fault) != KEY_REFUSED:
                raise
            raise PullError(self._membership.explained(str(fault))) from fault
        finally:
            self._asking.discard(task)
            asking.close()  # where the task was ended before it had begun, nobody else does

    async def _of_the_session(self, address: PeerAddress, asking: Coroutine[None, None, T]) -> T:
        """Returns what `asking` returns, if the peer at `address` is of the session, and this one.

        It is checked each time: a connection that is kept may be older than what is known now.
        """
        if self._membership is not None:
            self._membership.check_own()
            await self._membership.check(address)
        return await asking

    async def _guard(self, context: zmq.asyncio.Context, stack: contextlib.AsyncExitStack) -> None:
        """Has libzmq ask before a handshake ends, and name the key (in Z85) beside each message."""
        admit = everybody if self._membership is None else self._membership.admit
        admission = Admission(context, admit)
        stack.callback(admission.close)
        task = asyncio.create_task(admission.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(stop)

    def _secure(self, router: zmq.asyncio.Socket) -> None:
        router.curve_server = True  # before bind: libzmq then speaks nothing else on this socket
        router.curve_publickey = self._keys.public.encode()
        router.curve_secretkey = self._keys.secret.encode()
        router.zap_domain = ZAP_DOMAIN
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no authenticator, no connection
        with contextlib.suppress(zmq.ZMQError):  # a libzmq that cannot say so is an older peer
            router.setsockopt(zmq.METADATA, f"{PROPERTY}:{PROPERTY_VALUE}".encode())
            if digest := self._numbering.digest:
                router.setsockopt(zmq.METADATA, f"{CLASSES}:{digest}".encode())
        router.linger = 0
        router.ipv6 = True
        router.router_mandatory = True
        router.sndhwm, router.rcvhwm = SEND_MARK, RECEIVE_MARK
        router.maxmsgsize = MAX_HEADER_BYTES + FRAMING_BYTES
        router.handshake_ivl = int(HANDSHAKE_S * 1_000)
        router.tcp_keepalive = 1
        router.tcp_keepalive_idle, router.tcp_keepalive_intvl, router.tcp_keepalive_cnt = 60, 10, 3
        router.setsockopt(zmq.TCP_MAXRT, STUCK_MS)

    def _start(self, router: zmq.asyncio.Socket, stack: contextlib.AsyncExitStack) -> None:
        credential = issue_credential(
            self._identity.private_key,
            session_id=self._session_id,
            curve_key=self._keys.public,
            port=self.port,
        )
        if self._membership is not None:
            proof = invitation.Proof(credential, self._membership.group.invitation)
            self._membership.take(invitation.encode(proof))
        self.gate = Gate(self.port)
        self._server = Server(
            router,
            gate=self.gate,
            credential=credential,
            chunk_bytes=self._chunk_bytes,
            limits=self._limits,
            traffic=self.traffic,
            membership=self._membership,
        )
        self._puller = Puller(
            self._dialler,
            keys=self._keys,
            credential=credential,
            chunk_bytes=self._chunk_bytes,
            traffic=self.traffic,
            committed=self._committed,
            numbering=self._numbering,
        )
        self._connections = Connections(
            self._dialler,
            keys=self._keys,
            credential=credential,
            traffic=self.traffic,
            numbering=self._numbering,
        )
        monitor = router.get_monitor_socket(EVENTS)
        stack.callback(monitor.close)
        watching = asyncio.create_task(self.gate.run(monitor))
        serving = asyncio.create_task(self._server.run())
        # In this order also where the end itself is cut short: what is kept open is closed last.
        stack.callback(self._puller.close)
        stack.callback(self._connections.close)
        stack.push_async_callback(self._stop, router, [serving, watching])

    async def _stop(self, router: zmq.asyncio.Socket, working: list[asyncio.Task[None]]) -> None:
        """Ends all tasks, before their sockets are closed."""
        self._is_open = False
        self._server.close()
        tasks = [*working, *self._asking]
        self._asking.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        router.disable_monitor()


def lasting_keys(identity: Identity, session_id: str) -> CurveKeys:
    """Returns the keys of a member of a private session, the same in each of its runs.

    So others who have met it admit it again, also while no tracker tells them of it.
    """
    return CurveKeys.from_secret(identity.secret_for(f"p2pl curve {session_id}"))


@contextlib.asynccontextmanager
async def listening(listen: str) -> AsyncIterator[tuple[str, int]]:
    """Yields an address and a port at which a peer would listen; one that takes nothing does.

    Args:
        listen: as of `CurveWire`.

    Raises:
        InputError: it is not an address of this machine, or its port is in use.
    """
    host, port = await _resolve(listen)
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.ipv6 = True
        yield host, _bind(router, host, port)
    finally:
        router.close(linger=0)
        context.term()


async def _resolve(listen: str) -> tuple[str, int]:
    """Returns the IP address (an IPv6 one in brackets) and port to listen on."""
    match = _LISTEN.fullmatch(listen)
    hint = "port 0 takes any free one"
    if not match or int(match[3]) > MAX_PORT:
        raise InputError(
            wrong("--listen", got=listen, allowed="HOST:PORT or [IPV6]:PORT", hint=hint)
        )
    name, port = match[1] or match[2], int(match[3])
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as fault:
        raise InputError(
            wrong("--listen", got=listen, allowed="an address or name of this machine")
        ) from fault
    host = str(found[0][4][0])
    return (f"[{host}]" if ":" in host else host), port


def _bind(router: zmq.asyncio.Socket, host: str, port: int) -> int:
    """Returns the port that `router` now listens on: of all addresses, IPv6 as well, for 0.0.0.0.

    A tracker may see a peer at either, and passes on the one that it sees.
    """
    if host == "0.0.0.0" and socket.has_dualstack_ipv6():
        with contextlib.suppress(InputError):  # a machine may have IPv6 switched off
            return _bind(router, "[::]", port)
    try:
        router.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as fault:
        if fault.errno == errno.EADDRINUSE:
            message = wrong(
                "--listen",
                got=f"port {port}, which another program is using",
                allowed="a free port",
                hint="stop that program, or name another port; 0 takes any free one",
            )
        else:
            message = wrong(
                "--listen",
                got=f"{host}:{port}: {fault.strerror}",
                allowed="an address of this machine and a port you may use",
                hint="0.0.0.0:0 takes any free port on all addresses",
            )
        raise InputError(message) from fault
    endpoint = cast("bytes", router.last_endpoint)
    return int(endpoint.rpartition(b":")[2])
