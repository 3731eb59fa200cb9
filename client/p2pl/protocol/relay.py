"""What peers say to a relay, and what it says to them: short msgpack messages.

    peer                                relay
    ---- a kept connection of a peer that nobody can dial
    Listen (signed, with a ticket)  →
                                    ←   Listening
    Ping                            →
                                    ←   Ping
                                    ←   Ring: somebody calls
    ---- a connection of whoever wants to reach that peer
    Call (signed, with a ticket)    →
                                    ←   Joined
    ---- a second connection of the peer that is called
    Accept (what the Ring said)     →
                                    ←   Joined

After `Joined`, whatever comes over one of the two is written to the other, byte for byte. Instead
of an answer the relay may say `Refused`, and closes.

A message is two bytes that say how long it is, then msgpack. Whoever connects begins with `PREFACE`
and says nothing more before the answer; but whoever calls may say the first `MAX_EARLY_BYTES` of
what is for the other peer right behind its `Call`, which saves a way to the relay and back.

A relay's operator, and whoever sees its lines, reads which peer speaks to which, and when. They
cannot speak for a peer: `Listen` and `Call` are signed, dated and good once.
"""

import hashlib
import secrets
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import ProtocolError, visible, wrong
from p2pl.protocol.announce import MAX_SKEW_S
from p2pl.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed_by, sign
from p2pl.protocol.ticket import MAX_TICKET_BYTES, RawId

PREFACE = b"p2pl-relay/1\n"
LENGTH_BYTES = 2
MAX_MESSAGE_BYTES = 1_024
MAX_EARLY_BYTES = 512  # behind a `Call`; chosen: a ZMTP greeting and a CURVE HELLO are 266
NONCE_BYTES = 16
MAX_REASON_CHARS = 300
ABSENT = "the peer that is called is not here"  # as a relay refuses a call to nobody
PURPOSES: dict[str, bytes] = {"listen": b"p2pl relay listen 1", "call": b"p2pl relay call 1"}

Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_M = TypeVar("_M")


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array whose first element says which message it is."""


class _Signed(_Message, frozen=True):
    session: RawId
    target: RawId  # the id of the peer that is called; of a listener: its own
    public_key: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    time_s: Annotated[int, Meta(ge=0, lt=1 << 40)]  # seconds since 1970
    nonce: Nonce  # drawn for this message alone
    ticket: Annotated[bytes, Meta(max_length=MAX_TICKET_BYTES)]  # b"": none
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def peer(self) -> bytes:
        """The id of the peer that speaks, 32 bytes."""
        return hashlib.sha256(self.public_key).digest()

    @property
    def statement(self) -> bytes:
        """What the peer signs."""
        told = (self.session, self.target, self.public_key, self.time_s, self.nonce, self.ticket)
        return _ENCODER.encode(told)

    def check(self, purpose: Literal["listen", "call"], now_s: float) -> None:
        """Raises ProtocolError unless the holder of `public_key` said it just now.

        Args:
            purpose: what it is meant for.
            now_s: seconds since 1970.
        """
        if abs(self.time_s - now_s) > MAX_SKEW_S:
            got = f"{self.time_s - now_s:+.0f} s from the relay's clock"
            hint = "set this machine's clock"
            raise ProtocolError(
                wrong(f"{purpose} time_s", got=got, allowed=f"within {MAX_SKEW_S} s", hint=hint)
            )
        if purpose == "listen" and self.target != self.peer:
            raise ProtocolError("listen: a peer listens for itself alone")
        if not is_signed_by(self.public_key, PURPOSES[purpose], self.statement, self.signature):
            raise ProtocolError(f"{purpose} signature: it is not that of public_key")


class Listen(_Signed, frozen=True, tag="listen"):
    """A peer is here, and takes calls."""


class Call(_Signed, frozen=True, tag="call"):
    """A peer wants to be joined to another one."""


class Accept(_Message, frozen=True, tag="accept"):
    """A peer takes a call, on the connection that says so."""

    call: Nonce


class Ping(_Message, frozen=True, tag="ping"):
    """Says that the connection lives; a relay answers with the same."""


class Listening(_Message, frozen=True, tag="listening"):
    """The relay takes calls for the peer."""

    keepalive_s: Seconds  # a `Ping` is due so often


class Ring(_Message, frozen=True, tag="ring"):
    """Somebody calls: `Accept` on a second connection takes the call."""

    call: Nonce  # nobody else knows it
    caller: RawId  # the id of the peer that calls


class Joined(_Message, frozen=True, tag="joined"):
    """From here on the bytes are the other peer's."""


class Refused(_Message, frozen=True, tag="refused"):
    """The relay does not do what was asked, and closes."""

    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)]
    retry_in_s: Seconds | None = None  # None: trying again cannot help


Said: TypeAlias = Listen | Call | Accept | Ping  # by peers
Told: TypeAlias = Listening | Ring | Joined | Refused | Ping  # by relays

_ENCODER = msgspec.msgpack.Encoder()
_SAID: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)
_TOLD: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)


def listen(
    key: Ed25519PrivateKey,
    *,
    session: bytes,
    time_s: float,
    ticket: bytes = b"",
) -> Listen:
    """Returns the message that begins to listen.

    Args:
        key: of the peer.
        session: its session, 32 bytes.
        time_s: now, in seconds since 1970.
        ticket: that it was given.
    """
    peer = hashlib.sha256(key.public_key().public_bytes_raw()).digest()
    return Listen(*_signed("listen", key, (session, peer), time_s, ticket))


def call(
    key: Ed25519PrivateKey,
    *,
    session: bytes,
    target: bytes,
    time_s: float,
    ticket: bytes = b"",
) -> Call:
    """Returns the message that calls a peer.

    Args:
        key: of the peer that calls.
        session: of both, 32 bytes.
        target: the id of the peer that is called, 32 bytes.
        time_s: now, in seconds since 1970.
        ticket: that the caller was given.
    """
    return Call(*_signed("call", key, (session, target), time_s, ticket))


def _signed(
    purpose: str,
    key: Ed25519PrivateKey,
    whom: tuple[bytes, bytes],
    time_s: float,
    ticket: bytes,
) -> tuple[bytes, bytes, bytes, int, bytes, bytes, bytes]:
    told = (
        *whom,
        key.public_key().public_bytes_raw(),
        int(time_s),
        secrets.token_bytes(NONCE_BYTES),
        ticket,
    )
    return (*told, sign(key, PURPOSES[purpose], _ENCODER.encode(told)))


def encode(message: Said | Told) -> bytes:
    """Returns a message as it travels, its length first."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def length_of(head: bytes) -> int:
    """Returns how many bytes follow the `LENGTH_BYTES` in `head`.

    Raises:
        ProtocolError: more than a message has, or none.
    """
    length = int.from_bytes(head, "big")
    if not 1 <= length <= MAX_MESSAGE_BYTES:
        got = f"{length} bytes"
        raise ProtocolError(wrong("message", got=got, allowed=f"1..{MAX_MESSAGE_BYTES}"))
    return length


def decode_said(body: bytes) -> Said:
    """Returns what a peer said.

    Raises:
        ProtocolError: it is no message of a peer, or not written as `encode` writes it.
    """
    return _decode(_SAID, body)


def decode_told(body: bytes) -> Told:
    """Returns what a relay told; the reason in a refusal may be shown to a person.

    Raises:
        ProtocolError: it is no message of a relay, or not written as `encode` writes it.
    """
    told = _decode(_TOLD, body)
    if isinstance(told, Refused):
        return msgspec.structs.replace(told, reason=visible(told.reason))
    return told


def _decode(decoder: msgspec.msgpack.Decoder[_M], body: bytes) -> _M:
    if len(body) > MAX_MESSAGE_BYTES:
        got = f"{len(body)} bytes"
        raise ProtocolError(wrong("message", got=got, allowed=f"1..{MAX_MESSAGE_BYTES}"))
    try:
        message = decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise ProtocolError(f"message: {fault}") from fault
    if _ENCODER.encode(message) != body:
        raise ProtocolError("message: not in canonical form")
    return message
