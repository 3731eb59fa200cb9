"""A store in Valkey or Redis, which several replicas of a tracker share.

What it does is a script that the server runs as one step (`store.lua`), by the server's clock.
Where the server cannot be reached, an announce is refused with 503 and a time to come back; peers
go on with those they know. A server that was restarted without its data is an empty store, of
another epoch, and peers greet it anew.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import random
import re
import secrets
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec
from redis import asyncio as client_of_redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError
from redis.exceptions import TimeoutError as NoAnswerInTime

from p2pl.errors import AnnounceError, InputError, visible, wrong
from p2pl_tracker.address import SITE_BITS, SITE_SHARE, address_group, too_often
from p2pl_tracker.listing import Listing
from p2pl_tracker.register import KEYS_SHARED
from p2pl_tracker.shelf import Shared
from p2pl_tracker.swarm import (
    CHECK_EVERY_S,
    CHECK_SOON_S,
    DEPARTED_SHARE,
    EXPIRED_PER_CALL,
    NOT_KEPT,
    REMEMBER_SEQUENCE_S,
    Entry,
    Full,
    Limits,
    Pool,
    Store,
    Tally,
    Totals,
    Welcome,
    not_new,
)

log = logging.getLogger(__name__)

SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}
ALLOWED = "redis://HOST:PORT/DB, valkey://HOST:PORT/DB, rediss://… (TLS), or unix:///PATH?db=DB"
PREFIX = "p2pl:"  # of all keys
_PASSWORD = re.compile(r"(?<=:)[^:/@]*(?=@)|(?<=password=)[^&]*")  # in a URL
MAX_CONNECTIONS = 32  # of a replica; an announce holds one for a fraction of a millisecond
CONNECT_S = 1.0
ANSWER_S = 2.0  # both together are less than a peer waits for a tracker, 5 s
RETRY_IN_S = 5.0
START_S = 10.0  # that a tracker waits for its store when it starts; both may start together
START_EVERY_S = 0.5
MAX_TOGETHER = 16  # announces in one call of the script, which keeps the server for 3 ms then
MAX_UNDER_WAY = 2  # such calls: while one is away, the next gathers
MAX_PROOFS = 100_000  # CURVE keys of which proofs are kept, as in one process
NUMBER_BYTES = 8  # before a value that is kept


_Fields: TypeAlias = tuple[str | bytes | int, ...]  # of an announce, as the script wants them


class _Turns:
    """Brings announces to the server, those that come meanwhile together: it is asked less often.

    Args:
        take: some of them, at most `MAX_TOGETHER`; returns an answer for each.
    """

    def __init__(self, take: Callable[[list[_Fields]], Awaitable[list[Any]]]) -> None:
        self._take = take
        self._waiting: list[tuple[_Fields, asyncio.Future[Any]]] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def put(self, *fields: str | bytes | int) -> Any:  # noqa: ANN401  # see the script
        """Returns what the server says to an announce.

        Raises:
            AnnounceError: it cannot be reached (503).
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((fields, answer))
        if len(self._under_way) < MAX_UNDER_WAY:
            self._start()
        return await answer

    def _start(self) -> None:
        task = asyncio.create_task(self._run())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _run(self) -> None:
        """Takes those that wait until nobody does; those of this turn of the loop come first."""
        while self._waiting:
            taken, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            try:
                answers = await self._take([fields for fields, _ in taken])
                if len(answers) != len(taken):
                    raise _away(f"{len(answers)} answers to {len(taken)} announces")
            except asyncio.CancelledError:  # it is ended itself
                for _, answer in [*taken, *self._waiting]:
                    answer.cancel()
                raise
            except Exception as fault:
                if not isinstance(fault, AnnounceError):
                    log.exception("the store")
                    fault = _away(f"{type(fault).__name__}: {fault}")
                self._refuse([*taken, *self._waiting], fault)
                self._waiting = []
                continue
            for (_, answer), said in zip(taken, answers, strict=True):
                if not answer.done():
                    answer.set_result(said)

    @staticmethod
    def _refuse(waiting: list[tuple[_Fields, asyncio.Future[Any]]], fault: AnnounceError) -> None:
        """Refuses all who wait, so that nobody waits for longer than one call may take."""
        for _, answer in waiting:
            if not answer.done():
                again = AnnounceError(str(fault), status=fault.status, retry_in_s=fault.retry_in_s)
                answer.set_exception(again)


class SharedStore(Store, Shared):
    """Peers in a server of Valkey or Redis, and what replicas tell each other.

    Args:
        client: of that server.
        limits: how many peers it keeps, and how often they may announce.
        prefix: of all its keys.
        now: the clock of all deadlines, seconds since 1970; None: the server's own.
        rng: seeds the samples; None: a new one.
    """

    def __init__(
        self,
        client: client_of_redis.Redis,
        limits: Limits,
        *,
        prefix: str = PREFIX,
        now: Callable[[], float] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._client, self._limits, self._prefix, self._now = client, limits, prefix, now
        self._rng = rng or random.Random()
        self._script = client.register_script(script(limits, prefix))
        self._turns = _Turns(self._enter)

    async def enter(self, entry: Entry) -> Welcome:
        """Records what a peer says; returns a uniform sample of the others. See `Store.enter`.

        Raises:
            AnnounceError: its sequence number is not new (409), it comes too soon (429), or the
                server cannot be reached (503).
        """
        listing = entry.listing
        group = address_group(listing.host)
        if ":" in group:
            group += " " + address_group(group, SITE_BITS)
        said = await self._turns.put(
            entry.session,
            entry.digest,
            entry.sequence,
            entry.event,
            entry.numwant,
            group,
            hashlib.blake2b(listing.row, digest_size=8).digest(),
            int(entry.can_be_checked),
            listing.detail_bytes,
            listing.encode(),
            Listing.bare(listing.host, listing.row).encode() if listing.detail_bytes else b"",
        )
        if said[0] == 503:
            raise _away(said[1].decode("utf-8", "replace"))
        if said[0] == 409:
            raise not_new(entry.sequence, int(float(said[1])))
        if said[0] == 429:
            raise too_often("this peer", 1 / self._limits.min_interval_s, float(said[1]))
        _, alive, training, full, epoch, is_check_due, is_kept, *listings = said
        warning = Full(full).warning(self._limits) or ("" if is_kept else NOT_KEPT)
        peers = [Listing.decode(data) for data in listings]
        return Welcome(peers, alive, training, warning, epoch.decode(), bool(is_check_due))

    async def _enter(self, entries: list[_Fields]) -> list[Any]:
        """Returns what the script says to each of some announces, which it takes in one call."""
        fresh = secrets.token_urlsafe(6)  # the epoch, should there be none
        seed = self._rng.randrange(1 << 31)
        fields = itertools.chain.from_iterable(entries)
        found: list[Any] = await self._run("enter", fresh, seed, len(entries), *fields)
        return found

    async def checked(self, session: bytes, digest: bytes, found: Pool) -> None:
        """Takes in what was found of a peer when it was checked."""
        await self._run("checked", session, digest, int(found))

    async def find(self, prefix: bytes) -> bytes | None:
        """Returns the session with a peer in it whose id begins with 20 bytes; None: none does."""
        (found,) = await self._ask(("HGET", self._prefix + "prefixes", prefix))
        return None if found is None else bytes(found)

    async def tally(self, session: bytes) -> Tally:
        """Returns the counts of a session; zeros when nobody is in it."""
        (packed,) = await self._ask(("HGET", self._prefix + "sessions", session))
        return Tally() if packed is None else Tally(*struct.unpack(">III", packed))

    async def totals(self) -> Totals:
        """Returns how full the store is."""
        sessions, peers = await self._ask(
            ("HLEN", self._prefix + "sessions"), ("ZCARD", self._prefix + "expiry")
        )
        return Totals(sessions=sessions, peers=peers)

    async def expire(self) -> bool:
        """Removes some peers that fell silent; returns whether there may be more."""
        return bool(await self._run("expire"))

    async def ready(self) -> bool:
        """Returns whether the server answers, and takes what is written."""
        try:
            await self._run("expire")
        except AnnounceError:
            return False
        return True

    async def epoch(self) -> str:
        """Returns a word that is another one once the server has lost its data."""
        return bytes(await self._run("epoch", secrets.token_urlsafe(6))).decode()

    async def keep(self, shelf: str, key: bytes, value: bytes, *, number: int, most: int) -> bool:
        """Keeps a value, unless one with a higher number is there. See `shelf.Shared`."""
        return bool(await self._run("keep", shelf, key, value, number, most))

    async def kept(self, key: bytes, *shelves: str) -> list[bytes | None]:
        """Returns what is kept under a key, for each kind."""
        found = await self._ask(*(("HGET", f"{self._prefix}shelf:{name}", key) for name in shelves))
        return [None if value is None else value[NUMBER_BYTES:] for value in found]

    async def put_proof(
        self, session: bytes, curve_key: str, digest: bytes, proof: bytes, *, until_s: float
    ) -> None:
        """Keeps the proof of a peer. See `shelf.Shared`."""
        field = session + curve_key.encode()
        await self._run("put", field, digest, proof, repr(until_s), MAX_PROOFS)

    async def drop_proof(self, session: bytes, curve_key: str, digest: bytes) -> None:
        """Forgets the proof of a peer."""
        await self._run("drop", session + curve_key.encode(), digest, b"", 0, MAX_PROOFS)

    async def proofs(self, session: bytes, curve_key: str) -> list[bytes]:
        """Returns the proofs of those who say that a key is theirs."""
        found: list[bytes] = await self._run("get", session + curve_key.encode())
        return found

    async def aclose(self) -> None:
        """Ends the connections."""
        await self._client.aclose()

    async def _ask(self, *commands: tuple[str | bytes, ...]) -> list[Any]:
        """Returns what the server answers to some commands, asked together."""
        async with reached():
            pipe = self._client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            found: list[Any] = await pipe.execute()
        return found

    async def _run(self, op: str, *args: str | bytes | int) -> Any:  # noqa: ANN401  # see the script
        now = "" if self._now is None else repr(self._now())
        async with reached():
            return await self._script(args=[op, now, *args])


def script(limits: Limits, prefix: str) -> str:
    """Returns the script with an operator's limits in it.

    Args:
        limits: of the store.
        prefix: of all its keys.
    """
    settings = {
        "PREFIX": msgspec.json.encode(prefix).decode(),
        "TTL_S": limits.ttl_s,
        "MAX_PEERS": limits.max_peers,
        "MAX_SESSIONS": limits.max_sessions,
        "MAX_PER_SESSION": limits.max_peers_per_session,
        "MAX_PER_ADDRESS": limits.max_peers_per_address,
        "MAX_SESSIONS_PER_ADDRESS": limits.max_sessions_per_address,
        "MAX_DETAIL_BYTES": limits.max_detail_bytes,
        "MIN_INTERVAL_S": limits.min_interval_s,
        "BURST": limits.burst,
        "SITE_SHARE": SITE_SHARE,
        "EXPIRED_PER_CALL": EXPIRED_PER_CALL,
        "REMEMBER_S": REMEMBER_SEQUENCE_S,
        "CHECK_EVERY_S": CHECK_EVERY_S,
        "CHECK_SOON_S": CHECK_SOON_S,
        "DEPARTED_SHARE": DEPARTED_SHARE,
        "MOST_UNKNOWN": limits.most_unknown,
        "KEYS_SHARED": KEYS_SHARED,
    }
    head = "".join(f"local {name} = {value}\n" for name, value in settings.items())
    return head + resources.files("p2pl_tracker").joinpath("store.lua").read_text("utf-8")


def connected(url: str) -> client_of_redis.Redis:
    """Returns a client of the server at a URL; it connects when it is first asked.

    Raises:
        InputError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        kind, is_whole = (
            parts.scheme,
            bool(parts.path if parts.scheme == "unix" else parts.hostname),
        )
        if kind not in SCHEMES or not is_whole:
            raise ValueError("no such URL")
        pool = client_of_redis.BlockingConnectionPool.from_url(
            SCHEMES[kind] + url[len(kind) :],
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_S,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            # Once more on a connection of its own: one that was kept may be of a server before.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        )
    except ValueError as fault:
        raise InputError(_wrong_url(url, str(fault))) from fault
    return client_of_redis.Redis.from_pool(pool)


async def check(url: str, *, deadline_s: float = START_S) -> None:
    """Returns once the server at a URL can be used as a store.

    A server that says no, or that is none of Valkey or Redis, will not do otherwise later: that is
    refused at once.

    Args:
        url: of the server.
        deadline_s: how long to wait for one that cannot be reached.

    Raises:
        InputError: it is no such URL, or the server cannot be used.
    """
    store = SharedStore(connected(url), Limits())
    until_s = time.monotonic() + deadline_s
    try:
        while True:
            try:
                await store.epoch()
            except AnnounceError as fault:
                if _may_pass(fault.__cause__) and time.monotonic() < until_s:
                    await asyncio.sleep(START_EVERY_S)
                    continue
                raise InputError(_wrong_url(url, str(fault.__cause__))) from fault
            return
    finally:
        await store.aclose()


def _may_pass(fault: BaseException | None) -> bool:
    """Returns whether what went wrong with a server may be another thing in a second."""
    # redis-py counts a wrong password among what is wrong with a connection, and hides there what
    # the server said when it was told of the database.
    said = fault.__cause__ if isinstance(fault, ConnectionError) and fault.__cause__ else fault
    if isinstance(said, AuthenticationError):
        return False
    return isinstance(said, ConnectionError | NoAnswerInTime | OSError)


def _wrong_url(url: str, why: str) -> str:
    """Returns what is said of a URL that cannot be used, without the password in it."""
    return wrong("--store", got=visible(f"{_PASSWORD.sub('***', url)} ({why})"), allowed=ALLOWED)


@contextlib.asynccontextmanager
async def reached() -> AsyncIterator[None]:
    """Turns what goes wrong between here and the server into a refusal to try again later.

    Raises:
        AnnounceError: something did (503).
    """
    try:
        yield
    except (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError) as fault:
        raise _away(f"{type(fault).__name__}: {fault}") from fault


def _away(why: str) -> AnnounceError:
    message = f"the tracker's store cannot be used now ({visible(why)})"
    return AnnounceError(message, status=503, retry_in_s=RETRY_IN_S)
