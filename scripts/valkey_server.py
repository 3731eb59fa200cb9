"""A server of Valkey or Redis of one's own, for the scripts and for the tests."""

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path

from launcher import PATIENCE_S, Fault, wait_until

PROGRAMS = ("valkey-server", "redis-server")


def program() -> str | None:
    """Returns what is installed; None where there is nothing."""
    return next(filter(shutil.which, PROGRAMS), None)


class Server:
    """One that can be killed and started again; its data lie in a folder.

    Args:
        folder: of its socket, whose path the system wants short, its data and what it says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `--store` is given."""
        return f"unix://{self.path}?db=0"

    def start(self) -> None:
        """Starts it; returns once it answers.

        Raises:
            Fault: none is installed, or it does not start.
        """
        name = program()
        if name is None:
            raise Fault(f"neither {' nor '.join(PROGRAMS)} is installed")
        options = ["--port", "0", "--unixsocket", str(self.path), "--dir", str(self.folder)]
        options += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        with (self.folder / "server.log").open("ab") as said:
            self._process = subprocess.Popen([name, *options], stdout=said, stderr=said)
        process = self._process
        wait_until(lambda: self._answers() or process.poll() is not None, PATIENCE_S, name)
        if process.poll() is not None:
            raise Fault(f"{name} did not start:\n{(self.folder / 'server.log').read_text()}")

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=PATIENCE_S)
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
            one.settimeout(PATIENCE_S)
            one.connect(str(self.path))
            one.sendall(b"PING\r\n")
            return one.recv(16).startswith(b"+PONG")
        return False
