"""What peers say to each other: small checked headers in MessagePack, and chunks of bytes.

A puller asks (`Pull`), the server answers (`VersionOffer`, `NotModified`, `Busy` or `Refused`), and
after an offer it sends `Chunk`s, never more than the puller gave credit for (`Credit`). A header is
one ZeroMQ frame; a chunk's bytes are the second frame of its message, and nothing else has one.

Short messages go over a connection that is kept, on which both ends have shown their credential
once (`Hello`). On it a peer asks which version another has (`Ping`, answered by `Newest`), or tells
it something that the exchange understands (`Tell`, answered by `Told`). Either costs some tens of
bytes, and an answer may be `Busy` or `Refused` as well.

A blob is for those who were told its name (`FetchBlob`), and comes like a version.

What broke is asked for again from where it broke (`Resume`), of a peer that says in the handshake
that it understands this (`PROPERTY`): its offer is followed by chunks from there where it still has
the same version, else by all chunks of what it has.

In a session with update logs a question carries what the asker knows of the other's log
(`Committed`), and the offer what commits the other to the version (`CommittedOffer`).

The session fixes the size of the model and of a chunk, so both sides know every length before a
byte arrives. Times travel as whole milliseconds: no NaN, no infinity.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import FrameError, wrong
from p2pl.protocol.announce import CurveKey, Port
from p2pl.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed_by, peer_id_of, sign

MAX_HEADER_BYTES = 2_048  # the longest valid header, an offer with full notes, has about 1,300
MAX_OFFER_BYTES = 10_240  # of an answer: an offer with what commits its sender to a version
MAX_NOTES_BYTES = 1_024
MAX_SAID_BYTES = 1_664  # beside a question, in a session with update logs
MAX_COMMITMENT_BYTES = 8_192  # beside an offer there; usually about 1,500
BLOB_NAME_BYTES = 16  # random, so nobody guesses one
MAX_TELL_BYTES = 1_536  # chosen: room for a sealed message with its keys; models are pulled
MAX_REASON_CHARS = 200
MAX_CREDIT = 64  # chunks in one message, and all that a peer of before holds for a puller
MAX_OUTSTANDING = 1_024  # that a peer with `PROPERTY` holds: 16 MiB of the smallest chunks
MAX_WAIT_MS = 60_000
PROPERTY, PROPERTY_VALUE = (
    "X-p2pl",
    "2",
)  # of a peer's READY, since it understands `Resume` and holds more
SESSION_BYTES = 32
DIGEST_BYTES = 16  # see p2pl.network.version
PURPOSE = b"p2pl card 1"  # of a credential; what is signed never changes

Session = Annotated[bytes, Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]  # exact in every language's numbers
Milliseconds = Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)]
Chunks = Annotated[int, Meta(ge=1, le=MAX_CREDIT)]
BlobName = Annotated[bytes, Meta(min_length=BLOB_NAME_BYTES, max_length=BLOB_NAME_BYTES)]


class Credential(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer's signed statement that this CURVE key and port are its own in this session.

    It is worth something only on a connection made with that CURVE key, so it needs no date and
    nobody can use another's.
    """

    session: Session
    public_key: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    curve_key: CurveKey
    port: Port  # where it serves
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def peer_id(self) -> str:
        """The id of the peer whose credential this is, once `check` has passed."""
        return peer_id_of(self.public_key)

    def check(self, *, session_id: str, curve_key: str) -> str:
        """Returns the id of the peer that is on the other end of a connection.

        Args:
            session_id: of the session that is spoken of, 64 hex digits.
            curve_key: the key that the other end of this connection has used, in Z85.

        Raises:
            FrameError: it is of another session or another connection, or not signed by its peer.
        """
        if self.session.hex() != session_id:
            raise FrameError(
                wrong("credential.session", got=self.session.hex(), allowed=session_id)
            )
        if self.curve_key != curve_key:
            raise FrameError(
                wrong(
                    "credential.curve_key",
                    got=self.curve_key,
                    allowed=f"{curve_key}, the connection's",
                )
            )
        statement = _statement(self.session, self.public_key, self.curve_key, self.port)
        if not is_signed_by(self.public_key, PURPOSE, statement, self.signature):
            raise FrameError(
                "credential.signature: it is not that of credential.public_key over this credential"
            )
        return self.peer_id


def issue_credential(
    key: Ed25519PrivateKey, *, session_id: str, curve_key: str, port: int
) -> Credential:
    """Returns the credential of the peer that holds `key`.

    Args:
        key: the peer's identity.
        session_id: 64 hex digits.
        curve_key: the public CURVE key of all its connections, in Z85.
        port: where it serves, 1..65535.
    """
    session = bytes.fromhex(session_id)
    public_key = key.public_key().public_bytes_raw()
    statement = _statement(session, public_key, curve_key, port)
    return Credential(session, public_key, curve_key, port, sign(key, PURPOSE, statement))


class Header(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag_field="type"
):
    """A message between peers; travels as an array that begins with its tag."""


class Pull(Header, frozen=True, tag=1):
    """Asks for the newest version."""

    credential: Credential
    want: Literal["model", "checkpoint"]
    have: Digest | None  # digest of the version that the asker holds
    round: Count  # wait for this round, where it is not reached yet…
    wait_ms: Milliseconds  # …but not longer than this
    credit: Chunks  # that the asker takes before it gives more credit


class Credit(Header, frozen=True, tag=2):
    """Allows so many chunks more."""

    chunks: Chunks


class VersionOffer(Header, frozen=True, tag=3):
    """Says what comes next."""

    credential: Credential
    round: Count
    samples: Count  # that it was trained on, as the peer says
    size: Annotated[int, Meta(ge=1, lt=1 << 53)]  # bytes
    digest: Digest  # of all of it
    notes: Annotated[bytes, Meta(max_length=MAX_NOTES_BYTES)] = b""


class NotModified(Header, frozen=True, tag=4):
    """Says that the asker has the newest version."""

    credential: Credential
    round: Count


class Busy(Header, frozen=True, tag=5):
    """Says to ask again after a while."""

    retry_in_ms: Milliseconds


class Refused(Header, frozen=True, tag=6):
    """Refuses; asking again does not help."""

    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)]


class Chunk(Header, frozen=True, tag=7):
    """Says at which offset the bytes in the second frame stand."""

    offset: Count


class Hello(Header, frozen=True, tag=8):
    """Says who this end of a connection is, for all that follows; answered by the other's."""

    credential: Credential


class Ping(Header, frozen=True, tag=9):
    """Asks which version of the model is the newest."""


class Newest(Header, frozen=True, tag=10):
    """Answers a ping; without a digest, there is none yet."""

    round: Count
    samples: Count  # that it was trained on, as the peer says
    digest: Digest | None


class Tell(Header, frozen=True, tag=11):
    """Carries something that the session's kind of exchange understands."""

    payload: Annotated[bytes, Meta(max_length=MAX_TELL_BYTES)]


class Told(Header, frozen=True, tag=12):
    """Says that what was told has been taken in."""


class FetchBlob(Header, frozen=True, tag=13):
    """Asks for the blob of this name."""

    credential: Credential
    name: BlobName
    credit: Chunks  # as in `Pull`


class Resume(Header, frozen=True, tag=14):
    """Asks for the same once more, but not for what has come already."""

    question: Pull | FetchBlob
    digest: Digest  # of what was offered
    offset: Annotated[int, Meta(ge=1, lt=1 << 53)]  # of the first byte that is missing


class Committed(Header, frozen=True, tag=15):
    """Asks for something, in a session with update logs."""

    question: Pull | FetchBlob | Resume
    said: Annotated[bytes, Meta(max_length=MAX_SAID_BYTES)]  # see p2pl.protocol.updates.message


class CommittedOffer(Header, frozen=True, tag=16):
    """Says what comes next, and what its sender commits to with it; the answer to `Committed`."""

    offer: VersionOffer
    commitment: Annotated[bytes, Meta(max_length=MAX_COMMITMENT_BYTES)]


ConnectionAsk: TypeAlias = Hello | Ping | Tell
ConnectionAnswer: TypeAlias = Hello | Newest | Told | Busy | Refused
Ask: TypeAlias = Pull | Credit | FetchBlob | Resume | Committed | ConnectionAsk
Answer: TypeAlias = VersionOffer | CommittedOffer | NotModified | Busy | Refused | Chunk
T = TypeVar("T")

_ENCODER = msgspec.msgpack.Encoder()
_ASK: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(
    Pull | Credit | FetchBlob | Resume | Committed | Hello | Ping | Tell
)
_ANSWER: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(
    VersionOffer | CommittedOffer | NotModified | Busy | Refused | Chunk
)
_CONNECTION_ANSWER: msgspec.msgpack.Decoder[ConnectionAnswer] = msgspec.msgpack.Decoder(
    Hello | Newest | Told | Busy | Refused
)


def encode(header: Header) -> bytes:
    """Returns the bytes of `header`; the same header gives the same bytes."""
    return _ENCODER.encode(header)


def decode_ask(data: bytes | memoryview) -> Ask:
    """Returns what a puller or a caller said, or raises FrameError."""
    return _decode(_ASK, data)


def decode_answer(data: bytes | memoryview, *, committed: bool = False) -> Answer:
    """Returns what a server said, or raises FrameError.

    Args:
        data: of anybody.
        committed: whether peers of the session keep update logs: then an answer may be longer.
    """
    return _decode(_ANSWER, data, MAX_OFFER_BYTES if committed else MAX_HEADER_BYTES)


def decode_connection_answer(data: bytes | memoryview) -> ConnectionAnswer:
    """Returns what the other end of a kept connection answered, or raises FrameError."""
    return _decode(_CONNECTION_ANSWER, data)


def _decode(
    decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview, limit: int = MAX_HEADER_BYTES
) -> T:
    if len(data) > limit:
        raise FrameError(wrong("header", got=f"{len(data)} bytes", allowed=f"at most {limit}"))
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise FrameError(f"header: got {bytes(data[:32])!r}…; {fault}") from fault


def _statement(session: bytes, public_key: bytes, curve_key: str, port: int) -> bytes:
    """Returns the bytes that a credential's signature is over: an array of four, in MessagePack."""
    return _ENCODER.encode((session, public_key, curve_key, port))
