"""The serving half of the wire: one ROUTER socket that gives strangers this peer's newest version.

A ROUTER drops in silence what does not fit under its high-water mark, so a chunk is sent only under
credit, and the mark holds more messages than credit can ever allow. All state changes in plain
functions of the event loop that never wait: a message comes in, messages go out. What one puller
does costs that puller: a broken frame ends its own transfer, and every table has a limit.
"""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import zmq
import zmq.asyncio

from p2pl.errors import FrameError, wrong
from p2pl.network.connections import AcceptedConnections, Inbox
from p2pl.network.gate import Gate, peer_port
from p2pl.network.membership import Membership
from p2pl.network.traffic import Traffic
from p2pl.network.version import Published
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import (
    MAX_OUTSTANDING,
    MAX_REASON_CHARS,
    Busy,
    Chunk,
    Committed,
    CommittedOffer,
    Credential,
    Credit,
    FetchBlob,
    Header,
    Hello,
    NotModified,
    Pull,
    Refused,
    Resume,
    VersionOffer,
    decode_ask,
    encode,
)
from p2pl.protocol.invitation import ASK_THE_AUTHOR

log = logging.getLogger(__name__)

# Messages that a ROUTER may hold for one puller; beyond them it drops in silence.
SEND_MARK = 2 * MAX_OUTSTANDING
YIELD_MESSAGES = 8  # taken in a row before the rest of the event loop has its turn
NO_BLOB = Refused("no such parcel")  # the words are as they were first sent
MAX_SENT = 64  # connections whose last transfer is remembered
MAX_SEEN = 1_024  # chosen: more peers than any cohort asks for, about 0.5 MiB
Route: TypeAlias = bytes  # libzmq's name for one connection
Kind: TypeAlias = Literal["model", "checkpoint"]


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """What a peer gives to others at most."""

    transfers: int = 8  # outgoing at the same time; then `Busy`
    transfers_per_peer: int = 2  # one more ends that peer's oldest
    waiting: int = 64  # pulls that wait for a round; then `Busy`
    retry_in_s: float = 0.25  # told to those who find it busy
    idle_s: float = 10.0  # a transfer that gets no credit for so long is dropped
    transfer_s: float = 120.0  # no transfer lasts longer, however it trickles
    blob_s: float = 120.0  # instead, of a blob, whose name only those know who are told
    blob_idle_s: float = 20.0
    share_s: float = 20.0  # after this the slowest gives way where others find no place


@dataclass(slots=True, eq=False)
class _Waiting:
    """A pull that waits for a round."""

    peer_id: str
    pull: Pull
    timer: asyncio.TimerHandle
    resume: Resume | None  # that the pull came in
    said: bytes | None  # with it, in a session with update logs


@dataclass(slots=True, eq=False)
class _Transfer:
    """A version on its way to one puller."""

    peer_id: str
    version: Published
    credit: int  # chunks that the puller still takes
    began_s: float
    moved_s: float  # when credit came last
    is_blob: bool
    offset: int = 0  # of the next chunk
    last: Callable[[], object] = field(
        default=lambda: None
    )  # the newest chunk, while libzmq has it


class _NotOfTheSession(Exception):
    """A peer on an open connection is not, or no longer, of this private session."""


class Server:
    """Answers pulls on a bound ROUTER socket, of which it is the only user.

    Args:
        router: bound, and secured by CURVE.
        gate: in front of it.
        credential: of this peer, shown with every answer that matters.
        chunk_bytes: of the session.
        limits: what is given to others at most.
        traffic: counts what comes and goes.
        membership: who is of the session, where it is private; None: it is open.

    Attributes:
        seen: where peers serve that have asked and proved who they are; the latest stand last.
        inbox: what others have told this peer.
        relayed_ports: from which this very machine connects for peers that are elsewhere.
    """

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        router: zmq.asyncio.Socket,
        *,
        gate: Gate,
        credential: Credential,
        chunk_bytes: int,
        limits: ServeLimits,
        traffic: Traffic,
        membership: Membership | None = None,
    ) -> None:
        self._router, self._gate = router, gate
        self._membership = membership
        self._at_once: zmq.Socket[bytes] = zmq.Socket.shadow(router.underlying)  # no futures
        self._credential = credential
        self._session_id = credential.session.hex()
        self._chunk_bytes = chunk_bytes
        self._limits = limits
        self._traffic = traffic
        self._versions: dict[Kind, Published] = {}
        self._replaced: Published | None = None  # the model before the newest, where it is kept
        self._blobs: dict[bytes, Published] = {}  # by name
        self._waiting: dict[Route, _Waiting] = {}
        self._transfers: dict[Route, _Transfer] = {}
        self._draining: list[Callable[[], object]] = []  # over, but libzmq still holds a chunk
        self._sent_to: dict[Route, str] = {}  # whose transfers were sent whole, the latest last
        self._busy = Busy(int(limits.retry_in_s * 1_000))
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self.seen: dict[str, PeerAddress] = {}
        self.relayed_ports: Collection[int] = ()
        self.inbox = Inbox()
        self._accepted = AcceptedConnections(
            credential, lambda: self._versions.get("model"), self.inbox, self._now
        )

    def publish(self, kind: Kind, version: Published, *, keep_last: bool = False) -> None:
        """Gives `version` to everyone who asks from now on, and to those who wait for it.

        Args:
            kind: what it replaces: the model, or the initial checkpoint.
            version: must not change any more.
            keep_last: whether the model before is still given to those who ask for its round.
        """
        self._replaced = self._versions.get(kind) if keep_last else self._replaced
        self._versions[kind] = version
        if kind == "model":
            for route, waiting in list(self._waiting.items()):
                if waiting.pull.round <= version.round:
                    self._end_wait(route)

    def put_blob(self, name: bytes, blob: Published) -> None:
        """Gives `blob` to those who know its name, until it is dropped.

        Args:
            name: `BLOB_NAME_BYTES` random bytes.
            blob: must not change any more.
        """
        self._blobs[name] = blob

    def drop_blob(self, name: bytes) -> None:
        """Gives a blob to nobody any more; transfers that have begun go on to their end."""
        self._blobs.pop(name, None)

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            for _ in range(YIELD_MESSAGES):
                route, *frames = await self._router.recv_multipart(copy=False)
                if frames:
                    self._gate.gave(frames)
                self._receive(route.bytes, frames)
            await asyncio.sleep(0)  # with messages waiting, nothing above ever yields

    def _look_again(self) -> None:
        """Has pyzmq look for what has come in, after something was sent while `run` waits.

        Sending may take in the news of a message that has arrived, and the descriptor that `run`
        waits for tells it only once (zmq_getsockopt(3), ZMQ_FD).
        """
        self._router.get(zmq.EVENTS)

    def close(self) -> None:
        """Forgets everybody; nothing is sent after this."""
        for waiting in self._waiting.values():
            waiting.timer.cancel()
        self._waiting.clear()
        self._transfers.clear()
        self._versions.clear()
        self._blobs.clear()
        self._replaced = None

    def _receive(self, route: Route, frames: list[zmq.Frame]) -> None:
        """Handles one message; whatever is in it, this returns."""
        peer_id = None
        try:
            if len(frames) != 1:
                raise FrameError(wrong("message", got=f"{len(frames)} frames", allowed="1"))
            heard = decode_ask(frames[0].buffer)
            said = heard.said if isinstance(heard, Committed) else None
            ask = heard.question if isinstance(heard, Committed) else heard
            if isinstance(ask, Pull | FetchBlob | Resume):
                resume = ask if isinstance(ask, Resume) else None
                question = ask.question if isinstance(ask, Resume) else ask
                peer_id = self._check_credential(question.credential, frames[0])
                self._on_question(route, peer_id, question, resume, said)
            elif isinstance(ask, Credit):
                peer_id = self._peer_on(route)
                self._on_credit(route, ask.chunks)
            elif isinstance(ask, Hello):
                peer_id = self._check_credential(ask.credential, frames[0])
                self._send(route, peer_id, self._accepted.greet(route, peer_id))
            else:
                peer_id = self._accepted.peer_on(route)
                self._check_standing(peer_id)
                self._send(route, peer_id, self._accepted.answer(route, ask))
        except _NotOfTheSession as fault:
            peer_id = self._peer_on(route)
            self._forget(route)
            self._accepted.forget(route)
            self._send(route, peer_id, Refused(f"{fault}; {ASK_THE_AUTHOR}"[:MAX_REASON_CHARS]))
        except FrameError as fault:
            peer_id = peer_id or self._peer_on(route)
            self._refuse(route, peer_id, fault)
        self._traffic.came(peer_id, sum(map(len, frames)))

    def _refuse(self, route: Route, peer_id: str | None, fault: FrameError) -> None:
        """Ends what goes on on a connection over which nonsense has come."""
        self._traffic.broke(peer_id)
        log.debug("broken frame peer=%s reason=%s", peer_id, fault)
        self._forget(route)
        self._accepted.forget(route)
        self._send(route, peer_id, Refused("protocol error"))

    def _peer_on(self, route: Route) -> str | None:
        """Returns who has proved to be on a connection and has business there."""
        known = self._transfers.get(route) or self._waiting.get(route)
        return known.peer_id if known else self._accepted.peer_on(route)

    def _on_question(
        self,
        route: Route,
        peer_id: str,
        question: Pull | FetchBlob,
        resume: Resume | None,
        said: bytes | None,
    ) -> None:
        if resume is not None and resume.offset % self._chunk_bytes:
            allowed = f"a multiple of {self._chunk_bytes}"
            raise FrameError(wrong("resume.offset", got=resume.offset, allowed=allowed))
        if isinstance(question, Pull):
            self._on_pull(route, peer_id, question, resume, said)
        else:
            self._on_fetch_blob(route, peer_id, question, resume, said)

    def _on_pull(
        self, route: Route, peer_id: str, pull: Pull, resume: Resume | None, said: bytes | None
    ) -> None:
        self._check_free(route)
        version = self._versions.get(pull.want)
        early = pull.want == "model" and (version is None or version.round < pull.round)
        given = self._version_for(pull, resume)
        goes_on = resume is not None and given is not None and given.digest == resume.digest
        if early and pull.wait_ms and not goes_on:
            self._wait(route, peer_id, pull, resume, said)
        else:
            self._answer(route, peer_id, pull, resume, said)

    def _on_fetch_blob(
        self,
        route: Route,
        peer_id: str,
        collect: FetchBlob,
        resume: Resume | None,
        said: bytes | None,
    ) -> None:
        self._check_free(route)
        blob = self._blobs.get(collect.name)
        if blob is None:
            self._send(route, peer_id, NO_BLOB)
        elif self._is_full(peer_id):
            self._send(route, peer_id, self._busy)
        else:
            self._begin(route, peer_id, collect.credit, blob, resume, said, is_blob=True)

    def _check_free(self, route: Route) -> None:
        if route in self._transfers or route in self._waiting:
            raise FrameError("pull: a second one on a connection before the first has ended")

    def _check_credential(self, credential: Credential, frame: zmq.Frame) -> str:
        """Returns the id of the peer that sent `frame`, and remembers where it serves."""
        try:
            curve_key, host = str(frame.get("User-Id")), str(frame.get("Peer-Address"))
        except zmq.ZMQError as fault:
            raise FrameError("connection: it has no CURVE key") from fault
        peer_id = credential.check(session_id=self._session_id, curve_key=curve_key)
        proof = b""
        if self._membership is not None:
            if why := self._membership.fault(curve_key, peer_id):
                raise _NotOfTheSession(why)
            proof = self._membership.proof_of(curve_key, peer_id)
        address = PeerAddress(
            id=peer_id, host=host, port=credential.port, curve_key=curve_key, proof=proof
        )
        with contextlib.suppress(ValueError):  # it has come from where nobody else could reach it
            there = address.checked()
            if not self._is_relayed(frame):
                self._see(there)
        return peer_id

    def _is_relayed(self, frame: zmq.Frame) -> bool:
        """Returns whether a message came by a relay: its peer is not where it seems to be."""
        if not self.relayed_ports:
            return False
        port = peer_port(int(frame.get(zmq.SRCFD)))
        return port is None or port in self.relayed_ports

    def _check_standing(self, peer_id: str | None) -> None:
        """Refuses a peer whose invitation counts no longer since it connected."""
        if self._membership is None or peer_id is None:
            return
        if why := self._membership.standing(peer_id):
            raise _NotOfTheSession(why)

    def _see(self, address: PeerAddress) -> None:
        self.seen.pop(address.id, None)
        self.seen[address.id] = address  # the most recently seen stand last
        if len(self.seen) > MAX_SEEN:
            del self.seen[next(iter(self.seen))]

    def _wait(
        self, route: Route, peer_id: str, pull: Pull, resume: Resume | None, said: bytes | None
    ) -> None:
        """Lets a pull wait for its round; a peer waits once, and its newest pull counts."""
        for other, waiting in list(self._waiting.items()):
            if waiting.peer_id == peer_id:
                self._drop(other, "replaced by a newer pull")
        if len(self._waiting) >= self._limits.waiting:
            self._send(route, peer_id, self._busy)
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(pull.wait_ms / 1_000, self._end_wait, route)
        self._waiting[route] = _Waiting(peer_id, pull, timer, resume, said)

    def _end_wait(self, route: Route) -> None:
        waiting = self._waiting.pop(route)
        waiting.timer.cancel()
        try:
            self._answer(route, waiting.peer_id, waiting.pull, waiting.resume, waiting.said)
        except FrameError as fault:  # what came with the question is looked at now
            self._refuse(route, waiting.peer_id, fault)
        self._look_again()

    def _answer(
        self, route: Route, peer_id: str, pull: Pull, resume: Resume | None, said: bytes | None
    ) -> None:
        version = self._version_for(pull, resume)
        if version is None and pull.want == "checkpoint":
            self._send(route, peer_id, Refused("this peer does not hand out the checkpoint"))
        elif version is None:
            self._send(route, peer_id, self._busy)
        elif version.digest == pull.have:
            self._send(route, peer_id, NotModified(self._credential, version.round))
        elif self._is_full(peer_id):
            self._send(route, peer_id, self._busy)
        else:
            self._begin(route, peer_id, pull.credit, version, resume, said)

    def _version_for(self, pull: Pull, resume: Resume | None) -> Published | None:
        """Returns what is served: what was broken off, or the newest, or the one before.

        The one before is for those who ask for its very round.
        """
        newest, before = self._versions.get(pull.want), self._replaced
        if pull.want == "checkpoint" or before is None:
            return newest
        if resume and before.digest == resume.digest:
            return before
        if newest and resume and newest.digest == resume.digest:
            return newest
        return before if before.round == pull.round else newest

    def _is_full(self, peer_id: str) -> bool:
        """Returns whether all places are taken; a peer's own oldest transfer makes room for it."""
        own = [route for route, each in self._transfers.items() if each.peer_id == peer_id]
        if len(own) >= self._limits.transfers_per_peer:
            self._drop(own[0], "replaced by a newer pull")
        self._draining = [last for last in self._draining if last() is not None]
        if len(self._transfers) + len(self._draining) < self._limits.transfers:
            return False
        return not self._made_room()

    def _made_room(self) -> bool:
        """Returns whether the slowest transfer has given its place up, having had its share."""
        now_s, share_s = self._now(), self._limits.share_s
        slow = {
            route: each.offset / (now_s - each.began_s)
            for route, each in self._transfers.items()
            if now_s - each.began_s > share_s
        }
        if not slow:
            return False
        self._drop(min(slow, key=slow.__getitem__), "too slow, and others wait")
        self._draining = [last for last in self._draining if last() is not None]
        return len(self._transfers) + len(self._draining) < self._limits.transfers

    def _begin(  # noqa: PLR0913  # what to send, to whom, and from where on
        self,
        route: Route,
        peer_id: str,
        credit: int,
        version: Published,
        resume: Resume | None,
        said: bytes | None,
        *,
        is_blob: bool = False,
    ) -> None:
        goes_on = resume is not None and version.digest == resume.digest
        offset = resume.offset if resume and goes_on else 0
        offer = VersionOffer(
            self._credential,
            version.round,
            version.samples,
            len(version.view),
            version.digest,
            version.notes,
        )
        header: Header = offer
        if said is not None:
            commits = version.commits
            header = CommittedOffer(offer, commits.answer(peer_id, said) if commits else b"")
        if self._send(route, peer_id, header):
            now_s = self._now()
            transfer = _Transfer(peer_id, version, credit, now_s, now_s, is_blob, offset=offset)
            self._transfers[route] = transfer
            self._pump(route)
            self._watch(route, transfer)

    def _on_credit(self, route: Route, chunks: int) -> None:
        transfer = self._transfers.get(route)
        if transfer is None:  # all was sent, and is still on its way
            if peer_id := self._sent_to.get(route):
                self._traffic.moved(peer_id)
            return
        transfer.credit = min(transfer.credit + chunks, MAX_OUTSTANDING)
        transfer.moved_s = self._now()
        self._traffic.moved(transfer.peer_id)
        self._pump(route)

    def _pump(self, route: Route) -> None:
        """Sends as much of a transfer as its credit allows; all of it, or the transfer is over."""
        transfer = self._transfers[route]
        view = transfer.version.view
        while transfer.credit and transfer.offset < len(view):
            chunk = view[transfer.offset : transfer.offset + self._chunk_bytes]
            payload = self._followed(transfer, chunk) if transfer.is_blob else chunk
            if not self._send(route, transfer.peer_id, Chunk(transfer.offset), payload):
                self._forget(route)
                return
            transfer.last = weakref.ref(chunk)
            transfer.offset += len(chunk)
            transfer.credit -= 1
        if transfer.offset >= len(view):  # a puller may have asked for what is behind the end
            self._traffic.transfers_out += 1
            self._forget(route)
            self._sent_to[route] = transfer.peer_id
            if len(self._sent_to) > MAX_SENT:
                del self._sent_to[next(iter(self._sent_to))]

    def _followed(self, transfer: _Transfer, chunk: memoryview) -> zmq.Frame:
        """Returns a chunk to send, whose leaving for the network will be counted."""
        gone = weakref.finalize(chunk, self._has_left, transfer.peer_id)
        gone.atexit = False
        return zmq.Frame(chunk, copy=False, copy_threshold=1)  # a copy would be gone at once

    def _has_left(self, peer_id: str) -> None:
        """Counts, from whatever thread, a chunk that libzmq has given to the network."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._traffic.moved, peer_id)

    def _watch(self, route: Route, transfer: _Transfer) -> None:
        """Drops a transfer that stands still or lasts too long, else looks again when it may."""
        if self._transfers.get(route) is not transfer:
            return
        limits = self._limits
        end_s = min(transfer.moved_s + limits.idle_s, transfer.began_s + limits.transfer_s)
        if transfer.is_blob:
            end_s = min(transfer.moved_s + limits.blob_idle_s, transfer.began_s + limits.blob_s)
        if self._now() >= end_s:
            self._drop(route, "too slow")
            self._look_again()
        else:
            asyncio.get_running_loop().call_at(end_s, self._watch, route, transfer)

    def _drop(self, route: Route, reason: str) -> None:
        """Ends what goes on on a connection, and says why."""
        peer_id = self._peer_on(route)
        log.debug("dropped peer=%s reason=%s", peer_id, reason)
        self._forget(route)
        self._send(route, peer_id, Refused(reason))

    def _forget(self, route: Route) -> None:
        """Ends what goes on on a connection; a transfer keeps its place while libzmq holds it."""
        waiting = self._waiting.pop(route, None)
        if waiting:
            waiting.timer.cancel()
        transfer = self._transfers.pop(route, None)
        if transfer:
            self._draining.append(transfer.last)

    def _send(
        self,
        route: Route,
        peer_id: str | None,
        header: Header,
        payload: memoryview | zmq.Frame | None = None,
    ) -> bool:
        """Returns whether the message is on its way; False if its puller is gone or does not read.

        It never waits: the mark of the socket holds more than credit allows.
        """
        parts: list[bytes | memoryview | zmq.Frame] = [route, encode(header)]
        if payload is not None:
            parts.append(payload)
        try:
            self._at_once.send_multipart(parts, flags=zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as fault:
            log.debug("not sent peer=%s reason=%s", peer_id, fault)
            return False
        self._traffic.went(peer_id, sum(map(len, parts)) - len(route))
        return True
