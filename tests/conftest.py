"""Fixtures that every part of the suite shares."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Returns the only event loop that zmq.asyncio runs on."""
    return "asyncio"
