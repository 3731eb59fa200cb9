"""Which address counts, and how often one address may announce."""

import pytest
from support.announces import Clock

from p2pl.errors import AnnounceError, InputError
from p2pl_tracker.address import AddressLimit, networks, observed

PROXIES = networks(["10.0.0.0/8", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("peer", "seen"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_the_observed_address_is_normalised(peer: str, seen: str) -> None:
    assert observed(peer, "", ()) == seen


def test_a_stranger_cannot_choose_an_address() -> None:
    assert observed("203.0.113.5", "192.0.2.1", ()) == "203.0.113.5"
    assert observed("203.0.113.5", "192.0.2.1", PROXIES) == "203.0.113.5"


@pytest.mark.parametrize(
    ("forwarded", "seen"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.66, 192.0.2.1", "192.0.2.1"),
        ("198.51.100.66,192.0.2.1, 10.1.1.1", "192.0.2.1"),
        ("192.0.2.1,2001:db8::7", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("198.51.100.66, nonsense", "10.0.0.1"),
        ("nonsense, 10.3.3.3", "10.3.3.3"),
        ("10.2.2.2", "10.2.2.2"),
        ("", "10.0.0.1"),
        ("\xff", "10.0.0.1"),
    ],
)
def test_behind_our_proxies_the_right_most_stranger_counts(forwarded: str, seen: str) -> None:
    assert observed("10.0.0.1", forwarded, PROXIES) == seen


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"--trusted-proxy: got '10\.0\.0\.1/8'"):
        networks(["10.0.0.1/8"])


def test_an_address_gets_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    limit = AddressLimit(2.0, 3, now=clock)
    for _ in range(3):
        limit.check("10.0.0.1")
    with pytest.raises(AnnounceError) as caught:
        limit.check("10.0.0.1")
    assert (caught.value.status, caught.value.retry_in_s) == (429, 0.5)
    limit.check("10.0.0.2")
    clock.advance(0.5)
    limit.check("10.0.0.1")


def test_an_ipv6_network_shares_one_limit() -> None:
    limit = AddressLimit(1.0, 1, now=Clock())
    limit.check("2001:db8::1")
    with pytest.raises(AnnounceError):
        limit.check("2001:db8::2")
    limit.check("2001:db8:0:1::1")


def test_no_rate_means_no_limit() -> None:
    limit = AddressLimit(0.0, 1, now=Clock())
    for _ in range(100):
        limit.check("10.0.0.1")


def test_idle_addresses_are_forgotten() -> None:
    clock = Clock()
    limit = AddressLimit(1.0, 5, now=clock)
    for number in range(100):
        limit.check(f"10.0.0.{number}")
    clock.advance(10)
    for number in range(60):
        limit.check(f"10.0.1.{number}")
    assert len(limit) == 60


def test_the_addresses_of_a_flood_take_bounded_memory() -> None:
    limit = AddressLimit(1.0, 5, now=Clock(), max_addresses=10)
    for number in range(200):
        limit.check(f"10.0.0.{number}")
    assert len(limit) == 10


def test_a_flood_of_new_addresses_pushes_out_the_longest_idle_one_first() -> None:
    limit = AddressLimit(1.0, 2, now=Clock(), max_addresses=2)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"):
        limit.check(host)
    with pytest.raises(AnnounceError):
        limit.check("10.0.0.1")
    limit.check("10.0.0.2")
