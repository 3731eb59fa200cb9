"""The tracker's HTTP interface: announce, scrape, and what an operator wants to see.

FastAPI documents `POST /announce` and never sees one: routing, dependencies and validation would
cost as much as everything else but the signature, and msgspec validates the raw body in 3 us.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pl import __version__
from p2pl.errors import AnnounceError, wrong
from p2pl.protocol import announce as messages
from p2pl.protocol import reach
from p2pl.protocol.announce import MAX_ANNOUNCE_BYTES, Refusal, Scrape, SignedAnnounce, Terms
from p2pl.protocol.identity import ID_PATTERN
from p2pl.protocol.invitation import MAX_REVOCATIONS_BYTES
from p2pl.protocol.session import MAX_INFO_BYTES
from p2pl.protocol.updates.witness import MAX_SHOWN_BYTES
from p2pl_tracker import bittorrent, docs, page
from p2pl_tracker.address import AddressLimit, Network, is_loopback, observed
from p2pl_tracker.bans import Bans
from p2pl_tracker.calls import Caller, OwnRelay
from p2pl_tracker.checks import Checker
from p2pl_tracker.issuer import Issuer, Relays
from p2pl_tracker.listing import Asker
from p2pl_tracker.metrics import Metrics
from p2pl_tracker.reach import Dialler
from p2pl_tracker.register import Register, Served
from p2pl_tracker.shelf import Shared, SharedShelf, Shelf
from p2pl_tracker.swarm import PREFIX_BYTES, Entry, Limits, MemoryStore, Store, Welcome
from p2pl_tracker.witness import Checkpoints, MemoryCheckpoints, Witness

log = logging.getLogger(__name__)

EXPIRE_EVERY_S = 1.0  # chosen: how stale the counts of a silent session can be
SAY_AWAY_EVERY_S = 60.0  # chosen: who looks into the log sees it, and nothing else is lost in it
JITTER = 0.1  # of the interval, so that peers that came together do not come back together
UNAVAILABLE_RETRY_S = 5.0
UNCOUNTED = ("/health", "/ready")
MSGPACK = "application/msgpack"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator chose."""

    limits: Limits = field(default_factory=Limits)
    interval_s: int = 60
    trusted_proxies: tuple[Network, ...] = ()
    address_rate: float = 200.0  # requests a second from one address; 0 = no limit
    served: Served = field(default_factory=Served)  # which sessions
    address_burst: int = 1_000  # not fewer than peers of one address, who may all leave at once
    relays: Relays | None = None  # that peers are told of
    bans: Bans = field(default_factory=lambda: Bans(None))
    checks: bool = True  # whether it is found out which peers answer
    witness: Ed25519PrivateKey | None = None  # cosigns update logs; None: they are not taken


class Tracker:
    """Checks announces in the order of their cost, and hands them to the store."""

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        policy: Policy,
        store: Store,
        torrents: Store,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        rng: random.Random,
        load: Callable[[], tuple[int, int]] | None = None,
        own_relay: OwnRelay | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.policy = policy
        self.checkpoints = checkpoints or MemoryCheckpoints(now)
        key = policy.witness
        self._witness = Witness(key, self.checkpoints, now=now, wall=wall) if key else None
        self.pages = page.Pages(policy.served.published, now=now)
        self._load = load
        self.store = store
        self.metrics = Metrics()
        self.started_s = now()
        self._now, self._wall, self._rng = now, wall, rng
        self.register = Register(policy.served, ttl_s=policy.limits.ttl_s, now=now, wall=wall)
        self.shelf = Shelf(self.register)
        if isinstance(store, Shared):
            self.shelf = SharedShelf(self.register, store, now=now, wall=wall)
        published = policy.served.sessions or {}
        self._published = {session[:PREFIX_BYTES]: session for session in published}
        self.torrents = bittorrent.Torrents(torrents, self._session_of, wall=wall)
        self._issuer = Issuer(policy.relays, now=now, wall=wall) if policy.relays else None
        rate, burst = policy.address_rate, policy.address_burst
        self._dialler = Dialler(now=now)
        caller = Caller(policy.relays, own_relay, now=now, wall=wall)
        self._called_by = caller.endpoints if policy.checks else frozenset()
        # Another dialler, so that those who ask and those who are asked do not wait for each other.
        self.checker = (
            Checker(store, Dialler(now=now), caller, self.metrics.count_check)
            if policy.checks
            else None
        )
        self._requests = AddressLimit(rate, burst, now=now)
        self._departures = AddressLimit(rate, burst, now=now)

    async def announce(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers an announce, or refuses it.

        It does without Starlette's request and response: with them, an announce costs a fifth more.
        """
        try:
            body = await bounded_body(scope, receive)
            start_s = time.perf_counter()
            host = self._host(scope)
            announce = self._decode(body, host)
            announce.check_time(self._wall())
            announce.check_signature(body)
            answer = await self._answer(announce, host, self._reached_at(scope, host))
        except AnnounceError as fault:
            await self.refuse(fault)(scope, receive, send)
            return
        self.metrics.count_answer(announce.event, time.perf_counter() - start_s)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _decode(self, body: bytes, host: str) -> SignedAnnounce:
        """Returns the announce in `body`, counted against what its address may send.

        Departures have an allowance of their own, as large as the other, so that whoever leaves can
        say so whatever the peers around it did before: all behind one address may leave at once, if
        they are no more than `Policy.address_burst`. One that is refused falls silent instead.
        """
        try:
            announce = messages.decode(body)
        except AnnounceError:
            self._requests.check(host)
            raise
        allowance = self._departures if announce.event == "stopped" else self._requests
        allowance.check(host)
        return announce

    async def torrent(self, request: Request) -> Response:
        """Returns the answer to a client of BitTorrent, or the refusal, both bencoded."""
        query = request.scope["query_string"]
        try:
            host = self._host(request.scope)
            self._requests.check(host)
            if request.scope["path"] == "/scrape":
                answer = await self.torrents.scrape(query)
            else:
                answer = await self.torrents.announce(query, host)
                self.metrics.count_torrent()
        except AnnounceError as fault:
            self.metrics.count_refusal(fault.status)
            answer = bittorrent.failure(fault)
        return Response(answer, media_type=bittorrent.CONTENT_TYPE)

    async def _session_of(self, prefix: bytes) -> bytes:
        """Returns the session of a truncated id: one that the operator names, or that has peers."""
        session = self._published.get(prefix) or await self.store.find(prefix)
        if session is None:
            message = "this tracker knows nobody of p2pl in this session; start a peer of it first"
            raise AnnounceError(message, status=404)
        if await self.shelf.is_private(session):
            message = "this session is private; its checkpoint comes from its peers"
            raise AnnounceError(message, status=403)
        return session

    def refusal(self, request: Request) -> Response | None:
        """Returns the refusal of a request from an address that asks too often, else None."""
        try:
            self._requests.check(self._host(request.scope))
        except AnnounceError as fault:
            return self.refuse(fault)
        return None

    async def _answer(self, announce: SignedAnnounce, host: str, here: str) -> bytes:
        """Returns the answer to an announce whose time and signature were checked."""
        if announce.event != "stopped":
            messages.check_host(host)
        entry, bans = Entry.of(announce, host, self._called_by), self.policy.bans
        bans.check_peer(entry.digest)
        await self.shelf.check(announce)
        welcome = await self.store.enter(entry)
        if welcome.is_check_due and self.checker is not None:
            self.checker.ask(entry)
        asker = Asker(host, announce.version, here)
        rows = [peer.told_to(asker) for peer in bans.now.without(welcome.peers)]
        return messages.encode_answer(self._terms(announce, welcome, host), rows)

    def _terms(self, announce: SignedAnnounce, welcome: Welcome, host: str) -> Terms:
        interval_s = self.policy.interval_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        relays, ticket = self._relays_for(announce)
        return Terms(
            interval_s=max(1, round(interval_s)),
            min_interval_s=self.policy.limits.min_interval_s,
            epoch=welcome.epoch,
            alive=welcome.alive,
            training=welcome.training,
            external_host=host if _is_greeting(announce) else "",
            warning=welcome.warning,
            revocations=self.register.number(announce.session),
            relays=relays,
            ticket=ticket,
        )

    def _relays_for(self, announce: SignedAnnounce) -> tuple[tuple[str, ...], bytes]:
        """Returns relays and a ticket to them, where the asker understands them and needs one."""
        if self._issuer is None or announce.version < 2:
            return (), b""
        ticket = self._issuer.ticket_for(announce)
        return (self._issuer.relays.endpoints, ticket) if ticket else ((), b"")

    def _host(self, scope: Scope) -> str:
        """Returns the address that a request comes from, where it is served."""
        client = scope.get("client")
        if client is None:  # uvicorn's way to say that it has hung up
            raise AnnounceError("announce: the connection broke off")
        proxies = self.policy.trusted_proxies
        forwarded = Headers(scope=scope).getlist("x-forwarded-for") if proxies else ()
        host = observed(client[0], ",".join(forwarded), proxies)
        self.policy.bans.check_host(host)
        return host

    def _reached_at(self, scope: Scope, host: str) -> str:
        """Returns the address at which a peer on another machine reaches this one; "" else.

        A peer beside the tracker is seen at a loopback address, which means another machine to
        everybody else; this is what they can dial.
        """
        client, server = scope.get("client"), scope.get("server")
        if client is None or server is None or is_loopback(host):
            return ""
        if observed(client[0], "", ()) != host:  # a proxy is reached here, not this peer
            return ""
        try:
            here = observed(server[0], "", ())
        except ValueError:  # a socket of Unix
            return ""
        return "" if is_loopback(here) else here

    async def reach(self, request: Request) -> Response:
        """Returns whether the peer that asks can be dialled where it is seen."""
        try:
            question = reach.decode(await bounded_body(request.scope, request.receive))
            question.check_time(self._wall())
            question.check_signature()
            host = self._host(request.scope)
            messages.check_host(host)
            return _json(reach.encode_answer(await self._dialler.dial(host, question.port)))
        except AnnounceError as fault:
            return self.refuse(fault)

    def refuse(self, fault: AnnounceError) -> Response:
        """Returns the refusal that says what `fault` says, and counts it."""
        self.metrics.count_refusal(fault.status)
        retry_in_s = None if fault.retry_in_s is None else round(fault.retry_in_s, 3)
        refusal = Refusal(reason=str(fault)[:1_000], retry_in_s=retry_in_s)
        headers = {}
        if retry_in_s is not None:
            headers["retry-after"] = str(int(retry_in_s) + 1)
        if fault.status == 403:  # perhaps for its date: the peer may go by this clock
            headers["date"] = formatdate(self._wall(), usegmt=True)
        if fault.status == 413:
            headers["connection"] = "close"  # do not read the rest
        return Response(messages.encode_other(refusal), fault.status, headers, "application/json")

    async def scrape(self, request: Request) -> Response:
        """Returns the counts of the sessions asked for."""
        ids = request.query_params.getlist("session")
        try:
            if not 1 <= len(ids) <= docs.MAX_SCRAPED:
                raise AnnounceError(
                    wrong("scrape", got=f"{len(ids)} sessions", allowed=f"1..{docs.MAX_SCRAPED}")
                )
            for name in ids:
                if not ID_PATTERN.fullmatch(name):
                    raise AnnounceError(wrong("session", got=name, allowed="64 hex digits"))
            sessions = {name: await self.store.scrape(bytes.fromhex(name)) for name in ids}
        except AnnounceError as fault:
            return self.refuse(fault)
        return _json(messages.encode_other(Scrape(sessions=sessions)))

    async def take_session(self, request: Request) -> Response:
        """Returns 200 where a session's `info` was taken in, so that its author is known."""
        return await self._take(request, self.shelf.learn, MAX_INFO_BYTES)

    async def take_revocations(self, request: Request) -> Response:
        """Returns 200 where an author's list of revocations was taken in."""
        return await self._take(request, self.shelf.revoke, MAX_REVOCATIONS_BYTES)

    async def _take(
        self, request: Request, take: Callable[[bytes], Awaitable[None]], max_bytes: int
    ) -> Response:
        try:
            await take(await bounded_body(request.scope, request.receive, max_bytes))
        except AnnounceError as fault:
            return self.refuse(fault)
        return _json(b'{"status":"ok"}')

    async def take_checkpoint(self, request: Request) -> Response:
        """Returns what is kept of a peer's update log, once its head was shown."""
        try:
            witness = self._cosigner()
            data = await bounded_body(request.scope, request.receive, MAX_SHOWN_BYTES)
            shown, digest = witness.read(data)
            self.policy.bans.check_peer(digest)
            if not (await self.store.tally(shown.session)).alive:
                raise AnnounceError("checkpoint: nobody is in this session", status=404)
            kept = await witness.take(shown, self._host(request.scope))
        except AnnounceError as fault:
            return self.refuse(fault)
        return Response(kept, media_type=MSGPACK)

    async def checkpoint(self, request: Request) -> Response:
        """Returns what is kept of a peer's update log."""
        try:
            ids = [request.query_params.get(name, "") for name in ("session", "peer")]
            for name in ids:
                if not ID_PATTERN.fullmatch(name):
                    raise AnnounceError(wrong("id", got=name, allowed="64 hex digits"))
            kept = await self._cosigner().kept(*map(bytes.fromhex, ids))
            if kept is None:
                raise AnnounceError("checkpoint: of this log none is kept", status=404)
        except AnnounceError as fault:
            return self.refuse(fault)
        return Response(kept, media_type=MSGPACK)

    def _cosigner(self) -> Witness:
        """Returns the witness that this tracker is; raises AnnounceError (404) where it is none."""
        if self._witness is None:
            raise AnnounceError("checkpoint: this tracker is no witness", status=404)
        return self._witness

    async def revocations(self, request: Request) -> Response:
        """Returns the newest list of revocations of a private session."""
        return await self._give(request, self.shelf.revocations)

    async def proof(self, request: Request) -> Response:
        """Returns the proofs of those who say that a CURVE key is theirs."""
        key = request.query_params.get("curve_key", "")
        return await self._give(request, lambda session: self.shelf.proofs(session, key))

    async def _give(
        self, request: Request, find: Callable[[bytes], Awaitable[bytes | None]]
    ) -> Response:
        name = request.query_params.get("session", "")
        if not ID_PATTERN.fullmatch(name):
            return self.refuse(AnnounceError(wrong("session", got=name, allowed="64 hex digits")))
        try:
            found = await find(bytes.fromhex(name))
            if found is None:
                raise AnnounceError("there is none here", status=404)
        except AnnounceError as fault:
            return self.refuse(fault)
        return Response(found, media_type=MSGPACK)

    async def health(self, request: Request) -> Response:
        """Returns 200 while the process is alive, with the time by which announces are judged."""
        response = _json(b'{"status":"ok"}')
        response.headers["date"] = formatdate(self._wall(), usegmt=True)
        return response

    async def ready(self, request: Request) -> Response:
        """Returns 200 while announces can be served, else 503."""
        if await self.store.ready():
            return _json(b'{"status":"ready"}')
        fault = AnnounceError("the store is not ready", status=503, retry_in_s=UNAVAILABLE_RETRY_S)
        return self.refuse(fault)

    async def front(self, _: Request) -> Response:
        """Returns the page for people."""
        text = self.pages.fresh()
        if text is None:
            text = self.pages.make(await self._state())
        return Response(text, headers=page.HEADERS, media_type=page.HTML_TYPE)

    async def _state(self) -> page.State:
        now_s, load = self._wall(), self._load
        there: dict[bytes, page.There] = {}
        is_lost, totals = False, None
        try:
            totals = await self.store.totals()
            for session in self.pages.published:
                tally = await self.store.tally(session)
                clients = await self.torrents.store.tally(session)
                since_s = self.pages.since(session, tally, now_s)
                there[session] = page.There(tally, clients, since_s)
        except AnnounceError:
            is_lost = True
        relays = self.policy.relays.endpoints if self.policy.relays else ()
        return page.State(
            None if is_lost else there,
            totals,
            self.metrics.refusals,
            relays,
            load() if load else None,
            now_s,
        )

    async def style(self, _: Request) -> Response:
        """Returns the page's style sheet."""
        return Response(page.style(), headers=page.HEADERS, media_type="text/css")

    async def session_file(self, request: Request) -> Response:
        """Returns the file of a session that the operator publishes."""
        name = request.path_params["name"].removesuffix(".torrent")
        key = bytes.fromhex(name) if ID_PATTERN.fullmatch(name) else b""
        published = self.pages.published.get(key)
        if published is None:
            return self.refuse(AnnounceError("no such session is published here", status=404))
        said = {"content-disposition": f'attachment; filename="{published.name}.torrent"'}
        return Response(
            published.data, headers={**page.HEADERS, **said}, media_type="application/x-bittorrent"
        )

    async def prometheus(self, request: Request) -> Response:
        """Returns the counters in Prometheus' text format."""
        try:
            totals = await self.store.totals()
        except AnnounceError:
            totals = None
        return Response(self.metrics.text(totals), media_type=METRICS_TYPE)

    async def stats(self, request: Request) -> Response:
        """Returns the most asked-for counters as JSON."""
        try:
            totals, epoch = await self.store.totals(), await self.store.epoch()
        except AnnounceError as fault:
            return self.refuse(fault)
        stats = docs.Stats(
            version=__version__,
            epoch=epoch,
            uptime_s=round(self._now() - self.started_s, 1),
            sessions=totals.sessions,
            peers=totals.peers,
            announces=self.metrics.answered,
            refusals=self.metrics.refused,
        )
        return _json(msgspec.json.encode(stats))

    async def refuse_request(self, _: Request, fault: Exception) -> Response:
        """Returns the refusal of a request for what there is not: 404, 405."""
        assert isinstance(fault, HTTPException)
        response = self.refuse(AnnounceError(fault.detail, status=fault.status_code))
        response.headers.update(fault.headers or {})
        return response

    async def refuse_fault(self, _: Request, fault: Exception) -> Response:
        """Returns a refusal that says nothing of the internals; the server logs the traceback."""
        return self.refuse(AnnounceError("internal error of the tracker", status=500))

    async def expire_for_ever(self) -> None:
        """Removes silent peers, in slices between which announces are served."""
        said_s: float | None = None  # when it was said last that the store is away
        while True:
            self.policy.bans.refresh()
            more = False
            try:
                more = await self.store.expire() or await self.torrents.store.expire()
            except AnnounceError as fault:
                if said_s is None or self._now() - said_s >= SAY_AWAY_EVERY_S:
                    said_s = self._now()
                    log.warning("announces are refused with 503: %s", fault)
            else:
                if said_s is not None:
                    log.warning("the store is there again")
                said_s = None
            await asyncio.sleep(0 if more else EXPIRE_EVERY_S)


class _TrackerAPI(FastAPI):
    """FastAPI, with a short way for announces and the schemas of the messages msgspec decodes.

    Announces count against what an address may ask as they are decoded; everything else does here,
    but for what an operator's probes ask.
    """

    announce: ASGIApp
    torrent: ASGIApp
    refusal: Callable[[Request], Response | None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await super().__call__(scope, receive, send)
        elif (scope["method"], scope["path"]) == ("POST", "/announce"):
            await self.announce(scope, receive, send)
        elif _is_torrent(scope):
            await self.torrent(scope, receive, send)
        elif refusal := self.refusal(Request(scope)):
            await refusal(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            super().openapi().setdefault("components", {})["schemas"] = docs.schemas()
        return super().openapi()


async def bounded_body(
    scope: Scope, receive: Receive, max_bytes: int = MAX_ANNOUNCE_BYTES
) -> bytes:
    """Returns the request's body, having read no more than one chunk past the limit.

    Args:
        scope: of the request.
        receive: of the request, of which nothing was read yet.
        max_bytes: of its body.

    Raises:
        AnnounceError: it is longer than that (413), or broke off (400).
    """
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if not length.isdigit() or len(length) > 9 or int(length) > max_bytes:
        raise messages.too_long(max_bytes)
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise AnnounceError("announce: the connection broke off")
        body += cast("bytes", message.get("body", b""))
        if len(body) > max_bytes:
            raise messages.too_long(max_bytes)
        if not message.get("more_body", False):
            return body


def _is_torrent(scope: Scope) -> bool:
    """Returns whether a client of BitTorrent asks, at this tracker's announce URL or its base."""
    is_path = scope["method"] == "GET" and scope["path"] in ("/", "/announce", "/scrape")
    return is_path and bittorrent.is_asked(scope["query_string"])


def _is_greeting(announce: SignedAnnounce) -> bool:
    """Returns whether a peer is new, or wants to know how others see it before it takes part.

    The latter says `stopped` before it ever began: it is not there yet.
    """
    return announce.event == "started" or (announce.event == "stopped" and announce.version > 1)


def _bare(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    return respond


async def _never(_: Request) -> Response:
    """Stands in the schema for the announce, which comes a shorter way."""
    raise NotImplementedError


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def create_app(  # noqa: PLR0913  # keywords, each of them a different thing
    policy: Policy | None = None,
    *,
    store: Store | None = None,
    torrents: Store | None = None,
    now: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    beside: AbstractAsyncContextManager[None] | None = None,
    load: Callable[[], tuple[int, int]] | None = None,
    own_relay: OwnRelay | None = None,
    checkpoints: Checkpoints | None = None,
) -> FastAPI:
    """Returns the tracker as an ASGI application.

    Args:
        policy: what the operator chose.
        store: where peers are kept, closed at the end; by default in this process's memory.
        torrents: the same for clients of BitTorrent, with limits of its own.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970, against which announces are dated.
        rng: draws the cohorts and the jitter.
        beside: what runs in the same process for as long as it does, such as a relay.
        load: of that relay: its connections, and pairs of them that are joined.
        own_relay: that relay itself, by which peers are called.
        checkpoints: where those of update logs are kept; by default in this process's memory.
    """
    policy = policy or Policy()
    rng = rng or random.Random()
    store = store or MemoryStore(policy.limits, now=now, rng=rng)
    torrents = torrents or MemoryStore(bittorrent.LIMITS, now=now, rng=rng)
    tracker = Tracker(
        policy,
        store,
        torrents,
        now=now,
        wall=wall,
        rng=rng,
        load=load,
        own_relay=own_relay,
        checkpoints=checkpoints,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(tracker.expire_for_ever())
        async with beside or contextlib.nullcontext():
            yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if tracker.checker is not None:
            await tracker.checker.aclose()
        await store.aclose()
        await torrents.aclose()
        await tracker.checkpoints.aclose()

    app = _TrackerAPI(
        title="p2pl tracker",
        version=__version__,
        description="Tells peers of a session about each other; never sees a parameter.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json is served
        redoc_url=None,
    )
    for method, path, endpoint, document in (
        ("POST", "/announce", _never, docs.ANNOUNCE),
        ("POST", "/reach", tracker.reach, docs.REACH),
        ("GET", "/scrape", tracker.scrape, docs.SCRAPE),
        ("GET", "/checkpoint", tracker.checkpoint, docs.CHECKPOINT),
        ("POST", "/checkpoint", tracker.take_checkpoint, docs.SHOW),
        ("POST", "/session", tracker.take_session, docs.SESSION),
        ("GET", "/proof", tracker.proof, docs.PROOF),
        ("GET", "/revocations", tracker.revocations, docs.REVOCATIONS),
        ("POST", "/revocations", tracker.take_revocations, docs.REVOKE),
        ("GET", "/health", tracker.health, docs.HEALTH),
        ("GET", "/ready", tracker.ready, docs.READY),
        ("GET", "/metrics", tracker.prometheus, docs.METRICS),
        ("GET", "/stats.json", tracker.stats, docs.STATS),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_class=Response, **document)
    for path, shown in (
        ("/", tracker.front),
        ("/style.css", tracker.style),
        ("/sessions/{name}", tracker.session_file),
    ):
        app.add_api_route(path, shown, response_class=Response, include_in_schema=False)
    app.refusal = tracker.refusal
    app.announce = ServerErrorMiddleware(tracker.announce, tracker.refuse_fault)
    app.torrent = ServerErrorMiddleware(_bare(tracker.torrent), tracker.refuse_fault)
    app.add_exception_handler(HTTPException, tracker.refuse_request)
    app.add_exception_handler(Exception, tracker.refuse_fault)
    return app
