"""What peers of a `raft` session say to each other, in short messages (`Tell`).

In clear: the election, the bootstrap, proofs that a peer has two histories, and what the leader
announces, with its newest public key, signed. Sealed: what a participant asks of the leader, and
the leader's answer (Behera et al. 2021, figure 3). A request carries the public key that its answer
is to be sealed to, so a sealed message has no sender, no receiver and no key in common with any
other; models go as locked blobs whose name and key stand in a sealed message.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import FrameError, wrong
from p2pl.protocol.frame import MAX_TELL_BYTES, BlobName, Count
from p2pl.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed_by, peer_id_of, sign
from p2pl.protocol.raft import bootstrap
from p2pl.protocol.raft.election import (
    Heartbeat,
    HeartbeatReply,
    ModelId,
    Term,
    VoteReply,
    VoteRequest,
)
from p2pl.protocol.updates.fault import MAX_FAULT_BYTES

MAX_PUBLIC_KEY_BYTES = 440  # of RSA with 3,072 bits in DER: 422
PURPOSE = b"p2pl raft announce 1"
T = TypeVar("T")
SealingKey = Annotated[bytes, Meta(min_length=32, max_length=MAX_PUBLIC_KEY_BYTES)]
LockKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
SuiteName: TypeAlias = Literal["hpke", "rsa"]


class _Message(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag_field="type"
):
    """Travels as an array that begins with its tag; 1 to 6 and 10 are of other modules."""


class Notice(_Message, frozen=True, tag=7):
    """Says who leads this term, which global model is the newest, and the key for requests."""

    public_key: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    term: Term
    model_id: ModelId
    key: SealingKey
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def leader(self) -> str:
        """The id of the peer that says so, once `check` has passed."""
        return peer_id_of(self.public_key)

    def check(self, session_id: str) -> str:
        """Returns the leader's peer id.

        Raises:
            FrameError: the leader has not signed this, for this session.
        """
        statement = _statement(session_id, self.term, self.model_id, self.key)
        if not is_signed_by(self.public_key, PURPOSE, statement, self.signature):
            raise FrameError("announce.signature: it is not that of announce.public_key")
        return self.leader


class Sealed(_Message, frozen=True, tag=8):
    """Carries something for whoever can open it; all others pass it over."""

    box: Annotated[bytes, Meta(max_length=MAX_TELL_BYTES)]


class Who(_Message, frozen=True, tag=9):
    """Asks who votes here and who leads; its sender listens for a while."""


class TwoHistories(_Message, frozen=True, tag=11):
    """Passes on the proof that a member has two histories, in a session with update logs."""

    proof: Annotated[bytes, Meta(max_length=MAX_FAULT_BYTES)]


class Fetch(_Message, frozen=True, tag=1):
    """Sealed to the leader: asks for the newest global model."""

    reply_key: SealingKey


class Update(_Message, frozen=True, tag=2):
    """Sealed to the leader: says that the model was trained, and which blob holds the result."""

    reply_key: SealingKey
    model_id: ModelId
    samples: Count  # that it was trained on, as the peer says
    blob: BlobName
    lock_key: LockKey


class ModelLocation(_Message, frozen=True, tag=1):
    """Sealed to the reply key: says which blob holds the newest global model."""

    model_id: ModelId
    blob: BlobName
    lock_key: LockKey


class Taken(_Message, frozen=True, tag=2):
    """Sealed to the reply key: says that the result has come, or is not needed."""

    model_id: ModelId  # of the model that the leader holds


Clear: TypeAlias = (
    VoteRequest
    | VoteReply
    | Heartbeat
    | HeartbeatReply
    | bootstrap.Acceptance
    | bootstrap.Refusal
    | bootstrap.Withdrawal
    | Notice
    | Sealed
    | Who
    | TwoHistories
)
Request: TypeAlias = Fetch | Update
Reply: TypeAlias = ModelLocation | Taken

_ENCODER = msgspec.msgpack.Encoder()
_CLEAR: msgspec.msgpack.Decoder[Clear] = msgspec.msgpack.Decoder(Clear)
_REQUEST: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLY: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Clear | Request | Reply) -> bytes:
    """Returns the bytes of a message."""
    return _ENCODER.encode(message)


def decode(payload: bytes) -> Clear:
    """Returns what a peer told, or raises FrameError."""
    return _decode(_CLEAR, payload)


def decode_request(plain: bytes) -> Request:
    """Returns what a participant wants, once its message is open, or raises FrameError."""
    return _decode(_REQUEST, plain)


def decode_reply(plain: bytes) -> Reply:
    """Returns what the leader answered, once its message is open, or raises FrameError."""
    return _decode(_REPLY, plain)


def announce(
    key: Ed25519PrivateKey, session_id: str, term: int, model_id: ModelId, sealing_key: bytes
) -> Notice:
    """Returns what the leader that holds the identity `key` announces, signed.

    Args:
        key: the leader's identity.
        session_id: 64 hex digits.
        term: that it leads.
        model_id: of the newest global model.
        sealing_key: the public key that requests are to be sealed to, 32..440 bytes.
    """
    statement = _statement(session_id, term, model_id, sealing_key)
    signature = sign(key, PURPOSE, statement)
    return Notice(key.public_key().public_bytes_raw(), term, model_id, sealing_key, signature)


def about(session_id: str, term: int, direction: Literal["request", "reply"]) -> bytes:
    """Returns what a sealed message is bound to: it opens in this place only.

    Args:
        session_id: 64 hex digits.
        term: of the leader that it is sent to or comes from.
        direction: to the leader, or from it.
    """
    return _ENCODER.encode(("p2pl raft 1", bytes.fromhex(session_id), term, direction))


def _statement(session_id: str, term: int, model_id: ModelId, key: bytes) -> bytes:
    return _ENCODER.encode((bytes.fromhex(session_id), term, model_id, key))


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    if len(data) > MAX_TELL_BYTES:
        raise FrameError(wrong("message", got=f"{len(data)} bytes", allowed=str(MAX_TELL_BYTES)))
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise FrameError(f"message: got {data[:32]!r}…; {fault}") from fault
