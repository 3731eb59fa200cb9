"""What tests need of `scripts/launcher.py`: swarms whose processes run in the test's folder."""

from pathlib import Path

import launcher
from launcher import BIN, PATIENCE_S, ROOT, Peer, Running, wait_until

__all__ = ["BIN", "PATIENCE_S", "ROOT", "Peer", "Running", "Swarm", "wait_until"]


class Swarm(launcher.Swarm):
    """Starts processes in the folder of a test, so that nothing is left anywhere else."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, cwd=folder)
