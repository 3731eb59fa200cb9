"""A proof that a peer has two histories: two statements that it signed and that cannot both hold.

Whoever has the proof can check it with nothing else: no log, no network, nobody's word. No honest
peer ever signs such a pair, as long as it keeps its log: an entry is on disk before anybody sees
it, and a version that is made anew says so.
"""

import base64
import re
from typing import TypeAlias

import msgspec

from p2pl.errors import LogError, wrong
from p2pl.protocol.frame import Session
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.entry import PublicKey, SignedEntry, encode, statement_of
from p2pl.protocol.updates.head import Head
from p2pl.protocol.updates.tree import leaf_hash

WORD = "p2pl-two-histories-1"  # its file begins so
MAX_FAULT_BYTES = 768  # one of entries has about 600
MAX_TEXT_CHARS = 2_048
_TEXT = re.compile(r"\s*(p2pl-[a-z-]+-\d+)\s+([A-Za-z0-9+/=]+)\s*")


class _Fault(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    session: Session
    author: PublicKey

    @property
    def peer_id(self) -> str:
        """The id of the peer that signed both."""
        return peer_id_of(self.author)

    @property
    def session_id(self) -> str:
        """Of the session, 64 hex digits."""
        return self.session.hex()


class TwoHeads(_Fault, frozen=True, tag="heads"):
    """Two heads of logs of the same size."""

    first: Head
    second: Head

    def check(self) -> str:
        """Returns what the peer has done, in one sentence; raises LogError where it has not."""
        for head in (self.first, self.second):
            head.check(self.session_id, self.author)
        if self.first.size != self.second.size or self.first.root == self.second.root:
            raise LogError("two heads: they do not contradict each other")
        return f"it has signed two different logs of {self.first.size} entries"


class TwoEntries(_Fault, frozen=True, tag="entries"):
    """Two entries that cannot be in one log, or give two versions of one place."""

    first: SignedEntry
    second: SignedEntry

    def check(self) -> str:
        """Returns what the peer has done, in one sentence; raises LogError where it has not."""
        for one in (self.first, self.second):
            one.check(self.session_id, self.author)
        if (said := self.says) is None:
            raise LogError("two entries: they do not contradict each other")
        return said

    @property
    def says(self) -> str | None:
        """What the peer has done, if it has signed both; None: nothing."""
        one, other = self.first.entry, self.second.entry
        if one.place == other.place and one.digest != other.digest:
            return f"it has signed two versions of round {one.round} ({one.stage})"
        if one.index == other.index and one != other:
            return f"it has signed two different entries {one.index} of its log"
        if other.index == one.index + 1:
            leaf = leaf_hash(statement_of(one, self.session_id, self.author))
            if other.previous != leaf:
                return f"it has signed an entry {other.index} that does not follow its entry before"
        return None


Fault: TypeAlias = TwoHeads | TwoEntries
_DECODER: msgspec.msgpack.Decoder[Fault] = msgspec.msgpack.Decoder(TwoHeads | TwoEntries)


def contradiction(
    session_id: str, author: bytes, one: SignedEntry, other: SignedEntry
) -> TwoEntries | None:
    """Returns the proof that two entries cannot both hold; None where they can.

    Args:
        session_id: of the session, 64 hex digits.
        author: its public key, 32 bytes; it has signed both.
        one: the first.
        other: the second.
    """
    a, b = one.entry, other.entry
    if abs(a.index - b.index) > 1 and a.place != b.place:
        return None  # of two that a round has between them, nothing more needs to be looked at
    first, second = sorted((one, other), key=lambda signed: signed.entry.index)
    fault = TwoEntries(bytes.fromhex(session_id), author, first, second)
    # What is seen each round contradicts nothing: no signature is checked for that once more.
    if fault.says is None:
        return None
    try:
        fault.check()
    except LogError:
        return None
    return fault


def decode_fault(data: bytes) -> Fault:
    """Returns the proof in `data`, which nobody has checked yet.

    Raises:
        LogError: it is none.
    """
    if len(data) > MAX_FAULT_BYTES:
        got = f"{len(data)} bytes"
        raise LogError(wrong("proof", got=got, allowed=f"at most {MAX_FAULT_BYTES}"))
    try:
        fault = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as why:
        raise LogError(f"proof: {why}") from why
    if encode(fault) != data:
        raise LogError("proof: not in the one form that it has")
    return fault


def to_text(fault: Fault) -> str:
    """Returns what stands in a file: one line, which survives an e-mail."""
    return f"{WORD} {base64.b64encode(encode(fault)).decode()}\n"


def fault_in(text: str) -> Fault:
    """Returns the proof in the text of a file, which nobody has checked yet.

    Raises:
        LogError: it is none.
    """
    match = _TEXT.fullmatch(text[: MAX_TEXT_CHARS + 1])
    if not match or match[1] != WORD:
        got = match[1] if match else text[:20]
        raise LogError(wrong("file", got=got, allowed=f"{WORD} and its text"))
    try:
        return decode_fault(base64.b64decode(match[2], validate=True))
    except ValueError as why:
        raise LogError(f"{WORD}: damaged ({why})") from why
