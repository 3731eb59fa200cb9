"""Who is speaking."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.protocol import identity

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


def test_a_peer_keeps_its_id_for_ever() -> None:
    assert identity.peer_id_of(PUBLIC) == (
        "56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c"
    )


def test_a_signature_holds_for_one_key_one_purpose_and_one_statement() -> None:
    signature = identity.sign(KEY, b"p2pl test", b"hello")
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert identity.is_signed_by(PUBLIC, b"p2pl test", b"hello", signature)
    assert not identity.is_signed_by(PUBLIC, b"p2pl other", b"hello", signature)
    assert not identity.is_signed_by(PUBLIC, b"p2pl test", b"hallo", signature)
    assert not identity.is_signed_by(other, b"p2pl test", b"hello", signature)
    assert not identity.is_signed_by(PUBLIC[:-1], b"p2pl test", b"hello", signature)
    assert not identity.is_signed_by(PUBLIC, b"p2pl test", b"hello", signature[:-1])
    assert not identity.is_signed_by(bytes(32), b"p2pl test", b"hello", signature)


def test_a_key_for_which_anybody_can_sign_is_nobodys() -> None:
    neutral = bytes([1, *bytes(31)])  # the neutral point: of order one
    assert not identity.is_signed_by(neutral, b"p2pl test", b"hello", neutral + bytes(32))
