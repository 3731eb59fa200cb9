"""What is sealed opens for its receiver alone, in its context alone, unchanged or not at all."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.errors import FrameError
from p2pl.network.sealed import PIECE_BYTES, KeyPair, SuiteName, lock, locked_bytes, seal, unlock
from p2pl.protocol.frame import MAX_TELL_BYTES

X25519_KEY_BYTES = 32
ABOUT = b"session, term 3, request"
# One key pair of each suite for all tests: RSA's take long to make.
PAIRS: dict[SuiteName, KeyPair] = {suite: KeyPair.generate(suite) for suite in ("hpke", "rsa")}
suites = pytest.mark.parametrize("suite", ["hpke", "rsa"])


def test_a_message_sealed_before_still_opens() -> None:
    # Of the keys and texts of RFC 9180, appendix A.2.1, without associated data; made by the code
    # that p2pl 0.1 had of its own, which gave the bytes of the appendix where it was given some.
    receiver = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb")
    )
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    sealed = bytes.fromhex(
        "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b40f379"
        "30f628eb13216a1ba1b2aadd60"
    )
    pair = KeyPair("hpke", receiver.public_key().public_bytes_raw(), receiver)
    assert pair.open(sealed, info) == b"Beauty is truth, truth beauty"
    assert pair.open(sealed, info[1:]) is None


@pytest.mark.parametrize("sealed", [b"", bytes(31), bytes(48), bytes(1_000)])
@suites
def test_what_nobody_sealed_does_not_open(suite: SuiteName, sealed: bytes) -> None:
    assert PAIRS[suite].open(sealed, ABOUT) is None


@suites
def test_only_the_receiver_opens_it(suite: SuiteName) -> None:
    sealed = seal(suite, PAIRS[suite].public, b"my model", ABOUT)
    assert b"my model" not in sealed
    assert PAIRS[suite].open(sealed, ABOUT) == b"my model"
    assert KeyPair.generate(suite).open(sealed, ABOUT) is None


@suites
def test_it_opens_in_its_own_context_only(suite: SuiteName) -> None:
    sealed = seal(suite, PAIRS[suite].public, b"my model", ABOUT)
    assert PAIRS[suite].open(sealed, b"session, term 4, request") is None


@suites
@settings(max_examples=20, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_what_was_changed_does_not_open(suite: SuiteName, place: int, bit: int, cut: bool) -> None:
    sealed = bytearray(seal(suite, PAIRS[suite].public, b"my model", ABOUT))
    place %= len(sealed)
    if suite == "hpke" and place == X25519_KEY_BYTES - 1 and bit == 7:
        bit = 6  # X25519 ignores its highest bit (RFC 7748, section 5)
    sealed[place] ^= 1 << bit
    assert PAIRS[suite].open(bytes(sealed[:place] if cut else sealed), ABOUT) is None


@suites
def test_two_seals_of_one_thing_share_no_bytes_to_link_them_by(suite: SuiteName) -> None:
    one, other = (seal(suite, PAIRS[suite].public, b"my model", ABOUT) for _ in range(2))
    assert not {one[at : at + 8] for at in range(0, len(one), 8)} & {
        other[at : at + 8] for at in range(0, len(other), 8)
    }


@suites
def test_a_request_with_its_reply_key_fits_a_short_message(suite: SuiteName) -> None:
    request = PAIRS[suite].public + bytes(200)
    assert len(seal(suite, PAIRS[suite].public, request, ABOUT)) < MAX_TELL_BYTES - 100


def weak_rsa(bits: int, exponent: int) -> bytes:
    """Returns a public key that is not what the suite asks for."""
    key = rsa.generate_private_key(exponent, bits).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("suite", "public"),
    [
        ("hpke", b""),
        ("hpke", bytes(32)),  # a point that gives everybody the same secret
        ("hpke", bytes(33)),
        ("rsa", b""),
        ("rsa", bytes(10_000)),
        ("rsa", PAIRS["hpke"].public),
        ("rsa", weak_rsa(1024, 65_537)),
        ("rsa", weak_rsa(3072, 3)),
    ],
)
def test_a_key_that_is_none_is_refused(suite: SuiteName, public: bytes) -> None:
    with pytest.raises(FrameError, match="public key"):
        seal(suite, public, b"", ABOUT)


@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 << 19])
def test_a_locked_payload_comes_back_and_has_the_promised_length(size: int) -> None:
    payload = hashlib.shake_128(b"payload").digest(size)
    locked = lock(payload)
    assert len(locked.box) == locked_bytes(size)
    assert unlock(locked.key, locked.box) == payload


def test_a_locked_payload_cannot_be_changed_cut_or_put_in_another_order() -> None:
    locked = lock(bytes(2 * PIECE_BYTES))
    half = len(locked.box) // 2
    flipped = bytearray(locked.box)
    flipped[-1] ^= 1
    for damaged in (
        flipped,
        locked.box[:half],
        locked.box[half:] + locked.box[:half],
        lock(bytes(2 * PIECE_BYTES)).box,
    ):
        with pytest.raises(FrameError, match="blob"):
            unlock(locked.key, bytes(damaged))


def test_no_two_payloads_are_locked_with_one_key() -> None:
    assert lock(b"same").key != lock(b"same").key
    assert lock(b"same").box != lock(b"same").box
