"""The keys of a peer: Ed25519 says who it is and lasts; CURVE locks its connections for one run."""

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import zmq
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from zmq.utils import z85

from p2pl.errors import IdentityError, P2PLError, wrong
from p2pl.protocol.identity import peer_id_of

MAX_KEY_FILE_BYTES = 16_384  # chosen: that of a peer has 119 bytes, a 4096-bit RSA key about 3,300
OWNER_ONLY = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is, for as long as it keeps its key file."""

    private_key: Ed25519PrivateKey = field(repr=False)
    public_key: bytes  # 32 bytes
    peer_id: str  # SHA-256 of the public key, 64 hex digits

    @classmethod
    def generate(cls) -> Self:
        """Returns a new identity that is written nowhere."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Returns the identity in the file `path`, which is created if it does not exist.

        The file is a PKCS8 PEM with mode 0600. It appears complete or not at all, and a file that
        exists is never written to, whatever is in it.

        Raises:
            IdentityError: the file is not an Ed25519 key, others may read it, or it cannot be used.
        """
        try:
            if not path.exists():
                _create(path, Ed25519PrivateKey.generate())
            return cls._of(_load(path))
        except OSError as fault:
            raise IdentityError(
                wrong(
                    "identity file",
                    got=f"{path}: {fault.strerror}",
                    allowed="a key file that you can read, or a folder that you can write to",
                )
            ) from fault

    def secret_for(self, purpose: str) -> bytes:
        """Returns 32 bytes that only the owner of the key can make, different for each purpose.

        Args:
            purpose: what they are for; the same purpose gives the same bytes.
        """
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode())
        return derive.derive(self.private_key.private_bytes_raw())

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Self:
        public_key = key.public_key().public_bytes_raw()
        return cls(private_key=key, public_key=public_key, peer_id=peer_id_of(public_key))


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair in Z85, 40 characters each; never stored.

    It is fresh for every run, but for a member of a private session.
    """

    public: str
    secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Returns a new key pair.

        Raises:
            P2PLError: this libzmq has no CURVE; there is no plaintext to fall back to.
        """
        _check_curve()
        public, secret = zmq.curve_keypair()
        return cls(public=public.decode(), secret=secret.decode())

    @classmethod
    def from_secret(cls, secret: bytes) -> Self:
        """Returns the key pair of a secret key.

        Args:
            secret: 32 random bytes.

        Raises:
            P2PLError: as `generate`.
        """
        _check_curve()
        text = z85.encode(secret)
        return cls(public=zmq.curve_public(text).decode(), secret=text.decode())


def _check_curve() -> None:
    if not zmq.has("curve"):
        raise P2PLError(
            "libzmq: built without CURVE, and p2pl never talks in plaintext; "
            "install pyzmq from its wheel: pip install --force-reinstall pyzmq"
        )


def _create(path: Path, key: Ed25519PrivateKey) -> None:
    """Writes `key` to a file beside `path` and links it there, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):  # two started at once: the first key counts
            os.link(draft, path)
    finally:
        draft.unlink()


def _load(path: Path) -> Ed25519PrivateKey:
    """Returns the private key in `path`, or raises IdentityError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not hold it up
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(wrong("identity file", got=str(path), allowed="a regular file"))
        if status.st_mode & _OTHERS:
            raise IdentityError(
                wrong(
                    f"identity file {path}: mode",
                    got=f"{stat.S_IMODE(status.st_mode):04o}",
                    allowed="0600: a private key that others can read is no longer yours alone",
                    hint=f"if you trust everyone on this machine: chmod 600 {path}; "
                    "if not, name a new file",
                )
            )
        data = stream.read(MAX_KEY_FILE_BYTES + 1)
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> Ed25519PrivateKey:
    hint = "name another file, or move this one away to get a new identity"
    allowed = "an Ed25519 private key, PKCS8 in PEM without a password"
    if len(data) > MAX_KEY_FILE_BYTES:
        got = f"more than {MAX_KEY_FILE_BYTES} bytes"
        raise IdentityError(wrong(f"identity file {path}", got=got, allowed=allowed, hint=hint))
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as fault:
        got = "a key with a password" if isinstance(fault, TypeError) else "no key"
        raise IdentityError(
            wrong(f"identity file {path}", got=got, allowed=allowed, hint=hint)
        ) from fault
    if not isinstance(key, Ed25519PrivateKey):
        got = type(key).__name__
        raise IdentityError(wrong(f"identity file {path}", got=got, allowed=allowed, hint=hint))
    return key
