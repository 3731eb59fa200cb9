"""A push is small, checked, and names only peers that could be reached."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pl.errors import FrameError
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import MAX_TELL_BYTES
from p2pl.protocol.gossip import MAX_HINTS, Push, push, read

CURVE = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
LONGEST = "2001:db8:1111:2222:3333:4444:5555:6666"


def peer(number: int) -> PeerAddress:
    """Returns an address with the longest host there is."""
    return PeerAddress(id=f"{number:064x}", host=LONGEST, port=65_535, curve_key=CURVE)


def test_a_push_reads_back_as_it_was_written_and_fits_a_message() -> None:
    known = [peer(number) for number in range(MAX_HINTS)]
    payload = push(1 << 40, known)
    assert len(payload) < MAX_TELL_BYTES
    told = read(payload)
    assert (told.age, told.addresses()) == (1 << 40, known)


def test_in_a_private_session_hints_travel_with_their_proofs_as_many_as_fit() -> None:
    proven = [
        msgspec.structs.replace(peer(number), proof=bytes([number]) * 370)
        for number in range(MAX_HINTS)
    ]
    payload = push(7, [*proven, peer(9)])
    assert len(payload) <= MAX_TELL_BYTES
    told = read(payload)
    assert told.age == 7
    assert told.addresses() == proven[: len(told.hints)]
    assert len(told.hints) == 3
    one_short = msgspec.msgpack.decode(payload)
    one_short[3].pop()
    with pytest.raises(FrameError, match="push"):
        read(msgspec.msgpack.encode(one_short))


def test_the_bytes_of_a_push_never_change() -> None:
    assert push(7, []).hex() == "93a4707573680790"


def _row(place: int, value: object) -> bytes:
    items = msgspec.msgpack.decode(push(7, [peer(1)]))
    items[2][0][place] = value
    return msgspec.msgpack.encode(items)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(MAX_TELL_BYTES + 1),
        push(7, []) + b"\x00",
        msgspec.msgpack.encode(["pull", 7, []]),
        msgspec.msgpack.encode(["push", -1, []]),
        msgspec.msgpack.encode(["push", 1 << 53, []]),
        msgspec.msgpack.encode(["push", 7, [[]]]),
        msgspec.msgpack.encode(["push", 7, msgspec.msgpack.decode(push(7, [peer(1)]))[2] * 5]),
        _row(0, bytes(31)),
        _row(1, "a name.example"),
        _row(2, 0),
        _row(2, 65_536),
        _row(3, "short"),
    ],
)
def test_what_is_no_push_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError, match="push"):
        read(payload)


@given(payload=st.binary(max_size=200))
def test_random_bytes_raise_only_frame_errors(payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(read(payload), Push)
