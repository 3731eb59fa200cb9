"""Which address a request comes from, and how often one address may ask."""

import ipaddress
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

import msgspec

from p2pl.errors import AnnounceError, InputError, wrong
from p2pl.pace import Rate, RateLimiter
from p2pl.protocol.announce import PeerRow

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
ADDRESS_BITS = 64  # of an IPv6 address: whoever has one has all that begin with these
SITE_BITS = 48  # which one site is given: RFC 6177
NETWORK_BITS = 24  # of an IPv4 address: the least that is announced by itself in the Internet
SITE_SHARE = 16  # chosen: a site's 65,536 networks together may have as much as so many of them
MAX_ADDRESSES = 100_000  # chosen: 20 MB of rate limits; the longest idle is forgotten first


def observed(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Returns the address the request really comes from.

    That is the address at the other end of the connection; where that is one of the operator's
    proxies, it is the right-most `X-Forwarded-For` entry that is not. What stands left of it,
    anybody may have written.

    Args:
        peer: the address at the other end of the connection.
        forwarded: the values of all `X-Forwarded-For` headers, joined by commas in their order.
        trusted: networks of the operator's proxies; empty means the header is not read at all.
    """
    if not trusted:
        return _compressed(peer)
    address = _parse(peer)
    entries = forwarded.split(",") if forwarded else []
    while entries and any(address in network for network in trusted):
        try:
            address = _parse(entries.pop().strip())
        except ValueError:
            break
    return address.compressed


def networks(cidrs: Iterable[str]) -> tuple[Network, ...]:
    """Returns the networks written as `cidrs`.

    Raises:
        InputError: one is not a network.
    """
    found = []
    for cidr in cidrs:
        try:
            found.append(ipaddress.ip_network(cidr))
        except ValueError as fault:
            raise InputError(
                wrong("--trusted-proxy", got=cidr, allowed="a network such as 10.0.0.0/8")
            ) from fault
    return tuple(found)


@lru_cache(maxsize=65_536)
def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Returns the address without a zone; an IPv4 address in IPv6 form as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


@lru_cache(maxsize=65_536)
def _compressed(text: str) -> str:
    return _parse(text).compressed


@lru_cache(maxsize=65_536)
def is_loopback(host: str) -> bool:
    """Returns whether an IP address means the machine itself."""
    return _parse(host).is_loopback


def from_outside(row: bytes, here: str) -> bytes:
    """Returns a peer's row as it is for peers on other machines.

    Args:
        row: as `encode_row` wrote it.
        here: the address at which those reach this machine.
    """
    if b',"127.' not in row and b',"::1"' not in row:
        return row
    peer = msgspec.json.decode(row, type=PeerRow)
    return msgspec.json.encode(msgspec.structs.replace(peer, host=here))


@lru_cache(maxsize=65_536)
def address_group(host: str, bits: int = ADDRESS_BITS) -> str:
    """Returns what the per-address limits count by: an IPv4 address, or an IPv6 /64.

    Args:
        host: an IP address.
        bits: of an IPv6 address, that those who count together have in common.
    """
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return host
    return str(ipaddress.IPv6Network((address, bits), strict=False).network_address)


@lru_cache(maxsize=65_536)
def network_of(host: str) -> str:
    """Returns the network that an address comes with: its IPv4 /24, or its IPv6 /48."""
    bits = SITE_BITS if ":" in host else NETWORK_BITS
    return str(ipaddress.ip_network(f"{host}/{bits}", strict=False).network_address)


class AddressLimit:
    """How often one address (an IPv4 address, an IPv6 /64) may ask.

    Whoever has an IPv6 /48, which is what one site is given, has 65,536 such addresses: together
    they may ask as often as `SITE_SHARE` of them.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        now: Callable[[], float] = time.monotonic,
        max_addresses: int = MAX_ADDRESSES,
    ) -> None:
        """Has heard of no address yet.

        Args:
            rate: requests a second of one address, in the long run; 0 = no limit.
            burst: requests in a row before `rate` counts, at least 1.
            now: a clock that never steps back, in seconds.
            max_addresses: how many addresses are remembered, and how many sites.
        """
        self._rate = rate
        self._addresses: RateLimiter[str] = RateLimiter(
            Rate.per_second(rate, burst), now=now, max_keys=max_addresses
        )
        self._sites: RateLimiter[str] = RateLimiter(
            Rate.per_second(SITE_SHARE * rate, SITE_SHARE * burst), now=now, max_keys=max_addresses
        )

    def __len__(self) -> int:
        return len(self._addresses)

    def check(self, host: str) -> None:
        """Counts one request.

        Raises:
            AnnounceError: `host`, or its site, is past its burst and faster than its rate (429).
        """
        wait_s = self._addresses.take(address_group(host))
        if wait_s:
            raise too_often("this address", self._rate, wait_s)
        if ":" in host and (wait_s := self._sites.take(address_group(host, SITE_BITS))):
            raise too_often("this address's /48", SITE_SHARE * self._rate, wait_s)


def too_often(who: str, rate: float, retry_in_s: float) -> AnnounceError:
    """Returns the refusal of one request too many.

    Args:
        who: asked too often, for the message.
        rate: how often is allowed, a second.
        retry_in_s: seconds until one more is allowed.
    """
    message = f"too many requests from {who}: allowed {rate:g} a second; wait {retry_in_s:.1f} s"
    return AnnounceError(message, status=429, retry_in_s=retry_in_s)
