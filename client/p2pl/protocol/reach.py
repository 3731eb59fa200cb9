"""Whether a peer can be dialled: its question to a tracker, and the answer. JSON, as announces are.

The tracker dials the address that the question came from and no other, so the question does not
name one. It is signed, so that whoever asks has a key, and dated, as announces are.
"""

from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl.errors import AnnounceError, ProtocolError, visible, wrong
from p2pl.protocol.announce import MAX_SKEW_S, Port
from p2pl.protocol.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, is_signed_by, sign

MAX_QUESTION_BYTES = 512  # the longest has 226
MAX_ANSWER_BYTES = 2_048
PURPOSE = b"p2pl reach 1"
# What every ZeroMQ socket says first, to whoever connects (ZMTP 3.1, section 3.2: `signature`).
GREETING = b"\xff" + bytes(8) + b"\x7f"


def is_greeting(data: bytes) -> bool:
    """Returns whether the first bytes that a listener says are those of a peer's.

    Args:
        data: as many as `GREETING` has; between its ends, older versions count what follows.
    """
    return len(data) == len(GREETING) and (data[0], data[-1]) == (GREETING[0], GREETING[-1])


class AskReach(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A peer asks to be dialled at the address that the tracker sees."""

    public_key: Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    port: Port
    time_s: Annotated[int, Meta(ge=0, lt=1 << 40)]  # seconds since 1970

    def check_time(self, now_s: float) -> None:
        """Raises AnnounceError unless it was made within `MAX_SKEW_S` of the tracker's clock.

        Args:
            now_s: that clock, in seconds since 1970.
        """
        if abs(self.time_s - now_s) > MAX_SKEW_S:
            got = f"{self.time_s}, the tracker's clock says {now_s:.0f}"
            message = wrong("reach time_s", got=got, allowed=f"within {MAX_SKEW_S} s")
            raise AnnounceError(message, status=403)


class SignedAskReach(AskReach, frozen=True, kw_only=True):
    """The question with the signature of its public key over everything before the signature."""

    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    def check_signature(self) -> None:
        """Raises AnnounceError unless the holder of `public_key` asks."""
        statement = _ENCODER.encode(self)[:-_SIGNATURE_JSON_BYTES] + b"}"
        if not is_signed_by(self.public_key, PURPOSE, statement, self.signature):
            raise AnnounceError("reach signature: it is not that of public_key", status=401)


class Reached(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What came of it."""

    host: Annotated[str, Meta(max_length=45)]  # that was dialled
    port: Port
    is_reached: bool
    reason: Annotated[str, Meta(max_length=200)] = ""  # why not


_ENCODER = msgspec.json.Encoder(order="deterministic")
_QUESTIONS = msgspec.json.Decoder(SignedAskReach)
_ANSWERS = msgspec.json.Decoder(Reached)
_SIGNATURE_JSON_BYTES = len(',"signature":""}') + 88  # 64 bytes in base64


def encode(question: AskReach, key: Ed25519PrivateKey) -> bytes:
    """Returns the body of a question, signed with `key`.

    Args:
        question: what is asked.
        key: of the peer that asks.
    """
    signature = sign(key, PURPOSE, _ENCODER.encode(question))
    return _ENCODER.encode(SignedAskReach(**msgspec.structs.asdict(question), signature=signature))


def decode(body: bytes) -> SignedAskReach:
    """Returns the question in `body`; its signature and its time are not checked yet.

    Raises:
        AnnounceError: the body is too long, not JSON, out of range, or not as `encode` writes it.
    """
    if len(body) > MAX_QUESTION_BYTES:
        message = wrong("reach", got=f"{len(body)} bytes", allowed=f"{MAX_QUESTION_BYTES}")
        raise AnnounceError(message, status=413)
    try:
        question = _QUESTIONS.decode(body)
    except msgspec.ValidationError as fault:
        raise AnnounceError(f"reach: {fault}", status=422) from fault
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise AnnounceError(f"reach: not JSON ({fault})") from fault
    if _ENCODER.encode(question) != body:
        raise AnnounceError("reach: not in canonical form")
    return question


def encode_answer(answer: Reached) -> bytes:
    """Returns the body of an answer."""
    return _ENCODER.encode(answer)


def decode_answer(body: bytes) -> Reached:
    """Returns the answer in `body`.

    Raises:
        ProtocolError: it is none.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise ProtocolError(wrong("reach", got=f"{len(body)} bytes", allowed=f"{MAX_ANSWER_BYTES}"))
    try:
        answer = _ANSWERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ProtocolError(f"reach: {fault}") from fault
    return msgspec.structs.replace(answer, host=visible(answer.host), reason=visible(answer.reason))
