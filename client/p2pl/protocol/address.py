"""Which keys and hosts a peer may be said to have: checked once, where they arrive.

An address is what a stranger, a tracker or a file says. What could not be dialled, or would reach
what nobody meant, is no address: nobody stores it or passes it on.
"""

import ipaddress
import re
from enum import IntEnum
from functools import lru_cache
from typing import TypeAlias

from p2pl.errors import wrong

IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_ANY = r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]"
# Five characters of Z85 are a number of four bytes (ZeroMQ RFC 32); the largest one is %nSc0.
_FOUR_BYTES = (
    rf"(?:[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{{}}@]{_ANY}{{4}}"
    rf"|%(?:[0-9a-m]{_ANY}{{3}}|n(?:[0-9a-zA-R]{_ANY}{{2}}|S(?:[0-9ab]{_ANY}|c0))))"
)
_KEY = re.compile(rf"{_FOUR_BYTES}{{8}}")
ALLOWED_KEY = "32 bytes in Z85, a number of at most %nSc0 in each five characters"
ALLOWED_HOST = "an IP address of one machine that others can dial"
NOT_DIALLED = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # "this network"; 0.0.0.0 itself reaches whoever dials it
            "169.254.0.0/16",  # link-local: another machine on each link; cloud metadata, too
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "::/128",
            "fe80::/10",  # link-local
            "ff00::/8",  # multicast
            # IPv4 in another coat: it would pass for what it is not.
            "64:ff9b::/96",
            "64:ff9b:1::/48",
            "2002::/16",
        ),
    )
)
_COMPATIBLE = ipaddress.ip_network("::/96")
_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
            "100.64.0.0/10",  # behind a provider's NAT (RFC 6598), and in overlay networks
        ),
    )
)


class Reach(IntEnum):
    """From how far away an address means the same machine."""

    MACHINE = 0
    SITE = 1
    WORLD = 2


def is_curve_key(text: str) -> bool:
    """Returns whether 40 characters are a CURVE key in Z85, and not merely of its alphabet."""
    return _KEY.fullmatch(text) is not None


@lru_cache(maxsize=4_096)
def dialled(text: str) -> str:
    """Returns a host in its one form; an IPv4 address in IPv6 form as IPv4.

    Raises:
        ValueError: it is no IP address, or none that a peer may have.
    """
    try:
        address: IP = ipaddress.ip_address(text)
    except ValueError as fault:
        raise ValueError(wrong("host", got=text, allowed=ALLOWED_HOST)) from fault
    address = getattr(address, "ipv4_mapped", None) or address
    scoped = getattr(address, "scope_id", None) is not None
    old = address in _COMPATIBLE and not address.is_loopback
    if scoped or old or any(address in network for network in NOT_DIALLED):
        raise ValueError(wrong("host", got=text, allowed=ALLOWED_HOST))
    return address.compressed


@lru_cache(maxsize=4_096)
def reach_of(host: str) -> Reach:
    """Returns from how far away a host, as `dialled` returns it, means the same machine."""
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return Reach.MACHINE
    return Reach.SITE if any(address in network for network in _PRIVATE) else Reach.WORLD
