"""`p2pl watch`, and the page beside `p2pl join` and `p2pl simulate`."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.commands import p2pl

from p2pl.cli.watch import beside
from p2pl.extras import install
from p2pl.run.log import Marker, RunLog

MARKER = Marker(session_id="ab" * 32, peer_id="cd" * 32, name="digits")


def test_the_page_beside_a_run_is_there_at_once_and_ends_with_it(tmp_path: Path) -> None:
    said = io.StringIO()
    with beside(tmp_path / "run", said):
        word, url = said.getvalue().split()
        assert word == "watch"
        events = httpx.stream("GET", f"{url}events", timeout=60)
        with RunLog(tmp_path / "run", MARKER), events as stream:
            found = next(line for line in stream.iter_lines() if '"label":"run"' in line)
            assert '"state":"running"' in found
    with pytest.raises(httpx.TransportError):
        httpx.get(url)


def test_a_run_goes_on_whatever_becomes_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pl.cli.watch.sys.executable", "/bin/false")
    with beside(tmp_path / "run", io.StringIO()):
        pass


def test_what_the_page_needs_is_named_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str, package: str | None = None) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    done = p2pl("watch", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"p2pl: plotly is not installed; it comes with: {install('watch')}\n"


def test_a_simulation_is_watched_by_what_it_writes(tmp_path: Path) -> None:
    done = p2pl("simulate", "x.toml", "--data", "digits", "--peers", 2, "--watch")
    assert done.returncode == 2
    assert "--watch: allowed only with --out" in done.stderr


def test_a_file_is_no_run_and_a_folder_without_one_is_waited_for_aloud(tmp_path: Path) -> None:
    (tmp_path / "x.torrent").touch()
    done = p2pl("watch", tmp_path / "x.torrent")
    assert done.returncode == 2
    assert "x.torrent, a file', allowed the directory of a run" in done.stderr
    (tmp_path / "empty").mkdir()
    with RunLog(tmp_path / "runs" / "one", MARKER):
        pass
    command = [sys.executable, "-m", "p2pl", "watch", "empty", "none", "runs"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        said = [page.stdout.readline() for _ in range(3)]
        page.terminate()
        said += page.stdout.readlines()
    assert said[1:] == [
        "waiting for empty, in which there is no run yet\n",
        "waiting for none, which is not there yet\n",
    ]
