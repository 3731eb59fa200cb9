"""Sealed messages: a fresh key pair for each, so that no key ever opens two things.

Behera et al. 2021 encrypt every message between a participant and the leader, and send with each
the public key that its answer is to be encrypted to (their figure 3, S1 to S4). Two suites:

- `hpke`: hybrid public key encryption (RFC 9180), the default: DHKEM(X25519, HKDF-SHA256),
  HKDF-SHA256 and ChaCha20-Poly1305 in base mode, without associated data.
- `rsa`: as in the paper; RSA alone cannot carry more than some hundred bytes, so it wraps the key
  of an authenticated cipher, with OAEP (the paper cites the attack on the padding before it).

A model is not sealed itself: `lock` encrypts it under a key of its own, and that key travels in a
sealed message.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from p2pl.errors import FrameError, wrong
from p2pl.network.version import Payload

SuiteName: TypeAlias = Literal["hpke", "rsa"]
PrivateKey: TypeAlias = X25519PrivateKey | rsa.RSAPrivateKey

RSA_BITS = 3_072  # 128 bits of security, as X25519 has (NIST SP 800-57, part 1, table 2)
RSA_EXPONENT = 65_537
WRAPPED_BYTES = RSA_BITS // 8
LOCK_KEY_BYTES = 32
TAG_BYTES = 16
PIECE_BYTES = 1 << 20  # of a locked payload; chosen: what is decrypted stays in the cache
MAX_PUBLIC_KEY_BYTES = 440  # of RSA in DER: 422
_NONCE_BYTES = 12
_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_OAEP = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair of one suite; the private half never leaves this object."""

    suite: SuiteName
    public: bytes
    _private: PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, suite: SuiteName) -> "KeyPair":
        """Returns a new key pair; one of `rsa` takes a hundred milliseconds and more."""
        if suite == "hpke":
            curve = X25519PrivateKey.generate()
            return cls(suite, curve.public_key().public_bytes_raw(), curve)
        key = rsa.generate_private_key(RSA_EXPONENT, RSA_BITS)
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(suite, public, key)

    def open(self, sealed: bytes, about: bytes) -> bytes | None:
        """Returns what was sealed to this key, or None where it was not, or has been changed.

        Args:
            sealed: as it came.
            about: what the sealer said that it is about.
        """
        if isinstance(self._private, X25519PrivateKey):
            return _open_hpke(self._private, sealed, about)
        return _open_rsa(self._private, sealed, about)


def seal(suite: SuiteName, public: bytes, plain: bytes, about: bytes) -> bytes:
    """Returns `plain` for the holder of the key `public` alone.

    Args:
        suite: of the key.
        public: the receiver's key, as it came.
        plain: what to encrypt.
        about: what it is about: session, term, direction. With another one it cannot be opened,
            so nothing can be taken out of its context.

    Raises:
        FrameError: `public` is not a usable key of this suite.
    """
    try:
        if suite == "hpke":
            return _HPKE.encrypt(plain, X25519PublicKey.from_public_bytes(public), about)
        return _seal_rsa(_rsa_key(public), plain, about)
    except (ValueError, UnsupportedAlgorithm, InternalError) as fault:
        raise FrameError(wrong("public key", got=public, allowed=f"one of {suite}")) from fault


@dataclass(frozen=True, slots=True)
class Locked:
    """A payload under a key of its own; whoever has the key may read it."""

    key: bytes = field(repr=False)  # of this payload alone
    box: bytes


def lock(payload: Payload) -> Locked:
    """Returns `payload`, of at least one byte, encrypted under a new key.

    In pieces, so that any size goes, each bound to its place and the last one marked as such
    (STREAM, Hoang et al. 2015, eprint.iacr.org/2015/189).
    """
    key = os.urandom(LOCK_KEY_BYTES)
    cipher = ChaCha20Poly1305(key)
    view = memoryview(payload).cast("B")
    pieces = _pieces(len(view), PIECE_BYTES)
    return Locked(
        key, b"".join(cipher.encrypt(nonce, view[at:end], None) for nonce, at, end in pieces)
    )


def locked_bytes(size: int) -> int:
    """Returns how long a payload of `size` bytes, at least one, is once it is locked."""
    return size + TAG_BYTES * -(-size // PIECE_BYTES)


def unlock(key: bytes, box: memoryview | bytes) -> bytes:
    """Returns the payload in `box`.

    Args:
        key: as `lock` made it, 32 bytes.
        box: as it came.

    Raises:
        FrameError: the key is not the one, or the box has been changed or cut.
    """
    cipher = ChaCha20Poly1305(key)
    view = memoryview(box).cast("B")
    pieces = _pieces(len(view), PIECE_BYTES + TAG_BYTES)
    try:
        return b"".join(cipher.decrypt(nonce, view[at:end], None) for nonce, at, end in pieces)
    except InvalidTag as fault:
        raise FrameError("blob: it is not what its key locked") from fault


def _pieces(size: int, piece_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields a nonce for each piece, and where it begins and ends."""
    for number, at in enumerate(range(0, size, piece_bytes)):
        end = min(at + piece_bytes, size)
        last = end == size
        yield number.to_bytes(_NONCE_BYTES - 1) + bytes([last]), at, end


def _open_hpke(private: X25519PrivateKey, sealed: bytes, about: bytes) -> bytes | None:
    try:
        return _HPKE.decrypt(sealed, private, about)
    except InvalidTag:  # that, too, where there is no key in front or none that shares a secret
        return None


def _rsa_key(public: bytes) -> rsa.RSAPublicKey:
    if len(public) > MAX_PUBLIC_KEY_BYTES:
        raise ValueError("too long")
    key = load_der_public_key(public)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != RSA_BITS:
        raise ValueError(f"not RSA of {RSA_BITS} bits")
    if key.public_numbers().e != RSA_EXPONENT:
        raise ValueError("another exponent")
    return key


def _seal_rsa(public: rsa.RSAPublicKey, plain: bytes, about: bytes) -> bytes:
    key = os.urandom(LOCK_KEY_BYTES)
    wrapped = public.encrypt(key, _OAEP)
    return wrapped + ChaCha20Poly1305(key).encrypt(bytes(_NONCE_BYTES), plain, wrapped + about)


def _open_rsa(private: rsa.RSAPrivateKey, sealed: bytes, about: bytes) -> bytes | None:
    wrapped, cipher = sealed[:WRAPPED_BYTES], sealed[WRAPPED_BYTES:]
    try:
        key = private.decrypt(wrapped, _OAEP)
        return ChaCha20Poly1305(key).decrypt(bytes(_NONCE_BYTES), cipher, wrapped + about)
    except (ValueError, InvalidTag):
        return None
