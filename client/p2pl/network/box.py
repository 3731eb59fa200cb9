"""The authenticated encryption of CURVE: Curve25519, XSalsa20 and Poly1305, by libsodium.

PyNaCl's public functions return new bytes. For a chunk of a model that is memory for each chunk,
and two copies of it: 1.6 s of processor time a GiB where libsodium itself needs 0.6. So
`open_in_place` calls what PyNaCl has bound below them, on memory that is there. Where that is not
found, it makes do with the public function, and the result is the same.
"""

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

try:
    from nacl._sodium import ffi, lib

    _open = lib.crypto_box_open_easy_afternm
except (ImportError, AttributeError):  # pragma: no cover  # another version of PyNaCl
    _open = None

KEY_BYTES = 32
NONCE_BYTES = 24
TAG_BYTES = 16


def key_pair() -> tuple[bytes, bytes]:
    """Returns a new public and a new secret key."""
    public, secret = sodium.crypto_box_keypair()
    return public, secret


def shared_key(public: bytes, secret: bytes) -> bytes:
    """Returns the key that the owners of two key pairs share.

    Args:
        public: of the other one, 32 bytes.
        secret: one's own, 32 bytes.

    Raises:
        ValueError: the public key is of small order, so that the secret would not be one.
    """
    try:
        return sodium.crypto_box_beforenm(public, secret)
    except CryptoError as fault:
        raise ValueError("a public key of small order") from fault


def seal(plain: bytes, nonce: bytes, key: bytes) -> bytes:
    """Returns the tag and the ciphertext of `plain`.

    Args:
        plain: any length.
        nonce: 24 bytes that were not used with this key before.
        key: shared.
    """
    return sodium.crypto_box_easy_afternm(plain, nonce, key)


def open_in_place(box: memoryview, nonce: bytes, key: bytes) -> None:
    """Decrypts a box where it stands: what stood behind its tag is its plaintext afterwards.

    Args:
        box: 16 bytes of tag, then the ciphertext; writable.
        nonce: 24 bytes.
        key: shared.

    Raises:
        ValueError: the box was not made with this key and nonce; then it is as it was.
    """
    if len(box) < TAG_BYTES or len(nonce) != NONCE_BYTES or len(key) != KEY_BYTES:
        raise ValueError("a box, nonce or key that is too short")
    if _open is None:
        _open_by_copy(box, nonce, key)
        return
    with ffi.from_buffer(box, require_writable=True) as here:
        if _open(here + TAG_BYTES, here, len(box), nonce, key):  # it checks the tag first
            raise ValueError("a box that was not made with this key")


def _open_by_copy(box: memoryview, nonce: bytes, key: bytes) -> None:
    try:
        box[TAG_BYTES:] = sodium.crypto_box_open_easy_afternm(bytes(box), nonce, key)
    except CryptoError as fault:
        raise ValueError("a box that was not made with this key") from fault
