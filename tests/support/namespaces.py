"""A small internet in network namespaces: hosts in public, and networks behind NAT or a firewall.

    with namespaces.internet() as net:
        tracker = net.host()                   # 192.0.2.2 and 2001:db8::2
        home = net.nat()                       # a router that masquerades 192.168.1.0/24
        peer = home.host()                     # 192.168.1.2
        subprocess.run(peer.command("p2pl", "join", ...))

Each NAT has the same private network behind it, as at home. It needs root and `ip`; `reason` says
why a test must be skipped elsewhere. NAT is one rule of nftables, said to the kernel as it is:
the program `nft` is not needed.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAMED = Path("/run/netns")  # where `ip netns` keeps them
CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


@functools.cache
def reason() -> str:
    """Returns why no internet can be made here; "": it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip (iproute2)"
    try:
        with internet() as net:
            net.nat().host()
    except (subprocess.CalledProcessError, OSError) as fault:
        return f"no network namespaces with NAT here: {getattr(fault, 'stderr', None) or fault}"
    return ""


def needed() -> None:
    """Skips the test that calls it where no internet can be made."""
    if why := reason():
        pytest.skip(why)


@dataclass(frozen=True, slots=True)
class Host:
    """One machine.

    Attributes:
        namespace: its name.
        address: its IPv4 address.
        address6: its IPv6 address; "": it has none.
    """

    namespace: str
    address: str
    address6: str = ""

    def command(self, *arguments: str) -> list[str]:
        """Returns the command that runs another one on this machine."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Puts this thread onto the machine: sockets that are made meanwhile are there."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(path: str | Path) -> None:
            file = os.open(path, os.O_RDONLY)
            try:
                if libc.setns(file, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {path}")
            finally:
                os.close(file)

        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            enter(NAMED / self.namespace)
            yield
        finally:
            enter(f"/proc/self/fd/{home}")
            os.close(home)


@dataclass
class Network:
    """Machines on one wire: the internet itself, or what is behind a router."""

    switch: str  # the namespace that holds the bridge
    prefix: str  # of IPv4 addresses: three bytes and a point
    prefix6: str = ""
    gateway: str = ""
    gone: list[str] = field(default_factory=list)  # namespaces to remove at the end
    _hosts: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def host(self) -> Host:
        """Returns a new machine on this network."""
        number = next(self._hosts)
        name = _namespace(self.gone)
        self._plug(name, "eth0", f"port{number}")
        address, address6 = f"{self.prefix}{number}", ""
        _ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
        if self.prefix6:
            address6 = f"{self.prefix6}{number:x}"
            _ip(name, "addr", "add", f"{address6}/64", "dev", "eth0", "nodad")
        if self.gateway:
            _ip(name, "route", "add", "default", "via", self.gateway)
        return Host(name, address, address6)

    def nat(self, *, only_port: int | None = None, network: str = "192.168.1.") -> "Network":
        """Returns a network behind a router that masquerades it.

        Args:
            only_port: the one TCP port that is let out; None: all of them.
            network: three bytes of its addresses and a point.
        """
        router = self.host().namespace
        gateway = f"{network}1"
        behind = Network(router, network, gateway=gateway, gone=self.gone)
        _bridge(router)
        _ip(router, "addr", "add", f"{gateway}/24", "dev", "bridge")
        _sysctl(router, "net/ipv4/ip_forward", "1")
        with Host(router, "").entered():
            _masquerade("eth0")
        if only_port is not None:
            port = ["iif", "bridge", "ipproto", "tcp", "dport", str(only_port)]
            _ip(router, "rule", "add", "pref", "100", *port, "lookup", "main")
            _ip(router, "rule", "add", "pref", "101", "iif", "bridge", "prohibit")
        return behind

    def _plug(self, namespace: str, interface: str, port: str) -> None:
        there = ["peer", "name", port, "netns", self.switch]
        _run("ip", "link", "add", interface, "netns", namespace, "type", "veth", *there)
        _ip(self.switch, "link", "set", port, "master", "bridge", "up")
        _ip(namespace, "link", "set", interface, "up")


@contextlib.contextmanager
def internet() -> Iterator[Network]:
    """Yields a network of public addresses, 192.0.2.0/24 and 2001:db8::/64; ends it afterwards."""
    gone: list[str] = []
    try:
        switch = _namespace(gone)
        _bridge(switch)
        yield Network(switch, "192.0.2.", "2001:db8::", gone=gone)
    finally:
        for name in reversed(gone):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _namespace(gone: list[str]) -> str:
    name = f"p2pl-{os.getpid()}-{next(_numbers)}"
    _run("ip", "netns", "add", name)
    gone.append(name)
    _ip(name, "link", "set", "lo", "up")
    return name


def _bridge(namespace: str) -> None:
    _ip(namespace, "link", "add", "bridge", "type", "bridge")
    _ip(namespace, "link", "set", "bridge", "up")


def _sysctl(namespace: str, name: str, value: str) -> None:
    path = f"/proc/sys/{name}"
    _run("ip", "netns", "exec", namespace, "sh", "-c", f"echo {value} > {path}")


def _ip(namespace: str, *arguments: str) -> None:
    _run("ip", "-n", namespace, *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


def _masquerade(interface: str) -> None:
    """Hides all that leaves this thread's namespace by an interface behind its address.

    The same as `nft add rule ip nat out oifname INTERFACE masquerade`, in the kernel's own words
    (linux/netfilter/nf_tables.h).
    """
    nft, request, ack, create, append = 10 << 8, 1, 4, 0x400, 0x800
    oifname, dreg_1 = 7, 1
    rule = _nested(
        4,
        _expression("meta", _number(1, dreg_1), _number(2, oifname)),
        _expression(
            "cmp",
            _number(1, dreg_1),
            _number(2, 0),
            _nested(3, _attribute(1, interface.encode().ljust(16, b"\0"))),
        ),
        _expression("masq"),
    )
    hook = _nested(4, _number(1, 4), _number(2, 100))  # postrouting, where sources are rewritten
    chain = _text(1, "nat") + _text(3, "out") + hook + _text(7, "nat")
    flags = request | ack | create
    messages = [
        _message(0x10, request, 10, 0),  # a batch begins
        _message(nft | 0, flags, 0, 2, _text(1, "nat")),
        _message(nft | 3, flags, 0, 2, chain),
        _message(nft | 6, flags | append, 0, 2, _text(1, "nat") + _text(2, "out") + rule),
        _message(0x11, request, 10, 0),  # and ends
    ]
    netfilter = 12
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter) as kernel:
        kernel.settimeout(10)
        kernel.bind((0, 0))
        kernel.send(b"".join(messages))
        answered = 0
        while answered < 3:
            data = kernel.recv(65_536)
            while data:
                (size,) = struct.unpack_from("=I", data)
                (error,) = struct.unpack_from("=i", data, 16)
                if error:
                    raise OSError(-error, f"nftables: {os.strerror(-error)}")
                answered += 1
                data = data[(size + 3) & ~3 :]


def _message(kind: int, flags: int, resource: int, family: int, body: bytes = b"") -> bytes:
    head = struct.pack("=BBH", family, 0, socket.htons(resource))
    return struct.pack("=IHHII", 16 + len(head) + len(body), kind, flags, 0, 0) + head + body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack(">I", number))


def _expression(name: str, *data: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *data))
