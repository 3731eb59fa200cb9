"""`p2pl report`, from the command line."""

from pathlib import Path

from support.commands import p2pl

from p2pl.run.log import Marker, RoundEntry, RunLog


def test_a_report_needs_a_run_directory(tmp_path: Path) -> None:
    done = p2pl("report", tmp_path, "--out", tmp_path / "report")
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


def test_a_simulation_that_was_cut_off_is_told_from_a_folder_that_is_none(tmp_path: Path) -> None:
    run_dir = tmp_path / "sim" / "seed-3" / "peer-0"
    with RunLog(run_dir, Marker(session_id="0" * 64, peer_id="a1" * 32, name="small")) as log:
        log.append(RoundEntry(round=1, accuracy=80.0))
    told = {}
    for folder in (tmp_path / "sim", tmp_path / "sim" / "seed-3"):
        done = p2pl("report", folder, "--out", tmp_path / "report")
        assert done.returncode == 2
        assert f"p2pl report {run_dir.parent}/peer-* shows its peers" in done.stderr
        told[folder.name] = done.stderr
    assert "got 'a simulation that is not over'" in told["sim"]
    assert "got 'one seed of a simulation'" in told["seed-3"]
    assert p2pl("report", run_dir, "--out", tmp_path / "report").returncode == 0
