"""The HTTP interface without a socket: every answer, every refusal, and what OpenAPI says of it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec
import pytest
from support.announces import NOW_S, SESSION, Clock, Speaker
from support.private_sessions import AUTHOR, FILE, invited

from p2pl.protocol import announce as messages
from p2pl.protocol.announce import MAX_ANNOUNCE_BYTES, Counts, Refusal
from p2pl.protocol.invitation import encode, revoke
from p2pl.protocol.session import MAX_INFO_BYTES
from p2pl_tracker.address import SITE_SHARE, networks
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.swarm import Entry, Limits, MemoryStore, Store, Totals, Welcome

pytestmark = pytest.mark.anyio


class Tracker:
    """The application, its clock, and a client that seems to come from anywhere."""

    def __init__(self, policy: Policy | None = None, store: Store | None = None) -> None:
        self.clock = Clock()
        self.app = create_app(
            policy, store=store, now=self.clock, wall=self.clock, rng=random.Random(1)
        )

    def client(self, host: str = "203.0.113.5", at: str = "tracker") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=(host, 40_000), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{at}")

    async def post(
        self, body: bytes, host: str = "203.0.113.5", at: str = "tracker"
    ) -> httpx.Response:
        async with self.client(host, at) as client:
            return await client.post("/announce", content=body)

    async def get(self, path: str) -> httpx.Response:
        async with self.client() as client:
            return await client.get(path)


class BrokenStore(MemoryStore):
    """A store whose server has gone away."""

    async def enter(self, entry: Entry) -> Welcome:
        raise ZeroDivisionError("password=hunter2")

    async def scrape(self, session: bytes) -> Counts:
        raise ZeroDivisionError("password=hunter2")

    async def ready(self) -> bool:
        return False


def refusal(response: httpx.Response, status: int) -> Refusal:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return messages.decode_refusal(response.content)


async def test_announcing_answers_with_peers_and_terms() -> None:
    tracker = Tracker()
    one, two = Speaker(1), Speaker(2)
    await tracker.post(one.body("started"))
    response = await tracker.post(two.body("started"), "2001:db8::5")
    answer = messages.decode_answer(response.content)
    assert response.status_code == 200
    assert [(peer.id, peer.host, peer.port) for peer in answer.peers] == [
        (one.id, "203.0.113.5", one.port)
    ]
    assert (answer.alive, answer.training, answer.min_interval_s) == (2, 2, 0.5)
    assert 54 <= answer.interval_s <= 66
    assert answer.external_host == "2001:db8::5"


@pytest.mark.parametrize(
    ("beside", "asker", "at", "seen"),
    [
        ("127.0.0.1", "10.7.0.2", "10.7.0.1", "10.7.0.1"),
        ("::1", "10.7.0.2", "10.7.0.1", "10.7.0.1"),
        ("127.0.0.1", "2001:db8::2", "[2001:db8::1]", "2001:db8::1"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"),  # all on one machine
        ("10.7.0.3", "10.7.0.2", "10.7.0.1", "10.7.0.3"),
        ("127.0.0.1", "10.7.0.2", "tracker", "127.0.0.1"),
    ],
)
async def test_a_peer_beside_the_tracker_is_where_the_tracker_is(
    beside: str, asker: str, at: str, seen: str
) -> None:
    tracker = Tracker()
    await tracker.post(Speaker(1).body("started"), beside)
    response = await tracker.post(Speaker(2).body("started"), asker, at)
    (row,) = response.json()["peers"]
    assert row[1:3] == [seen, Speaker(1).port]


async def test_the_interval_is_jittered_and_the_epoch_is_not() -> None:
    tracker = Tracker(Policy(limits=Limits(min_interval_s=0)))
    one = Speaker(1)
    answers = [messages.decode_answer((await tracker.post(one.body())).content) for _ in range(30)]
    assert len({answer.interval_s for answer in answers}) > 5
    assert len({answer.epoch for answer in answers}) == 1
    other = messages.decode_answer((await Tracker().post(one.body())).content)
    assert other.epoch != answers[0].epoch


async def test_an_update_is_answered_in_few_bytes() -> None:
    tracker = Tracker()
    for number in range(5):
        await tracker.post(Speaker(number).body("started"))
    body = Speaker(9).body("update", numwant=4)
    response = await tracker.post(body)
    assert len(messages.decode_answer(response.content).peers) == 4
    assert set(response.headers) == {"content-type", "content-length"}
    assert len(body) + len(response.content) < 950


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\x00\xff", 400),
        (Speaker(1).body() + b"\n", 400),
        (Speaker(1).body().replace(b'"numwant":10', b'"numwant":11'), 401),
        (Speaker(1, time_s=NOW_S - 301).body(), 403),
        (b"x" * (MAX_ANNOUNCE_BYTES + 1), 413),
        (b"{}", 422),
        (Speaker(1).body().replace(b'"port":10001', b'"port":99999'), 422),
    ],
)
async def test_a_bad_announce_is_refused_and_stores_nothing(body: bytes, status: int) -> None:
    tracker = Tracker()
    assert refusal(await tracker.post(body), status).retry_in_s is None
    assert (await tracker.get("/stats.json")).json()["peers"] == 0


async def test_a_skewed_clock_is_named() -> None:
    response = await Tracker().post(Speaker(1, time_s=NOW_S + 400).body())
    assert "400 s ahead of the tracker's clock" in refusal(response, 403).reason
    assert parsedate_to_datetime(response.headers["date"]).timestamp() == NOW_S


async def test_a_replay_is_refused() -> None:
    tracker = Tracker()
    body = Speaker(1).body()
    assert (await tracker.post(body)).status_code == 200
    assert "sequence" in refusal(await tracker.post(body, "198.51.100.66"), 409).reason


async def test_a_flood_from_one_peer_is_told_when_to_come_back() -> None:
    tracker = Tracker(Policy(limits=Limits(min_interval_s=1.0, burst=5)))
    one = Speaker(1)
    statuses = [(await tracker.post(one.body())).status_code for _ in range(6)]
    assert statuses == [200] * 5 + [429]
    response = await tracker.post(one.body())
    assert refusal(response, 429).retry_in_s == 1.0
    assert response.headers["retry-after"] == "2"
    assert (await tracker.post(one.body("stopped"))).status_code == 200


async def test_a_flood_from_one_address_is_refused_but_leaving_is_not() -> None:
    tracker = Tracker(Policy(address_rate=10.0, address_burst=2))
    peers = [Speaker(number) for number in range(3)]
    statuses = [(await tracker.post(peer.body())).status_code for peer in peers]
    assert statuses == [200, 200, 429]
    assert (await tracker.post(peers[2].body(), "198.51.100.1")).status_code == 200
    assert (await tracker.post(peers[0].body("stopped"))).status_code == 200


async def test_a_flood_of_departures_is_refused_before_a_signature_is_checked() -> None:
    tracker = Tracker(Policy(address_rate=10.0, address_burst=5))
    peer = Speaker(1)
    statuses = [(await tracker.post(peer.body("stopped"))).status_code for _ in range(500)]
    assert statuses == [200] * 5 + [429] * 495
    forged = peer.body("stopped").replace(b'"numwant":10', b'"numwant":11')
    assert refusal(await tracker.post(forged), 429).retry_in_s == 0.1
    assert (await tracker.post(peer.body("started"))).status_code == 200  # another allowance
    assert (await tracker.post(peer.body("stopped"), "198.51.100.1")).status_code == 200


async def test_all_peers_behind_one_address_may_leave_at_once() -> None:
    tracker = Tracker(Policy(address_rate=1.0, address_burst=30))
    peers = [Speaker(number) for number in range(30)]
    for event in ("started", "stopped"):
        for peer in peers:
            assert (await tracker.post(peer.body(event))).status_code == 200
    assert (await tracker.get("/health")).status_code == 200
    assert Policy().address_burst >= Policy().limits.max_peers_per_address


@pytest.mark.parametrize("body", [b"{}", b"not JSON", Speaker(1).body() + b" "])
async def test_nonsense_counts_as_an_announce_does(body: bytes) -> None:
    tracker = Tracker(Policy(address_rate=10.0, address_burst=2))
    statuses = [(await tracker.post(body)).status_code for _ in range(3)]
    assert statuses[:2] == [statuses[0]] * 2 in ([400] * 2, [422] * 2)
    assert statuses[2] == 429
    assert (await tracker.post(Speaker(1).body())).status_code == 429
    assert (await tracker.post(Speaker(1).body(), "198.51.100.1")).status_code == 200


async def test_a_wrong_signature_counts_as_an_announce_does() -> None:
    tracker = Tracker(Policy(address_rate=10.0, address_burst=2))
    forged = Speaker(1).body().replace(b'"numwant":10', b'"numwant":11')
    assert [(await tracker.post(forged)).status_code for _ in range(3)] == [401, 401, 429]


@pytest.mark.parametrize(
    "path",
    [f"/scrape?session={SESSION}", "/scrape", "/metrics", "/stats.json", "/openapi.json", "/nope"],
)
async def test_whatever_one_asks_for_counts_as_an_announce_does(path: str) -> None:
    tracker = Tracker(Policy(address_rate=10.0, address_burst=2))
    statuses = [(await tracker.get(path)).status_code for _ in range(3)]
    assert statuses[0] == statuses[1] != 429
    assert refusal(await tracker.get(path), 429).retry_in_s == 0.1
    assert (await tracker.post(Speaker(1).body())).status_code == 429
    tracker.clock.advance(0.1)
    assert (await tracker.get(path)).status_code == statuses[0]


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_the_checks_of_an_operator_are_answered_at_any_rate(path: str) -> None:
    tracker = Tracker(Policy(address_rate=10.0, address_burst=1))
    assert {(await tracker.get(path)).status_code for _ in range(10)} == {200}


async def test_the_addresses_of_an_ipv6_site_share_an_allowance_as_well() -> None:
    tracker = Tracker(Policy(address_rate=1.0, address_burst=2))
    peers = [Speaker(number) for number in range(2 * SITE_SHARE + 1)]
    statuses = [
        (await tracker.post(peer.body(), f"2001:db8:1:{peer.number:x}::1")).status_code
        for peer in peers
    ]
    assert statuses == [200] * 2 * SITE_SHARE + [429]
    assert (await tracker.post(peers[-1].body(), "2001:db8:2::1")).status_code == 200


async def test_a_full_tracker_says_so_and_still_answers() -> None:
    tracker = Tracker(Policy(limits=Limits(max_peers=1)))
    await tracker.post(Speaker(1).body())
    answer = messages.decode_answer((await tracker.post(Speaker(2).body())).content)
    assert (len(answer.peers), answer.alive) == (1, 1)
    assert answer.warning == "not added: the tracker is full (1 peers)"


async def test_the_forwarded_address_counts_behind_our_proxy_only() -> None:
    tracker = Tracker(Policy(trusted_proxies=networks(["10.0.0.0/8"])))
    for host, expected in (("10.0.0.1", "192.0.2.8"), ("203.0.113.5", "203.0.113.5")):
        async with tracker.client(host) as client:
            response = await client.post(
                "/announce",
                content=Speaker(int(host[:2])).body("started"),
                headers=[("x-forwarded-for", "198.51.100.66"), ("x-forwarded-for", "192.0.2.8")],
            )
        assert messages.decode_answer(response.content).external_host == expected


async def test_scraping_counts_each_session() -> None:
    tracker = Tracker()
    one = Speaker(1)
    await tracker.post(one.body("started"))
    await tracker.post(one.body("completed"))
    other = "0" * 64
    response = await tracker.get(f"/scrape?session={SESSION}&session={other}")
    assert response.json() == {
        "sessions": {
            SESSION: {"alive": 1, "completed": 1},
            other: {"alive": 0, "completed": 0},
        }
    }


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?session=",
        "?session=xyz",
        f"?session={SESSION.upper()}",
        f"?sessions={SESSION}",
        "?" + "&".join([f"session={SESSION}"] * 65),
    ],
)
async def test_a_scrape_of_nothing_everything_or_nonsense_is_refused(query: str) -> None:
    refusal(await Tracker().get("/scrape" + query), 400)


async def test_health_and_readiness() -> None:
    tracker = Tracker()
    assert (await tracker.get("/health")).json() == {"status": "ok"}
    assert (await tracker.get("/ready")).json() == {"status": "ready"}
    broken = Tracker(store=BrokenStore(Limits()))
    assert (await broken.get("/health")).status_code == 200
    assert refusal(await broken.get("/ready"), 503).retry_in_s == 5.0


@pytest.mark.parametrize("path", ["/announce", f"/scrape?session={SESSION}"])
async def test_a_fault_of_ours_says_nothing_of_our_internals(path: str) -> None:
    tracker = Tracker(store=BrokenStore(Limits()))
    if path == "/announce":
        response = await tracker.post(Speaker(1).body())
    else:
        response = await tracker.get(path)
    assert refusal(response, 500).reason == "internal error of the tracker"


async def test_metrics_count_without_naming_anybody() -> None:
    tracker = Tracker()
    one = Speaker(1)
    await tracker.post(one.body("started"))
    await tracker.post(b"{}")
    response = await tracker.get("/metrics")
    assert response.status_code == 200
    assert 'p2pl_tracker_announces_total{event="started"} 1.0' in response.text
    assert 'p2pl_tracker_refusals_total{status="422"} 1.0' in response.text
    assert "p2pl_tracker_peers 1.0" in response.text
    assert "p2pl_tracker_announce_seconds_count 1.0" in response.text
    assert SESSION not in response.text
    assert one.id not in response.text


async def test_stats_are_small_and_complete() -> None:
    tracker = Tracker()
    await tracker.post(Speaker(1).body())
    tracker.clock.advance(2)
    stats = (await tracker.get("/stats.json")).json()
    assert stats | {"epoch": "", "version": ""} == {
        "version": "",
        "epoch": "",
        "uptime_s": 2.0,
        "sessions": 1,
        "peers": 1,
        "announces": 1,
        "refusals": 0,
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/announce", 405),
        ("PUT", "/announce", 405),
        ("GET", "/health/", 404),
        ("POST", "/scrape", 405),
        ("POST", "/announce/", 404),
    ],
)
async def test_what_there_is_not_is_refused_as_json(method: str, path: str, status: int) -> None:
    async with Tracker().client() as client:
        response = await client.request(method, path)
    refusal(response, status)
    assert (status == 405) == ("allow" in response.headers)


@pytest.mark.parametrize("length", [str(MAX_ANNOUNCE_BYTES + 1), "9" * 5_000, "-1", "1e3", ""])
async def test_a_declared_length_is_checked_before_anything_is_read(length: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with Tracker().client() as client:
        response = await client.post(
            "/announce", content=body(), headers={"content-length": length}
        )
    refusal(response, 413)
    assert response.headers["connection"] == "close"


async def test_a_body_without_a_length_is_read_no_further_than_the_limit() -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 100

    async with Tracker().client() as client:
        refusal(await client.post("/announce", content=body()), 413)
    assert sent == MAX_ANNOUNCE_BYTES // 100 + 1


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": Speaker(1).body(), "more_body": False},
    ],
)
async def test_a_connection_that_is_gone_already_costs_nothing(message: dict[str, Any]) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return message

    async def send(message: Any) -> None:  # noqa: ANN401 (an ASGI message)
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/announce", "headers": []}
    await Tracker().app({**scope, "client": None}, receive, send)
    assert sent[0]["status"] == 400


async def test_silent_peers_are_removed_while_nobody_announces() -> None:
    expired = asyncio.Event()

    class Watched(MemoryStore):
        async def expire(self) -> bool:
            more = await super().expire()
            if await self.totals() == Totals(sessions=0, peers=0):
                expired.set()
            return more

    clock = Clock()
    store = Watched(replace(Limits(), ttl_s=10.0), now=clock)
    for number in range(300):
        await store.announce(Speaker(number).says(), "10.0.0.1")
    clock.advance(11)
    app = create_app(store=store)
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(expired.wait(), 5)


async def test_openapi_describes_every_route_and_every_refusal() -> None:
    document = (await Tracker().get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/checkpoint",
        "/announce",
        "/reach",
        "/scrape",
        "/health",
        "/ready",
        "/metrics",
        "/stats.json",
        "/session",
        "/proof",
        "/revocations",
    }
    announce = document["paths"]["/announce"]["post"]
    assert set(announce["responses"]) == {
        "200", "400", "401", "403", "409", "413", "422", "428", "429", "500",
    }  # fmt: skip
    schemas = document["components"]["schemas"]
    for reference in set(_references(document)):
        assert reference.removeprefix("#/components/schemas/") in schemas
    body = json.loads(Speaker(1).body())
    assert list(body) == list(schemas["SignedAnnounce"]["required"])
    assert schemas["SignedAnnounce"]["properties"]["port"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 65_535,
    }


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return here + [name for value in node.values() for name in _references(value)]
    if isinstance(node, list):
        return [name for value in node for name in _references(value)]
    return []


async def test_a_private_session_by_http_from_its_hash_to_its_revocations() -> None:
    tracker = Tracker()
    speaker = Speaker(1, session=FILE.id)
    said = invited(speaker)
    body = messages.encode(said, speaker.key)
    assert "POST the info" in refusal(await tracker.post(body), 428).reason
    listed = revoke(AUTHOR.private_key, session_id=FILE.id, number=3, peer_ids=["ab" * 32])
    async with tracker.client() as client:
        assert (await client.post("/session", content=FILE.info)).status_code == 200
        assert (await tracker.post(body)).status_code == 200
        asked = {"session": FILE.id, "curve_key": said.curve_key}
        found = await client.get("/proof", params=asked)
        assert msgspec.msgpack.decode(found.content) == [said.proof]
        assert (await client.get("/revocations", params=asked)).status_code == 404
        assert (await client.post("/revocations", content=encode(listed))).status_code == 200
        assert (await client.get("/revocations", params=asked)).content == encode(listed)
        answer = messages.decode_answer(
            (await tracker.post(messages.encode(invited(speaker), speaker.key))).content
        )
        assert answer.revocations == 3
        for path, content, status in (
            ("/session", bytes(MAX_INFO_BYTES + 1), 413),
            ("/session", b"d1:ai1ee", 400),
            ("/revocations", b"rubbish", 400),
        ):
            refusal(await client.post(path, content=content), status)
        refusal(await client.get("/proof", params={"session": "x"}), 400)
        refusal(await client.get("/proof", params={"session": FILE.id, "curve_key": "x"}), 404)
