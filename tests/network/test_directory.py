"""The tracker client against trackers that answer, refuse, lie, hang and come back."""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

import pytest
from support.announces import SESSION, Clock, Speaker
from support.processes import Swarm

from p2pl.errors import RunDirError, TrackerError
from p2pl.network import directory as module
from p2pl.network.directory import Announcer, TrackerDirectory, _from_here
from p2pl.network.keys import Identity
from p2pl.network.known import MAX_KNOWN
from p2pl.protocol import announce as messages
from p2pl.protocol import reach
from p2pl.protocol.address import Reach
from p2pl.protocol.announce import (
    MAX_ANSWER_BYTES,
    MAX_NUMWANT,
    MAX_SKEW_S,
    Answer,
    PeerAddress,
    Refusal,
    SignedAnnounce,
    Terms,
)
from p2pl.protocol.endpoint import Endpoint

pytestmark = pytest.mark.anyio

ME = Identity.generate()
CURVE_KEY = "c" * 40
ANNOUNCER = Announcer(session_id=SESSION, identity=ME, curve_key=CURVE_KEY, port=9_000)
Reply = Callable[[SignedAnnounce], bytes]


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer(epoch: str = "one", *peers: Speaker, **terms: Any) -> bytes:  # noqa: ANN401
    rows = [messages.encode_row(peer.says(), "10.0.0.1") for peer in peers]
    said = {"interval_s": 60, "min_interval_s": 0.0, "alive": len(peers) + 1, **terms}
    terms_said = Terms(epoch=epoch, **said)
    return http("200 OK", messages.encode_answer(terms_said, rows))


def refuse(status: str, retry_in_s: float | None = None, *headers: str) -> bytes:
    refusal = Refusal(reason="because", retry_in_s=retry_in_s)
    return http(status, messages.encode_other(refusal), *headers)


class FakeTracker:
    """Answers announces as the test says, and remembers what it heard and how many bytes."""

    def __init__(self, reply: bytes = b"") -> None:
        self.reply = reply or answer()
        self.heard: list[SignedAnnounce] = []
        self.paths: list[str] = []
        self.reach = b""  # what it replies to those who ask whether they can be dialled
        self.asked: list[int] = []  # at which port
        self.heads: list[bytes] = []
        self.bytes_in = 0
        self.bytes_out = 0
        self.hangs = False
        self.newest = -1  # the highest sequence number that was said before
        self.port = 0
        self.time_s: float | None = None  # of its clock, where it looks at that of others

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[str]:
        return [announce.event for announce in self.heard]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields[b"Content-Length"]))
                self.bytes_in += len(head) + len(body)
                self.heads.append(head)
                self.paths.append(head.split(b" ")[1].decode())
                if self.paths[-1] == "/reach":
                    question = reach.decode(body)
                    question.check_signature()
                    assert question.public_key == ME.public_key
                    self.asked.append(question.port)
                    writer.write(self.reach)
                    self.bytes_out += len(self.reach)
                    continue
                announce = messages.decode(body)
                announce.check_signature()
                self.heard.append(announce)
                if self.hangs:
                    await reader.read()
                    break
                old = announce.sequence <= self.newest
                reply = refuse("409 Conflict") if old else self.reply
                if self.time_s is not None and abs(announce.time_s - self.time_s) > MAX_SKEW_S:
                    date = f"date: {formatdate(self.time_s, usegmt=True)}"
                    reply = refuse("403 Forbidden", None, date)
                writer.write(reply)
                self.bytes_out += len(reply)
                await writer.drain()
        writer.close()

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *fault: object) -> None:
        self.server.close()


def directory(*tiers: list[str], clock: Clock | None = None, **options: Any) -> TrackerDirectory:  # noqa: ANN401
    clock = clock or Clock()
    return TrackerDirectory(
        tiers, ANNOUNCER, now=clock, wall=clock, rng=random.Random(1), **options
    )


@pytest.fixture
async def tracker() -> AsyncIterator[FakeTracker]:
    async with FakeTracker() as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[FakeTracker]:
    async with FakeTracker() as running:
        yield running


async def test_an_announce_says_who_and_where_and_the_answer_names_peers(
    tracker: FakeTracker,
) -> None:
    tracker.reply = answer("one", Speaker(1), Speaker(2))
    async with directory([tracker.url]) as peer:
        heard = await peer.announce("update", numwant=4)
    assert [found.port for found in heard.peers] == [10_001, 10_002]
    assert [found.id for found in peer.known.addresses()] == [Speaker(1).id, Speaker(2).id]
    (said,) = tracker.heard
    assert (said.session_id, said.peer_id, said.port) == (SESSION, ME.peer_id, 9_000)
    assert (said.curve_key, said.numwant) == (CURVE_KEY, 4)


async def test_no_more_peers_are_asked_for_than_an_announce_can_say(tracker: FakeTracker) -> None:
    async with directory([tracker.url]) as peer:
        await peer.announce(numwant=MAX_NUMWANT + 1)
    assert tracker.heard[0].numwant == MAX_NUMWANT


async def test_the_first_announce_is_started_and_the_next_are_updates(tracker: FakeTracker) -> None:
    async with directory([tracker.url]) as peer:
        for event in ("update", "update", "completed", "update"):
            await peer.announce(event, numwant=0)
        await peer.leave()
    assert tracker.events == ["started", "update", "completed", "update", "stopped"]
    sequences = [announce.sequence for announce in tracker.heard]
    assert sequences == sorted(set(sequences))


async def test_a_tracker_that_was_restarted_hears_started_again(tracker: FakeTracker) -> None:
    async with directory([tracker.url]) as peer:
        await peer.announce(numwant=0)
        tracker.reply = answer("two")
        for _ in range(3):
            await peer.announce(numwant=0)
    assert tracker.events == ["started", "update", "started", "update"]


async def test_a_tracker_that_does_not_know_us_hears_started_again(tracker: FakeTracker) -> None:
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        await peer.announce(numwant=0)
        tracker.reply = refuse("404 Not Found")
        with pytest.raises(TrackerError, match="404: because"):
            await peer.announce(numwant=0)
        tracker.reply = answer()
        clock.advance(2)
        await peer.announce(numwant=0)
    assert tracker.events == ["started", "update", "started"]


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/announce"),
        ("/", "/announce"),
        ("/announce", "/announce"),
        ("/t/x", "/t/x/announce"),
        ("/t/announce/", "/t/announce"),
    ],
)
async def test_a_tracker_is_named_by_its_base_or_its_announce_url(
    tracker: FakeTracker, suffix: str, path: str
) -> None:
    async with directory([tracker.url + suffix]) as peer:
        await peer.announce(numwant=0)
    assert tracker.paths == [path]


async def test_bytes_are_counted_exactly_and_are_few(tracker: FakeTracker) -> None:
    tracker.reply = answer("one", *map(Speaker, range(4)))
    async with directory([tracker.url]) as peer:
        for _ in range(3):
            await peer.announce(numwant=4)
    assert (peer.bytes_out, peer.bytes_in) == (tracker.bytes_in, tracker.bytes_out)
    assert (peer.bytes_out + peer.bytes_in) / 3 < 1_050
    names = [line.split(b":")[0].lower() for line in tracker.heads[0].split(b"\r\n")[1:-2]]
    assert sorted(names) == [b"content-length", b"host", b"user-agent"]


async def test_a_tier_is_tried_to_its_end_before_the_next(
    tracker: FakeTracker, other: FakeTracker
) -> None:
    broken = FakeTracker(refuse("503 Service Unavailable"))
    async with broken, directory([broken.url, tracker.url], [other.url]) as peer:
        for _ in range(5):
            await peer.announce(numwant=0)
    assert (len(tracker.heard), len(other.heard)) == (5, 0)
    assert len(broken.heard) <= 1


async def test_the_next_tier_serves_while_the_first_is_gone_and_no_longer(
    tracker: FakeTracker, other: FakeTracker
) -> None:
    clock = Clock()
    async with directory([tracker.url], [other.url], clock=clock) as peer:
        tracker.reply = refuse("503 Service Unavailable")
        await peer.announce(numwant=0)
        await peer.announce(numwant=0)
        tracker.reply = answer()
        clock.advance(2)
        await peer.announce(numwant=0)
    assert (tracker.events, other.events) == (["started", "started"], ["started", "update"])


async def test_within_a_tier_the_order_is_shuffled_and_success_moves_to_the_front(
    tracker: FakeTracker, other: FakeTracker
) -> None:
    first: list[str] = []
    for seed in range(20):
        tracker.heard.clear()
        clock = Clock()
        urls = [[tracker.url, other.url]]
        async with TrackerDirectory(
            urls, ANNOUNCER, now=clock, wall=clock, rng=random.Random(seed)
        ) as peer:
            await peer.announce(numwant=0)
        first.append("one" if tracker.heard else "other")
    assert 4 <= first.count("one") <= 16
    clock = Clock()
    async with directory([tracker.url, other.url], clock=clock) as peer:
        tracker.reply = refuse("500 Internal Server Error")
        await peer.announce(numwant=0)
        tracker.reply = answer()
        clock.advance(100)
        before = len(tracker.heard), len(other.heard)
        await peer.announce(numwant=0)
    assert (len(tracker.heard), len(other.heard)) == (before[0], before[1] + 1)


async def test_a_dead_tracker_costs_nothing_until_its_rest_is_over() -> None:
    clock = Clock()
    broken = FakeTracker(refuse("500 Internal Server Error"))
    async with broken, directory([broken.url], clock=clock) as peer:
        tried: list[float] = []
        for tenth in range(6_000):
            clock.now_s = 1_700_000_000 + tenth / 10
            before = len(broken.heard)
            with pytest.raises(TrackerError, match="500: because"):
                await peer.announce(numwant=0)
            if len(broken.heard) > before:
                tried.append(tenth / 10)
    gaps = [late - early for early, late in itertools.pairwise(tried)]
    assert 0.5 <= gaps[0] <= 1.1
    assert gaps[0] < gaps[2] < gaps[4]
    assert max(gaps) <= 60.1
    assert min(gaps[-3:]) >= 30.0


async def test_nobody_listening_is_a_tracker_error_that_names_the_url() -> None:
    async with FakeTracker() as gone:
        pass
    async with directory([gone.url]) as peer:
        with pytest.raises(TrackerError, match=f"{gone.url}/announce .*ConnectError") as caught:
            await peer.announce(numwant=0)
        assert caught.value.exit_code == 3
        assert (peer.bytes_out, peer.bytes_in) == (0, 0)


async def test_a_session_without_trackers_says_so() -> None:
    async with directory() as peer:
        with pytest.raises(TrackerError, match="names none"):
            await peer.announce(numwant=0)
        await peer.leave()


async def test_a_flooded_tracker_is_left_alone_as_long_as_it_asks(tracker: FakeTracker) -> None:
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        for reply in (
            refuse("429 Too Many Requests", 30.0),
            refuse("429 Too Many Requests", None, "retry-after: 30"),
            http("503 Service Unavailable", b"<html>", "retry-after: 30"),
        ):
            tracker.reply = reply
            before = len(tracker.heard)
            for _ in range(2):
                with pytest.raises(TrackerError):
                    await peer.announce(numwant=0)
            clock.advance(29.9)
            with pytest.raises(TrackerError):
                await peer.announce(numwant=0)
            assert len(tracker.heard) == before + 1
            clock.advance(0.2)
        tracker.reply = answer()
        await peer.announce(numwant=0)


@pytest.mark.parametrize("retry_after", ["soon", "nan", "inf", "-5", "Wed, 21 Oct 2015 07:28:00"])
async def test_a_retry_after_that_is_no_number_is_not_believed(
    tracker: FakeTracker, retry_after: str
) -> None:
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        tracker.reply = http("503 Service Unavailable", b"", f"retry-after: {retry_after}")
        with pytest.raises(TrackerError, match="503: Service Unavailable"):
            await peer.announce(numwant=0)
        tracker.reply = answer()
        clock.advance(1.0)
        await peer.announce(numwant=0)


async def test_a_tracker_cannot_send_us_away_for_ever(tracker: FakeTracker) -> None:
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        tracker.reply = refuse("429 Too Many Requests", 86_400.0)
        with pytest.raises(TrackerError):
            await peer.announce(numwant=0)
        tracker.reply = answer()
        clock.advance(3_600)
        await peer.announce(numwant=0)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (http("200 OK", b"{}"), "answer: "),
        (http("200 OK", b"\xff\xfe"), "answer: "),
        (answer("one", Speaker(1)).replace(b'"peers":[', b'"peers":[nobody,'), "answer: "),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "RemoteProtocolError"),
        (http("302 Found", b"", "location: http://127.0.0.1:1/"), "sends elsewhere"),
        (http("401 Unauthorized", b"nope"), "401: Unauthorized"),
        (http("200 OK", b"x" * (MAX_ANSWER_BYTES + 1)), "answer: got 'more bytes'"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4_096
         + (b"\r\n1000\r\n" + b"x" * 4_096) * 180, "answer: got 'more bytes'"),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none_is_a_failure_of_that_tracker(
    tracker: FakeTracker, other: FakeTracker, reply: bytes, reason: str
) -> None:
    tracker.reply = reply
    async with directory([tracker.url]) as peer:
        with pytest.raises(TrackerError, match=reason):
            await peer.announce(numwant=0)
    async with directory([tracker.url], [other.url]) as peer:
        await peer.announce(numwant=0)
    assert other.events == ["started"]


async def test_a_tracker_that_hangs_costs_one_deadline(
    tracker: FakeTracker, other: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.hangs = True
    async with directory([tracker.url], [other.url]) as peer:
        monkeypatch.setattr(module, "TRACKER_DEADLINE_S", 0.2)
        first = asyncio.create_task(peer.announce(numwant=0))
        await asyncio.sleep(0)  # it has begun with the one that hangs…
        monkeypatch.undo()  # …and the other may be slow
        await asyncio.wait_for(first, 30)
        for _ in range(2):
            await peer.announce(numwant=0)
    assert len(tracker.heard) <= 1  # none where this machine stood still until the deadline
    assert len(other.heard) == 3


async def test_all_hanging_trackers_together_cost_one_deadline(
    tracker: FakeTracker, other: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANNOUNCE_DEADLINE_S", 0.3)
    tracker.hangs = other.hangs = True
    async with directory([tracker.url], [other.url]) as peer:
        with pytest.raises(TrackerError, match=r"no answer in time.*not tried yet"):
            await asyncio.wait_for(peer.announce(numwant=0), 30)
    assert len(tracker.heard) <= 1  # none where this machine stood still until the deadline
    assert not other.heard


async def test_leaving_tells_every_tracker_that_has_us_and_never_fails(
    tracker: FakeTracker, other: FakeTracker
) -> None:
    third = FakeTracker()
    async with third, directory([tracker.url], [other.url], [third.url]) as peer:
        await peer.announce(numwant=0)
        tracker.reply = refuse("500 Internal Server Error")
        await peer.announce(numwant=0)
        await peer.leave()
        await peer.leave()
    assert tracker.events == ["started", "update", "stopped", "stopped"]
    assert other.events == ["started", "stopped"]
    assert third.events == []


async def test_what_is_remembered_outlives_the_process(tracker: FakeTracker) -> None:
    tracker.reply = answer("one", Speaker(1), Speaker(2))
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        await peer.announce(numwant=2)
        saved = json.loads(json.dumps(peer.state()))
    clock.advance(-3_600)
    async with directory([tracker.url], clock=clock, state=saved) as again:
        assert [found.port for found in again.known.addresses()] == [10_001, 10_002]
        await again.announce(numwant=0)
    assert tracker.heard[1].sequence == tracker.heard[0].sequence + 1


async def test_without_a_state_the_clock_moves_the_sequence_on(tracker: FakeTracker) -> None:
    clock = Clock()
    for _ in range(2):
        async with directory([tracker.url], clock=clock) as peer:
            await peer.announce(numwant=0)
        clock.advance(0.001)
    assert tracker.heard[0].sequence == 1_700_000_000_000
    assert tracker.heard[1].sequence > tracker.heard[0].sequence


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"sequence": -1, "known": []},
        {"sequence": 0, "known": [1]},
        {"sequence": 0, "known": [], "more": 1},
        {
            "sequence": 0,
            "known": [{"id": "0" * 64, "host": "10.0.0.1", "port": 1, "curve_key": CURVE_KEY}]
            * (MAX_KNOWN + 1),
        },
    ],
)
async def test_a_damaged_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(RunDirError, match="saved tracker state"):
        directory(["http://127.0.0.1:1"], state=state)


@pytest.mark.parametrize(
    "poison",
    [
        {},
        {"id": "0" * 64, "host": "10.0.0.1", "port": 1, "curve_key": "#" * 40},
        {"id": "0" * 64, "host": "0.0.0.0", "port": 1, "curve_key": CURVE_KEY},
        {"id": "0" * 64, "host": "10.0.0.1", "port": 0, "curve_key": CURVE_KEY},
    ],
)
async def test_a_saved_address_that_can_be_no_peers_costs_that_address(
    poison: dict[str, Any],
) -> None:
    good = {"id": "1" * 64, "host": "10.0.0.1", "port": 1, "curve_key": CURVE_KEY}
    state = {"sequence": 3, "known": [poison, good]}
    async with directory(["http://127.0.0.1:1"], state=state) as peer:
        assert [one.id for one in peer.known.addresses()] == ["1" * 64]
        assert peer.state() == {"sequence": 3, "known": [good]}


@pytest.mark.parametrize(
    ("tracker", "heard"),
    [
        (Reach.MACHINE, ["127.0.0.1", "10.0.0.9", "192.0.2.7"]),
        (Reach.SITE, ["10.0.0.9", "192.0.2.7"]),
        (Reach.WORLD, ["192.0.2.7"]),
    ],
)
def test_an_address_that_means_another_machine_here_than_at_the_tracker_is_left_out(
    tracker: Reach, heard: list[str]
) -> None:
    peers = tuple(
        PeerAddress(id=f"{number:064x}", host=host, port=1, curve_key=CURVE_KEY)
        for number, host in enumerate(["127.0.0.1", "10.0.0.9", "192.0.2.7"])
    )
    answer = Answer(interval_s=60, min_interval_s=0, epoch="a", alive=4, peers=peers)
    kept = _from_here(answer, tracker, "")
    assert [one.host for one in kept.peers] == heard
    assert kept.unusable == 3 - len(heard)


async def test_peers_met_by_other_means_are_kept(tracker: FakeTracker) -> None:
    async with directory([tracker.url]) as peer:
        peer.known.learn(PeerAddress(id="a" * 64, host="10.0.0.9", port=1, curve_key=CURVE_KEY))
        assert [found.host for found in peer.known.sample(5)] == ["10.0.0.9"]


async def test_a_tracker_is_not_asked_more_often_than_it_wants(tracker: FakeTracker) -> None:
    tracker.reply = answer("one", Speaker(1), Speaker(2), min_interval_s=0.5)
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        for _ in range(100):  # 10 s of rounds of a tenth of a second
            heard = await peer.announce("update", numwant=2)
            assert {found.port for found in heard.peers} == {10_001, 10_002}
            clock.advance(0.1)
    assert len(tracker.heard) <= module.IN_A_ROW + 10 / 0.5


async def test_what_is_new_is_told_at_once(tracker: FakeTracker) -> None:
    tracker.reply = answer("one", min_interval_s=30.0)
    async with directory([tracker.url]) as peer:
        for event in ("update", "update", "completed", "completed", "update"):
            for _ in range(module.IN_A_ROW):
                await peer.announce(event, numwant=0)
        await peer.leave()
    assert tracker.events[-3:] == ["completed", "update", "stopped"]


async def test_a_peer_whose_clock_was_put_right_leaps_ahead_of_what_it_said_before(
    tracker: FakeTracker,
) -> None:
    clock = Clock()
    async with directory([tracker.url], clock=clock) as peer:
        tracker.newest = int(clock() * 1_000) + 290_000  # as said by a clock that was 290 s ahead
        await peer.announce(numwant=0)
        await peer.announce(numwant=0)
    assert tracker.events == ["started", "started", "update"]
    assert [said.sequence > tracker.newest for said in tracker.heard[:2]] == [False, True]


@pytest.mark.parametrize("off_s", [-7_200, 3_601, 86_400])
async def test_a_peer_whose_clock_is_wrong_goes_by_the_trackers_and_says_so(
    tracker: FakeTracker, off_s: int
) -> None:
    wall = Clock()
    right_s = tracker.time_s = wall() - off_s
    tracker.newest = int(right_s * 1_000)  # as said before the clock was wrong
    peer = TrackerDirectory([[tracker.url]], ANNOUNCER, now=Clock(), wall=wall)
    async with peer:
        first = await peer.announce(numwant=0)
        assert (await peer.announce(numwant=0)).warning == ""
        wall.advance(-off_s)  # somebody sets it
        assert (await peer.announce(numwant=0)).warning == ""
    assert f"{abs(off_s)} s {'behind' if off_s < 0 else 'ahead of'} mine; set it" in first.warning
    taken = [said for said in tracker.heard if abs(said.time_s - right_s) <= MAX_SKEW_S]
    assert len(taken) >= 3
    assert all(abs(said.time_s - right_s) < 1 for said in taken)
    numbers = [said.sequence for said in tracker.heard]
    assert numbers == sorted(numbers)


async def test_a_time_that_is_a_year_off_is_no_trackers(tracker: FakeTracker) -> None:
    clock = Clock()
    tracker.time_s = clock() - 31_536_000
    async with directory([tracker.url], clock=clock) as peer:
        with pytest.raises(TrackerError, match="because"):
            await peer.announce(numwant=0)
    assert len(tracker.heard) == 1


@pytest.mark.parametrize("date", ["yesterday", "Fri, 31 Dec 9999 99:99:99 GMT", "\xff", ""])
async def test_a_date_that_is_none_is_no_ones_time(tracker: FakeTracker, date: str) -> None:
    tracker.reply = refuse("403 Forbidden", None, f"date: {date}")
    async with directory([tracker.url]) as peer:
        with pytest.raises(TrackerError, match="because"):
            await peer.announce(numwant=0)
    assert len(tracker.heard) == 1


async def test_a_tracker_that_believes_no_sequence_number_is_a_failure_like_another(
    tracker: FakeTracker, other: FakeTracker
) -> None:
    tracker.reply = refuse("409 Conflict")
    async with directory([tracker.url], [other.url]) as peer:
        await peer.announce(numwant=0)
    assert (len(tracker.heard), other.events) == (2, ["started"])


async def test_a_sequence_number_that_rose_without_the_peer_means_another_with_its_key(
    tracker: FakeTracker,
) -> None:
    tracker.newest = 1_700_000_000_500  # of a former self, maybe: at the start, nothing is said
    async with directory([tracker.url]) as peer:
        assert not (await peer.announce(numwant=0)).warning
        assert not (await peer.announce(numwant=0)).warning
        tracker.newest = tracker.heard[-1].sequence + 1
        told = (await peer.announce(numwant=0)).warning
    assert told.startswith("another peer runs with this key")


@pytest.mark.parametrize(
    "url",
    ["http://\u2603.example:8000", "http://xn--a.example", "http://a..b/", "http://h:65536/",
     "http://a.b\u3002c\u2044x/", "http://[v1.x]/", f"http://{'a' * 70}.b/"],
)  # fmt: skip
async def test_a_name_that_is_none_is_told_and_the_next_tracker_asked(
    other: FakeTracker, url: str
) -> None:
    async with directory([url]) as peer:
        with pytest.raises(TrackerError, match="URL: got"):
            await peer.announce(numwant=0)
        await peer.leave()
    async with directory([url], [other.url]) as peer:
        await peer.announce(numwant=0)
    assert other.events == ["started"]


async def test_a_tracker_s_query_is_kept(tracker: FakeTracker) -> None:
    for suffix in ("/p2pl?key=abc", "/announce?key=abc"):
        async with directory([tracker.url + suffix]) as peer:
            await peer.announce(numwant=0)
    assert tracker.paths == ["/p2pl/announce?key=abc", "/announce?key=abc"]


async def test_a_refusal_is_told_as_one(tracker: FakeTracker) -> None:
    tracker.reply = refuse("429 Too Many Requests", 30.0)
    async with directory([tracker.url]) as peer:
        with pytest.raises(TrackerError, match=r"takes this peer's announce: .*429: because"):
            await peer.announce(numwant=0)


@pytest.mark.parametrize(
    ("status", "retry_in_s", "is_final"),
    [
        ("403 Forbidden", None, True),
        ("422 Unprocessable Content", None, True),
        ("403 Forbidden", 5.0, False),
        ("404 Not Found", None, False),  # of a proxy whose tracker is being restarted
        ("503 Service Unavailable", None, False),
    ],
)
async def test_a_refusal_is_final_where_asking_again_cannot_help(
    tracker: FakeTracker, status: str, retry_in_s: float | None, is_final: bool
) -> None:
    tracker.reply = refuse(status, retry_in_s)
    async with directory([tracker.url]) as peer:
        with pytest.raises(TrackerError) as told:
            await peer.announce(numwant=0)
    assert told.value.is_final == is_final
    async with directory([tracker.url], ["http://127.0.0.1:9"]) as peer:
        with pytest.raises(TrackerError) as told:
            await peer.announce(numwant=0)
    assert not told.value.is_final  # another tracker may be back in a moment


async def test_an_open_session_is_told_that_a_tracker_serves_private_ones_alone(
    tracker: FakeTracker,
) -> None:
    tracker.reply = refuse("428 Precondition Required")
    async with directory([tracker.url]) as peer:
        with pytest.raises(TrackerError, match="private sessions alone, and this one is open"):
            await peer.announce(numwant=0)


async def test_a_swarm_survives_the_real_tracker_s_restart(tmp_path: Path) -> None:
    swarm = Swarm(tmp_path)
    peers = [
        TrackerDirectory(
            [[swarm.url]], Announcer(SESSION, Identity.generate(), CURVE_KEY, 9_000 + number)
        )
        for number in range(3)
    ]
    try:
        running = swarm.tracker()
        for peer in peers:
            await peer.announce(numwant=2)
        assert len((await peers[0].announce(numwant=2)).peers) == 2
        running.kill()
        with pytest.raises(TrackerError):
            await peers[0].announce(numwant=2)
        assert len(peers[0].known.sample(2)) == 2
        swarm.tracker()
        heard = [await _until_answered(peer) for peer in peers]
        assert [found.alive for found in heard] == [1, 2, 3]
        await peers[1].leave()
        assert (await peers[0].announce(numwant=2)).alive == 2
    finally:
        for peer in peers:
            await peer.__aexit__(None, None, None)
        swarm.end()


async def _until_answered(peer: TrackerDirectory) -> Any:  # noqa: ANN401
    async with asyncio.timeout(10):
        while True:
            try:
                return await peer.announce(numwant=2)
            except TrackerError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("tracker", "seen", "own", "kept"),
    [
        (Reach.MACHINE, "127.0.0.1", "127.0.0.1", ["127.0.0.1", "10.0.0.9", "192.0.2.7"]),
        (Reach.SITE, "10.0.0.9", "10.0.0.8", ["10.0.0.9", "192.0.2.7"]),
        (Reach.WORLD, "192.0.2.7", "192.0.2.8", ["192.0.2.7"]),
        (Reach.WORLD, "192.0.2.7", "", ["192.0.2.7"]),
        # Behind one NAT, or in one IPv6 network; never of the machine itself.
        (Reach.WORLD, "192.0.2.7", "192.0.2.7", ["10.0.0.9", "192.0.2.7"]),
        (Reach.WORLD, "2001:db8::7", "2001:db8::8", ["10.0.0.9", "192.0.2.7"]),
        (Reach.WORLD, "2001:db8::7", "2001:db8:0:1::7", ["192.0.2.7"]),
    ],
)
def test_an_endpoint_that_means_another_machine_here_is_left_out(
    tracker: Reach, seen: str, own: str, kept: list[str]
) -> None:
    ways = tuple(Endpoint("tcp", host, 1) for host in ("127.0.0.1", "10.0.0.9", "192.0.2.7"))
    peer = PeerAddress(
        id="ab" * 32, host=seen, port=1, curve_key=CURVE_KEY, version=2, endpoints=ways
    )
    answer = Answer(interval_s=60, min_interval_s=0, epoch="a", alive=2, peers=(peer,))
    (heard,) = _from_here(answer, tracker, own).peers
    assert [way.host for way in heard.ways] == kept


REACHED = reach.Reached(host="192.0.2.1", port=9_000, is_reached=False, reason="nothing answered")


async def test_a_tracker_that_lists_the_peer_is_asked_whether_it_can_be_dialled(
    tracker: FakeTracker, other: FakeTracker
) -> None:
    tracker.reach = http("200 OK", reach.encode_answer(REACHED))
    async with directory([tracker.url], [other.url]) as peer:
        with pytest.raises(TrackerError, match="no tracker has answered"):
            await peer.ask_reach(9_000)
        await peer.announce(numwant=0)
        assert await peer.ask_reach(9_000) == REACHED
        assert (tracker.asked, other.asked) == ([9_000], [])
        assert peer.bytes_in == tracker.bytes_out
        assert peer.bytes_out == tracker.bytes_in


async def test_an_older_tracker_cannot_tell_and_a_busy_one_can_be_asked_again(
    tracker: FakeTracker,
) -> None:
    async with directory([tracker.url]) as peer:
        await peer.announce(numwant=0)
        tracker.reach = refuse("404 Not Found")
        assert await peer.ask_reach(9_000) is None
        for reply in (refuse("429 Too Many Requests", 5.0), http("200 OK", b"{}"), b"no HTTP\r\n"):
            tracker.reach = reply
            with pytest.raises(TrackerError, match=r"127\.0\.0\.1"):
                await peer.ask_reach(9_000)


async def test_an_older_tracker_is_told_what_it_understands(tracker: FakeTracker) -> None:
    class Old(FakeTracker):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.replies = iter([refuse("422 Unprocessable Content"), answer(), answer()])
            await super().serve(reader, writer)

        @property
        def reply(self) -> bytes:
            return next(self.replies)

        @reply.setter
        def reply(self, reply: bytes) -> None:
            pass

    async with Old() as old, directory([old.url]) as peer:
        peer.endpoints = (Endpoint("tcp", "192.0.2.1", 9_000),)
        await peer.announce(numwant=0)
        await peer.announce(numwant=0)
        assert [one.version for one in old.heard] == [2, 1, 1]
        assert old.heard[0].endpoints == ("tcp://192.0.2.1:9000",)
        assert old.heard[1].endpoints == ()
