"""Fixtures of the tracker's tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import valkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[valkey.Server]:
    """Yields a server of Valkey or Redis; its socket's path is short, as the system wants it."""
    with tempfile.TemporaryDirectory(prefix="p2pl-") as folder, valkey.running(Path(folder)) as one:
        yield one
