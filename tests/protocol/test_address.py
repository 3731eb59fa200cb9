"""Keys and hosts that a peer may be said to have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from p2pl.protocol.address import Reach, dialled, is_curve_key, reach_of

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
# Around the largest number of four bytes, where a pattern could be wrong.
GROUPS = st.text("@%$mnoRSTbcd01", min_size=5, max_size=5)


def is_number(group: str) -> bool:
    value = 0
    for char in group:
        value = 85 * value + Z85.index(char)
    return value < 1 << 32


@given(st.binary(min_size=32, max_size=32))
def test_every_key_is_one(key: bytes) -> None:
    assert is_curve_key(z85.encode(key).decode())


@given(GROUPS | st.text(Z85, min_size=5, max_size=5))
def test_five_characters_are_of_a_key_where_they_are_a_number_of_four_bytes(group: str) -> None:
    assert is_curve_key("0" * 35 + group) == is_number(group)
    assert is_curve_key(group + "0" * 35) == is_number(group)


@pytest.mark.parametrize("key", ["", "0" * 39, "0" * 41, "0" * 40 + "\n", "ü" * 40, "%nSc1" * 8])
def test_what_is_no_key_is_none(key: str) -> None:
    assert not is_curve_key(key)


@pytest.mark.parametrize(
    ("host", "form"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("10.1.2.3", "10.1.2.3"),
        ("100.64.0.1", "100.64.0.1"),
        ("2001:0db8:0:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_a_host_has_one_form(host: str, form: str) -> None:
    assert dialled(host) == form


@pytest.mark.parametrize(
    "host",
    [
        *("", "localhost", "127.1", "127.0.0.1\n", "1.2.3.4:5", "01.2.3.4", "::::", "...."),
        *("0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.1", "240.0.0.1", "169.254.169.254"),
        *("::", "::7f00:1", "ff02::1", "fe80::1", "fe80::1%lo", "2001:db8::1%eth0"),
        *("::ffff:0.0.0.0", "::ffff:169.254.1.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_what_could_not_be_dialled_or_reaches_what_nobody_meant_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match="host: got"):
        dialled(host)


def test_from_how_far_away_a_host_is_the_same_machine() -> None:
    assert [reach_of(one) for one in ("127.9.9.9", "::1")] == [Reach.MACHINE] * 2
    assert [reach_of(one) for one in ("10.0.0.1", "100.64.0.1", "fd00::1")] == [Reach.SITE] * 3
    assert [reach_of(one) for one in ("192.0.2.1", "2001:db8::1")] == [Reach.WORLD] * 2
