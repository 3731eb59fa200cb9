"""A real server of Valkey or Redis for tests, on a socket of its own."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVERS = ("valkey-server", "redis-server")
PATIENCE_S = 60.0


class Server:
    """One that can be killed and started again; its data lie in a folder.

    Args:
        folder: of its socket, its data and what it says.
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
        """Starts it; returns once it answers."""
        program = next(filter(shutil.which, SERVERS), None)
        if program is None:
            pytest.skip(f"neither {' nor '.join(SERVERS)} is installed")
        options = ["--port", "0", "--unixsocket", str(self.path), "--dir", str(self.folder)]
        options += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        with (self.folder / "server.log").open("ab") as said:
            self._process = subprocess.Popen([program, *options], stdout=said, stderr=said)
        end_s = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < end_s, (self.folder / "server.log").read_text()
            time.sleep(0.02)

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


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Yields a server that runs; skips where none is installed."""
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
