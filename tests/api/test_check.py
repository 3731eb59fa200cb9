"""Preflight: one screen before anything is trained, and nothing is written or told."""

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from support.commands import p2pl
from support.processes import ROOT, Swarm

import p2pl as library
from p2pl.api.check import Finding, Preflight
from p2pl.cli.check import _show
from p2pl.network.keys import Identity
from p2pl.network.tracker import skew_s
from p2pl.run.log import Marker, RunLog, is_in_use

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Returns a tracker, with a private session of its own."""
    with Swarm(tmp_path_factory.mktemp("check")) as swarm:
        swarm.tracker()
        yield swarm


@pytest.fixture(scope="module")
def torrent(swarm: Swarm) -> Path:
    """Returns a private session with one invited peer, `me.pem`."""
    made = swarm.create(SPEC, "digits", options=["--private"])
    who = Identity.load_or_create(swarm.folder / "me.pem").peer_id
    paper = swarm.folder / "me.invitation"
    assert p2pl("invite", made, "--peer", who, "--expires", "7d", "--out", paper).returncode == 0
    return made


def states(found: library.Preflight) -> dict[str, str]:
    return {one.name: one.state for one in found.findings}


def test_what_is_ready_is_said_and_nothing_is_left_behind(swarm: Swarm, torrent: Path) -> None:
    mine = ["--shard", "0/3", "--key", swarm.folder / "me.pem"]
    paper = ["--invitation", swarm.folder / "me.invitation"]
    where = swarm.folder / "run"
    before = sorted(swarm.folder.iterdir())
    done = p2pl("check", torrent, "--data", "digits", *mine, *paper, "--run-dir", where)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "session",
        "private",
        "480 examples",
        "ends:",
        "clock",
        "disk",
        "memory",
        "as seen from",
    ):
        assert words in done.stdout
    assert "ready: p2pl join" in done.stdout
    assert sorted(swarm.folder.iterdir()) == before


@pytest.mark.parametrize("columns", [60, 80, 91, 92, 93, 120])
def test_nothing_that_was_found_is_cut_off_at_the_edge_of_the_screen(columns: int) -> None:
    said = " ".join(f"word{at}" for at in range(40))
    found = Preflight(
        (Finding("run directory", "note", said, "move it"), Finding("identity", "ok", "ab" * 32))
    )
    screen = io.StringIO()
    _show(found, Console(file=screen, width=columns), "p2pl check s.torrent")
    shown = screen.getvalue()
    assert set(said.split()) <= set(shown.split())
    assert "ab" * 32 in "".join(shown.split())
    assert (f" {'ab' * 32} " in shown) == (columns >= 91)
    assert shown.endswith("ready: p2pl join with the same options\n")  # a note stops nobody


def test_what_others_are_told_to_dial_is_dialled(swarm: Swarm, torrent: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    named = [f"localhost:{port}", "127.0.0.1:1"], [f"192.0.2.9:{port}"]
    told = []
    for announce in named:
        found = library.check(
            torrent,
            data=str(swarm.folder / "nothing"),
            run_dir=swarm.folder / "run",
            listen=f"127.0.0.1:{port}",
            announce=announce,
        )
        told += [(one.state, one.said) for one in found.findings if one.name == "reachable"]
    assert [state for state, _ in told] == ["ok", "wrong", "skipped"], told
    assert told[0][1] == f"tcp://localhost:{port}, as seen from {swarm.url}"
    assert told[1][1].startswith("not tcp://127.0.0.1:1, as seen from ")
    assert told[1][1].endswith("nobody takes connections there")
    assert f"{swarm.url} sees this machine at 127.0.0.1, and dials that" in told[2][1]


def test_what_is_wrong_is_said_with_what_to_do(swarm: Swarm, torrent: Path) -> None:
    found = library.check(
        torrent,
        data=str(swarm.folder / "nothing"),
        run_dir=swarm.folder / "run",
        identity=swarm.folder / "nobody.pem",
        listen=f"127.0.0.1:{swarm.port}",
        trackers=["http://127.0.0.1:9", swarm.url],
    )
    assert not found.is_ready
    assert states(found) | {"tracker": ""} == {
        "session": "ok",
        "data": "wrong",
        "identity": "wrong",
        "checkpoint": "ok",
        "tracker": "",
        "clock": "ok",
        "listen": "wrong",
        "run directory": "ok",
        "disk": "ok",
    }
    trackers = [one for one in found.findings if one.name == "tracker"]
    assert [one.state for one in trackers] == ["note", "ok"]  # one of two is enough
    assert all(one.todo for one in found.findings if one.state == "wrong")
    assert not (swarm.folder / "nobody.pem").exists()


def test_an_invitation_of_another_peer_a_wrong_checkpoint_and_a_dead_tracker(
    swarm: Swarm, torrent: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "digits.torrent"
    copy.write_bytes(torrent.read_bytes())
    (tmp_path / "digits.safetensors").write_bytes(b"other")
    Identity.load_or_create(tmp_path / "other.pem")
    options = ["--data", "digits", "--key", tmp_path / "other.pem"]
    options += ["--invitation", swarm.folder / "me.invitation", "--tracker", "http://127.0.0.1:9"]
    done = p2pl("check", copy, *options, "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    shown = " ".join(done.stdout.split())
    for words in ("it is for peer", "get the right file", "ask whoever runs it"):
        assert words in shown
    assert "Traceback" not in done.stderr


def test_a_clock_is_compared_with_the_header_of_http() -> None:
    now_s = time.time()
    assert skew_s("", now_s) is None
    assert skew_s("yesterday", now_s) is None
    assert skew_s("Thu, 01 Jan 1970 00:01:40 GMT", 400.0) == 300.0


def test_a_run_directory_that_is_not_there_is_not_in_use(tmp_path: Path) -> None:
    assert not is_in_use(tmp_path / "none")
    (tmp_path / "lock").touch()
    assert not is_in_use(tmp_path)


def test_who_was_taken_back_and_whose_run_directory_it_is_not_is_told(
    swarm: Swarm, torrent: Path, tmp_path: Path
) -> None:
    key, paper = tmp_path / "gone.pem", tmp_path / "gone.invitation"
    gone = library.peer_id(key)
    library.invite(torrent, gone, out=paper)
    with RunLog(tmp_path / "run", Marker(session_id="ab" * 32, peer_id=gone, alone=False)):
        pass

    def look() -> dict[str, str]:
        found = library.check(
            torrent, data="digits", identity=key, invitation=paper, run_dir=tmp_path / "run"
        )
        return states(found)

    before = look()
    assert (before["invitation"], before["run directory"]) == ("ok", "wrong")
    assert library.revoke(torrent, [gone]).told == (swarm.url,)
    assert look()["invitation"] == "wrong"


def test_a_tracker_that_does_not_serve_the_session_is_told(tmp_path: Path) -> None:
    with Swarm(tmp_path) as swarm:
        swarm.tracker("--private")
        torrent = swarm.create(SPEC, "digits")
        found = library.check(torrent, data="digits", run_dir=tmp_path / "run")
        said = [one.said for one in found.findings if (one.name, one.state) == ("tracker", "wrong")]
        assert len(said) == 1
        assert "serves private sessions alone" in said[0]
