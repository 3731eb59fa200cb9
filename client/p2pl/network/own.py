"""The addresses by which others may dial this peer, as far as it can know them itself."""

import contextlib
import socket
from collections.abc import Iterable

from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.endpoint import MAX_ENDPOINTS, Endpoint

ANY = ("0.0.0.0", "::")
# Of documentation networks (RFC 5737, RFC 3849): the kernel is asked which of this machine's
# addresses a packet there would bear, and none is sent.
_FAR = (
    (socket.AF_INET6, "2001:db8::1"),
    (socket.AF_INET, "192.0.2.1"),
)


def sources() -> tuple[str, ...]:
    """Returns the addresses that this machine's packets bear to far networks, IPv6 before IPv4."""
    found = []
    for family, far in _FAR:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(family, socket.SOCK_DGRAM) as s,
        ):
            s.connect((far, 9))
            found.append(dialled(str(s.getsockname()[0]).partition("%")[0]))
    return tuple(found)


def endpoints(
    listen: tuple[str, int],
    seen: str,
    *,
    announced: Iterable[Endpoint] = (),
    here: Iterable[str] = (),
    is_reachable: bool | None = None,
) -> tuple[Endpoint, ...]:
    """Returns the plain endpoints of this peer, the best first, `MAX_ENDPOINTS` at most.

    First comes what the person said; then where the tracker sees the peer, unless it is known that
    nobody gets through there; then the addresses of this machine, of which those of a private
    network, and the machine's own, are told to nobody but who is there as well.

    Args:
        listen: IP address and port of the listener; 0.0.0.0 or :: is every address.
        seen: where the tracker sees this peer, as `dialled` returns it.
        announced: what the person said that others can dial.
        here: addresses of this machine, as `sources` returns them.
        is_reachable: whether the tracker got through to `seen`; None: that is not known.
    """
    host, port = listen
    hosts = [seen, *here] if host in ANY else [dialled(host)]
    if is_reachable is False:  # what the world sees is an address translation, or a firewall
        hosts = [one for one in hosts if reach_of(one) != Reach.WORLD]
    own = (Endpoint("tcp", one, port) for one in hosts)
    return tuple(dict.fromkeys([*announced, *own]))[:MAX_ENDPOINTS]
