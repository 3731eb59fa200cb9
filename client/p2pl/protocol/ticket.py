"""A ticket to a relay: its issuer says that one peer of one session may use it for a while.

The tracker issues it in its answers. It is 174 bytes of msgpack, signed, and canonical: there is
one way to write it. It names a peer's key, so whoever finds or copies it can do nothing with it: a
peer signs what it says to a relay (`relay.py`).

At a relay that knows the author of a private session, an invitation does as well (`entry.py`).
"""

import hashlib
import re
from collections.abc import Collection
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import InputError, ProtocolError, wrong
from p2pl.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed_by, sign

MAX_TICKET_BYTES = 512
MAX_LIFE_S = 7 * 86_400  # chosen: short-lived, and long enough for one that a person passes on
PURPOSE = b"p2pl relay ticket 1"
_KEY_PATTERN = re.compile(r"[0-9a-f]{64}")

ISSUER_HINT = "`p2pl-tracker serve --relay-url …` prints it when it starts"

RawId = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an issuer says."""

    session: RawId  # the session id
    peer: RawId  # the peer's id
    not_after_s: Annotated[int, Meta(ge=0, lt=1 << 40)]  # seconds since 1970
    issuer: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def statement(self) -> bytes:
        """What the issuer signs."""
        return _ENCODER.encode((self.session, self.peer, self.not_after_s, self.issuer))


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Ticket)


def issue(key: Ed25519PrivateKey, *, session: bytes, peer: bytes, not_after_s: int) -> bytes:
    """Returns a ticket.

    Args:
        key: of the issuer.
        session: the session's id, 32 bytes.
        peer: the peer's id, 32 bytes.
        not_after_s: until when it is good, in seconds since 1970; relays refuse one that is good
            for longer than `MAX_LIFE_S`.
    """
    issuer = key.public_key().public_bytes_raw()
    blank = Ticket(session, peer, not_after_s, issuer, bytes(SIGNATURE_BYTES))
    signature = sign(key, PURPOSE, blank.statement)
    return _ENCODER.encode(msgspec.structs.replace(blank, signature=signature))


def decode(data: bytes) -> Ticket:
    """Returns the ticket in `data`; nothing in it is checked yet.

    Raises:
        ProtocolError: it is not one, or not written as `issue` writes it.
    """
    if len(data) > MAX_TICKET_BYTES:
        got = f"{len(data)} bytes"
        raise ProtocolError(wrong("ticket", got=got, allowed=f"{MAX_TICKET_BYTES}"))
    try:
        ticket = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise ProtocolError(f"ticket: {fault}") from fault
    if _ENCODER.encode(ticket) != data:
        raise ProtocolError("ticket: not in canonical form")
    return ticket


def check(
    data: bytes,
    *,
    session: bytes,
    public_key: bytes,
    issuers: Collection[bytes],
    now_s: float,
) -> None:
    """Raises ProtocolError unless a ticket allows a peer to use a relay.

    Args:
        data: the ticket, as it came.
        session: that the peer speaks of, 32 bytes.
        public_key: of the peer, which has proved to have it.
        issuers: keys of those whose tickets count.
        now_s: seconds since 1970.
    """
    if not data:
        hint = "its tracker gives one; the relay's operator says which trackers' count"
        raise ProtocolError(wrong("ticket", got="none", allowed="a ticket", hint=hint))
    ticket = decode(data)
    if ticket.issuer not in issuers:
        allowed = "an issuer that this relay was told of"
        raise ProtocolError(wrong("ticket issuer", got=ticket.issuer.hex(), allowed=allowed))
    if ticket.session != session or ticket.peer != hashlib.sha256(public_key).digest():
        raise ProtocolError("ticket: it is another peer's, or of another session")
    if not now_s <= ticket.not_after_s <= now_s + MAX_LIFE_S:
        got = f"good for {ticket.not_after_s - now_s:.0f} s from now"
        raise ProtocolError(wrong("ticket", got=got, allowed=f"0..{MAX_LIFE_S} s"))
    if not is_signed_by(ticket.issuer, PURPOSE, ticket.statement, ticket.signature):
        raise ProtocolError("ticket signature: it is not that of its issuer")


def parse_issuer(text: str, option: str = "--issuer", hint: str = ISSUER_HINT) -> bytes:
    """Returns a public key, 32 bytes, from its 64 hex digits.

    Args:
        text: as the person gave it.
        option: that it was given with.
        hint: where the person finds it.

    Raises:
        InputError: it is not written so.
    """
    if not _KEY_PATTERN.fullmatch(text):
        raise InputError(wrong(option, got=text, allowed="64 lower-case hex digits", hint=hint))
    return bytes.fromhex(text)
