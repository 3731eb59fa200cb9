"""The contract of a store: every store must pass; a new one is a parameter of `make`."""

import asyncio
import json
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import msgspec
import pytest
from support import valkey
from support.announces import Clock, Speaker

from p2pl.errors import AnnounceError
from p2pl.protocol.announce import Announce, Counts
from p2pl_tracker.address import SITE_SHARE
from p2pl_tracker.store import SharedStore, connected
from p2pl_tracker.swarm import (
    EXPIRED_PER_CALL,
    MOST_UNKNOWN_BESIDE_RELAYS,
    Entry,
    Limits,
    MemoryStore,
    Pool,
    Store,
    Totals,
    Welcome,
)

pytestmark = pytest.mark.anyio

LIMITS = Limits(ttl_s=100.0, min_interval_s=1.0, burst=1_000)
Make = Callable[[Limits], Store]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "shared"])
async def make(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Make]:
    if request.param == "memory":
        yield lambda limits: MemoryStore(limits, now=clock, rng=random.Random(1))
        return
    server: valkey.Server = request.getfixturevalue("valkey_server")
    client = connected(server.url)
    prefix = secrets.token_hex(8)
    yield lambda limits: SharedStore(client, limits, prefix=prefix, now=clock, rng=random.Random(1))
    await client.aclose()


def ports(welcome: Welcome) -> list[int]:
    return sorted(json.loads(row)[2] for row in welcome.rows)


async def join(store: Store, *numbers: int, host: str = "10.0.0.1") -> list[Speaker]:
    speakers = [Speaker(number) for number in numbers]
    for speaker in speakers:
        await store.announce(speaker.says("started"), host)
    return speakers


async def refused(store: Store, speaker: Speaker, host: str = "10.0.0.1") -> AnnounceError:
    with pytest.raises(AnnounceError) as caught:
        await store.announce(speaker.says(), host)
    return caught.value


async def test_peers_hear_of_each_other_and_never_of_themselves(make: Make) -> None:
    store = make(LIMITS)
    one, two, three = await join(store, 1, 2, 3)
    assert ports(await store.announce(one.says(), "10.0.0.1")) == [two.port, three.port]
    assert ports(await store.announce(two.says(), "10.0.0.1")) == [one.port, three.port]


async def test_the_first_peer_is_alone(make: Make) -> None:
    welcome = await make(LIMITS).announce(Speaker(1).says("started"), "10.0.0.1")
    assert (list(welcome.rows), welcome.alive, welcome.training, welcome.warning) == ([], 1, 1, "")


async def test_a_peer_is_listed_with_the_address_it_was_seen_from(make: Make) -> None:
    store = make(LIMITS)
    await join(store, 1, host="192.0.2.7")
    (row,) = (await store.announce(Speaker(2).says(), "10.0.0.1")).rows
    assert json.loads(row)[1:] == ["192.0.2.7", 10_001, f"{1:040d}"]


async def test_no_more_peers_are_named_than_wanted(make: Make) -> None:
    store = make(LIMITS)
    await join(store, *range(10))
    asker = Speaker(99)
    for wanted in (0, 1, 9, 10, 11, 256):
        welcome = await store.announce(asker.says(numwant=wanted), "10.0.0.1")
        assert len(set(ports(welcome))) == len(welcome.rows) == min(wanted, 10)
        assert welcome.alive == 11


async def test_sessions_do_not_mix(make: Make) -> None:
    store = make(LIMITS)
    await join(store, 1)
    other = await store.announce(Speaker(2, session="aa" * 32).says(), "10.0.0.1")
    assert (list(other.rows), other.alive) == ([], 1)
    assert await store.totals() == Totals(sessions=2, peers=2)


async def test_announcing_again_replaces_the_address(make: Make) -> None:
    store = make(LIMITS)
    (one, two) = await join(store, 1, 2)
    await store.announce(one.says(), "10.9.9.9")
    (row,) = (await store.announce(two.says(), "10.0.0.1")).rows
    assert json.loads(row)[1] == "10.9.9.9"
    assert await store.totals() == Totals(sessions=1, peers=2)


async def test_a_peer_that_stops_is_gone_at_once(make: Make) -> None:
    store = make(LIMITS)
    one, two = await join(store, 1, 2)
    left = await store.announce(one.says("stopped"), "10.0.0.1")
    assert (list(left.rows), left.alive) == ([], 1)
    assert ports(await store.announce(two.says(), "10.0.0.1")) == []


async def test_a_stranger_may_say_stopped(make: Make) -> None:
    store = make(LIMITS)
    assert (await store.announce(Speaker(1).says("stopped"), "10.0.0.1")).alive == 0
    assert await store.totals() == Totals(sessions=0, peers=0)


async def test_the_last_to_leave_frees_the_session(make: Make) -> None:
    store = make(LIMITS)
    (one,) = await join(store, 1)
    await store.announce(one.says("stopped"), "10.0.0.1")
    assert await store.totals() == Totals(sessions=0, peers=0)
    assert await store.scrape(bytes.fromhex(one.session)) == Counts(alive=0, completed=0)


async def test_a_peer_that_falls_silent_is_forgotten(make: Make, clock: Clock) -> None:
    store = make(LIMITS)
    one, two = await join(store, 1, 2)
    clock.advance(60)
    await store.announce(two.says(), "10.0.0.1")
    clock.advance(40)
    welcome = await store.announce(two.says(), "10.0.0.1")
    assert (ports(welcome), welcome.alive) == ([], 1)
    clock.advance(100)
    assert ports(await store.announce(one.says(), "10.0.0.1")) == []
    assert await store.totals() == Totals(sessions=1, peers=1)


async def test_a_peer_that_renews_does_not_keep_silent_ones_alive(make: Make, clock: Clock) -> None:
    store = make(LIMITS)
    (one,) = await join(store, 1)
    clock.advance(50)
    await join(store, 2)
    clock.advance(10)
    await store.announce(one.says(), "10.0.0.1")
    clock.advance(95)
    await store.expire()
    assert await store.totals() == Totals(sessions=1, peers=1)


async def test_expired_peers_are_never_named_even_before_they_are_collected(
    make: Make, clock: Clock
) -> None:
    store = make(LIMITS)
    await join(store, *range(2 * EXPIRED_PER_CALL + 50))
    clock.advance(50)
    await join(store, 9_001, 9_002)
    clock.advance(50)
    welcome = await store.announce(Speaker(9_003).says(), "10.0.0.1")
    assert set(ports(welcome)) <= {19_001, 19_002}
    while await store.expire():
        pass
    assert ports(await store.announce(Speaker(9_004).says(), "10.0.0.1")) == [
        19_001,
        19_002,
        19_003,
    ]


async def test_a_peer_that_comes_back_late_joins_anew(make: Make, clock: Clock) -> None:
    store = make(LIMITS)
    speakers = await join(store, *range(2 * EXPIRED_PER_CALL))
    await store.announce(speakers[-1].says("completed"), "10.0.0.1")
    clock.advance(100)
    welcome = await store.announce(speakers[-1].says(numwant=0), "10.0.0.1")
    assert welcome.training == welcome.alive == EXPIRED_PER_CALL
    assert not await store.expire() or not await store.expire()
    assert await store.totals() == Totals(sessions=1, peers=1)


async def test_a_session_whose_peers_all_fell_silent_names_nobody(make: Make, clock: Clock) -> None:
    store = make(replace(LIMITS, max_peers=EXPIRED_PER_CALL + 1))
    await join(store, *range(EXPIRED_PER_CALL + 1))
    clock.advance(100)
    other = await store.announce(Speaker(0, session="aa" * 32).says(), "10.0.0.1")
    assert (list(other.rows), other.alive) == ([], 1)
    assert ports(await store.announce(Speaker(9_000).says(), "10.0.0.1")) == []


async def test_scrape_counts_and_changes_nothing(make: Make) -> None:
    store = make(LIMITS)
    one, _ = await join(store, 1, 2)
    await store.announce(one.says("completed"), "10.0.0.1")
    await store.announce(one.says("completed"), "10.0.0.1")
    session = bytes.fromhex(one.session)
    assert await store.scrape(session) == Counts(alive=2, completed=1)
    assert await store.scrape(bytes(32)) == Counts(alive=0, completed=0)
    assert await store.totals() == Totals(sessions=1, peers=2)


async def test_peers_that_have_completed_no_longer_train(make: Make) -> None:
    store = make(LIMITS)
    one, two = await join(store, 1, 2)
    assert (await store.announce(one.says("completed"), "10.0.0.1")).training == 1
    assert (await store.announce(one.says(), "10.0.0.1")).training == 1
    assert (await store.announce(one.says("started"), "10.0.0.1")).training == 2
    await store.announce(one.says("completed"), "10.0.0.1")
    assert (await store.announce(one.says("stopped"), "10.0.0.1")).training == 1
    assert (await store.announce(two.says("stopped"), "10.0.0.1")).training == 0


async def test_a_replayed_announce_is_refused_and_moves_nobody(make: Make) -> None:
    store = make(LIMITS)
    one, two = await join(store, 1, 2)
    captured = one.says()
    await store.announce(captured, "10.0.0.1")
    with pytest.raises(AnnounceError) as caught:
        await store.announce(captured, "203.0.113.66")
    assert caught.value.status == 409
    (row,) = (await store.announce(two.says(), "10.0.0.1")).rows
    assert json.loads(row)[1] == "10.0.0.1"


async def test_an_older_stop_cannot_be_played_back(make: Make) -> None:
    store = make(LIMITS)
    one, two = await join(store, 1, 2)
    stop = one.says("stopped")
    await store.announce(stop, "10.0.0.1")
    await store.announce(one.says("started"), "10.0.0.1")
    with pytest.raises(AnnounceError) as caught:
        await store.announce(stop, "10.0.0.1")
    assert caught.value.status == 409
    assert ports(await store.announce(two.says(), "10.0.0.1")) == [one.port]


@pytest.mark.parametrize("waits_s", [0.0, 150.0, 599.0])
async def test_a_replay_after_leaving_is_refused_as_long_as_its_date_is_good(
    make: Make, clock: Clock, waits_s: float
) -> None:
    store = make(LIMITS)
    (one,) = await join(store, 1)
    captured = one.says()
    await store.announce(captured, "10.0.0.1")
    await store.announce(one.says("stopped"), "10.0.0.1")
    clock.advance(waits_s)
    with pytest.raises(AnnounceError) as caught:
        await store.announce(captured, "203.0.113.66")
    assert caught.value.status == 409


async def test_a_replay_after_falling_silent_is_refused(make: Make, clock: Clock) -> None:
    store = make(LIMITS)
    (one,) = await join(store, 1)
    captured = one.says()
    await store.announce(captured, "10.0.0.1")
    clock.advance(101)
    with pytest.raises(AnnounceError) as caught:
        await store.announce(captured, "203.0.113.66")
    assert caught.value.status == 409


async def test_what_is_remembered_of_those_who_left_is_forgotten_in_the_end(
    make: Make, clock: Clock
) -> None:
    store = make(LIMITS)
    (one,) = await join(store, 1)
    await store.announce(one.says("stopped"), "10.0.0.1")
    one.sequence = 0  # a peer whose clock was set back, for example
    assert (await refused(store, one)).status == 409
    clock.advance(601)
    one.sequence = 0
    assert (await store.announce(one.says("started"), "10.0.0.1")).alive == 1


async def test_what_is_remembered_of_those_who_left_is_bounded(make: Make) -> None:
    store = make(replace(LIMITS, max_peers=2))
    (one,) = await join(store, 1)
    await store.announce(one.says("stopped"), "10.0.0.1")
    for number in (2, 3):
        (other,) = await join(store, number)
        await store.announce(other.says("stopped"), "10.0.0.1")
    one.sequence = 0
    assert (await store.announce(one.says("started"), "10.0.0.1")).alive == 1


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (replace(LIMITS, max_peers=2), "tracker is full (2 peers)"),
        (replace(LIMITS, max_peers_per_session=2), "session is full (2 peers)"),
        (replace(LIMITS, max_peers_per_address=2), "2 peers share your address"),
    ],
)
async def test_a_full_tracker_answers_and_does_not_store(
    make: Make, limits: Limits, why: str
) -> None:
    store = make(limits)
    one, two = await join(store, 1, 2)
    welcome = await store.announce(Speaker(3).says(), "10.0.0.1")
    assert ports(welcome) == [one.port, two.port]
    assert welcome.alive == 2
    assert why in welcome.warning
    renewed = await store.announce(one.says(), "10.0.0.1")
    assert (ports(renewed), renewed.warning) == ([two.port], "")
    await store.announce(two.says("stopped"), "10.0.0.1")
    assert (await store.announce(Speaker(3).says(), "10.0.0.1")).warning == ""


async def test_a_tracker_full_of_sessions_answers_and_does_not_store(make: Make) -> None:
    store = make(replace(LIMITS, max_sessions=1))
    await join(store, 1)
    other = await store.announce(Speaker(2, session="aa" * 32).says(), "10.0.0.1")
    assert (list(other.rows), other.alive) == ([], 0)
    assert "full (1 sessions)" in other.warning
    assert await store.totals() == Totals(sessions=1, peers=1)


async def test_the_addresses_of_an_ipv6_network_count_together(make: Make) -> None:
    store = make(replace(LIMITS, max_peers_per_address=1))
    await join(store, 1, host="2001:db8:0:1::1")
    near = await store.announce(Speaker(2).says(), "2001:db8:0:1:ffff::2")
    far = await store.announce(Speaker(3).says(), "2001:db8:0:2::1")
    assert "share your address" in near.warning
    assert far.warning == ""


async def test_one_address_cannot_take_all_sessions(make: Make) -> None:
    store = make(replace(LIMITS, max_sessions=5, max_sessions_per_address=3))
    for number in range(10):
        made_up = Speaker(number, session=f"{number:064x}")
        said = await store.announce(made_up.says(), "10.0.0.1")
        assert ("has peers in 3 sessions already" in said.warning) == (number >= 3)
    assert await store.totals() == Totals(sessions=3, peers=3)
    honest = await store.announce(Speaker(20, session="ab" * 32).says(), "10.0.0.2")
    assert honest.warning == ""
    more = await store.announce(Speaker(21, session=f"{0:064x}").says(), "10.0.0.1")
    assert more.warning == ""  # of a session that the address is in


async def test_the_networks_of_an_ipv6_site_count_together(make: Make) -> None:
    store = make(replace(LIMITS, max_sessions_per_address=1, max_peers_per_address=1))
    for number in range(SITE_SHARE + 1):
        session = Speaker(number, session=f"{number:064x}")
        said = await store.announce(session.says(), f"2001:db8:0:{number:x}::1")
        assert bool(said.warning) == (number == SITE_SHARE)
    elsewhere = await store.announce(Speaker(99, session="ab" * 32).says(), "2001:db8:1::1")
    assert elsewhere.warning == ""


async def test_many_identities_of_one_address_crowd_out_nobody_elsewhere(make: Make) -> None:
    store = make(replace(LIMITS, max_peers_per_address=1_000))
    await join(store, *range(100, 1_000), host="203.0.113.1")
    for number in range(6):
        await join(store, number, host=f"10.0.0.{number}")
    me = Speaker(50)
    for _ in range(20):
        said = await store.announce(me.says(numwant=6), "10.0.0.50")
        living = [port for port in ports(said) if port < 10_010]
        assert len(said.rows) == 6
        assert len(living) >= 5


async def test_a_sample_takes_as_many_of_a_crowd_as_are_wanted(make: Make) -> None:
    store = make(LIMITS)
    await join(store, *range(40), host="10.0.0.1")
    await join(store, 50, 51, host="10.0.0.2")
    said = await store.announce(Speaker(60).says(numwant=256), "10.0.0.3")
    assert ports(said) == [*range(10_000, 10_040), 10_050, 10_051]


async def test_a_peer_that_moves_to_a_full_address_leaves_the_old_one(make: Make) -> None:
    store = make(replace(LIMITS, max_peers_per_address=1))
    (one,) = await join(store, 1, host="10.0.0.1")
    await join(store, 2, host="10.0.0.2")
    moved = await store.announce(one.says(), "10.0.0.2")
    assert "share your address" in moved.warning
    assert await store.totals() == Totals(sessions=1, peers=1)
    assert (await store.announce(Speaker(3).says(), "10.0.0.1")).warning == ""


async def test_one_announce_a_second_is_welcome_for_ever(make: Make, clock: Clock) -> None:
    store = make(replace(LIMITS, burst=5))
    (one,) = await join(store, 1)
    for _ in range(50):
        clock.advance(1)
        assert (await store.announce(one.says(), "10.0.0.1")).alive == 1


async def test_a_peer_that_announces_too_often_is_told_when_to_come_back(
    make: Make, clock: Clock
) -> None:
    store = make(replace(LIMITS, burst=5))
    (one,) = await join(store, 1)
    for _ in range(4):
        await store.announce(one.says(), "10.0.0.1")
    fault = await refused(store, one)
    assert (fault.status, fault.retry_in_s) == (429, 1.0)
    clock.advance(1)
    await store.announce(one.says(), "10.0.0.1")
    assert (await refused(store, one)).status == 429
    assert (await store.announce(one.says("stopped"), "10.0.0.1")).alive == 0


async def test_leaving_and_coming_back_earns_no_new_burst(make: Make, clock: Clock) -> None:
    store = make(replace(LIMITS, burst=5))
    one = Speaker(1)
    for _ in range(5):
        await store.announce(one.says("started"), "10.0.0.1")
        await store.announce(one.says("stopped"), "10.0.0.1")
    assert (await refused(store, one)).status == 429
    clock.advance(1)
    assert (await store.announce(one.says("started"), "10.0.0.1")).alive == 1


async def test_a_long_silence_does_not_earn_a_longer_burst(make: Make, clock: Clock) -> None:
    store = make(replace(LIMITS, burst=5))
    (one,) = await join(store, 1)
    clock.advance(90)
    for _ in range(5):
        await store.announce(one.says(), "10.0.0.1")
    assert (await refused(store, one)).status == 429


async def test_samples_are_uniform(make: Make) -> None:
    store = make(replace(LIMITS, min_interval_s=0.0))
    speakers = await join(store, *range(21))
    seen: Counter[int] = Counter()
    for _ in range(2_000):
        seen.update(ports(await store.announce(speakers[0].says(numwant=4), "10.0.0.1")))
    assert sum(seen.values()) == 8_000
    # Each of 20 is expected 400 times; without replacement, the statistic is (1 - 4/20) chi-square
    # with 19 degrees of freedom: 99.9 % of uniform samples stay below 0.8 * 43.8 * 20 / 19.
    expected = 8_000 / 20
    assert len(seen) == 20
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 36.9


async def test_every_pair_of_peers_is_named_together_equally_often(make: Make) -> None:
    store = make(replace(LIMITS, min_interval_s=0.0))
    speakers = await join(store, *range(6))
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(2_000):
        welcome = await store.announce(speakers[0].says(numwant=2), "10.0.0.1")
        seen[tuple(ports(welcome))] += 1
    # 10 pairs, 9 degrees of freedom: 99.9 % of uniform draws stay below 27.9.
    assert len(seen) == 10
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 27.9


async def answering(store: Store, *speakers: Speaker, found: Pool = Pool.ANSWERS) -> None:
    for speaker in speakers:
        session = bytes.fromhex(speaker.session)
        await store.checked(session, bytes.fromhex(speaker.id), found)


async def test_the_living_are_drawn_before_a_thousand_dead_of_as_many_addresses(
    make: Make,
) -> None:
    store = make(replace(LIMITS, min_interval_s=0.0))
    for number in range(1_000):
        dead = await join(store, 100 + number, host=f"198.{18 + number // 256}.{number % 256}.1")
        await answering(store, *dead, found=Pool.SILENT)
    living = [(await join(store, number, host=f"10.0.0.{number}"))[0] for number in range(21)]
    await answering(store, *living)
    seen: Counter[int] = Counter()
    for _ in range(1_000):
        seen.update(ports(await store.announce(living[0].says(numwant=4), "10.0.0.0")))
    # All of them are alive; as in `test_samples_are_uniform`, and 99.9 % stay below 36.9.
    assert set(seen) == {10_000 + number for number in range(1, 21)}
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 36.9
    most = await store.announce(living[0].says(numwant=30), "10.0.0.0")
    assert sum(port < 10_100 for port in ports(most)) == 20
    assert len(most.rows) == 30  # who did not answer is better than nobody


async def test_those_who_cannot_be_dialled_have_their_share_and_no_more_than_half(
    make: Make,
) -> None:
    store = make(replace(LIMITS, min_interval_s=0.0))
    for number in range(30):
        await join(store, 100 + number, host=f"198.18.{number}.1")
    living = [(await join(store, number, host=f"10.0.0.{number}"))[0] for number in range(11)]
    await answering(store, *living)
    for _ in range(20):
        said = ports(await store.announce(living[0].says(numwant=8), "10.0.0.0"))
        assert sum(port >= 10_100 for port in said) == 4
    for number in range(30):
        await answering(store, Speaker(100 + number))
    shares = [
        sum(port >= 10_100 for port in ports(await store.announce(one, "10.0.0.0")))
        for one in (living[0].says(numwant=8) for _ in range(200))
    ]
    assert 5.5 < sum(shares) / 200 < 6.5  # 30 of 40, of 8; sd of the mean is 0.08


async def test_beside_relays_those_of_whom_nothing_is_known_are_one_in_twenty(make: Make) -> None:
    store = make(replace(LIMITS, min_interval_s=0.0, most_unknown=MOST_UNKNOWN_BESIDE_RELAYS))
    for number in range(60):
        await join(store, 100 + number, host=f"198.18.{number}.1")
    living = [(await join(store, number, host=f"10.0.0.{number}"))[0] for number in range(11)]
    await answering(store, *living)
    strangers = [
        sum(port >= 10_100 for port in ports(await store.announce(one, "10.0.0.0")))
        for one in (living[0].says(numwant=10) for _ in range(400))
    ]
    assert set(strangers) == {0, 1}  # 0.05 of 10
    assert 150 < sum(strangers) < 250  # of 400, half; sd 10
    more = ports(await store.announce(living[0].says(numwant=30), "10.0.0.0"))
    assert len(more) == 30  # who is not known is better than nobody
    assert sum(port < 10_100 for port in more) == 10


async def test_a_peer_is_checked_where_a_relay_leads_to_it_and_else_nothing_is_known_of_it(
    make: Make, clock: Clock
) -> None:
    store = make(replace(LIMITS, ttl_s=1_000.0))
    one, relay, another = Speaker(1), "relay://192.0.2.1:1", "relay://192.0.2.2:1"

    async def is_due(*ways: str) -> bool:
        said = msgspec.structs.replace(one.says(), version=2, endpoints=ways)
        return (await store.enter(Entry.of(said, "10.0.0.1", {relay}))).is_check_due

    assert not await is_due(another)
    assert not await is_due()
    assert await is_due(another, relay)
    assert not await is_due(relay)
    await answering(store, one, found=Pool.SILENT)
    clock.advance(60)
    assert await is_due(relay)
    await answering(store, one)
    await answering(store, one, found=Pool.UNKNOWN)  # as the relay was away
    clock.advance(60)
    assert await is_due(relay)
    (two, *_) = await join(store, 2, 3, 4, 5, host="10.0.0.2")
    for _ in range(10):
        assert one.port in ports(await store.announce(two.says(numwant=2), "10.0.0.2"))
    assert not await is_due()  # it says no way any more: as if it were new
    named = [
        one.port in ports(await store.announce(two.says(numwant=1), "10.0.0.2")) for _ in range(40)
    ]
    assert not all(named)
    assert await is_due(relay)


async def test_a_peer_is_dialled_when_it_comes_when_it_moves_and_every_five_minutes(
    make: Make, clock: Clock
) -> None:
    store = make(replace(LIMITS, ttl_s=1_000.0))
    one = Speaker(1)

    async def is_due(host: str = "10.0.0.1") -> bool:
        return (await store.announce(one.says(), host)).is_check_due

    assert await is_due()
    assert not await is_due()
    clock.advance(300)
    assert await is_due()
    assert await is_due("10.0.0.2")
    await answering(store, one, found=Pool.SILENT)
    assert not await is_due("10.0.0.2")
    clock.advance(60)
    assert await is_due("10.0.0.2")
    hidden = Announce(
        **{
            **msgspec.structs.asdict(one.says()),
            "version": 2,
            "endpoints": ("relay://192.0.2.1:1",),
        }
    )
    assert not (await store.announce(hidden, "10.0.0.2")).is_check_due


async def test_whoever_makes_up_peers_that_leave_gets_no_room_for_more(
    make: Make, clock: Clock
) -> None:
    store = make(replace(LIMITS, max_peers_per_address=2))
    for number in range(10 * 2):
        (made_up,) = await join(store, number)
        await store.announce(made_up.says("stopped"), "10.0.0.1")
    said = await store.announce(Speaker(50).says(), "10.0.0.1")
    assert "more than 20 peers have left your address" in said.warning
    again = Speaker(7, sequence=9)
    assert "left your address" in (await store.announce(again.says(), "10.0.0.1")).warning
    assert (await store.announce(Speaker(51).says(), "10.0.0.2")).warning == ""
    clock.advance(601)
    await store.expire()
    assert (await store.announce(Speaker(52).says(), "10.0.0.1")).warning == ""


async def test_a_store_is_ready(make: Make) -> None:
    assert await make(LIMITS).ready()


async def test_of_many_who_come_at_once_each_hears_its_own_answer(make: Make) -> None:
    store = make(LIMITS)
    speakers = await join(store, *range(40))
    speakers[7].sequence = 0  # what it says is no news
    heard = await asyncio.gather(
        *(store.announce(speaker.says(numwant=256), "10.0.0.1") for speaker in speakers),
        return_exceptions=True,
    )
    replayed = heard.pop(7)
    assert isinstance(replayed, AnnounceError)
    assert replayed.status == 409
    everybody = {speaker.port for speaker in speakers}
    del speakers[7]
    for speaker, welcome in zip(speakers, heard, strict=True):
        assert isinstance(welcome, Welcome)
        assert ports(welcome) == sorted(everybody - {speaker.port})


async def test_a_full_server_refuses_and_goes_on_once_there_is_room(
    valkey_server: valkey.Server,
) -> None:
    client = connected(valkey_server.url)
    store = SharedStore(client, LIMITS, prefix=secrets.token_hex(8))
    speakers = await join(store, 1)
    await client.config_set("maxmemory", 1)
    try:
        assert (await refused(store, speakers[0])).status == 503
    finally:
        await client.config_set("maxmemory", 0)
    assert (await store.announce(speakers[0].says(), "10.0.0.1")).alive == 1
    await client.aclose()
