"""The benchmark runs and measures announces that the tracker accepted, with wrk and without."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, ROOT


@pytest.mark.slow
@pytest.mark.parametrize("has_wrk", [True, False])
def test_the_benchmark_measures_accepted_announces(has_wrk: bool, tmp_path: Path) -> None:
    if has_wrk and not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    command = [sys.executable, str(ROOT / "scripts/bench_tracker.py"), "--json"]
    command += ["--peers", "2000", "--seconds", "1"]
    path = os.environ["PATH"] + os.pathsep + "/usr/bin" if has_wrk else str(tmp_path)
    done = subprocess.run(
        [*command, "--no-node"] if has_wrk else command,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    figures = json.loads(done.stdout)
    (row,) = figures["rows"]
    assert row["peers"] == 2_000
    assert row["requests"] > 0
    assert row["refused"] == row["failed"] == 0
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert row["bytes_per_peer"] >= 0  # so few may fit into memory that was free before
    assert len(figures["notes"]) == (0 if has_wrk else 2)
