"""A pull over a real line that is slow and loses packets, in network namespaces of its own."""

import json
import subprocess
import sys

import pytest
from soak_lines import can_have_lines
from support.processes import ROOT


@pytest.mark.skipif(not can_have_lines(), reason="needs root and /dev/net/tun to make a line")
def test_models_arrive_over_a_slow_line_directly_and_by_a_relay() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench_slow.py"), "--json"]
    asked = ["--mib", "0.5", "--chunk-kib", "64", "--repeats", "1", "--lines", "40,1,20"]
    done = subprocess.run(
        [*command, *asked], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert len(row["seconds"]) == 5
    assert min(row["seconds"].values()) > 0.5 * 8 * 1.048 / 20
    assert all(0.2 <= one <= 1 for one in row["even"].values())
