"""An entry of a peer's update log: a signed statement on one version of its model.

It names the version by the SHA-256 of the very bytes that a puller gets, whatever codec made them,
and the entry before by its hash, so that each entry stands for all before it. What the version was
made of is in a record of its own, the *mix*, of which the entry has the hash: nobody needs it to
check a version, and it stays with the peer until somebody is to see it.

A version is named by its *place*: how often the peer has begun anew, the term, the round and the
stage. No honest peer signs two versions of one place: one that makes a round once more, after a
crash for example, says so by a higher `again`, in an entry that stands after the first one.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import LogError, wrong
from p2pl.protocol.frame import Count
from p2pl.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed_by, sign
from p2pl.protocol.updates.tree import HASH_BYTES, leaf_hash

PURPOSE = b"p2pl entry 1"  # of a signature; what is signed never changes
MAX_ENTRY_BYTES = 256
MAX_PARTS = 2_048  # of one mix: more models than a peer knows others
MAX_REASON_CHARS = 80  # of why one has no share; longer ones are cut
MAX_MIX_BYTES = 400_000
PPM = 1_000_000
FIRST = bytes(HASH_BYTES)  # in the place of the entry before the first

Hash: TypeAlias = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
PublicKey = Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Epsilon = Annotated[float, Meta(ge=0, le=1e9)]
Stage = Literal["trained", "mixed", "final"]  # `final`: model.safetensors, which nobody is served
Place: TypeAlias = tuple[int, int, int, str]
T = TypeVar("T", bound=msgspec.Struct)

_ENCODER = msgspec.msgpack.Encoder()


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer says of one version."""

    index: Count  # of the entry, from 0
    previous: Hash  # of the entry before, as a leaf of the tree; zeros for the first
    time_s: Count  # seconds since 1970, by the peer's clock; 0 in the first entry
    again: Count  # how often the peer has made a version anew so far
    term: Count  # of raft: of the model, or of the one that it was trained from; else 0
    round: Count  # that the version is of; in gossip, its age
    stage: Stage
    digest: Hash  # SHA-256 of the bytes that are served
    epsilon: Epsilon | None = None  # of privacy spent by then; None: training is not private
    mix: Hash | None = None  # SHA-256 of the record of what it was made of; None: there is none

    @property
    def place(self) -> Place:
        """What two versions of an honest peer never have in common."""
        return self.again, self.term, self.round, self.stage


class SignedEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry with its author's signature."""

    entry: Entry
    signature: Signature

    def check(self, session_id: str, public_key: bytes) -> bytes:
        """Returns the entry's hash as a leaf of its author's tree.

        Args:
            session_id: of the session, 64 hex digits.
            public_key: of the author, 32 bytes.

        Raises:
            LogError: the author did not sign it for this session.
        """
        statement = statement_of(self.entry, session_id, public_key)
        if not is_signed_by(public_key, PURPOSE, statement, self.signature):
            raise LogError(f"entry {self.entry.index}: not signed by its author for this session")
        return leaf_hash(statement)


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A model in a mix."""

    peer: Hash  # id of whose it is
    digest: Hash  # SHA-256 of its bytes
    weight_ppm: Annotated[int, Meta(ge=0, le=PPM)]  # its share, in millionths


class Rejected(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer that was asked and has no share in a mix."""

    peer: Hash  # its id
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)]


class Mix(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer made its parameters of at the end of a round."""

    round: Count  # that it ended with
    parts: Annotated[tuple[Part, ...], Meta(max_length=MAX_PARTS)]
    rejected: Annotated[tuple[Rejected, ...], Meta(max_length=MAX_PARTS)]
    salt: Annotated[bytes, Meta(min_length=16, max_length=16)]  # nobody guesses what was hashed


def statement_of(entry: Entry, session_id: str, public_key: bytes) -> bytes:
    """Returns the bytes that are signed, and hashed into the tree.

    Args:
        entry: of the log.
        session_id: of the session, 64 hex digits.
        public_key: of the author, 32 bytes.
    """
    return bytes.fromhex(session_id) + public_key + _ENCODER.encode(entry)


def signed(entry: Entry, session_id: str, key: Ed25519PrivateKey) -> SignedEntry:
    """Returns the entry, signed.

    Args:
        entry: of the log.
        session_id: of the session, 64 hex digits.
        key: of the author.
    """
    statement = statement_of(entry, session_id, key.public_key().public_bytes_raw())
    return SignedEntry(entry, sign(key, PURPOSE, statement))


def encode(value: msgspec.Struct) -> bytes:
    """Returns the bytes of a value of these formats; the same value gives the same bytes."""
    return _ENCODER.encode(value)


def decode(kind: type[T], data: bytes, limit: int) -> T:
    """Returns the value in `data`, whose signatures nobody has checked yet.

    Args:
        kind: of the value.
        data: of anybody.
        limit: in bytes.

    Raises:
        LogError: it is no such value, too long, or not written in the one way that it has.
    """
    name = kind.__name__.lower()
    if len(data) > limit:
        raise LogError(wrong(name, got=f"{len(data)} bytes", allowed=f"at most {limit}"))
    try:
        value = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise LogError(f"{name}: {fault}") from fault
    if _ENCODER.encode(value) != data:
        raise LogError(f"{name}: not in the one form that it has")
    return value
