"""Whether others can dial a peer: what it asks a tracker, and what that answers.

A peer cannot see from inside what a firewall or an address translation lets in. The tracker dials
back once, to the very address that the question came from and to no other, and reads how a ZeroMQ
listener greets. It says whether somebody did, and not what else answered.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from p2pl.errors import AnnounceError, ProtocolError, visible, wrong

MAX_QUESTION_BYTES = 64
MAX_REACH_BYTES = 1_024
GREETING_BYTES = 10  # of ZMTP: 0xff, eight bytes of a length, and 0x7f
NOT_DIALLED = "it could not be dialled back"


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Can others dial this address at this port?"""

    port: Annotated[int, Meta(ge=1, le=65_535)]


class Reached(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What came of dialling back.

    Attributes:
        host: the address that the question came from, which was dialled.
        port: that was dialled.
        is_reachable: whether a peer listens there, as seen from the tracker.
        reason: why not; "": it is reachable.
    """

    host: Annotated[str, Meta(min_length=2, max_length=45)]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    is_reachable: bool
    reason: Annotated[str, Meta(max_length=200)] = ""


_QUESTIONS = msgspec.json.Decoder(Question)
_ANSWERS = msgspec.json.Decoder(Reached)


def encode(message: Question | Reached) -> bytes:
    """Returns a message as it travels."""
    return msgspec.json.encode(message)


def decode_question(body: bytes) -> Question:
    """Returns the question in a body.

    Raises:
        AnnounceError: it is no question; 413 where it is too long, else 422.
    """
    if len(body) > MAX_QUESTION_BYTES:
        got = f"more than {MAX_QUESTION_BYTES} bytes"
        raise AnnounceError(wrong("question", got=got, allowed='{"port":PORT}'), status=413)
    try:
        return _QUESTIONS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise AnnounceError(f"question: {fault}", status=422) from fault


def decode_reached(body: bytes) -> Reached:
    """Returns the answer in a body.

    Raises:
        ProtocolError: it is none.
    """
    if len(body) > MAX_REACH_BYTES:
        raise ProtocolError(
            wrong("answer", got=f"{len(body)} bytes", allowed=f"at most {MAX_REACH_BYTES}")
        )
    try:
        answer = _ANSWERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise ProtocolError(f"answer: {fault}") from fault
    return msgspec.structs.replace(answer, host=visible(answer.host), reason=visible(answer.reason))


def is_greeting(first: bytes) -> bool:
    """Returns whether a connection began as a ZeroMQ listener begins it.

    Args:
        first: its first `GREETING_BYTES` bytes.
    """
    return len(first) == GREETING_BYTES and (first[0], first[-1]) == (0xFF, 0x7F)
