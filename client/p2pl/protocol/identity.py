"""Who is speaking: a peer is an Ed25519 key, and its id is the SHA-256 of the public key.

Signatures are made by OpenSSL and checked by libsodium, which takes half the time and refuses keys
of small order, for which anybody can sign.
"""

import hashlib
import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
CURVE_KEY_CHARS = 40  # a ZeroMQ CURVE public key in Z85
ID_PATTERN = re.compile(r"[0-9a-f]{64}")  # of a session, and of a peer


def peer_id_of(public_key: bytes) -> str:
    """Returns the peer id of an Ed25519 public key of 32 bytes: 64 lower-case hex digits."""
    return hashlib.sha256(public_key).hexdigest()


def sign(key: Ed25519PrivateKey, purpose: bytes, statement: bytes) -> bytes:
    """Returns the 64-byte signature of `statement`.

    Args:
        key: the peer's private key.
        purpose: what the statement is for; the same statement for another purpose has another
            signature, so nobody can take one out of its context.
        statement: the exact bytes that the other side will check.
    """
    return key.sign(purpose + b"\n" + statement)


def is_signed_by(public_key: bytes, purpose: bytes, statement: bytes, signature: bytes) -> bool:
    """Returns whether the holder of `public_key` signed `statement` for `purpose`.

    Args:
        public_key: Ed25519, 32 bytes; others are nobody's.
        purpose: what the signature is for, so that none serves for two.
        statement: what was signed.
        signature: 64 bytes, of anybody.
    """
    return has_signed(public_key, purpose + b"\n" + statement, signature)


def has_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Returns whether the holder of `public_key` signed these very bytes, which say what for.

    Args:
        public_key: Ed25519, 32 bytes; others are nobody's.
        message: what was signed, its purpose included.
        signature: 64 bytes, of anybody.
    """
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True
