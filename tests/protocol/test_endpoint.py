"""Endpoints: one form each, bounded, and none that a peer may not have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.protocol.address import Reach
from p2pl.protocol.endpoint import MAX_ENDPOINT_CHARS, Endpoint, parse, usable, written

LONGEST_NAME = ".".join(["a" * 63, "b" * 49])


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://192.0.2.1:4000", Endpoint("tcp", "192.0.2.1", 4_000)),
        ("tcp://[2001:db8::1]:4000", Endpoint("tcp", "2001:db8::1", 4_000)),
        ("tcp://peer.example.org:1", Endpoint("tcp", "peer.example.org", 1)),
        ("tcp://xn--mnchen-3ya.example:65535", Endpoint("tcp", "xn--mnchen-3ya.example", 65_535)),
        ("relay://relay.example.org:4001", Endpoint("relay", "relay.example.org", 4_001)),
        ("relays://3com.com:443", Endpoint("relays", "3com.com", 443)),
        ("meet://10.0.0.1:4001", Endpoint("meet", "10.0.0.1", 4_001)),
        (f"relays://{LONGEST_NAME}:65535", Endpoint("relays", LONGEST_NAME, 65_535)),
    ],
)
def test_an_endpoint_reads_back_as_itself(text: str, endpoint: Endpoint) -> None:
    assert parse(text) == written(text) == endpoint
    assert str(endpoint) == text


def test_the_longest_endpoint_fits() -> None:
    assert len(f"relays://{LONGEST_NAME}:65535") == MAX_ENDPOINT_CHARS


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "tcp://",
            "192.0.2.1:4000",
            "tcp:192.0.2.1:4000",
            "tcp://192.0.2.1",
            "TCP://1.1.1.1:1",
        ),
        *("tcp://192.0.2.1:0", "tcp://192.0.2.1:65536", "tcp://192.0.2.1:04", "tcp://1.1.1.1:1\n"),
        *("tcp://192.0.2.1:4000/", "tcp://a@192.0.2.1:4000", "tcp://2001:db8::1:4000"),
        *("tcp://[192.0.2.1]:4000", "tcp://[fe80::1]:4000", "tcp://[fe80::1%eth0]:4000"),
        *("tcp://0.0.0.0:1", "tcp://169.254.169.254:80", "tcp://224.0.0.1:1", "tcp://[::]:1"),
        # What a resolver would take for a number.
        *("tcp://127.1:1", "tcp://2130706433:1", "tcp://0x7f.1:1", "tcp://a.0x7f000001:1"),
        *("tcp://1.2.3.256:1", "tcp://01.2.3.4:1", "tcp://a.1:1", "tcp://a.0x:1"),
        *("tcp://-a.b:1", "tcp://a-.b:1", "tcp://a..b:1", "tcp://.a:1", "tcp://a.:1"),
        *("tcp://Peer.example.org:1", "tcp://münchen.example:1", "tcp://a_b.example:1"),
        f"tcp://{'a' * 64}.example:1",
        f"relays://{LONGEST_NAME}b:65535",
    ],
)
def test_what_may_not_be_dialled_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint|host"):
        parse(text)
    assert usable([text, "tcp://192.0.2.1:1", text]) == (Endpoint("tcp", "192.0.2.1", 1),)


@pytest.mark.parametrize("text", ["tcp://[2001:DB8::1]:1", "tcp://[2001:db8:0::1]:1",
                                  "tcp://[::ffff:192.0.2.1]:1"])  # fmt: skip
def test_an_endpoint_has_one_form(text: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        written(text)


def test_from_how_far_away_an_endpoint_is_the_same_machine() -> None:
    texts = ["tcp://127.0.0.1:1", "tcp://10.0.0.1:1", "tcp://192.0.2.1:1", "tcp://example.org:1"]
    assert [parse(text).reach for text in texts] == [
        Reach.MACHINE, Reach.SITE, Reach.WORLD, Reach.WORLD,
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=MAX_ENDPOINT_CHARS + 2) | st.from_regex(r"tcp://[0-9a-z:.\[\]-]+:[0-9]+"))
def test_any_text_is_an_endpoint_in_its_one_form_or_none(text: str) -> None:
    try:
        endpoint = parse(text)
    except ValueError:
        return
    assert written(str(endpoint)) == endpoint == endpoint.checked()
