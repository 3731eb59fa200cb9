"""`p2pl report`, from the command line."""

from pathlib import Path

from support.commands import p2pl


def test_a_report_needs_a_run_directory(tmp_path: Path) -> None:
    done = p2pl("report", tmp_path, "--out", tmp_path / "report")
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
