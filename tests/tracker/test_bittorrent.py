"""Ordinary BitTorrent clients at the tracker: what they say, what they are told, and what not."""

import contextlib
import ipaddress
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.announces import SESSION, Clock, Speaker
from support.private_sessions import AUTHOR, FILE, FILE_ID, OPEN, invited

from p2pl.errors import AnnounceError
from p2pl.protocol import announce as messages
from p2pl.protocol import bencode
from p2pl_tracker import bittorrent
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.bittorrent import LIMITS, MAX_NUMWANT
from p2pl_tracker.register import Served

pytestmark = pytest.mark.anyio
OPEN_ID = bytes.fromhex(OPEN.id)
ME = "198.51.100.1"


def query(
    session: bytes = OPEN_ID,
    port: int | str = 6_881,
    peer_id: bytes = b"-XX0001-aaaaaaaaaaaa",
    **more: int | str,
) -> str:
    said = f"info_hash={quote_from_bytes(session[:20])}&peer_id={quote_from_bytes(peer_id)}"
    fields = {"port": port, "uploaded": 0, "downloaded": 0, "left": 9, "compact": 1, **more}
    return said + "".join(f"&{name}={value}" for name, value in fields.items())


class Tracker:
    """The application, and clients that seem to come from anywhere."""

    def __init__(self, *sessions: bytes) -> None:
        self.clock = Clock()
        named = Served(dict.fromkeys(sessions, b"") or None)
        self.app = create_app(Policy(served=named), now=self.clock, wall=self.clock)

    async def get(self, path: str, host: str = ME) -> dict[bytes, Any]:
        transport = httpx.ASGITransport(self.app, client=(host, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
            answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"][:10]) == (200, "text/plain")
        said: dict[bytes, Any] = bencode.decode(answer.content)
        return said

    async def post(self, speaker: Speaker, host: str = ME) -> messages.Answer:
        transport = httpx.ASGITransport(self.app, client=(host, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
            answer = await client.post("/announce", content=speaker.body("started"))
        return messages.decode_answer(answer.content)


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(OPEN_ID)


@pytest.mark.parametrize("path", ["/announce", "/"])
async def test_clients_hear_of_each_other_and_how_many_have_all(
    tracker: Tracker, path: str
) -> None:
    seed = await tracker.get(f"{path}?{query(port=1, left=0, event='started')}", "203.0.113.1")
    assert (seed[b"complete"], seed[b"incomplete"], seed[b"peers"]) == (1, 0, b"")
    assert (seed[b"interval"], seed[b"external ip"]) == (600, bytes([203, 0, 113, 1]))
    six = await tracker.get(f"{path}?{query(port=2, event='started')}", "2001:db8::7")
    assert six[b"peers"] == bytes([203, 0, 113, 1, 0, 1])
    heard = await tracker.get(f"{path}?{query(port=3)}")
    assert (heard[b"complete"], heard[b"incomplete"]) == (1, 2)
    assert heard[b"peers"] == bytes([203, 0, 113, 1, 0, 1])
    assert heard[b"peers6"] == ipaddress.ip_address("2001:db8::7").packed + bytes([0, 2])
    scrape = await tracker.get(f"/scrape?info_hash={quote_from_bytes(OPEN_ID[:20])}")
    counts = {b"complete": 1, b"downloaded": 1, b"incomplete": 2}
    assert scrape == {b"files": {OPEN_ID[:20]: counts}}


async def test_a_client_that_wants_no_compact_form_gets_names(tracker: Tracker) -> None:
    one = b"-YY0001-bbbbbbbbbbbb"
    await tracker.get(f"/announce?{query(port=1, peer_id=one)}", "203.0.113.1")
    heard = await tracker.get(f"/announce?{query(compact=0)}")
    assert heard[b"peers"] == [{b"ip": b"203.0.113.1", b"peer id": one, b"port": 1}]


async def test_a_client_that_stops_is_gone_and_nobody_elsewhere_can_say_so(
    tracker: Tracker,
) -> None:
    await tracker.get(f"/announce?{query(port=1)}", "203.0.113.1")
    await tracker.get(f"/announce?{query(port=1, event='stopped')}", "203.0.113.2")
    assert len((await tracker.get(f"/announce?{query()}"))[b"peers"]) == 6
    tracker.clock.advance(10)
    await tracker.get(f"/announce?{query(port=1, event='stopped')}", "203.0.113.1")
    assert (await tracker.get(f"/announce?{query()}"))[b"peers"] == b""


async def test_neither_side_is_told_of_the_other() -> None:
    tracker, one = Tracker(), Speaker(1)
    assert (
        b"start a peer"
        in (await tracker.get(f"/announce?{query(bytes.fromhex(SESSION))}"))[b"failure reason"]
    )
    await tracker.post(one, "203.0.113.1")
    await tracker.get(f"/announce?{query(bytes.fromhex(SESSION))}", "203.0.113.2")
    heard = await tracker.get(f"/announce?{query(bytes.fromhex(SESSION), port=2)}", "203.0.113.3")
    assert heard[b"peers"] == bytes([203, 0, 113, 2]) + (6_881).to_bytes(2)
    answer = await tracker.post(Speaker(2), "203.0.113.4")
    assert ([peer.id for peer in answer.peers], answer.alive) == ([one.id], 2)


async def test_a_loopback_client_is_told_to_this_machine_alone(tracker: Tracker) -> None:
    await tracker.get(f"/announce?{query(port=1)}", "127.0.0.1")
    await tracker.get(f"/announce?{query(port=2)}", "10.0.0.1")
    assert (await tracker.get(f"/announce?{query(port=3)}"))[b"peers"] == b""
    local = await tracker.get(f"/announce?{query(port=4)}", "127.0.0.1")
    assert bytes([127, 0, 0, 1, 0, 1]) in local[b"peers"]


async def test_a_private_session_is_for_its_peers() -> None:
    tracker = Tracker()
    speaker = Speaker(1, session=FILE.id)
    transport = httpx.ASGITransport(tracker.app, client=(ME, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
        await client.post("/session", content=FILE.info)
        said = messages.encode(invited(speaker, author=AUTHOR), speaker.key)
        assert (await client.post("/announce", content=said)).status_code == 200
    refused = await tracker.get(f"/announce?{query(FILE_ID)}")
    assert b"private" in refused[b"failure reason"]
    assert refused[b"retry in"] == b"never"
    assert await tracker.get(f"/scrape?info_hash={quote_from_bytes(FILE_ID[:20])}") == {
        b"files": {}
    }


async def test_one_address_has_only_so_many_places(tracker: Tracker) -> None:
    for port in range(1, LIMITS.max_peers_per_address + 1):
        assert b"warning message" not in await tracker.get(f"/announce?{query(port=port)}")
    full = await tracker.get(f"/announce?{query(port=9_999)}")
    assert b"share your address" in full[b"warning message"]
    assert (await tracker.get(f"/announce?{query()}", "203.0.113.9"))[b"incomplete"] == 33


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (query().replace("info_hash=", "info_hash=a"), "info_hash: got '21 bytes'"),
        (query() + "&info_hash=" + "a" * 20, "info_hash: got '2'"),
        (query().replace("peer_id", "peer"), "peer_id"),
        (query(port=0), "port: got"),
        (query(port=65_536), "port: got"),
        (query(port="1_0"), "port: got"),
        (query(left=-1), "left: got"),
        (query(left=1 << 64), "left: got"),
        (query(event="gone"), "event: got"),
        (query(numwant=-2), "numwant: got"),
        (query() + "&x=%zz", "escapes"),
        (query() + "&" + "x" * 33 + "=1", "NAME=VALUE"),
        (query() + "&a=1" * 100, "fields"),
        (query() + "&a=" + "1" * 5_000, "bytes"),
    ],
)
async def test_what_is_wrong_is_said_in_its_own_language(
    tracker: Tracker, wrong: str, words: str
) -> None:
    refused = await tracker.get(f"/announce?{wrong}")
    assert words in refused[b"failure reason"].decode()
    assert refused[b"retry in"] == b"never"


async def test_whoever_asks_too_often_is_told_when_to_come_back(tracker: Tracker) -> None:
    answers = [await tracker.get(f"/announce?{query()}") for _ in range(LIMITS.burst + 1)]
    assert b"too many requests" in answers[-1][b"failure reason"]
    assert answers[-1][b"retry in"] == 1


def test_more_than_there_are_is_not_given() -> None:
    assert bittorrent.parse(query(numwant=10_000).encode()).numwant == MAX_NUMWANT
    assert bittorrent.parse(query(numwant=-1).encode()).numwant == bittorrent.DEFAULT_NUMWANT


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda some: query().encode() + some))
def test_any_query_is_read_or_refused_in_words(some: bytes) -> None:
    for read in (bittorrent.parse, bittorrent.asked_for):
        with contextlib.suppress(AnnounceError):
            read(some)
