"""The dialling end of ZMTP and CURVE, without a socket: bytes in, bytes and messages out."""

import random
from collections.abc import Iterator

import pytest
from fuzz_curve import GREETING, ROUTER, SMALL_ORDER, Listener, feed, frame, properties

from p2pl.errors import FrameError, PullError
from p2pl.network import box, zmtp
from p2pl.network.keys import CurveKeys
from p2pl.network.zmtp import Client

PAYLOAD = 70_000  # at most, of one frame
NOT_A_PEER = r"^unreachable: not a p2pl peer$"
LOST = r"^unreachable: connection lost$"


@pytest.fixture(params=["in place", "by copy"], autouse=True)
def opening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens boxes by either way into libsodium."""
    assert box._open is not None, "PyNaCl has moved what is below its bindings"
    if request.param == "by copy":
        monkeypatch.setattr(box, "_open", None)


def dialled() -> tuple[Client, Listener]:
    """Returns both ends of a new connection; the listener has heard the HELLO."""
    there = Listener()
    client = Client(CurveKeys.generate(), there.public, max_payload_bytes=PAYLOAD)
    there.hear_hello(sent(client))
    return client, there


def opened() -> tuple[Client, Listener]:
    """Returns both ends of a connection whose handshake is over."""
    client, there = dialled()
    assert feed(client, GREETING + there.welcome() + there.ready()) == []
    assert client.is_open
    sent(client)
    return client, there


def sent(client: Client) -> bytes:
    data = bytes(client.unsent)
    client.unsent.clear()
    return data


def test_what_is_said_first_does_not_wait_for_the_greeting() -> None:
    client, there = dialled()
    assert not client.is_open
    feed(client, GREETING)
    assert sent(client) == b""
    feed(client, there.welcome())
    initiate = sent(client)
    assert initiate[:2] + initiate[9:18] == b"\x06\x00" + b"\x08INITIATE"
    feed(client, there.ready())
    assert client.is_open


def test_a_message_goes_with_the_initiate_to_whoever_keeps_it() -> None:
    client, there = dialled()
    feed(client, GREETING[:-1] + bytes([zmtp.PATIENT]) + there.welcome())
    assert client.may_send
    assert not client.is_open
    client.put(b"one")
    initiate = sent(client)
    size = 9 + int.from_bytes(initiate[1:9])
    assert there.open(initiate[size:]) == [b"\0one"]
    assert feed(client, there.ready() + there.message(b"two")) == [(b"two",)]
    assert client.is_open


def test_a_listener_that_says_nothing_of_patience_is_waited_for() -> None:
    client, there = dialled()
    feed(client, GREETING + there.welcome())
    with pytest.raises(ValueError, match="handshake"):
        client.put(b"one")


@pytest.mark.parametrize("most", [1, 7, 100, 5_000, 1 << 20])
def test_messages_of_every_size_come_whole_however_they_are_cut(most: int) -> None:
    client, there = dialled()
    sizes = (0, 1, 200, 222, 223, 255, 256, zmtp.SMALL_BYTES - 34, zmtp.SMALL_BYTES, PAYLOAD)
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    data = GREETING + there.welcome() + there.ready()
    for payload in payloads:
        data += there.message(b"head", flags=1) + there.message(payload)
    assert feed(client, data, most=most) == [(b"head", payload) for payload in payloads]


def test_what_is_sent_can_be_opened_by_the_listener_only() -> None:
    client, there = opened()
    client.put(b"one")
    client.put(b"head", b"x" * 300)
    assert there.open(sent(client)) == [b"\0one", b"\x01head", b"\0" + b"x" * 300]


@pytest.mark.parametrize("piece", [100, 5_000, 40_000])
@pytest.mark.parametrize("offset", [0, 1])
def test_second_frames_are_put_where_they_belong(piece: int, offset: int) -> None:
    client, there = opened()
    data = random.Random(1).randbytes(3 * piece + 17)
    model = bytearray(data[: offset * piece] + bytes(len(data) - offset * piece))
    client.place(memoryview(model), piece, offset * piece)
    stream = there.message(b"an offer")
    for at in range(offset * piece, len(data), piece):
        stream += there.message(b"%d" % at, flags=1) + there.message(data[at : at + piece])
    messages = feed(client, stream, most=4_000)
    assert [len(message) for message in messages] == [1] + [2] * (4 - offset)
    assert bytes(model) == data


def test_a_second_frame_of_another_size_is_put_nowhere() -> None:
    client, there = opened()
    model = bytearray(10_000)
    client.place(memoryview(model), 5_000)
    wrong = there.message(b"h", flags=1) + there.message(b"x" * 5_001)
    assert feed(client, wrong) == [(b"h", b"x" * 5_001)]
    assert model == bytes(10_000)


def test_a_chunk_that_is_not_what_was_sealed_changes_nothing_before_it() -> None:
    client, there = opened()
    model = bytearray(b"a" * 5_000 + bytes(5_000))
    client.place(memoryview(model), 5_000, 5_000)
    bad = bytearray(there.message(b"h", flags=1) + there.message(b"x" * 5_000))
    bad[-1] ^= 1
    with pytest.raises(PullError, match=LOST):
        feed(client, bytes(bad))
    assert model[:5_000] == b"a" * 5_000


@pytest.mark.parametrize("key", SMALL_ORDER, ids=lambda key: key.hex()[:4])
def test_a_short_term_key_of_small_order_is_no_peers(key: bytes) -> None:
    client, there = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + there.welcome(short=key))


@pytest.mark.parametrize("key", SMALL_ORDER, ids=lambda key: key.hex()[:4])
def test_a_long_term_key_of_small_order_is_no_peers(key: bytes) -> None:
    with pytest.raises(PullError, match=NOT_A_PEER):
        Client(CurveKeys.generate(), key, max_payload_bytes=PAYLOAD)


def changed_greetings() -> Iterator[bytes]:
    for at, value in ((0, 0), (9, 0), (10, 2), (12, 0x4E), (31, 1)):
        yield GREETING[:at] + bytes([value]) + GREETING[at + 1 :]
    yield b"HTTP/1.1 400 Bad Request\r\n\r\n"
    yield b"\xff" + bytes(8) + b"\x7f\x01"


@pytest.mark.parametrize("greeting", list(changed_greetings()))
@pytest.mark.parametrize("most", [1, 1_000])
def test_another_greeting_is_no_peers(greeting: bytes, most: int) -> None:
    client, _ = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, greeting, most=most)


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\x00",
        b"\xffWELCOME",
        b"\x07WELCOME",
        b"\x07WELCOME" + bytes(160),
        b"\x07WELCOME" + bytes(159),
        b"\x07WELCOME" + bytes(161),
        b"\x05READY" + bytes(60),
        b"\x05HELLO" + bytes(194),
        b"\x07MESSAGE" + bytes(60),
        b"\x04PING\0\0",
        bytes(zmtp.MAX_HANDSHAKE_BYTES),
    ],
)
def test_another_command_than_welcome_is_no_peers(command: bytes) -> None:
    client, _ = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + frame(command))


@pytest.mark.parametrize("plain", [b"", bytes(32), bytes(127), bytes(129), bytes(300)])
def test_a_welcome_of_another_size_is_no_peers(plain: bytes) -> None:
    client, there = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + there.welcome(plain=plain))


def test_a_welcome_sealed_by_another_key_is_no_peers() -> None:
    client, there = dialled()
    there.secret = Listener().secret
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + there.welcome())


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\x05",
        b"\xff" + bytes(20),
        ROUTER + b"\x01",
        ROUTER[:-1],
        b"\x01a\xff\xff\xff\xff",
        properties(Socket_Type=b"PUB"),
        properties(Identity=b""),
        properties(Socket_Type=b"ROUTER" * 70),
    ],
)
def test_a_ready_that_says_something_else_is_no_peers(plain: bytes) -> None:
    client, there = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + there.welcome() + there.ready(plain))


@pytest.mark.parametrize("size", [0, 7, 8, 13, 14, 29, 30])
def test_a_ready_that_ends_too_early_is_no_peers(size: int) -> None:
    client, there = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + there.welcome() + frame(b"\x05READY" + bytes(size)))


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (b"\x03400", r"refused the CURVE key$"),
        (b"\x03300", r"refused the CURVE key$"),
        (b"\x03200", r"no CURVE handshake$"),
        (b"\xff400", r"no CURVE handshake$"),
        (b"", r"no CURVE handshake$"),
    ],
)
@pytest.mark.parametrize("welcomed", [False, True])
def test_a_refusal_is_told_from_a_connection_that_is_lost(
    reason: bytes, told: str, welcomed: bool
) -> None:
    client, there = dialled()
    data = GREETING + (there.welcome() if welcomed else b"") + frame(b"\x05ERROR" + reason)
    with pytest.raises(PullError, match=told):
        feed(client, data)


@pytest.mark.parametrize("flags", [0x00, 0x02, 0x05, 0x0C, 0x84])
def test_flags_that_no_command_has_end_a_handshake(flags: int) -> None:
    client, _ = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + bytes([flags]) + bytes(20))


@pytest.mark.parametrize("size", [zmtp.MAX_HANDSHAKE_BYTES + 1, 1 << 62, (1 << 64) - 1])
def test_a_command_without_an_end_is_refused_by_its_size_alone(size: int) -> None:
    client, _ = dialled()
    with pytest.raises(PullError, match=NOT_A_PEER):
        feed(client, GREETING + b"\x06" + size.to_bytes(8))


@pytest.mark.parametrize(
    "stray",
    [
        b"\x02" + (PAYLOAD + 34).to_bytes(8),
        b"\x02" + (1 << 62).to_bytes(8),
        frame(b"\x07MESSAGE", 0),
        frame(b"\x07MESSAGE" + bytes(24), 0),
        frame(b"\x07MESSAGE" + b"\xff" * 60, 0),
        frame(b"\x05READY" + bytes(60)),
        frame(b"\x05ERROR\x03400"),
        b"\x01\x00",
        b"\x88\x00",
    ],
)
def test_what_nobody_has_sealed_loses_the_connection(stray: bytes) -> None:
    client, there = opened()
    assert feed(client, there.message(b"fine")) == [(b"fine",)]
    with pytest.raises(PullError, match=LOST):
        feed(client, stray)


@pytest.mark.parametrize("back", [0, 1, 2])
@pytest.mark.parametrize("size", [5, 5_000])
def test_a_nonce_must_grow(back: int, size: int) -> None:
    client, there = opened()
    feed(client, there.message(b"first") + there.message(b"second"))
    with pytest.raises(PullError, match=LOST):
        feed(client, there.message(b"x" * size, nonce=there.nonce - back))


def test_a_message_cannot_be_played_again() -> None:
    client, there = opened()
    message = there.message(b"once")
    assert feed(client, message) == [(b"once",)]
    with pytest.raises(PullError, match=LOST):
        feed(client, message)


def test_a_message_without_an_end_is_the_peers_fault() -> None:
    client, there = opened()
    with pytest.raises(FrameError, match="more than 2 frames"):
        feed(client, there.message(b"on", flags=1) + there.message(b"and on", flags=1))


@pytest.mark.parametrize("flags", [4, 0x80, 0xFD])
def test_flags_that_nobody_knows_are_the_peers_fault(flags: int) -> None:
    client, there = opened()
    with pytest.raises(FrameError, match="message flags"):
        feed(client, there.message(b"x", flags=flags))


@pytest.mark.parametrize("context", [b"", b"16 bytes of this"])
def test_a_ping_is_answered_with_its_context_and_a_pong_is_not(context: bytes) -> None:
    client, there = opened()
    ping = there.message(b"\x04PING\x00\x64" + context, flags=2)
    pong = there.message(b"\x04PONG" + context, flags=2)
    assert feed(client, ping + pong + there.message(b"after")) == [(b"after",)]
    assert there.open(sent(client)) == [b"\x02\x04PONG" + context]


@pytest.mark.parametrize(
    "command",
    [b"", b"\x04PING", b"\x04PING\0\0" + bytes(17), b"\x04PONG" + bytes(30), b"\x09SUBSCRIBE"],
)
def test_another_command_inside_is_the_peers_fault(command: bytes) -> None:
    client, there = opened()
    with pytest.raises(FrameError, match="command"):
        feed(client, there.message(command, flags=2))


def test_pings_without_an_end_are_the_peers_fault() -> None:
    client, there = opened()
    pings = b"".join(there.message(b"\x04PING\0\0", flags=2) for _ in range(1_000))
    with pytest.raises(FrameError, match="does not read"):
        feed(client, pings)
    assert len(client.unsent) < 2 * zmtp.MAX_UNSENT_BYTES


def test_nothing_is_sent_before_the_handshake_is_over() -> None:
    client, _ = dialled()
    with pytest.raises(ValueError, match="handshake"):
        client.put(b"too early")


def test_a_box_that_cannot_be_one_is_not_given_to_libsodium() -> None:
    for sealed, nonce, key in ((15, 24, 32), (16, 23, 32), (16, 24, 31)):
        with pytest.raises(ValueError, match="too short"):
            box.open_in_place(memoryview(bytearray(sealed)), bytes(nonce), bytes(key))
