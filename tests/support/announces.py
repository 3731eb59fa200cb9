"""Peers that announce, and a clock that stands still until it is told to go on."""

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.protocol.announce import Announce, Event, encode

SESSION = "5e" * 32
NOW_S = 1_700_000_000


@dataclass
class Clock:
    """A clock for tests; call it to read it."""

    now_s: float = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass."""
        self.now_s += seconds


@dataclass
class Speaker:
    """A peer made from its number; each announce has a higher sequence than the one before."""

    number: int
    session: str = SESSION
    time_s: int = NOW_S
    sequence: int = 0
    key: Ed25519PrivateKey = field(init=False)

    def __post_init__(self) -> None:
        seed = hashlib.sha256(b"speaker %d" % self.number).digest()
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self.key.public_key().public_bytes_raw()

    @property
    def port(self) -> int:
        """A port that tells peers apart."""
        return 10_000 + self.number

    @property
    def id(self) -> str:
        """The peer id."""
        return hashlib.sha256(self.public_key).hexdigest()

    def says(self, event: Event = "update", numwant: int = 10) -> Announce:
        """Returns the next announce."""
        self.sequence += 1
        return Announce(
            session=bytes.fromhex(self.session),
            public_key=self.public_key,
            curve_key=f"{self.number:040d}",
            port=self.port,
            event=event,
            sequence=self.sequence,
            time_s=self.time_s,
            numwant=numwant,
        )

    def body(self, event: Event = "update", numwant: int = 10) -> bytes:
        """Returns the next announce as it is sent."""
        return encode(self.says(event, numwant), self.key)
