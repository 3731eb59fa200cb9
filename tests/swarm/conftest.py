"""The swarm fixture."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Swarm


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start processes in; they are gone when the test is over."""
    made = Swarm(tmp_path)
    yield made
    made.end()
