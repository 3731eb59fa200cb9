"""Announces of ordinary BitTorrent clients, so that any of them spreads an initial checkpoint.

A session file is a torrent of version 2 (BEP 52), so every client that reads those can fetch what
it promises. The tracker introduces such clients to each other (BEP 3, 7, 23, 48), in swarms of
their own: they know nothing of p2pl's keys, nobody of p2pl is told of them, nor they of anybody.

Whoever announces so has signed nothing. What a client is known by is therefore the address and the
port that it is seen at and says, so that nobody elsewhere can move it or take it away.
"""

import hashlib
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from p2pl.errors import AnnounceError, visible, wrong
from p2pl.protocol import bencode
from p2pl.protocol.address import reach_of
from p2pl.protocol.announce import Event, check_host
from p2pl_tracker.listing import Asker, Listing
from p2pl_tracker.swarm import PREFIX_BYTES, Entry, Limits, Store, Welcome

INTERVAL_S: Final = 600
MIN_INTERVAL_S: Final = 60
LIMITS = Limits(
    ttl_s=2.5 * INTERVAL_S,
    max_peers=100_000,
    max_sessions=10_000,
    max_peers_per_session=20_000,
    max_peers_per_address=32,  # a household, or an office with one seed box; no botnet
    max_sessions_per_address=100,
    min_interval_s=5.0,
    burst=10,
)
PEER_ID_BYTES = 20
DEFAULT_NUMWANT = 50
MAX_NUMWANT = 100
MAX_SCRAPED = 64
MAX_QUERY_BYTES = 4_096  # 64 info-hashes, every byte of them escaped
MAX_FIELDS = 80
MAX_AMOUNT = 1 << 63
EVENTS: Mapping[bytes, Event] = {
    b"": "update",
    b"empty": "update",
    b"paused": "update",  # BEP 21
    b"started": "started",
    b"stopped": "stopped",
    b"completed": "completed",
}
CONTENT_TYPE = "text/plain"  # as every tracker has it
_FIELD = re.compile(
    rb"([A-Za-z0-9_.-]{1,32})=((?:[A-Za-z0-9_.~!*'(),:;@$/?+\[\]-]|%[0-9A-Fa-f]{2})*)"
)
_COUNT = re.compile(rb"-?[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class Question:
    """What a client says and asks.

    Attributes:
        prefix: of the session's id, the info-hash of version 2 truncated.
        peer_id: that it has given itself; only repeated to others.
        port: where it listens.
        event: what happened.
        is_seed: whether it has all of the file.
        numwant: how many others it wants.
        is_compact: whether it wants them in six and eighteen bytes.
    """

    prefix: bytes
    peer_id: bytes
    port: int
    event: Event
    is_seed: bool
    numwant: int
    is_compact: bool


def is_asked(query: bytes) -> bool:
    """Returns whether a query is that of a BitTorrent client."""
    return query.startswith(b"info_hash=") or b"&info_hash=" in query


def parse(query: bytes) -> Question:
    """Returns what a client's query says.

    Args:
        query: as it stands in the URL, escaped.

    Raises:
        AnnounceError: it is too long, a field is missing, there twice, or out of range.
    """
    fields = _fields(query)
    said = {name: values[0] for name, values in fields.items()}
    for name in ("info_hash", "peer_id", "port"):
        if len(fields.get(name, ())) != 1:
            raise AnnounceError(wrong(name, got=f"{len(fields.get(name, ()))}", allowed="one"))
    if len(said["info_hash"]) != PREFIX_BYTES:
        raise AnnounceError(wrong("info_hash", got=f"{len(said['info_hash'])} bytes", allowed="20"))
    if len(said["peer_id"]) != PEER_ID_BYTES:
        raise AnnounceError(wrong("peer_id", got=f"{len(said['peer_id'])} bytes", allowed="20"))
    event = EVENTS.get(said.get("event", b""))
    if event is None:
        allowed = "started, completed, stopped, or none"
        raise AnnounceError(wrong("event", got=said["event"], allowed=allowed))
    for name in ("uploaded", "downloaded"):
        _number(said, name, 0, most=MAX_AMOUNT)
    left = _number(said, "left", MAX_AMOUNT - 1, most=MAX_AMOUNT)
    wanted = _number(said, "numwant", DEFAULT_NUMWANT, least=-1, most=1 << 31)
    return Question(
        prefix=said["info_hash"],
        peer_id=said["peer_id"],
        port=_number(said, "port", 0, least=1, most=65_535),
        event=event,
        is_seed=left == 0,
        numwant=DEFAULT_NUMWANT if wanted < 0 else min(wanted, MAX_NUMWANT),
        is_compact=said.get("compact", b"0") != b"0",
    )


def asked_for(query: bytes) -> list[bytes]:
    """Returns the info-hashes that a scrape asks for.

    Raises:
        AnnounceError: there is none, there are too many, or one is not 20 bytes.
    """
    found = _fields(query).get("info_hash", [])
    if not 1 <= len(found) <= MAX_SCRAPED:
        raise AnnounceError(wrong("scrape", got=f"{len(found)}", allowed=f"1..{MAX_SCRAPED}"))
    if any(len(prefix) != PREFIX_BYTES for prefix in found):
        raise AnnounceError(wrong("info_hash", got="another length", allowed="20 bytes"))
    return found


def _fields(query: bytes) -> dict[str, list[bytes]]:
    parts = query.split(b"&") if query else []
    if len(query) > MAX_QUERY_BYTES or len(parts) > MAX_FIELDS:
        allowed = f"{MAX_QUERY_BYTES} bytes, {MAX_FIELDS} fields"
        raise AnnounceError(wrong("query", got=f"{len(query)} bytes", allowed=allowed))
    fields: dict[str, list[bytes]] = {}
    for part in filter(None, parts):
        found = _FIELD.fullmatch(part)
        if found is None:
            raise AnnounceError("query: a field is not NAME=VALUE with %-escapes")
        fields.setdefault(found[1].decode(), []).append(unquote_to_bytes(found[2]))
    return fields


def _number(
    said: Mapping[str, bytes], name: str, default: int, *, least: int = 0, most: int
) -> int:
    text = said.get(name, b"")
    if not text:
        return default
    if not _COUNT.fullmatch(text) or not least <= int(text) <= most:
        raise AnnounceError(wrong(name, got=text, allowed=f"{least}..{most}"))
    return int(text)


class Torrents:
    """The swarms of BitTorrent clients.

    Args:
        store: of their own; peers of p2pl stand in another one.
        session_of: gives the session that a truncated id is of, or raises AnnounceError where
            clients of BitTorrent may not announce to it.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        session_of: Callable[[bytes], Awaitable[bytes]],
        *,
        wall: Callable[[], float],
    ) -> None:
        self.store = store
        self._session_of, self._wall = session_of, wall
        self._sequence = 0

    async def announce(self, query: bytes, host: str) -> bytes:
        """Returns the bencoded answer to a client.

        Args:
            query: of its URL, escaped.
            host: the IP address that it is seen at.

        Raises:
            AnnounceError: it says something wrong, or its session is not to be had here.
        """
        question = parse(query)
        session = await self._session_of(question.prefix)
        if question.event != "stopped":
            check_host(host)
        place = f"{host} {question.port}".encode()
        row = question.peer_id + question.port.to_bytes(2)
        # Microseconds, so that replicas go by one count: whoever asks again comes later.
        self._sequence = max(self._sequence + 1, int(self._wall() * 1e6))
        event = question.event
        if question.is_seed and event != "stopped":
            event = "completed"
        entry = Entry(
            session=session,
            digest=hashlib.sha256(place).digest(),
            sequence=self._sequence,
            event=event,
            numwant=0 if question.event == "stopped" else question.numwant,
            listing=Listing.bare(host, row),
        )
        return _answer(await self.store.enter(entry), question, host)

    async def scrape(self, query: bytes) -> bytes:
        """Returns the bencoded counts of the sessions that are asked for and are to be had here.

        Raises:
            AnnounceError: the question is wrong, or the store cannot be reached.
        """
        files = {}
        for prefix in dict.fromkeys(asked_for(query)):
            try:
                session = await self._session_of(prefix)
            except AnnounceError as fault:
                if fault.retry_in_s is not None:
                    raise
                continue
            tally = await self.store.tally(session)
            files[prefix] = {
                "complete": tally.alive - tally.training,
                "downloaded": tally.completed,
                "incomplete": tally.training,
            }
        return bencode.encode({"files": files})


def _answer(welcome: Welcome, question: Question, host: str) -> bytes:
    asker = Asker(host)
    told = [
        (ipaddress.ip_address(peer.host), peer.row)
        for peer in welcome.peers
        if reach_of(peer.host) >= asker.reach_to(peer.host)
    ]
    answer: dict[str, Any] = {
        "complete": welcome.alive - welcome.training,
        "external ip": ipaddress.ip_address(host).packed,  # BEP 24
        "incomplete": welcome.training,
        "interval": INTERVAL_S,
        "min interval": MIN_INTERVAL_S,
    }
    if question.is_compact:
        for name, version in (("peers", 4), ("peers6", 6)):
            rows = [
                address.packed + row[PEER_ID_BYTES:]
                for address, row in told
                if address.version == version
            ]
            if rows or version == 4:
                answer[name] = b"".join(rows)
    else:
        answer["peers"] = [
            {
                "ip": str(address),
                "peer id": row[:PEER_ID_BYTES],
                "port": int.from_bytes(row[PEER_ID_BYTES:]),
            }
            for address, row in told
        ]
    if welcome.warning:
        answer["warning message"] = welcome.warning
    return bencode.encode(answer)


def failure(fault: AnnounceError) -> bytes:
    """Returns a refusal as clients of BitTorrent read it, with status 200 (BEP 3, BEP 31)."""
    answer: dict[str, Any] = {"failure reason": visible(str(fault))[:500]}
    if fault.retry_in_s is None:
        answer["retry in"] = "never" if fault.status in (400, 403, 404) else 1
    else:
        answer["retry in"] = max(1, round(fault.retry_in_s / 60))  # minutes
    return bencode.encode(answer)
