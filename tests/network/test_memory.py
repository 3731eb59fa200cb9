"""Buffers of the wire that are freed stay with the process, for the next message."""

import platform
import subprocess
import sys

import pytest
from support.processes import PATIENCE_S

PROBE = """
import resource, sys
from p2pl.network.memory import reuse_freed_memory
if sys.argv[1] == "reuse":
    reuse_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [bytearray(8 << 20) for _ in range(4)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
def test_freed_buffers_are_taken_again_without_a_page_fault() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", PROBE, how], timeout=PATIENCE_S))
        for how in ("reuse", "leave")
    }
    assert faults["reuse"] < 100  # of 8192 pages
    assert faults["leave"] > 1_000
