"""What starts the processes of scripts and tests says what went wrong, and leaves none behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from launcher import ROOT, Fault, Swarm, new_folder, wait_until
from support.processes import PATIENCE_S

SAY = "import sys; print('word', sys.argv[1], flush=True); sys.exit(int(sys.argv[1]))"


def test_what_does_not_come_in_time_is_named() -> None:
    with pytest.raises(Fault, match="not within 0 s: the end of the world"):
        wait_until(lambda: False, 0.0, "the end of the world")


def test_a_process_that_fails_shows_what_it_said(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        swarm.start("good", [sys.executable, "-c", SAY, "0"]).succeed()
        with pytest.raises(Fault, match=r"bad failed with exit code 3:\nword 3"):
            swarm.start("bad", [sys.executable, "-c", SAY, "3"]).succeed()


def test_who_is_started_again_has_a_file_of_its_own(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        for number in range(2):
            swarm.start("twin", [sys.executable, "-c", SAY, str(number)]).wait()
        assert [one.text() for one in swarm.started] == ["word 0\n", "word 1\n"]


def test_nothing_runs_on_once_a_swarm_is_over(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        sleeper = swarm.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
        assert not sleeper.is_over
    assert sleeper.is_over


def test_a_tracker_that_does_not_start_shows_why(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm, pytest.raises(Fault, match="did not start"):
        swarm.tracker("--no-such-option")


def test_a_script_deletes_nothing_of_what_stands_in_its_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(Fault, match="a new or an empty one"):
        new_folder([str(mine)], tmp_path / "runs")
    assert (mine / "thesis.tex").read_text() == "years of work"
    assert new_folder([], tmp_path / "runs") == tmp_path / "runs"
    assert new_folder([], tmp_path / "runs") == tmp_path / "runs-2"
    assert new_folder([str(tmp_path / "runs-2")], tmp_path / "runs") == tmp_path / "runs-2"


@pytest.mark.parametrize("script", ["demo", "compose_local"])
@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("-h", 0), ("--out", 2)])
def test_a_script_that_is_asked_for_help_does_nothing_else(
    tmp_path: Path, script: str, word: str, code: int
) -> None:
    # Without any environment: whatever it would run beside the shell is not found, and fails.
    done = subprocess.run(
        [ROOT / "scripts" / script, word],
        env={"PATH": "/usr/bin:/bin", "VENV": str(tmp_path / "none"), "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == code
    assert "folder" in done.stdout + done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("script", ["demo", "compose_local"])
def test_a_folder_is_meant_as_seen_from_where_a_script_is_called(
    tmp_path: Path, script: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    command = [str(ROOT / "scripts" / script), "mine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert f"{tmp_path / 'mine'}: got a folder with something in it" in done.stderr
