"""Which endpoints of a peer are told to whom."""

import json

import msgspec
import pytest
from support.announces import Clock, Speaker

from p2pl.protocol import announce as messages
from p2pl.protocol.announce import Announce, PeerAddress, Terms
from p2pl_tracker.listing import Asker, Listing
from p2pl_tracker.swarm import Limits, MemoryStore

MACHINE, SITE, WORLD = "tcp://127.0.0.1:10001", "tcp://192.168.1.2:10001", "tcp://192.0.2.9:10001"
RELAY = "relay://relay.example:443"
HERE = "192.0.2.1"  # where the tracker's machine is reached
TERMS = Terms(interval_s=60, min_interval_s=1.0, epoch="abcd", alive=2)


def says(*endpoints: str, proof: bytes = b"") -> Announce:
    return msgspec.structs.replace(Speaker(1).says(), version=2, endpoints=endpoints, proof=proof)


def told(host: str, asker: Asker, *endpoints: str) -> list[str]:
    return [str(way) for way in address(Listing(says(*endpoints), host).told_to(asker)).ways]


def address(row: bytes) -> PeerAddress:
    answer = messages.decode_answer(messages.encode_answer(TERMS, [row]))
    assert answer.unusable == 0
    return answer.peers[0]


@pytest.mark.parametrize(
    ("host", "asker", "expected"),
    [
        # The same machine as the tracker's: by loopback, or by its own outer address.
        ("127.0.0.1", Asker("127.0.0.1", 2), [MACHINE]),
        ("127.0.0.1", Asker(HERE, 2, HERE), [MACHINE]),
        # The peer is beside the tracker, the asker in the tracker's own network.
        ("127.0.0.1", Asker("10.0.0.5", 2, "10.0.0.1"), [SITE, WORLD, RELAY]),
        ("10.0.0.5", Asker("127.0.0.1", 2), [SITE, WORLD, RELAY]),
        ("10.0.0.5", Asker("10.9.9.9", 2, "10.0.0.1"), [SITE, WORLD, RELAY]),
        # The peer is beside the tracker, the asker anywhere.
        ("127.0.0.1", Asker("198.51.100.7", 2, HERE), [WORLD, RELAY]),
        ("198.51.100.7", Asker("127.0.0.1", 2), [WORLD, RELAY]),
        # Behind one NAT, in one IPv6 network, and elsewhere.
        ("198.51.100.7", Asker("198.51.100.7", 2, HERE), [SITE, WORLD, RELAY]),
        ("2001:db8:1:2::3", Asker("2001:db8:1:2::9", 2, "2001:db8::1"), [SITE, WORLD, RELAY]),
        ("2001:db8:1:2::3", Asker("2001:db8:1:3::9", 2, "2001:db8::1"), [WORLD, RELAY]),
        ("198.51.100.7", Asker("198.51.100.8", 2, HERE), [WORLD, RELAY]),
        ("10.0.0.5", Asker("198.51.100.8", 2, HERE), [WORLD, RELAY]),
    ],
)
def test_near_addresses_are_told_to_those_who_are_near(
    host: str, asker: Asker, expected: list[str]
) -> None:
    assert told(host, asker, MACHINE, SITE, WORLD, RELAY) == expected


def test_whom_nobody_there_can_dial_has_a_row_without_a_way() -> None:
    row = Listing(says(SITE), "198.51.100.7").told_to(Asker("203.0.113.1", 2, HERE))
    assert json.loads(row)[4:] == [[], ""]
    assert address(row).ways == ()


def test_a_peer_of_version_1_and_an_asker_of_version_1_have_rows_of_four() -> None:
    old = Listing(Speaker(1).says(), "198.51.100.7")
    new = Listing(says(SITE, WORLD, proof=b"p"), "198.51.100.7")
    assert old.told_to(Asker("203.0.113.1", 2, HERE)) == old.row == new.row
    assert new.told_to(Asker("203.0.113.1", 1, HERE)) == new.row
    assert old.detail_bytes == 0


def test_a_row_says_nothing_twice() -> None:
    asker = Asker("203.0.113.1", 2, HERE)
    plain = Listing(says(WORLD, SITE), "192.0.2.9")
    assert plain.told_to(asker) == plain.row
    proven = Listing(says(WORLD, SITE, proof=b"p"), "192.0.2.9").told_to(asker)
    assert json.loads(proven)[4:] == [[WORLD], "cA=="]


def test_a_peer_beside_the_tracker_is_told_where_the_asker_reaches_that_machine() -> None:
    row = Listing(says(WORLD, RELAY), "127.0.0.1").told_to(Asker("203.0.113.1", 2, HERE))
    assert json.loads(row)[1] == HERE
    assert [str(way) for way in address(row).ways] == [WORLD, RELAY]
    only = Listing(says(MACHINE), "127.0.0.1").told_to(Asker("203.0.113.1", 2, HERE))
    assert address(only).ways == ()


@pytest.mark.anyio
async def test_what_all_peers_say_of_themselves_is_bounded_together() -> None:
    store = MemoryStore(Limits(max_detail_bytes=2_000, burst=100), now=Clock())
    one, two = Speaker(1), Speaker(2)

    def large(speaker: Speaker) -> Announce:
        return msgspec.structs.replace(speaker.says(), version=2, proof=b"\xff" * 1_024)

    assert (await store.announce(large(one), "192.0.2.1")).warning == ""
    refused = await store.announce(large(two), "192.0.2.2")
    assert "not kept" in refused.warning
    (listing,) = (await store.announce(one.says(), "192.0.2.1")).peers  # and gives up its own
    assert listing.told_to(Asker("192.0.2.1", 2)) == listing.row
    assert (await store.announce(large(two), "192.0.2.2")).warning == ""
    await store.announce(msgspec.structs.replace(two.says(), event="stopped"), "192.0.2.2")
    assert store._detail_bytes == 0
