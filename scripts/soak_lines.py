"""A network of one's own: a namespace for each process, and a switch whose lines can be hurt.

The kernel's netem is not everywhere, so the switch is here: a TUN device in each namespace, and a
thread that hands packets from one to another, late, or not at all. Needs root and /dev/net/tun.
"""

import contextlib
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_SET_INTERFACE = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_IS_TUN, _WITHOUT_HEADER = 0x1, 0x1000
PACKET_BYTES = 4_096
QUEUE_S = 0.5  # a packet that would wait longer is lost, as in a router
NET = "10.77.0"


@dataclass
class Line:
    """One process's way to all others.

    Attributes:
        delay_s: each way.
        loss: share of packets that are lost, each way.
        bytes_s: rate, each way.
        is_cut: whether nothing passes.
    """

    namespace: str
    address: str
    descriptor: int
    delay_s: float = 0.0
    loss: float = 0.0
    bytes_s: float = 1e9
    is_cut: bool = False
    busy_until_s: float = 0.0

    def heal(self) -> None:
        """Makes the line as good as new."""
        self.delay_s, self.loss, self.bytes_s, self.is_cut = 0.0, 0.0, 1e9, False


def can_have_lines() -> bool:
    """Returns whether this process may make namespaces and TUN devices."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return tried.returncode == 0


@dataclass
class Switch:
    """A switch with lines, by the names of those who hang on it.

    Args:
        names: of the lines; each gets a namespace and an address.
        rng: decides which packets are lost.
    """

    names: Sequence[str]
    rng: random.Random
    lines: dict[str, Line] = field(default_factory=dict)
    apart: frozenset[frozenset[str]] = (
        frozenset()
    )  # pairs of addresses between which nothing passes

    def __enter__(self) -> Self:
        self._is_over = threading.Event()
        try:
            for number, name in enumerate(self.names, 1):
                self.lines[name] = _plug_in(f"soak{os.getpid()}-{number}", f"{NET}.{number}")
        except BaseException:
            self._unplug()
            raise
        self._thread = threading.Thread(target=self._forward, name="switch")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._unplug()

    def inside(self, name: str) -> list[str]:
        """Returns what a command begins with that runs at the end of a line."""
        return ["ip", "netns", "exec", self.lines[name].namespace]

    def _unplug(self) -> None:
        for line in self.lines.values():
            os.close(line.descriptor)
            subprocess.run(["ip", "netns", "del", line.namespace], check=False)

    def _forward(self) -> None:
        by_address = {bytes(map(int, one.address.split("."))): one for one in self.lines.values()}
        late: list[tuple[float, int, int, bytes]] = []  # when, in which order, to where, what
        count = 0
        with selectors.DefaultSelector() as ready:
            for line in self.lines.values():
                ready.register(line.descriptor, selectors.EVENT_READ, line)
            while not self._is_over.is_set():
                wait_s = min(0.2, max(0.0, late[0][0] - time.monotonic())) if late else 0.2
                for key, _ in ready.select(wait_s):
                    for packet in _waiting(key.data.descriptor):
                        to = by_address.get(packet[16:20])
                        when_s = None if to is None else self._arrival_s(key.data, to, len(packet))
                        if to is not None and when_s is not None:
                            count += 1
                            heapq.heappush(late, (when_s, count, to.descriptor, packet))
                while late and late[0][0] <= time.monotonic():
                    _, _, descriptor, packet = heapq.heappop(late)
                    with contextlib.suppress(OSError):
                        os.write(descriptor, packet)

    def _arrival_s(self, start: Line, end: Line, size: int) -> float | None:
        """Returns when a packet arrives; None where it is lost."""
        now_s = time.monotonic()
        if start.is_cut or end.is_cut or self.rng.random() < start.loss + end.loss:
            return None
        if frozenset((start.address, end.address)) in self.apart:
            return None
        if start.busy_until_s - now_s > QUEUE_S:
            return None
        rate = min(start.bytes_s, end.bytes_s)
        start.busy_until_s = max(now_s, start.busy_until_s) + size / rate
        return start.busy_until_s + start.delay_s + end.delay_s


def _waiting(descriptor: int) -> list[bytes]:
    packets: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(packets) < 64:
            packets.append(os.read(descriptor, PACKET_BYTES))
    return [packet for packet in packets if packet[0] >> 4 == 4]


def _plug_in(namespace: str, address: str) -> Line:
    """Returns a new line with a namespace at its end."""
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        return _line_in(namespace, address)
    except BaseException:
        subprocess.run(["ip", "netns", "del", namespace], check=False)
        raise


def _line_in(namespace: str, address: str) -> Line:
    """Returns a new line that ends in a namespace."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"s{namespace.removeprefix('soak')}"[:15]
    asked = struct.pack("16sH22x", name.encode(), _IS_TUN | _WITHOUT_HEADER)
    fcntl.ioctl(descriptor, _SET_INTERFACE, asked)
    for words in (
        f"ip link set {name} netns {namespace}",
        f"ip -n {namespace} addr add {address}/24 dev {name}",
        f"ip -n {namespace} link set {name} mtu 1400 up",
        f"ip -n {namespace} link set lo up",
    ):
        subprocess.run(words.split(), check=True)
    return Line(namespace, address, descriptor)
