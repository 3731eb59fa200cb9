"""One tracker for all hostile peers of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Swarm


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Returns one tracker for all tests; each has a session of its own."""
    swarm = Swarm(tmp_path_factory.mktemp("tracker"))
    swarm.tracker()
    yield swarm
    swarm.end()


@pytest.fixture
def swarm(tracker: Swarm, tmp_path: Path) -> Swarm:
    """Returns a place for the peers of one test."""
    swarm = Swarm(tmp_path)
    swarm.port = tracker.port
    return swarm
