"""Endpoints: the ways to a peer or a relay, as it says them itself, one line of text each.

    tcp://192.0.2.1:4000   tcp://[2001:db8::1]:4000   tcp://peer.example.org:4000
    relay://relay.example.org:4001   relays://relay.example.org:443   meet://192.0.2.1:4001

What a kind means is for whoever dials it (`p2pl.network.dial`); a kind that nobody here knows is
passed on, and never dialled. A host name is resolved only when it is dialled, and what it resolves
to is held to the same rules as an address (`p2pl.protocol.address`).
"""

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from p2pl.errors import wrong
from p2pl.protocol.address import Reach, dialled, reach_of

MAX_ENDPOINTS = 8  # of one peer; chosen: two families, two networks, a name, two relays, a meeting
MAX_ENDPOINT_CHARS = 128
MAX_PORT = 65_535
ALLOWED_ENDPOINT = "KIND://HOST:PORT, such as tcp://192.0.2.1:4000 or tcp://[2001:db8::1]:4000"
ALLOWED_NAME = "a name in DNS: letters, digits and hyphens between dots, not a number at its end"

_ENDPOINT = re.compile(
    r"([a-z][a-z0-9]{1,7})://(?:\[([0-9a-f:.]{2,45})\]|([0-9a-z.-]{1,113})):([1-9][0-9]{0,4})"
)
_LABEL = r"(?!-)[0-9a-z-]{1,63}(?<!-)"
# What ends in a number is an IPv4 address to most resolvers: 127.1, 0x7f.1 and 2130706433 as well.
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+$|0x[0-9a-f]*$){_LABEL}")


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to a peer or a relay.

    Attributes:
        kind: how it is dialled: `tcp`, `relay`, `relays`, `meet`, or one that is unknown here.
        host: an IP address as `dialled` returns it, or a DNS name in ASCII, in lower case.
        port: 1..65535.
    """

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        return f"{self.kind}://{joined(self.host, self.port)}"

    @property
    def is_name(self) -> bool:
        """Whether the host must be resolved before it can be dialled."""
        return is_name(self.host)

    @property
    def reach(self) -> Reach:
        """From how far away the host means the same machine; a name: from everywhere."""
        return Reach.WORLD if self.is_name else reach_of(self.host)

    def checked(self) -> "Endpoint":
        """Returns the endpoint with its host in the one form that this has.

        Raises:
            ValueError: it is none, or its host is none that a peer may have.
        """
        return parse(str(self))


@lru_cache(maxsize=16_384)
def parse(text: str) -> Endpoint:
    """Returns the endpoint that a text says.

    Args:
        text: at most `MAX_ENDPOINT_CHARS` of ASCII.

    Raises:
        ValueError: it says none, or one whose host is none that a peer may have.
    """
    match = _ENDPOINT.fullmatch(text) if len(text) <= MAX_ENDPOINT_CHARS else None
    if not match or int(match[4]) > MAX_PORT:
        raise ValueError(wrong("endpoint", got=text, allowed=ALLOWED_ENDPOINT))
    kind, in_brackets, bare, port = match.groups()
    host = in_brackets or bare
    if in_brackets and ":" not in in_brackets:
        raise ValueError(wrong("endpoint", got=text, allowed=ALLOWED_ENDPOINT))
    if in_brackets or _is_ipv4(host):
        host = dialled(host)
    elif not is_name(host):
        raise ValueError(wrong("endpoint host", got=host, allowed=ALLOWED_NAME))
    return Endpoint(kind, host, int(port))


def written(text: str) -> Endpoint:
    """Returns the endpoint that a text says, which must be in its one form.

    Args:
        text: as `str` of an endpoint writes it.

    Raises:
        ValueError: it says none, or says it in another form.
    """
    endpoint = parse(text)
    if str(endpoint) != text:
        raise ValueError(wrong("endpoint", got=text, allowed=f"its one form, {endpoint}"))
    return endpoint


def usable(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """Returns the endpoints in `texts` that may be dialled, each once; the others are left out."""
    found: dict[Endpoint, None] = {}
    for text in texts:
        try:
            found[parse(text)] = None
        except ValueError:
            continue
    return tuple(found)


def joined(host: str, port: int) -> str:
    """Returns `HOST:PORT`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_name(host: str) -> bool:
    """Returns whether a host is a DNS name in its one form, and no IP address."""
    return _NAME.fullmatch(host) is not None


def _is_ipv4(host: str) -> bool:
    return re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}", host) is not None
