"""The head of an update log: its size and root, signed by its author, and by those who saw it.

A head is a checkpoint of a transparency log (C2SP tlog-checkpoint), and what is signed is the text
of that form, so other programs for such logs can read and check it. On the wire it is 110 bytes,
from which both ends make the same text. Who has seen a log grow signs that as a *witness*, with the
time (C2SP tlog-cosignature).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import LogError, wrong
from p2pl.protocol.frame import Count
from p2pl.protocol.identity import has_signed, peer_id_of
from p2pl.protocol.updates.entry import Hash, PublicKey, Signature

MAX_NOTE_CHARS = 65_536
MAX_SIGNATURES = 256
_ED25519, _COSIGNED = b"\x01", b"\x04"  # kinds of key, in a key's hash (C2SP signed-note)
_DASH = "\N{EM DASH}"
_LINE = re.compile(_DASH + r" (p2pl/[0-9a-f/]{64,129}) ([A-Za-z0-9+/]+={0,2})")
_BODY = re.compile(r"p2pl/([0-9a-f]{64})/([0-9a-f]{64})\n(0|[1-9]\d{0,15})\n([A-Za-z0-9+/]{43}=)\n")


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signed size and root of an update log."""

    size: Count  # entries
    root: Hash
    signature: Signature

    def check(self, session_id: str, public_key: bytes) -> None:
        """Raises LogError unless the author of the log signed it.

        Args:
            session_id: of the session, 64 hex digits.
            public_key: of the author, 32 bytes.
        """
        text = body(session_id, public_key, self.size, self.root)
        if not has_signed(public_key, text.encode(), self.signature):
            raise LogError(f"head of {self.size} entries: not signed by the author of the log")


class Cosignature(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a witness signs: it has seen a log grow to a head, and no other one of that size."""

    witness: PublicKey
    time_s: Count  # seconds since 1970
    signature: Signature

    def check(self, text: str) -> None:
        """Raises LogError unless the witness signed it.

        Args:
            text: the head's body.
        """
        if not has_signed(self.witness, _cosigned(text, self.time_s), self.signature):
            raise LogError("cosignature: not of its witness over this head")


def body(session_id: str, public_key: bytes, size: int, root: bytes) -> str:
    """Returns the text of a checkpoint, which its signatures are over.

    Args:
        session_id: of the session, 64 hex digits.
        public_key: of the author, 32 bytes.
        size: of the log, entries.
        root: of its tree, 32 bytes.
    """
    origin = f"p2pl/{session_id}/{peer_id_of(public_key)}"
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def sign_head(key: Ed25519PrivateKey, session_id: str, size: int, root: bytes) -> Head:
    """Returns the head, signed.

    Args:
        key: of the author.
        session_id: of the session, 64 hex digits.
        size: of the log, entries.
        root: of its tree, 32 bytes.
    """
    text = body(session_id, key.public_key().public_bytes_raw(), size, root)
    return Head(size, root, key.sign(text.encode()))


def cosign(key: Ed25519PrivateKey, text: str, time_s: int) -> Cosignature:
    """Returns a witness's signature.

    Args:
        key: of the witness.
        text: the head's body.
        time_s: seconds since 1970.
    """
    signature = key.sign(_cosigned(text, time_s))
    return Cosignature(key.public_key().public_bytes_raw(), time_s, signature)


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint with its signatures, none of which is checked."""

    session_id: str
    author: str  # peer id
    size: int
    root: bytes
    text: str  # what is signed
    lines: tuple[tuple[str, bytes], ...]  # (name of a key, what stands after it)

    def check(self, public_key: bytes) -> Head:
        """Returns the head that its author has signed.

        Args:
            public_key: of the author, 32 bytes.

        Raises:
            LogError: that key is not the author's, or did not sign it.
        """
        if peer_id_of(public_key) != self.author:
            raise LogError("checkpoint: its origin names another peer than the key does")
        name = self.text.partition("\n")[0]
        marked = key_hash(name, _ED25519, public_key)
        for other, data in self.lines:
            if other == name and data.startswith(marked):
                head = Head(self.size, self.root, data[4:]) if len(data) == 68 else None
                if head is not None:
                    head.check(self.session_id, public_key)
                    return head
        raise LogError("checkpoint: there is no signature of its author")

    def witnesses(self, keys: Iterable[bytes]) -> list[str]:
        """Returns the ids of those among some keys whose owners have cosigned it."""
        found: list[str] = []
        for key in keys:
            name = f"p2pl/{peer_id_of(key)}"
            marked = key_hash(name, _COSIGNED, key)
            for other, data in self.lines:
                if other == name and data.startswith(marked) and len(data) == 76:
                    time_s = int.from_bytes(data[4:12], "big")
                    if has_signed(key, _cosigned(self.text, time_s), data[12:]):
                        found.append(peer_id_of(key))
                        break
        return found


def note(
    head: Head, session_id: str, public_key: bytes, cosignatures: Sequence[Cosignature] = ()
) -> str:
    """Returns a checkpoint as a signed note (C2SP signed-note), for a file.

    Args:
        head: of the log.
        session_id: of the session, 64 hex digits.
        public_key: of the author, 32 bytes.
        cosignatures: of witnesses, over this head.
    """
    text = body(session_id, public_key, head.size, head.root)
    name = text.partition("\n")[0]
    lines = [_line(name, key_hash(name, _ED25519, public_key) + head.signature)]
    for one in cosignatures:
        name = f"p2pl/{peer_id_of(one.witness)}"
        marked = key_hash(name, _COSIGNED, one.witness)
        lines.append(_line(name, marked + one.time_s.to_bytes(8, "big") + one.signature))
    return text + "\n" + "".join(lines)


def read_note(text: str) -> Note:
    """Returns the checkpoint in the text of a file, unchecked.

    Raises:
        LogError: it is none of an update log.
    """
    first, blank, rest = text[:MAX_NOTE_CHARS].partition("\n\n")
    match = _BODY.fullmatch(first + "\n")
    if not match or not blank or not rest.endswith("\n"):
        allowed = "a signed note of a p2pl update log (C2SP tlog-checkpoint)"
        raise LogError(wrong("checkpoint", got=text[:40], allowed=allowed))
    lines: list[tuple[str, bytes]] = []
    for line in rest[:-1].split("\n"):
        signature = _LINE.fullmatch(line)
        if not signature or len(lines) == MAX_SIGNATURES:
            raise LogError(wrong("checkpoint: signature", got=line, allowed=f"{_DASH} NAME BASE64"))
        lines.append((signature[1], _unbase64(signature[2])))
    root = _unbase64(match[4])
    return Note(match[1], match[2], int(match[3]), root, first + "\n", tuple(lines))


def _unbase64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise LogError(f"checkpoint: {fault}") from fault
    if base64.b64encode(data).decode() != text:
        raise LogError("checkpoint: base64 that is not in the one form that it has")
    return data


def _line(name: str, data: bytes) -> str:
    return f"{_DASH} {name} {base64.b64encode(data).decode()}\n"


def key_hash(name: str, kind: bytes, public_key: bytes) -> bytes:
    """Returns the four bytes by which a signed note names a key (C2SP signed-note).

    Args:
        name: of the key.
        kind: of the key: one byte.
        public_key: 32 bytes.
    """
    return hashlib.sha256(name.encode() + b"\n" + kind + public_key).digest()[:4]


def _cosigned(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()
