"""A network of one's own for each process, and a cable that can be cut: Linux namespaces.

Needs no root, but a kernel that lets everybody have user namespaces; many containers do not.
"""

import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

SUBNET = "10.77.0"
HUB = f"{SUBNET}.1"
TOOLS = ("ip", "nsenter", "unshare")
_HOLD = "mount -t tmpfs none /run && mkdir /run/netns && echo ready && exec sleep 600"


class Cables:
    """One host in the middle and others around it, all on one switch until they are cut off."""

    def __init__(self, count: int) -> None:
        """Lays the cables.

        Raises:
            OSError: this machine does not let us.
        """
        if not all(shutil.which(tool) for tool in TOOLS):
            raise OSError(f"one of {TOOLS} is missing")
        command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", _HOLD]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() != b"ready\n":
                raise OSError("no namespaces here")
            for bridge in ("near", "far"):
                self._ip("link", "add", bridge, "type", "bridge")
                self._ip("link", "set", bridge, "up")
            self._ip("link", "set", "lo", "up")
            self._ip("address", "add", f"{HUB}/24", "dev", "near")
            for number in range(count):
                self._connect(number)
        except (OSError, subprocess.CalledProcessError) as fault:
            self.close()
            raise OSError(f"no network here: {fault}") from fault

    def address(self, number: int) -> str:
        """Returns the IP address of one of the outer hosts."""
        return f"{SUBNET}.{10 + number}"

    def on(self, number: int | None, command: list[str]) -> list[str]:
        """Returns the command that runs `command` on an outer host; None: on the one in the middle.

        The caller's own user and files are as outside.
        """
        there = [] if number is None else ["ip", "netns", "exec", f"host-{number}"]
        return [*self._enter(), *there, *command]

    def cut_off(self, numbers: Collection[int]) -> None:
        """Puts these hosts on a switch of their own."""
        for number in numbers:
            self._ip("link", "set", f"cable-{number}", "master", "far")

    def mend(self, numbers: Collection[int]) -> None:
        """Puts these hosts back to the others."""
        for number in numbers:
            self._ip("link", "set", f"cable-{number}", "master", "near")

    def close(self) -> None:
        """Takes everything down; whoever still runs there keeps it alive."""
        self._holder.kill()
        self._holder.wait(10)
        if self._holder.stdout:
            self._holder.stdout.close()

    def _connect(self, number: int) -> None:
        host, inside = f"host-{number}", ("-n", f"host-{number}")
        self._ip("netns", "add", host)
        self._ip("link", "add", f"cable-{number}", "type", "veth", "peer", "eth0", "netns", host)
        self._ip("link", "set", f"cable-{number}", "master", "near", "up")
        self._ip(*inside, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
        self._ip(*inside, "link", "set", "eth0", "up")
        self._ip(*inside, "link", "set", "lo", "up")

    def _enter(self) -> list[str]:
        into = ["--preserve-credentials", "--user", "--net", "--mount"]
        return ["nsenter", "--target", str(self._holder.pid), *into, f"--wd={Path.cwd()}"]

    def _ip(self, *words: str) -> None:
        subprocess.run([*self._enter(), "ip", *words], check=True, timeout=10, capture_output=True)
