"""Headers are small and checked; a credential binds a peer to one CURVE key in one session."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.errors import FrameError
from p2pl.protocol.frame import (
    MAX_HEADER_BYTES,
    MAX_NOTES_BYTES,
    MAX_TELL_BYTES,
    Busy,
    Chunk,
    ConnectionAnswer,
    Credential,
    Credit,
    FetchBlob,
    Header,
    Hello,
    Newest,
    NotModified,
    Ping,
    Pull,
    Refused,
    Tell,
    Told,
    VersionOffer,
    decode_answer,
    decode_ask,
    decode_connection_answer,
    encode,
    issue_credential,
)
from p2pl.protocol.identity import peer_id_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SESSION = "ab" * 32
CURVE = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
CREDENTIAL = issue_credential(KEY, session_id=SESSION, curve_key=CURVE, port=4000)
LARGEST = (1 << 53) - 1
ASKS: list[Pull | Credit | FetchBlob | Hello | Ping | Tell] = [
    Pull(CREDENTIAL, "model", None, 0, 0, 1),
    Pull(CREDENTIAL, "checkpoint", bytes(16), LARGEST, 60_000, 64),
    Credit(1),
    Credit(64),
    Hello(CREDENTIAL),
    Ping(),
    Tell(b""),
    Tell(bytes(MAX_TELL_BYTES)),
    FetchBlob(CREDENTIAL, bytes(16), 64),
]
ANSWERS: list[VersionOffer | NotModified | Busy | Refused | Chunk] = [
    VersionOffer(CREDENTIAL, 1, 0, 1, bytes(16)),
    VersionOffer(CREDENTIAL, LARGEST, LARGEST, LARGEST, bytes(16), bytes(MAX_NOTES_BYTES)),
    NotModified(CREDENTIAL, LARGEST),
    Busy(250),
    Refused("no"),
    Chunk(0),
    Chunk(LARGEST),
]
CONNECTION_ANSWERS: list[ConnectionAnswer] = [
    Hello(CREDENTIAL),
    Newest(0, 0, None),
    Newest(LARGEST, LARGEST, bytes(16)),
    Told(),
    Busy(250),
    Refused("no"),
]


def _with(header: Header, place: int, value: object) -> bytes:
    """Returns `header` with another value at one place of its array."""
    items = msgspec.msgpack.decode(encode(header))
    items[place] = value
    return msgspec.msgpack.encode(items)


@pytest.mark.parametrize("ask", ASKS)
def test_what_a_puller_says_is_what_the_server_reads(ask: Header) -> None:
    assert decode_ask(encode(ask)) == ask


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_server_says_is_what_the_puller_reads(answer: Header) -> None:
    assert decode_answer(memoryview(encode(answer))) == answer


@pytest.mark.parametrize("answer", CONNECTION_ANSWERS)
def test_what_one_end_of_a_connection_answers_is_what_the_other_reads(answer: Header) -> None:
    assert decode_connection_answer(encode(answer)) == answer


def test_every_valid_header_fits_the_limit() -> None:
    headers: list[Header] = [*ASKS, *ANSWERS, *CONNECTION_ANSWERS]
    assert max(len(encode(each)) for each in headers) < MAX_HEADER_BYTES


def test_not_modified_takes_less_than_200_bytes() -> None:
    assert len(encode(NotModified(CREDENTIAL, LARGEST))) < 200


@pytest.mark.parametrize(
    ("header", "golden"),
    [
        (Credit(7), "920207"),
        (Busy(250), "9205ccfa"),
        (Refused("no"), "9206a26e6f"),
        (Chunk(1 << 20), "9207ce00100000"),
        (Ping(), "9109"),
        (Newest(3, 500, None), "940a03cd01f4c0"),
        (Newest(3, 500, bytes(16)), "940a03cd01f4c410" + "00" * 16),
        (Tell(b"hi"), "920bc4026869"),
        (Told(), "910c"),
        (
            NotModified(CREDENTIAL, 3),
            "930495c420"
            + "ab" * 32
            + "c42003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664"
            "125531b8d928"
            + CURVE.encode().hex()
            + "cd0fa0c440"
            + CREDENTIAL.signature.hex()
            + "03",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Header) else "",
)
def test_the_bytes_of_a_header_never_change(header: Header, golden: str) -> None:
    assert encode(header).hex() == golden


def test_a_card_is_a_signature_over_purpose_session_keys_and_port() -> None:
    statement = bytes.fromhex(
        "94c420" + "ab" * 32 + "c420" + CREDENTIAL.public_key.hex() + "d928" + CURVE.encode().hex()
    )
    KEY.public_key().verify(CREDENTIAL.signature, b"p2pl card 1\n" + statement + b"\xcd\x0f\xa0")


def test_a_card_names_the_peer_on_its_own_connection() -> None:
    peer_id = CREDENTIAL.check(session_id=SESSION, curve_key=CURVE)
    assert peer_id == CREDENTIAL.peer_id == peer_id_of(KEY.public_key().public_bytes_raw())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 4001),
        ("signature", bytes(64)),
        ("public_key", Ed25519PrivateKey.generate().public_key().public_bytes_raw()),
    ],
)
def test_a_card_that_was_changed_is_refused(field: str, value: object) -> None:
    credential: Credential = msgspec.structs.replace(CREDENTIAL, **{field: value})
    with pytest.raises(FrameError, match=r"credential\.signature"):
        credential.check(session_id=SESSION, curve_key=CURVE)


def test_a_card_is_worth_nothing_in_another_session_or_on_another_connection() -> None:
    with pytest.raises(FrameError, match=r"credential\.session: got 'abab"):
        CREDENTIAL.check(session_id="cd" * 32, curve_key=CURVE)
    with pytest.raises(FrameError, match=r"credential\.curve_key: got '0123"):
        CREDENTIAL.check(session_id=SESSION, curve_key=CURVE[::-1])


def test_a_card_cannot_be_altered_to_fit() -> None:
    moved = msgspec.structs.replace(CREDENTIAL, session=b"\xcd" * 32, curve_key=CURVE[::-1])
    with pytest.raises(FrameError, match=r"credential\.signature"):
        moved.check(session_id="cd" * 32, curve_key=CURVE[::-1])


PULL = ASKS[1]
OFFER = ANSWERS[1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(MAX_HEADER_BYTES + 1),
        encode(PULL) + b"\x00",
        encode(PULL)[:-1],
        encode(ANSWERS[0]),  # an answer where a question belongs
        _with(PULL, 0, 99),
        _with(PULL, 2, "weights"),
        _with(PULL, 3, bytes(15)),
        _with(PULL, 4, -1),
        _with(PULL, 4, 1 << 53),
        _with(PULL, 4, float("nan")),
        _with(PULL, 4, True),
        _with(PULL, 5, 60_001),
        _with(PULL, 5, 0.5),
        _with(PULL, 6, 0),
        _with(PULL, 6, 65),
        _with(Credit(1), 1, 65),
        _with(Tell(b""), 1, bytes(MAX_TELL_BYTES + 1)),
        _with(Tell(b""), 1, "text"),
        encode(Told()),
        msgspec.msgpack.encode([2, 1, 1]),  # one item more than credit has
        msgspec.msgpack.encode({"type": 2, "chunks": 1}),
        b"\x91" * 2_000,
    ],
)
def test_a_question_out_of_range_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match="header"):
        decode_ask(data)


@pytest.mark.parametrize(
    "data",
    [
        encode(PULL),
        _with(OFFER, 2, -1),
        _with(OFFER, 3, -1),
        _with(OFFER, 3, 1 << 53),
        _with(OFFER, 4, 0),
        _with(OFFER, 4, 1 << 53),
        _with(OFFER, 5, bytes(17)),
        _with(OFFER, 6, bytes(MAX_NOTES_BYTES + 1)),
        _with(OFFER, 6, "text"),
        _with(Busy(1), 1, 60_001),
        _with(Busy(1), 1, float("inf")),
        _with(Refused(""), 1, "x" * 201),
        _with(Refused(""), 1, b"\xff"),
        b"\x92\x06\xa2\xff\xff",  # text that is not UTF-8
        _with(Chunk(0), 1, -1),
    ],
)
def test_an_answer_out_of_range_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match="header"):
        decode_answer(data)


@settings(max_examples=200)
@given(data=st.binary(max_size=300))
def test_random_bytes_raise_only_frame_errors(data: bytes) -> None:
    for decode in (decode_ask, decode_answer, decode_connection_answer):
        try:
            header = decode(data)
        except FrameError:
            continue
        assert isinstance(header, Header)


@settings(max_examples=200)
@given(
    valid=st.sampled_from([encode(each) for each in [*ASKS, *ANSWERS, *CONNECTION_ANSWERS]]),
    place=st.integers(0, 3_000),
    change=st.binary(min_size=0, max_size=4),
    cut=st.integers(0, 4),
)
def test_a_header_changed_anywhere_raises_only_frame_errors(
    valid: bytes, place: int, change: bytes, cut: int
) -> None:
    place %= len(valid)
    data = valid[:place] + change + valid[place + cut :]
    for decode in (decode_ask, decode_answer, decode_connection_answer):
        try:
            header = decode(data)
        except FrameError:
            continue
        if (
            isinstance(header, Pull | VersionOffer | NotModified | Hello)
            and header.credential != CREDENTIAL
        ):
            with pytest.raises(FrameError):
                header.credential.check(session_id=SESSION, curve_key=CURVE)
