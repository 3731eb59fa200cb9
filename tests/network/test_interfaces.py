"""What a peer announces of the addresses of its machine, and what a person may announce."""

import ipaddress

import pytest

from p2pl.errors import InputError
from p2pl.network import interfaces
from p2pl.network.interfaces import Listener, parse_announced
from p2pl.protocol.endpoint import MAX_ENDPOINTS

MACHINE = ("fd00::2", "2001:db8::2", "::1", "127.0.0.1", "192.168.1.2", "10.0.0.2", "192.0.2.2")
SAID = parse_announced(["peer.example:4444"])


def hosts(listener: Listener, seen: str = "", is_reached: bool | None = None) -> list[str]:
    ways = listener.endpoints(seen, is_reached)
    assert len(ways) == len(set(ways)) < MAX_ENDPOINTS  # there is room for a meeting
    return [way.host for way in ways]


def test_all_addresses_are_announced_the_nearest_first_and_of_each_kind_one() -> None:
    everywhere = Listener("0.0.0.0", 4_000, MACHINE)
    assert hosts(everywhere) == ["::1", "fd00::2", "192.168.1.2", "2001:db8::2", "192.0.2.2"]
    few = ("127.0.0.1", "192.168.1.2", "10.0.0.2", "192.0.2.2")
    assert hosts(Listener("::", 4_000, few)) == list(few)


def test_where_a_tracker_got_through_stands_first_of_its_kind() -> None:
    behind = Listener("0.0.0.0", 4_000, ("127.0.0.1", "192.168.1.2", "192.0.2.2"), SAID)
    assert hosts(behind, "198.51.100.7", True) == [
        *("127.0.0.1", "192.168.1.2", "peer.example", "198.51.100.7", "192.0.2.2"),
    ]


def test_where_a_tracker_did_not_get_through_nobody_else_is_sent() -> None:
    behind = Listener("0.0.0.0", 4_000, ("127.0.0.1", "192.168.1.2", "192.0.2.2"), SAID)
    assert hosts(behind, "198.51.100.7", False) == ["127.0.0.1", "192.168.1.2", "peer.example"]
    assert hosts(behind, "192.168.1.2", False) == ["127.0.0.1", "peer.example"]


def test_a_tracker_that_cannot_tell_is_taken_to_see_where_the_peer_is() -> None:
    behind = Listener("0.0.0.0", 4_000, ("127.0.0.1", "192.168.1.2"))
    assert hosts(behind, "198.51.100.7", None) == ["127.0.0.1", "192.168.1.2", "198.51.100.7"]
    assert hosts(behind, "127.0.0.1", None) == ["127.0.0.1", "192.168.1.2"]


@pytest.mark.parametrize(
    ("bound", "seen"),
    [
        ("127.0.0.1", "198.51.100.7"),
        ("::1", "2001:db8::7"),
        ("192.168.1.2", "2001:db8::7"),
        ("2001:db8::2", "198.51.100.7"),
    ],
)
def test_who_listens_at_one_address_is_at_no_other_of_another_kind(bound: str, seen: str) -> None:
    one = Listener(bound, 4_000, MACHINE)
    assert not one.may_be_at(seen)
    assert hosts(one, seen, None) == hosts(one) == [bound]


def test_who_listens_at_one_address_may_be_behind_a_nat() -> None:
    one = Listener("192.168.1.2", 4_000, MACHINE)
    assert hosts(one, "198.51.100.7", True) == ["192.168.1.2", "198.51.100.7"]


def test_a_person_announces_addresses_and_names_each_in_one_form() -> None:
    texts = ["192.0.2.1:4000", "[2001:DB8:0::1]:4000", "192.0.2.1:4000"]
    assert list(map(str, parse_announced(texts))) == [
        "tcp://192.0.2.1:4000",
        "tcp://[2001:db8::1]:4000",
    ]
    (name,) = parse_announced(["Bücher.Example:4000"])
    assert str(name) == "tcp://xn--bcher-kva.example:4000"


@pytest.mark.parametrize(
    "text",
    [
        *("", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "0.0.0.0:4000", "169.254.1.1:4000"),
        *("2001:db8::1:4000", "[fe80::1]:4000", "127.1:4000", "tcp://192.0.2.1:4000", "a b:1"),
        *("-a.example:1", "a_b.example:1", "☃.example..:1", "a" * 64 + ".example:1", "peer:٤"),
    ],
)
def test_what_nobody_could_dial_is_not_announced(text: str) -> None:
    with pytest.raises(InputError, match="--announce: got"):
        parse_announced([text])


def test_who_announces_an_address_that_is_no_peer_s_is_told_why() -> None:
    for text, why in (("224.0.0.1:1", "multicast"), ("[fe80::1]:1", "link-local")):
        with pytest.raises(InputError, match=f"is {why}"):
            parse_announced([text])


def test_so_many_are_announced_and_no_more() -> None:
    with pytest.raises(InputError, match="3 of them"):
        parse_announced([f"192.0.2.1:{port}" for port in (1, 2, 3)])


def test_this_machine_has_addresses_that_a_peer_may_have() -> None:
    found = interfaces.addresses()
    assert found
    assert not any(ipaddress.ip_address(host).is_link_local for host in found)
