"""Hybrid public key encryption (RFC 9180): base mode, one message a key.

The suite is DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. From primitives, because
only recent versions of `cryptography` have HPKE, without associated data, and this package
shall live beside others that hold it back. Held to the RFC's test vector (appendix A.2.1), and to
`cryptography` where that has it.
"""

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KEY_BYTES = 32  # of public and private keys, and of the encapsulated key
TAG_BYTES = 16
_KEM_ID, _KDF_ID, _AEAD_ID = 0x0020, 0x0001, 0x0003  # section 7
_KEM = b"KEM" + _KEM_ID.to_bytes(2)
_HPKE = b"HPKE" + _KEM_ID.to_bytes(2) + _KDF_ID.to_bytes(2) + _AEAD_ID.to_bytes(2)
_BASE_MODE = b"\0"
_SECRET_BYTES, _NONCE_BYTES = 32, 12


def seal(
    public_key: bytes,
    plain: bytes,
    info: bytes,
    about: bytes = b"",
    ephemeral: X25519PrivateKey | None = None,
) -> bytes:
    """Returns `plain` for the holder of `public_key` alone: 48 bytes longer.

    Args:
        public_key: of the receiver, 32 bytes.
        plain: what to encrypt.
        info: what both sides know beforehand; with another one it cannot be opened.
        about: associated data, the same.
        ephemeral: of this message alone; None makes one. For test vectors.

    Raises:
        ValueError: `public_key` is not one that a secret can be shared with.
    """
    ephemeral = ephemeral or X25519PrivateKey.generate()
    sent = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key))
    key, nonce = _schedule(_decapsulated(shared, sent, public_key), info)
    return sent + ChaCha20Poly1305(key).encrypt(nonce, plain, about)


def open_sealed(
    private_key: X25519PrivateKey, sealed: bytes, info: bytes, about: bytes = b""
) -> bytes | None:
    """Returns what was sealed, or None where it was not for this key or has been changed."""
    if len(sealed) < KEY_BYTES + TAG_BYTES:
        return None
    sent, cipher = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    mine = private_key.public_key().public_bytes_raw()
    try:
        shared = private_key.exchange(X25519PublicKey.from_public_bytes(sent))
        key, nonce = _schedule(_decapsulated(shared, sent, mine), info)
        return ChaCha20Poly1305(key).decrypt(nonce, cipher, about)
    except (InvalidTag, ValueError):  # ValueError: a point that shares nothing (RFC 7748, 6.1)
        return None


def _decapsulated(shared: bytes, sent: bytes, receiver: bytes) -> bytes:
    """Returns the KEM's shared secret: ExtractAndExpand of section 4.1."""
    secret = _extract(_KEM, b"", b"eae_prk", shared)
    return _expand(_KEM, secret, b"shared_secret", sent + receiver, _SECRET_BYTES)


def _schedule(shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Returns the key and nonce of the first message: KeySchedule of section 5.1."""
    context = (
        _BASE_MODE
        + _extract(_HPKE, b"", b"psk_id_hash", b"")
        + _extract(_HPKE, b"", b"info_hash", info)
    )
    secret = _extract(_HPKE, shared_secret, b"secret", b"")
    key = _expand(_HPKE, secret, b"key", context, _SECRET_BYTES)
    return key, _expand(_HPKE, secret, b"base_nonce", context, _NONCE_BYTES)


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    """Returns LabeledExtract of section 4."""
    salt = salt or bytes(hashlib.sha256().digest_size)
    return hmac.digest(salt, b"HPKE-v1" + suite + label + material, "sha256")


def _expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """Returns LabeledExpand of section 4."""
    labelled = length.to_bytes(2) + b"HPKE-v1" + suite + label + info
    return HKDFExpand(algorithm=SHA256(), length=length, info=labelled).derive(secret)
