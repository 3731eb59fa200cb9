"""Who may take part in a private session: what its author signs for a peer, and takes back.

A private session names its author's Ed25519 key, so whoever has the file can check what the author
signed. An *invitation* is for the id of one peer, and may end at a date. A *proof* is what a peer
shows of itself: its credential, which binds the CURVE key of its connections to its own key, and
its invitation. So whoever sees a CURVE key and knows a proof for it can admit or refuse a
connection before any message is read. *Revocations* are a numbered list of the peers whose
invitations count no longer; a newer list replaces an older one.

All of it is public: it is worth nothing to whoever has not the peer's own key.
"""

import base64
import re
from collections.abc import Collection
from typing import Annotated, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import FrameError, InvitationError, ProofError, wrong
from p2pl.protocol.frame import Count, Credential, Session
from p2pl.protocol.identity import SIGNATURE_BYTES, is_signed_by, sign

MAX_PROOF_BYTES = 1_024  # one has about 370
MAX_REVOKED = 1_000  # chosen: 34 kB; whoever takes back more makes a new session
MAX_REVOCATIONS_BYTES = 36_000
INVITATION_WORD = "p2pl-invitation-1"  # its file begins so
MAX_TEXT_CHARS = 50_000
INVITATION_PURPOSE = b"p2pl invitation 1"
REVOCATIONS_PURPOSE = b"p2pl revocations 1"
SHOWN_DIGITS = 8  # of an id, in a message
ASK_THE_AUTHOR = "ask the author of the session for a new invitation"

Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
T = TypeVar("T", bound=msgspec.Struct)


class Invitation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The author's signed statement that one peer may take part in one session."""

    session: Session
    peer: Id  # the peer's id
    not_after_s: Count  # seconds since 1970; 0: it does not end
    signature: Signature

    @property
    def peer_id(self) -> str:
        """The id of the peer that is invited, 64 hex digits."""
        return self.peer.hex()

    def check(self, *, session_id: str, author: bytes, now_s: float) -> None:
        """Raises ProofError unless it counts.

        Args:
            session_id: of the session that is spoken of, 64 hex digits.
            author: the session's author's public key, 32 bytes.
            now_s: the time, in seconds since 1970.
        """
        if self.session.hex() != session_id:
            raise ProofError(_for_another("session", self.session.hex(), session_id))
        statement = _invites(self.session, self.peer, self.not_after_s)
        if not is_signed_by(author, INVITATION_PURPOSE, statement, self.signature):
            raise ProofError("the invitation is not signed by the author of this session")
        if self.is_over(now_s):
            raise ProofError(f"the invitation ended at {self.end}")

    def is_over(self, now_s: float) -> bool:
        """Returns whether its end is past."""
        return 0 < self.not_after_s < now_s

    @property
    def end(self) -> str:
        """Until when it counts, for people."""
        return date_of(self.not_after_s)


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What shows that the holder of a CURVE key is invited."""

    credential: Credential
    invitation: Invitation

    def check(self, *, session_id: str, author: bytes, now_s: float) -> str:
        """Returns the id of the peer that is invited and has the CURVE key of the credential.

        Args:
            session_id: of the session that is spoken of, 64 hex digits.
            author: the session's author's public key, 32 bytes.
            now_s: the time, in seconds since 1970.

        Raises:
            ProofError: its invitation does not count, or is for another peer.
        """
        self.invitation.check(session_id=session_id, author=author, now_s=now_s)
        try:
            peer_id = self.credential.check(
                session_id=session_id, curve_key=self.credential.curve_key
            )
        except FrameError as fault:
            raise ProofError(str(fault)) from fault
        if peer_id != self.invitation.peer_id:
            raise ProofError(_for_another("peer", self.invitation.peer_id, peer_id))
        return peer_id


class Revocations(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The author's signed, numbered list of peers whose invitations count no longer."""

    session: Session
    number: Annotated[int, Meta(ge=1, lt=1 << 53)]  # of this list; a higher one replaces it
    peers: Annotated[tuple[Id, ...], Meta(max_length=MAX_REVOKED)]  # in order, each once
    signature: Signature

    def check(self, *, session_id: str, author: bytes) -> None:
        """Raises ProofError unless it is the author's, of this session.

        Args:
            session_id: of the session that is spoken of, 64 hex digits.
            author: the session's author's public key, 32 bytes.
        """
        if self.session.hex() != session_id:
            raise ProofError(f"revocations: of another session ({self.session.hex()[:8]}…)")
        statement = _revokes(self.session, self.number, self.peers)
        if not is_signed_by(author, REVOCATIONS_PURPOSE, statement, self.signature):
            raise ProofError("revocations: not signed by the author of this session")

    @property
    def peer_ids(self) -> frozenset[str]:
        """The ids of those whose invitations count no longer."""
        return frozenset(peer.hex() for peer in self.peers)


_ENCODER = msgspec.msgpack.Encoder()


def invite(
    author: Ed25519PrivateKey, *, session_id: str, peer_id: str, not_after_s: int = 0
) -> Invitation:
    """Returns an invitation.

    Args:
        author: the author's key.
        session_id: 64 hex digits.
        peer_id: who is invited, 64 hex digits.
        not_after_s: when it ends, in seconds since 1970; 0: it does not.
    """
    session, peer = bytes.fromhex(session_id), bytes.fromhex(peer_id)
    statement = _invites(session, peer, not_after_s)
    return Invitation(session, peer, not_after_s, sign(author, INVITATION_PURPOSE, statement))


def revoke(
    author: Ed25519PrivateKey, *, session_id: str, number: int, peer_ids: Collection[str]
) -> Revocations:
    """Returns a list of those whose invitations count no longer.

    Args:
        author: the author's key.
        session_id: 64 hex digits.
        number: higher than that of any list before.
        peer_ids: all of them, those of earlier lists as well; at most `MAX_REVOKED`.
    """
    session = bytes.fromhex(session_id)
    peers = tuple(sorted(bytes.fromhex(peer_id) for peer_id in set(peer_ids)))
    statement = _revokes(session, number, peers)
    return Revocations(session, number, peers, sign(author, REVOCATIONS_PURPOSE, statement))


def encode(value: Invitation | Proof | Revocations) -> bytes:
    """Returns the bytes of what was signed; the same value gives the same bytes."""
    return _ENCODER.encode(value)


def decode(data: bytes) -> Invitation:
    """Returns the invitation in `data`, not checked yet; raises ProofError."""
    return _decode(Invitation, data, MAX_PROOF_BYTES)


def decode_proof(data: bytes) -> Proof:
    """Returns the proof in `data`, not checked yet; raises ProofError."""
    return _decode(Proof, data, MAX_PROOF_BYTES)


def decode_revocations(data: bytes) -> Revocations:
    """Returns the list in `data`, not checked yet; raises ProofError."""
    listed = _decode(Revocations, data, MAX_REVOCATIONS_BYTES)
    if list(listed.peers) != sorted(set(listed.peers)):
        raise ProofError("revocations: allowed is each peer once, in the order of their ids")
    return listed


def to_text(value: Invitation | Revocations) -> str:
    """Returns what stands in a file: one line, which survives an e-mail."""
    return f"{_WORDS[type(value)]} {base64.b64encode(encode(value)).decode()}\n"


def invitation_in(text: str) -> Invitation:
    """Returns the invitation in the text of a file, not checked yet; raises InvitationError."""
    return _from_text(Invitation, text)


def revocations_in(text: str) -> Revocations:
    """Returns the list in the text of a file, not checked yet; raises InvitationError."""
    listed = _from_text(Revocations, text)
    try:
        return decode_revocations(encode(listed))
    except ProofError as fault:
        raise InvitationError(str(fault)) from fault


def date_of(seconds: int) -> str:
    """Returns a date and time in UTC, for people; of 0, that there is no end."""
    import datetime

    if not seconds:
        return "no end"
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):  # a year that no calendar here has
        return f"{seconds} s after 1970"
    return f"{moment:%Y-%m-%d %H:%M} UTC"


_WORDS: dict[type[msgspec.Struct], str] = {
    Invitation: INVITATION_WORD,
    Revocations: "p2pl-revocations-1",
}
_LINE = re.compile(r"\s*(p2pl-[a-z]+-\d+)\s+([A-Za-z0-9+/=\s]+?)\s*")


def _from_text(kind: type[T], text: str) -> T:
    word = _WORDS[kind]
    match = _LINE.fullmatch(text[: MAX_TEXT_CHARS + 1])
    if not match or match[1] != word:
        got = match[1] if match else text[:20]
        hint = "it is what `p2pl invite` or `p2pl revoke` wrote; have it sent again"
        raise InvitationError(wrong("file", got=got, allowed=f"{word} and its text", hint=hint))
    try:
        data = base64.b64decode("".join(match[2].split()), validate=True)
        return _decode(kind, data, MAX_REVOCATIONS_BYTES)
    except (ProofError, ValueError) as fault:
        raise InvitationError(f"{word}: damaged ({fault}); have it sent again") from fault


def _decode(kind: type[T], data: bytes, limit: int) -> T:
    name = kind.__name__.lower()
    if len(data) > limit:
        raise ProofError(wrong(name, got=f"{len(data)} bytes", allowed=f"at most {limit}"))
    try:
        value = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as fault:
        raise ProofError(f"{name}: {fault}") from fault
    if _ENCODER.encode(value) != data:
        raise ProofError(f"{name}: not in the one form that it has")
    return value


def _for_another(what: str, theirs: str, this: str) -> str:
    """Returns what an invitation is for, with as many digits as it takes to see the difference."""
    unlike = (at for at, (one, other) in enumerate(zip(theirs, this, strict=False)) if one != other)
    alike = next(unlike, len(this))
    count = max(SHOWN_DIGITS, alike + 1)
    shown = [id_[:count] + "…" * (count < len(id_)) for id_ in (theirs, this)]
    text = f"the invitation is for another {what} ({shown[0]}, and this is {shown[1]})"
    return text if alike < SHOWN_DIGITS else f"{text}; it may be damaged: have it sent again"


def _invites(session: bytes, peer: bytes, not_after_s: int) -> bytes:
    return _ENCODER.encode((session, peer, not_after_s))


def _revokes(session: bytes, number: int, peers: Collection[bytes]) -> bytes:
    return _ENCODER.encode((session, number, tuple(peers)))
