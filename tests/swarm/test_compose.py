"""The services of compose.yaml run, as processes where there is no container engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, ROOT

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]


def test_the_services_of_the_compose_file_learn_together_and_report(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "compose_local.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert [peer["state"] for peer in numbers["peers"]] == ["finished"] * 3
    assert min(peer["accuracy"] for peer in numbers["peers"]) > 85
    assert len(numbers["churn"]) == 3
    assert all(churn["seen_by"] == 2 for churn in numbers["churn"])
