"""What travels beside a model in a session with update logs.

Whoever asks for a version says which heads of the other's log it knows (`Question`). The answer
comes with the version's entry, the head of the log, and proofs that the entry is in it and that the
log has only grown (`Commitment`). Both carry heads of third peers, so that whoever is shown another
log than others finds out, and proofs of two histories that the other end may not have.
"""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from p2pl.errors import LogError
from p2pl.protocol.frame import Count
from p2pl.protocol.updates.entry import Hash, PublicKey, SignedEntry, decode
from p2pl.protocol.updates.fault import MAX_FAULT_BYTES
from p2pl.protocol.updates.head import Cosignature, Head
from p2pl.protocol.updates.tree import MAX_PROOF

MAX_HEARD = 4  # heads of third peers in one message; chosen: 0.6 kB
MAX_KNOWN = 3  # heads of the other's log: the newest that is proven, and two that others have told
MAX_QUESTION_BYTES = 1_664
MAX_COMMITMENT_BYTES = 8_192  # of a log of 2**53 entries; of a million, about 4,000

Path: TypeAlias = Annotated[tuple[Hash, ...], Meta(max_length=MAX_PROOF + 1)]
Known: TypeAlias = Annotated[tuple[Count, ...], Meta(max_length=MAX_KNOWN)]
Faults: TypeAlias = Annotated[
    tuple[Annotated[bytes, Meta(max_length=MAX_FAULT_BYTES)], ...], Meta(max_length=1)
]


class Heard(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The head of a third peer's log, as that peer signed it."""

    author: PublicKey
    head: Head


Others: TypeAlias = Annotated[tuple[Heard, ...], Meta(max_length=MAX_HEARD)]


class Question(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Goes with a question for a version."""

    known: Known  # sizes of heads that are to be proven to be older states of the log
    cosignature: Cosignature | None  # of the newest head of the other's log that is proven
    heard: Others
    faults: Faults


class Commitment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Goes with a version."""

    author: PublicKey
    signed: SignedEntry  # of the version
    head: Head  # with the entry in it
    inclusion: Path
    consistency: Annotated[tuple[Path, ...], Meta(max_length=MAX_KNOWN)]  # as asked; () = not so
    heard: Others
    faults: Faults


def read_question(data: bytes) -> Question:
    """Returns what goes with a question, of anybody; raises LogError."""
    return decode(Question, data, MAX_QUESTION_BYTES)


def read_commitment(data: bytes) -> Commitment:
    """Returns what goes with a version, of anybody; nothing in it is checked. Raises LogError."""
    if not data:
        raise LogError("the version came without an entry of an update log")
    return decode(Commitment, data, MAX_COMMITMENT_BYTES)
