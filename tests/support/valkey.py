"""A real server of Valkey or Redis for tests; where none is installed, they are skipped."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkey_server

__all__ = ["Server", "running"]


class Server(valkey_server.Server):
    """A server for tests."""

    def start(self) -> None:
        """Starts it; returns once it answers, skips where there is none."""
        if valkey_server.program() is None:
            pytest.skip(f"neither {' nor '.join(valkey_server.PROGRAMS)} is installed")
        super().start()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Yields a server that runs; skips where none is installed."""
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
