"""Issues tickets to relays: whose key signs them, for how long, and how often a peer gets one."""

import contextlib
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from p2pl.errors import IdentityError, wrong
from p2pl.protocol import ticket
from p2pl.protocol.announce import Announce

LIFE_S = 3_600  # chosen: a peer that is refused from now on loses its relays within the hour
AGAIN_S = LIFE_S / 3  # a peer gets another one after this, so that it always has a good one
MAX_REMEMBERED = 200_000  # chosen: some 30 MB; beyond it, the peer that was given one first
MAX_KEY_FILE_BYTES = 16_384
OWNER_ONLY = 0o600
ALLOWED = "an Ed25519 private key, PKCS8 in PEM without a password, that nobody else may read"


@dataclass(frozen=True, slots=True)
class Relays:
    """What a tracker says of relays.

    Attributes:
        endpoints: that it names, best first.
        key: that signs tickets to them.
    """

    endpoints: tuple[str, ...]
    key: Ed25519PrivateKey

    @property
    def issuer(self) -> str:
        """The public key that relays are to know, 64 hex digits."""
        return self.key.public_key().public_bytes_raw().hex()


class Issuer:
    """Gives peers their tickets.

    Args:
        relays: which, and the key.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self, relays: Relays, *, now: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self.relays = relays
        self._now, self._wall = now, wall
        self._given_s: OrderedDict[bytes, float] = OrderedDict()

    def ticket_for(self, announce: Announce) -> bytes:
        """Returns a ticket for whoever announces; b"" where the peer has one that is good enough.

        Args:
            announce: checked.
        """
        who = announce.session + announce.digest
        now_s = self._now()
        given_s = self._given_s.get(who)
        if announce.event != "started" and given_s is not None and now_s - given_s < AGAIN_S:
            return b""
        self._given_s[who] = now_s
        self._given_s.move_to_end(who)
        if len(self._given_s) > MAX_REMEMBERED:
            self._given_s.popitem(last=False)
        until_s = int(self._wall()) + LIFE_S
        return ticket.issue(
            self.relays.key, session=announce.session, peer=announce.digest, not_after_s=until_s
        )


def load_or_create(path: Path, option: str = "--relay-key") -> Ed25519PrivateKey:
    """Returns the key in a file, which is made, for its owner alone, where there is none.

    Args:
        path: of the file.
        option: that named it, for the message.

    Raises:
        IdentityError: there is something else in it, others may read it, or it cannot be used.
    """
    try:
        if not path.exists():
            _create(path)
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(file, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(MAX_KEY_FILE_BYTES + 1) if stat.S_ISREG(mode) else b""
    except OSError as fault:
        raise IdentityError(
            wrong(option, got=f"{path} ({fault.strerror})", allowed=ALLOWED)
        ) from fault
    if stat.S_IMODE(mode) & (stat.S_IRWXG | stat.S_IRWXO):
        got = f"{path}, mode {stat.S_IMODE(mode):04o}"
        raise IdentityError(wrong(option, got=got, allowed=ALLOWED, hint="chmod 600"))
    try:
        key = load_pem_private_key(data[:MAX_KEY_FILE_BYTES], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:
        raise IdentityError(wrong(option, got=str(path), allowed=ALLOWED)) from fault
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(wrong(option, got=str(path), allowed=ALLOWED))
    return key


def _create(path: Path) -> None:
    """Writes a new key to a file beside `path` and links it there, unless another was first."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
