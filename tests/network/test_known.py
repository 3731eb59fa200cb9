"""Known peers: kept within bounds, drawn evenly, left alone for a while after they failed."""

import random
from collections import Counter

import msgspec
from support.announces import Clock

from p2pl.network.known import MAX_KNOWN, KnownPeers
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import Endpoint


def address(number: int, host: str = "10.0.0.1") -> PeerAddress:
    return PeerAddress(id=f"{number:064x}", host=host, port=9_000, curve_key="k" * 40)


def known(clock: Clock | None = None) -> KnownPeers:
    return KnownPeers(address(0).id, now=clock or Clock(), rng=random.Random(1))


def test_peers_are_kept_and_i_am_not_one_of_them() -> None:
    peers = known()
    peers.hear([address(0), address(1), address(2)])
    peers.learn(address(3))
    assert [peer.id for peer in peers.addresses()] == [address(n).id for n in (1, 2, 3)]
    assert len(peers) == 3
    assert address(0).id not in peers


def test_the_longest_unheard_of_is_dropped_first() -> None:
    peers = known()
    peers.hear(address(number) for number in range(1, MAX_KNOWN + 1))
    peers.hear([address(1)])
    peers.hear([address(MAX_KNOWN + 1)])
    assert len(peers) == MAX_KNOWN
    assert address(1).id in peers
    assert address(2).id not in peers


def test_names_that_nobody_answers_to_drive_out_nobody_who_was_met() -> None:
    peers = known()
    peers.learn(address(1))
    peers.hear(address(number) for number in range(2, 2 * MAX_KNOWN))
    assert len(peers) == MAX_KNOWN
    assert [peer.id for peer in peers.sample(5, met=True)] == [address(1).id]
    peers.hear([address(1)])  # named again, at the same address
    assert [peer.id for peer in peers.sample(5, met=True)] == [address(1).id]
    peers.hear([address(1, host="10.0.0.2")])  # it moved, as somebody says
    assert peers.sample(5, met=True) == []


def test_samples_are_even_and_without_repetition() -> None:
    peers = known()
    peers.hear(address(number) for number in range(1, 11))
    seen: Counter[str] = Counter()
    for _ in range(1_000):
        drawn = [peer.id for peer in peers.sample(3)]
        assert len(set(drawn)) == 3
        seen.update(drawn)
    # 300 expected of each; 99.9 % of uniform samples stay below 0.7 * 27.9 * 10 / 9.
    assert sum((count - 300) ** 2 / 300 for count in seen.values()) < 21.7
    assert len(peers.sample(99)) == 10
    assert address(1).id not in {peer.id for peer in peers.sample(99, without={address(1).id})}
    assert known().sample(3) == []


def test_a_peer_that_fails_rests_longer_each_time() -> None:
    clock = Clock()
    peers = known(clock)
    peers.hear([address(1)])
    rests: list[float] = []
    for _ in range(12):
        peers.blame(address(1).id)
        start = clock()
        while peers.rests(address(1).id):
            assert peers.sample(1) == []
            clock.advance(0.5)
        rests.append(clock() - start)
    assert 1.0 <= rests[0] <= 2.5
    assert rests[0] < rests[2] < rests[4]
    assert max(rests) <= 120.5
    assert min(rests[-3:]) >= 60.0


def test_a_peer_is_missing_from_its_first_failure_until_it_is_met_again() -> None:
    peers = known()
    peers.hear([address(1), address(2)])
    assert peers.missing() == 0
    peers.blame(address(1).id)
    assert peers.missing() == 1
    peers.learn(address(1))
    assert peers.missing() == 0


def test_a_peer_that_answers_nonsense_rests_and_is_not_missing() -> None:
    peers = known()
    peers.hear([address(1), address(2)])
    peers.blame(address(1).id, answered=True)
    assert peers.rests(address(1).id)
    assert not peers.is_missing(address(1).id)
    peers.hear([address(1)])
    assert peers.rests(address(1).id)
    assert peers.missing() == 0
    peers.blame(address(1).id)
    assert peers.is_missing(address(1).id)
    assert peers.missing() == 1


def test_a_resting_peer_goes_on_resting_when_others_name_it() -> None:
    peers = known()
    peers.hear([address(1), address(2)])
    peers.blame(address(1).id)
    peers.hear([address(1)])
    assert peers.rests(address(1).id)
    assert not peers.rests(address(2).id)


def test_a_peer_that_moved_or_was_met_is_tried_again() -> None:
    peers = known()
    for number in (1, 2):
        peers.hear([address(number)])
        peers.blame(address(number).id)
    peers.hear([address(1, host="10.0.0.2")])
    peers.learn(address(2))
    assert not peers.rests(address(1).id)
    assert not peers.rests(address(2).id)
    assert {peer.host for peer in peers.sample(2)} == {"10.0.0.1", "10.0.0.2"}


def test_strangers_can_be_blamed_and_forgotten_without_being_kept() -> None:
    peers = known()
    peers.blame(address(1).id)
    peers.forget(address(1).id)
    assert len(peers) == 0
    peers.hear([address(1)])
    peers.forget(address(1).id)
    assert address(1).id not in peers


def test_where_a_peer_was_seen_does_not_replace_what_it_said_of_itself() -> None:
    peers = known()
    said = msgspec.structs.replace(
        address(1), version=2, endpoints=(Endpoint("tcp", "192.0.2.1", 1),)
    )
    peers.hear([said])
    peers.hear([address(1, host="10.0.0.7")])
    assert peers.addresses() == [said]
    restarted = msgspec.structs.replace(address(1), curve_key="n" * 40)
    peers.hear([restarted])
    assert peers.addresses() == [restarted]
