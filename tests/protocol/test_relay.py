"""What is said to a relay is bounded, canonical and signed."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import InputError, ProtocolError
from p2pl.protocol import relay, ticket

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SESSION = bytes(range(32))
PAPER = ticket.issue(KEY, session=SESSION, peer=bytes(32), not_after_s=1_700_000_000)


def body(message: relay.Said | relay.Told) -> bytes:
    data = relay.encode(message)
    assert relay.length_of(data[:2]) == len(data) - 2
    return data[2:]


def test_what_peers_say_comes_back_as_it_was() -> None:
    for said in (
        relay.listen(KEY, session=SESSION, time_s=5, ticket=PAPER),
        relay.call(KEY, session=SESSION, target=bytes(32), time_s=5),
        relay.Accept(bytes(16)),
        relay.Ping(),
    ):
        assert relay.decode_said(body(said)) == said


def test_what_relays_tell_comes_back_as_it_was() -> None:
    for told in (
        relay.Listening(20.0),
        relay.Ring(bytes(16), bytes(32)),
        relay.Joined(),
        relay.Ping(),
        relay.Refused("no", 2.0),
    ):
        assert relay.decode_told(body(told)) == told


def test_a_relay_cannot_move_the_cursor_of_a_terminal() -> None:
    told = relay.decode_told(body(relay.Refused("\x1b[2J")))
    assert told == relay.Refused("?[2J")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        body(relay.Ping()) + b"\x00",
        body(relay.Accept(bytes(15) + b"\x01"))[:-1],
        msgspec.msgpack.encode(["accept", bytes(17)]),
        msgspec.msgpack.encode(["accept", bytes(16), 1]),
        b"\xdc\x00\x01\xa4ping",  # an array of one, written long
        bytes(relay.MAX_MESSAGE_BYTES + 1),
        body(relay.Joined()),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        relay.decode_said(data)


@pytest.mark.parametrize("head", [b"\x00\x00", b"\x04\x01", b"\xff\xff"])
def test_no_message_is_empty_or_long(head: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"message: got .* bytes', allowed 1..1024"):
        relay.length_of(head)


def test_a_ticket_is_short_and_has_one_form() -> None:
    assert len(PAPER) == 174
    assert ticket.decode(PAPER).issuer == KEY.public_key().public_bytes_raw()
    for data in (PAPER + b"\x00", PAPER[:-1], bytes(600), PAPER[:70] + b"\xcf" + PAPER[70:]):
        with pytest.raises(ProtocolError, match="ticket"):
            ticket.decode(data)


def test_an_issuer_is_written_in_hex() -> None:
    assert ticket.parse_issuer("0f" * 32) == b"\x0f" * 32
    with pytest.raises(InputError, match="64 lower-case hex digits"):
        ticket.parse_issuer("0F" * 32)
