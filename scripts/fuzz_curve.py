"""The listener's end of CURVE by hand, so that it can say what libzmq never says."""

from dataclasses import dataclass, field

import msgspec
import nacl.bindings as sodium
from zmq.utils import z85

from p2pl.errors import FrameError
from p2pl.network.keys import CurveKeys
from p2pl.network.zmtp import Client, Message

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
# All points of small order on Curve25519 (RFC 7748 names none of them): with each of them, every
# secret key makes the same "shared" secret, 32 zeros.
SMALL_ORDER = tuple(
    map(
        bytes.fromhex,
        (
            "00" * 32,
            "01" + "00" * 31,
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ec" + "ff" * 30 + "7f",
            "ed" + "ff" * 30 + "7f",
            "ee" + "ff" * 30 + "7f",
        ),
    )
)
HELLO_AT, HELLO_BYTES = 66, 200  # behind the client's greeting, and the head of the command
COOKIE = bytes(96)


def frame(body: bytes, flags: int = 0x04) -> bytes:
    """Returns a frame; 4 is the flag of a command."""
    if len(body) > 0xFF:
        return bytes([flags | 0x02]) + len(body).to_bytes(8) + body
    return bytes([flags, len(body)]) + body


def properties(**values: bytes) -> bytes:
    """Returns the plaintext of a READY; an underscore stands for a hyphen."""
    pairs = ((name.replace("_", "-").encode(), value) for name, value in values.items())
    return b"".join(
        bytes([len(name)]) + name + len(value).to_bytes(4) + value for name, value in pairs
    )


ROUTER = properties(Socket_Type=b"ROUTER", Identity=b"")


@dataclass
class Listener:
    """One connection's other end."""

    public: bytes = b""
    secret: bytes = b""
    short: tuple[bytes, bytes] = field(default_factory=sodium.crypto_box_keypair)
    nonce: int = 0
    client: bytes = b""  # its short-term key

    def __post_init__(self) -> None:
        if not self.public:
            self.public, self.secret = sodium.crypto_box_keypair()

    @property
    def key(self) -> str:
        """The public key in Z85."""
        encoded: bytes = z85.encode(self.public)
        return encoded.decode()

    def hear_hello(self, data: bytes) -> None:
        """Takes the client's short-term key out of what it said first."""
        hello = data[HELLO_AT : HELLO_AT + HELLO_BYTES]
        assert hello[:6] == b"\x05HELLO", hello[:6]
        self.client = hello[80:112]

    def welcome(self, *, plain: bytes | None = None, short: bytes | None = None) -> bytes:
        """Returns a WELCOME with this plaintext, or with this key in it."""
        nonce = bytes(15) + b"\x01"
        plain = (short or self.short[0]) + COOKIE if plain is None else plain
        sealed = sodium.crypto_box_easy(plain, b"WELCOME-" + nonce, self.client, self.secret)
        return frame(b"\x07WELCOME" + nonce + sealed)

    def ready(self, plain: bytes = ROUTER) -> bytes:
        nonce = self.next_nonce()
        return frame(b"\x05READY" + nonce + self._seal(plain, b"CurveZMQREADY---" + nonce))

    def message(self, payload: bytes, *, flags: int = 0, nonce: int | None = None) -> bytes:
        """Returns one frame; flags 1 (more), 2 (a command inside)."""
        short = self.next_nonce() if nonce is None else nonce.to_bytes(8)
        sealed = self._seal(bytes([flags]) + payload, b"CurveZMQMESSAGES" + short)
        return frame(b"\x07MESSAGE" + short + sealed, 0)

    def next_nonce(self) -> bytes:
        self.nonce += 1
        return self.nonce.to_bytes(8)

    def open(self, data: bytes) -> list[bytes]:
        """Returns the plaintexts of the client's messages, flags first."""
        opened = []
        while data:
            head = 9 if data[0] & 0x02 else 2
            size = int.from_bytes(data[1:head])
            body, data = data[head : head + size], data[head + size :]
            nonce = b"CurveZMQMESSAGEC" + body[8:16]
            opened.append(sodium.crypto_box_open_easy_afternm(body[16:], nonce, self._shared))
        return opened

    def _seal(self, plain: bytes, nonce: bytes) -> bytes:
        return sodium.crypto_box_easy_afternm(plain, nonce, self._shared)

    @property
    def _shared(self) -> bytes:
        return sodium.crypto_box_beforenm(self.client, self.short[1])


class Said(msgspec.Struct, array_like=True):
    """One frame that a listener seals."""

    flags: int
    nonce: int | None
    payload: bytes


class Script(msgspec.Struct, array_like=True):
    """All that a listener seals on one connection, as plaintext."""

    welcome: bytes
    ready: bytes
    frames: list[Said]


MAX_FRAMES = 200
MAX_SCRIPT_BYTES = 1 << 18  # of an input; what a listener can say in one is bounded elsewhere
_PAYLOAD_BYTES, _PIECE_BYTES = 70_000, 5_000
_KEYS = CurveKeys.generate()
_SHORT = sodium.crypto_box_keypair()
_LONG = sodium.crypto_box_keypair()
_THERE = sodium.crypto_box_keypair()


def _both() -> tuple[Client, Listener]:
    """Returns both ends of a connection, with the same keys for every input."""
    client = Client(_KEYS, _LONG[0], max_payload_bytes=_PAYLOAD_BYTES, short=_SHORT)
    client.place(memoryview(bytearray(4 * _PIECE_BYTES + 1)), _PIECE_BYTES)
    return client, Listener(*_LONG, short=_THERE, client=_SHORT[0])


def feed(client: Client, data: bytes, *, most: int = 1 << 20) -> list[Message]:
    """Returns the messages that come of `data`, read `most` bytes at a time."""
    found: list[Message] = []
    while data:
        count = 0
        for room in client.room():
            part = data[: min(len(room), most - count)]
            room[: len(part)] = part
            data, count = data[len(part) :], count + len(part)
        assert count, "no room to read into"
        client.took(count)
        client.shake_hands()
        while client.may_send and (message := client.message()) is not None:
            found.append(tuple(map(bytes, message)))
    return found


def read_stream(data: bytes) -> None:
    """Takes what a listener has sent, byte for byte."""
    feed(_both()[0], data, most=3_000)


def read_sealed(data: bytes) -> None:
    """Takes what a listener has sealed; it is told as a `Script`, or as something like it."""
    if len(data) > MAX_SCRIPT_BYTES:
        raise FrameError("script")
    try:
        script = _items(msgspec.msgpack.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise FrameError("script") from fault
    welcome, ready, frames = (*script, *(b"", b"", []))[:3]
    client, there = _both()
    feed(client, GREETING + there.welcome(plain=_bytes(welcome)) + there.ready(_bytes(ready)))
    for one in _items(frames)[:MAX_FRAMES]:
        flags, nonce, payload = (*_items(one), *(0, None, b""))[:3]
        sealed = there.message(
            _bytes(payload),
            flags=flags % 256 if isinstance(flags, int) else 0,
            nonce=nonce % (1 << 64) if isinstance(nonce, int) else None,
        )
        feed(client, sealed, most=3_000)


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()


def examples() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Returns valid inputs of `read_stream` and of `read_sealed`."""
    chunk = [Said(1, None, b"head"), Said(0, None, b"x" * _PIECE_BYTES)]
    ping = Said(2, None, b"\x04PING\0\x64context")
    scripts = [[Said(0, None, b"offer"), *chunk, *chunk], [ping, *chunk], []]
    streams, sealed = [], []
    for frames in scripts:
        _, there = _both()
        begin = GREETING + there.welcome() + there.ready()
        streams.append(begin + b"".join(there.message(s.payload, flags=s.flags) for s in frames))
        sealed.append(msgspec.msgpack.encode(Script(_THERE[0] + COOKIE, ROUTER, frames)))
    return tuple(streams), tuple(sealed)
