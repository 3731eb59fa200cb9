"""What a peer says to a tracker, and what the tracker answers: JSON, bounded and canonical.

An announce is signed by the peer's Ed25519 key, so nobody can move, expire or impersonate another
peer. Its body must be, byte for byte, what `encode` writes: that one rule refuses duplicate keys,
blanks, other spellings of a number and bytes after the end.

The CURVE keys in an answer carry no signature and need none: peers prove their identity to each
other when they meet, so a tracker that lies about a key or an address can waste a connection
attempt and cannot impersonate anyone. Nor is the address signed: it is the one the tracker sees.
Who sits between a peer and a tracker on plain HTTP can deliver an announce first, from elsewhere;
the peer's next announce puts that right, and HTTPS prevents it.

Hashes and keys travel as base64 and peers as `[id, host, port, curve_key]`: the tracker's traffic
must stay below 1 % of the peers' own, also where a model has 31 KB.

Version 2 of an announce may also say by which endpoints the peer can be reached, and carry a proof
for other peers. (So may version 1, in a private session, where a tracker that knows the session
checks it as well.) Who announces in version 2 gets peers that did so as well as
`[id, host, port, curve_key, endpoints, proof]`; to all others nothing has changed.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import AnnounceError, ProtocolError, visible, wrong
from p2pl.protocol.address import ALLOWED_KEY, dialled, is_curve_key
from p2pl.protocol.endpoint import MAX_ENDPOINT_CHARS, MAX_ENDPOINTS, Endpoint, usable, written
from p2pl.protocol.identity import (
    CURVE_KEY_CHARS,
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    is_signed_by,
    sign,
)
from p2pl.protocol.ticket import MAX_TICKET_BYTES

MAX_PROOF_BYTES = 1_024
MAX_ANNOUNCE_BYTES = 3_072  # the longest valid announce has 2,827; the longest of version 1, 374
MAX_ANSWER_BYTES = 704 * 1_024  # MAX_NUMWANT peers of at most 2,560 bytes, and the rest
MAX_NUMWANT = 256  # the largest cohort a session file may ask for
MAX_SKEW_S = 300  # chosen: a clock without NTP drifts seconds a day; bounds what can be replayed
PURPOSE = b"p2pl announce 1"

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
HexDigest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
CurveKey = Annotated[  # ZeroMQ's Z85: no quote and no backslash, so 40 characters in JSON too
    str, Meta(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$", max_length=CURVE_KEY_CHARS)
]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Host = Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]{2,45}$", max_length=45)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
EndpointText = Annotated[str, Meta(pattern=r"^[0-9a-z.:/\[\]-]+$", max_length=MAX_ENDPOINT_CHARS)]
EndpointTexts = Annotated[tuple[EndpointText, ...], Meta(max_length=MAX_ENDPOINTS)]
Proof = Annotated[bytes, Meta(max_length=MAX_PROOF_BYTES)]
Version = Annotated[int, Meta(ge=1, le=2)]
Event = Literal["started", "update", "stopped", "completed"]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON object: frozen, and an unknown field is an error."""


class Announce(_Message, frozen=True, omit_defaults=True, kw_only=True):
    """A peer tells the tracker that it is there, and asks for others.

    A default is left out of the canonical form, so that announces of version 1 keep their bytes.
    """

    session: Digest  # the session id
    public_key: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    curve_key: CurveKey
    port: Port  # where it listens; the host is the one the tracker sees
    event: Event
    sequence: Annotated[int, Meta(ge=0, lt=1 << 53)]  # grows with each announce of one key
    time_s: Annotated[int, Meta(ge=0, lt=1 << 40)]  # seconds since 1970
    numwant: Annotated[int, Meta(ge=0, le=MAX_NUMWANT)]
    version: Version = 1  # 2: `endpoints` are all the ways to it, and it reads rows of six
    endpoints: EndpointTexts = ()  # in order of preference, each in its one form
    proof: Proof = b""  # for other peers

    @property
    def digest(self) -> bytes:
        """The peer's id as 32 bytes."""
        return hashlib.sha256(self.public_key).digest()

    @property
    def peer_id(self) -> str:
        """The peer's id, 64 hex digits."""
        return self.digest.hex()

    @property
    def session_id(self) -> str:
        """The session's id, 64 hex digits."""
        return self.session.hex()

    def check_time(self, now_s: float) -> None:
        """Raises AnnounceError unless it was made within `MAX_SKEW_S` of the tracker's clock.

        Args:
            now_s: that clock, in seconds since 1970.
        """
        skew_s = self.time_s - now_s
        if abs(skew_s) > MAX_SKEW_S:
            side = "ahead of" if skew_s > 0 else "behind"
            message = wrong(
                "announce time_s",
                got=f"{self.time_s}, {abs(skew_s):.0f} s {side} the tracker's clock",
                allowed=f"within {MAX_SKEW_S} s",
                hint="set this machine's clock",
            )
            raise AnnounceError(message, status=403)


class SignedAnnounce(Announce, frozen=True, omit_defaults=True, kw_only=True):
    """An announce with the signature of its public key over everything before the signature."""

    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    def check_signature(self, body: bytes = b"") -> None:
        """Raises AnnounceError unless the holder of `public_key` made this announce.

        Args:
            body: that it was decoded from, where it is at hand; else it is made anew.
        """
        statement = (body or _ENCODER.encode(self))[:-_SIGNATURE_JSON_BYTES] + b"}"
        if not is_signed_by(self.public_key, PURPOSE, statement, self.signature):
            raise AnnounceError(
                "announce signature: it is not that of public_key over the other fields; "
                "sign the announce as it is sent",
                status=401,
            )


class PeerAddress(_Message, frozen=True, omit_defaults=True, kw_only=True):
    """Where a peer can be reached, as somebody said; it proves its id when met."""

    id: HexDigest
    host: Host  # an IP address: where the peer was seen
    port: Port
    curve_key: CurveKey
    version: Version = 1  # 2: its endpoints are all the ways to it, even where they are none
    endpoints: Annotated[tuple[Endpoint, ...], Meta(max_length=MAX_ENDPOINTS)] = ()  # best first
    proof: Proof = b""  # for the peer's listener; nobody has checked it

    @property
    def ways(self) -> tuple[Endpoint, ...]:
        """What can be dialled, the best first; empty where nobody here can dial the peer."""
        if self.version == 1 and not self.endpoints:
            return (Endpoint("tcp", self.host, self.port),)
        return self.endpoints

    def checked(self) -> "PeerAddress":
        """Returns the address with hosts in their one form, without endpoints that are unusable.

        Raises:
            ValueError: the key is no CURVE key, or the host none that a peer may have.
        """
        if not is_curve_key(self.curve_key):
            raise ValueError(wrong("curve_key", got=self.curve_key, allowed=ALLOWED_KEY))
        host = dialled(self.host)
        endpoints = usable(map(str, self.endpoints))
        if (host, endpoints) == (self.host, self.endpoints):
            return self
        return msgspec.structs.replace(self, host=host, endpoints=endpoints)


class PeerRow(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, array_like=True
):
    """A peer's address as it travels: `[id in base64, host, port, curve_key]`.

    A row of six ends with `endpoints, proof`; a peer of version 1 has a row of four.
    """

    id: Digest
    host: Host
    port: Port
    curve_key: CurveKey

    def address(self) -> PeerAddress:
        """Returns the address; raises ValueError where it can be no peer's."""
        return PeerAddress(
            id=self.id.hex(), host=self.host, port=self.port, curve_key=self.curve_key
        ).checked()


class RowOfSix(PeerRow, frozen=True, forbid_unknown_fields=True, kw_only=True, array_like=True):
    """The row of a peer that announced in version 2."""

    # Looser than what trackers accept: an endpoint of a form that is unknown here costs itself.
    endpoints: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_ENDPOINT_CHARS)], ...],
        Meta(max_length=MAX_ENDPOINTS),
    ]
    proof: Proof

    def address(self) -> PeerAddress:
        """Returns the address; raises ValueError where it can be no peer's."""
        address = super().address()
        return msgspec.structs.replace(
            address, version=2, endpoints=usable(self.endpoints), proof=self.proof
        )


class Terms(_Message, frozen=True, omit_defaults=True, kw_only=True):
    """Everything in an answer except the peers."""

    interval_s: Annotated[int, Meta(ge=1, le=86_400)]  # announce again after this, at the latest
    min_interval_s: Seconds  # more often than this for long is refused
    epoch: Annotated[str, Meta(min_length=1, max_length=32)]  # another one: a restart
    alive: Count  # peers in the session, the asker included
    training: Count = 0  # those of them that have not announced `completed`
    external_host: Annotated[str, Meta(max_length=45)] = ""  # in answers to `started`: as seen
    warning: Annotated[str, Meta(max_length=500)] = ""
    revocations: Count = 0  # number of the newest list; of private sessions only
    # For askers of version 2 only: others would refuse the answer.
    relays: EndpointTexts = ()  # that the tracker offers, best first
    ticket: Annotated[bytes, Meta(max_length=MAX_TICKET_BYTES)] = b""  # the asker's, for these


class AnswerBody(Terms, frozen=True, omit_defaults=True, kw_only=True):
    """An answer as it travels."""

    peers: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=MAX_NUMWANT)]  # a `PeerRow` each


class Answer(Terms, frozen=True, kw_only=True):
    """The tracker's answer: some of the other peers, drawn at random, and when to come back."""

    peers: tuple[PeerAddress, ...]
    unusable: int = 0  # rows that can be no peer's address, and were left out


class Refusal(_Message, frozen=True, omit_defaults=True, kw_only=True):
    """Why the tracker did not do what it was asked."""

    reason: Annotated[str, Meta(max_length=1_000)]
    retry_in_s: Seconds | None = None  # None: trying again cannot help


class Counts(_Message, frozen=True, kw_only=True):
    """How many peers a session has."""

    alive: Count
    completed: Count  # of those that were ever alive here


class Scrape(_Message, frozen=True, kw_only=True):
    """Counts by session id, 64 hex digits."""

    sessions: dict[HexDigest, Counts]


_ENCODER = msgspec.json.Encoder(order="deterministic")
_ANNOUNCES = msgspec.json.Decoder(SignedAnnounce)
_ANSWERS = msgspec.json.Decoder(AnswerBody)
_ROWS = (msgspec.json.Decoder(PeerRow), msgspec.json.Decoder(RowOfSix))
_REFUSALS = msgspec.json.Decoder(Refusal)
_SIGNATURE_JSON_BYTES = len(',"signature":""}') + 88  # 64 bytes in base64


def encode(announce: Announce, key: Ed25519PrivateKey) -> bytes:
    """Returns the body of an announce, signed with `key`.

    Args:
        announce: what is said.
        key: of the peer that says it.
    """
    statement = _ENCODER.encode(announce)
    signed = SignedAnnounce(
        **msgspec.structs.asdict(announce), signature=sign(key, PURPOSE, statement)
    )
    return _ENCODER.encode(signed)


def decode(body: bytes) -> SignedAnnounce:
    """Returns the announce in `body`; its signature and its time are not checked yet.

    Raises:
        AnnounceError: the body is too long, not JSON, out of range, or not as `encode` writes it.
    """
    if len(body) > MAX_ANNOUNCE_BYTES:
        raise too_long()
    try:
        announce = _ANNOUNCES.decode(body)
    except msgspec.ValidationError as fault:
        raise AnnounceError(f"announce: {fault}", status=422) from fault
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise AnnounceError(f"announce: not JSON ({fault})") from fault
    if _ENCODER.encode(announce) != body:
        raise AnnounceError(
            "announce: not in canonical form; write the fields once each, in the documented order, "
            "without blanks, integers as plain digits, bytes as base64 with padding"
        )
    if not is_curve_key(announce.curve_key):
        message = wrong("announce curve_key", got=announce.curve_key, allowed=ALLOWED_KEY)
        raise AnnounceError(message, status=422)
    _check_details(announce)
    return announce


def _check_details(announce: Announce) -> None:
    """Raises AnnounceError unless what version 2 adds is said by version 2, in its one form."""
    if announce.version == 1 and announce.endpoints:
        message = wrong("announce version", got=1, allowed="2, for one with endpoints")
        raise AnnounceError(message, status=422)
    if len(set(announce.endpoints)) != len(announce.endpoints):
        message = wrong("announce endpoints", got=announce.endpoints, allowed="each once")
        raise AnnounceError(message, status=422)
    try:
        for text in announce.endpoints:
            written(text)
    except ValueError as fault:
        raise AnnounceError(f"announce: {fault}", status=422) from fault


def check_host(host: str) -> None:
    """Raises AnnounceError unless others could dial a peer that announces from `host`."""
    try:
        dialled(host)
    except ValueError as fault:
        hint = "reach the tracker by an address that others can dial"
        raise AnnounceError(f"announce from here: {fault}; {hint}", status=403) from fault


def too_long(max_bytes: int = MAX_ANNOUNCE_BYTES) -> AnnounceError:
    """Returns the refusal of a body that is longer than it may be; by default, of an announce."""
    what = "announce" if max_bytes == MAX_ANNOUNCE_BYTES else "body"
    got = f"more than {max_bytes} bytes"
    return AnnounceError(wrong(what, got=got, allowed=f"{max_bytes}"), status=413)


def encode_row(announce: Announce, host: str) -> bytes:
    """Returns the address of the announcing peer as others will receive it, a row of four.

    Args:
        announce: of the peer.
        host: the IP address that the announce came from.
    """
    row = PeerRow(id=announce.digest, host=host, port=announce.port, curve_key=announce.curve_key)
    return _ENCODER.encode(row)


def encode_endpoints(endpoints: Iterable[str]) -> bytes:
    """Returns the fifth element of a row of six.

    Args:
        endpoints: in order of preference.
    """
    return _ENCODER.encode(tuple(endpoints))


def encode_proof(proof: bytes) -> bytes:
    """Returns the sixth element of a row of six."""
    return _ENCODER.encode(proof)


def row_of_six(row: bytes, endpoints: bytes, proof: bytes) -> bytes:
    """Returns a row of six; its parts are encoded once, for all who will receive them.

    Args:
        row: as `encode_row` made it.
        endpoints: as `encode_endpoints` made it.
        proof: as `encode_proof` made it.
    """
    return row[:-1] + b"," + endpoints + b"," + proof + b"]"


def encode_answer(terms: Terms, rows: Iterable[bytes]) -> bytes:
    """Returns the body of an answer; `rows` are made by `encode_row`, once for many answers.

    Args:
        terms: what the tracker says beside the peers.
        rows: of the peers, each as `encode_row` made it.
    """
    return _ENCODER.encode(terms)[:-1] + b',"peers":[' + b",".join(rows) + b"]}"


def encode_other(message: Refusal | Scrape) -> bytes:
    """Returns the body of a message that is not an answer to an announce."""
    return _ENCODER.encode(message)


def decode_answer(body: bytes) -> Answer:
    """Returns the answer in `body`, without the rows that can be no peer's address.

    A tracker passes on what strangers say, so a bad row costs that row.

    Raises:
        ProtocolError: it is too long, not JSON, or out of range.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise ProtocolError(
            wrong("answer", got=f"{len(body)} bytes", allowed=f"at most {MAX_ANSWER_BYTES}")
        )
    try:
        answer = _ANSWERS.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise ProtocolError(f"answer: {fault}") from fault
    peers = tuple(address for row in answer.peers if (address := _address_in(row)) is not None)
    terms = {name: getattr(answer, name) for name in Terms.__struct_fields__}
    terms["warning"] = visible(answer.warning)
    terms["relays"] = tuple(map(str, usable(answer.relays)))
    return Answer(**terms, peers=peers, unusable=len(answer.peers) - len(peers))


def _address_in(row: msgspec.Raw) -> PeerAddress | None:
    for rows in _ROWS:
        with contextlib.suppress(msgspec.DecodeError, ValueError, RecursionError):
            return rows.decode(row).address()
    return None


def decode_refusal(body: bytes) -> Refusal:
    """Returns the refusal in `body`.

    Raises:
        ProtocolError: it is not a refusal.
    """
    try:
        refusal = _REFUSALS.decode(body[:MAX_ANSWER_BYTES])
        return msgspec.structs.replace(refusal, reason=visible(refusal.reason))
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise ProtocolError(f"refusal: {fault}") from fault
