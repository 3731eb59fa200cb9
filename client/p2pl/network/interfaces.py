"""By which addresses this machine may be reached, and what of them a peer announces."""

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import idna
import psutil

from p2pl.errors import InputError, wrong
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.endpoint import Endpoint, joined, parse

ANY = ("0.0.0.0", "::")
MAX_OWN = 5  # addresses of this machine that are announced: one of each reach and family, or so
MAX_ANNOUNCED = 2  # by `--announce`; with these, and a meeting, there are 8 at most
# Networks inside this machine (of containers and virtual ones): each machine has the same.
INSIDE = ("docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "cni", "flannel", "lxc", "podman")
_ANNOUNCE = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/@\s]+)):([0-9]{1,5})")


def parse_announced(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """Returns the endpoints that a person names with `--announce`, each once.

    Args:
        texts: `HOST:PORT`, `[IPV6]:PORT` or `NAME:PORT`; a name in any script.

    Raises:
        InputError: one is none, or there are too many.
    """
    found = tuple(dict.fromkeys(map(_announced, texts)))
    if len(found) > MAX_ANNOUNCED:
        raise InputError(
            wrong("--announce", got=f"{len(found)} of them", allowed=f"at most {MAX_ANNOUNCED}")
        )
    return found


def _announced(text: str) -> Endpoint:
    match = _ANNOUNCE.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        host = match[1] or match[2]
        if match[2] and not re.fullmatch(r"[0-9.]+", host):
            host = idna.encode(host, uts46=True).decode()
        return parse(f"tcp://{joined(host.lower(), int(match[3]))}")
    except (ValueError, UnicodeError) as fault:  # idna's own is a UnicodeError
        raise InputError(
            wrong(
                "--announce",
                got=text,
                allowed="HOST:PORT, [IPV6]:PORT or NAME:PORT at which others can dial this peer",
                hint=_no_peers(match[1] or match[2]) if match else "",
            )
        ) from fault


def _no_peers(host: str) -> str:
    """Returns why an address can be no peer's, as far as it is one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    kinds = {
        "every address of a machine": address.is_unspecified,
        "multicast": address.is_multicast,
        "link-local, and another machine on each link": address.is_link_local,
        "reserved": address.is_reserved,
    }
    return "".join(f"{host} is {kind}" for kind, holds in kinds.items() if holds)


def addresses() -> list[str]:
    """Returns the IP addresses of this machine that a peer may have, IPv6 first.

    But of the loopback addresses 127.0.0.1 is first: trackers on this machine see peers there.
    """
    found: dict[str, None] = {}
    for name, ones in psutil.net_if_addrs().items():
        if name.startswith(INSIDE):
            continue
        for one in ones:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                try:
                    found[dialled(one.address.partition("%")[0])] = None
                except ValueError:
                    continue  # link-local, for example
    return sorted(found, key=lambda host: (":" in host) is (reach_of(host) is Reach.MACHINE))


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a peer listens, and what is known of who can dial it there.

    Attributes:
        host: the IP address that it is bound to; 0.0.0.0 or `::`: all.
        port: likewise.
        machine: the addresses of this machine, as `addresses` returns them.
        announced: by the person, who says that others can dial them.
    """

    host: str
    port: int
    machine: Sequence[str] = ()
    announced: tuple[Endpoint, ...] = ()

    def endpoints(self, seen: str = "", is_reached: bool | None = None) -> tuple[Endpoint, ...]:
        """Returns what the peer announces: the nearest first, for each asker is told what it may.

        Args:
            seen: where a tracker sees it; "": it has not said so.
            is_reached: whether it could be dialled there; None: that is not known.
        """
        hosts = self._hosts()
        far = reach_of(seen) if seen else Reach.MACHINE  # of which all machines have the same
        if far is not Reach.MACHINE:
            if is_reached or (is_reached is None and self.may_be_at(seen)):
                hosts = [seen, *hosts]
            elif is_reached is False:
                hosts = [host for host in hosts if reach_of(host) < far]
        own = [Endpoint("tcp", host, self.port) for host in _few(dict.fromkeys(hosts))]
        near = [way for way in own if way.reach < Reach.WORLD]
        return tuple(dict.fromkeys([*near, *self.announced, *own]))

    def _hosts(self) -> list[str]:
        if self.host not in ANY:
            return [self.host]
        return list(self.machine)

    @property
    def is_for_others(self) -> bool:
        """Whether other machines may dial it, as far as its own address says."""
        return self.host in ANY or reach_of(self.host) is not Reach.MACHINE

    def may_be_at(self, host: str) -> bool:
        """Returns whether others may reach it at a host, by a NAT or not."""
        if self.host in ANY:
            return True
        is_near = reach_of(self.host) is Reach.MACHINE and reach_of(host) is not Reach.MACHINE
        return (":" in host) == (":" in self.host) and not is_near


def _few(hosts: Iterable[str]) -> list[str]:
    """Returns at most `MAX_OWN` hosts, the nearest first: one of each reach and family, and more.

    Of the loopback addresses one will do.
    """
    counts: dict[tuple[Reach, bool], int] = {}
    ranked: list[tuple[int, str]] = []
    for host in hosts:
        reach = reach_of(host)
        kind = (reach, ":" in host and reach is not Reach.MACHINE)
        counts[kind] = counts.get(kind, 0) + 1
        if reach is not Reach.MACHINE or counts[kind] == 1:
            ranked.append((counts[kind], host))
    ranked.sort(key=lambda one: one[0])  # the sort is stable, here and below
    return sorted((host for _, host in ranked[:MAX_OWN]), key=reach_of)
