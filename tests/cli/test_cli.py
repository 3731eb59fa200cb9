"""The command line: what it prints, what it refuses, and with which exit code."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.processes import BIN, ROOT

from p2pl import cli

DIGITS = ROOT / "torrentfiles" / "digits.toml"


@dataclass(frozen=True)
class Done:
    """What one command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def p2pl(*arguments: object, cwd: Path | None = None) -> Done:
    """Runs one command in this process, which has torch loaded already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["p2pl", *map(str, arguments)])
        patch.setenv("COLUMNS", "100")
        try:
            cli.main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    return Done(
        code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue()
    )


def test_the_installed_command_starts_without_loading_torch() -> None:
    command = [str(BIN / "p2pl"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "join" in done.stdout


def test_help_names_every_command() -> None:
    done = p2pl("--help")
    assert done.returncode == 0
    for command in ("create", "inspect", "join", "partition", "report"):
        assert command in done.stdout


def test_the_version_is_printed() -> None:
    assert p2pl("--version").stdout == "p2pl 0.1.0\n"


def test_create_writes_a_session_file_and_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "digits.torrent"
    done = p2pl("create", DIGITS, "--out", out, "--tracker", "http://a", "--tracker", "http://b")
    assert done.returncode == 0, done.stderr
    shown = json.loads(p2pl("inspect", out, "--json").stdout)
    assert shown["trackers"] == [["http://a"], ["http://b"]]
    assert shown["p2pl"]["exchange"]["kind"] == "cohort"
    assert shown["p2pl"]["training"]["validation_share"] == 0.2
    assert shown["id"] in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "digits.safetensors",
        "digits.torrent",
    ]
    assert shown["id"] in p2pl("inspect", out).stdout


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("name = 'x'", "task"),
        ("name = 'x", "TOML"),
        ("\x00", "TOML"),
    ],
)
def test_a_wrong_spec_leaves_nothing_behind(tmp_path: Path, spec: str, words: str) -> None:
    toml = tmp_path / "wrong.toml"
    toml.write_text(spec)
    done = p2pl("create", toml, "--out", tmp_path / "wrong.torrent")
    assert done.returncode == 2
    assert "wrong.toml" in done.stderr
    assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.toml"]


def test_an_unknown_model_is_refused_with_what_is_there(tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(DIGITS.read_text().replace('"mlp"', '"oracle"'))
    done = p2pl("create", toml, "--out", tmp_path / "x.torrent")
    assert done.returncode == 2
    assert "logreg" in done.stderr
    assert not (tmp_path / "x.torrent").exists()


@pytest.mark.parametrize("data", [b"", b"d0:0:-5:", b"d4:infod4:name1:aee", b"\x00" * 100])
def test_what_is_no_session_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.torrent"
    path.write_bytes(data)
    for arguments in (("inspect", path), ("join", path, "--data", "digits")):
        done = p2pl(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert "bad.torrent" in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.torrent"]


def test_a_missing_file_is_named() -> None:
    done = p2pl("inspect", "nowhere.torrent")
    assert done.returncode == 2
    assert "nowhere.torrent" in done.stderr


def test_a_tracker_must_be_a_web_address(tmp_path: Path) -> None:
    done = p2pl("create", DIGITS, "--out", tmp_path / "x.torrent", "--tracker", "udp://a:1")
    assert done.returncode == 2
    assert "--tracker" in done.stderr


def test_a_session_without_a_tracker_asks_for_one(tmp_path: Path) -> None:
    assert p2pl("create", DIGITS, "--out", tmp_path / "x.torrent").returncode == 0
    done = p2pl("join", tmp_path / "x.torrent", "--data", "digits", cwd=tmp_path)
    assert done.returncode == 2
    assert "--tracker" in done.stderr


def test_data_of_another_shape_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(DIGITS.read_text().replace("[1, 8, 8]", "[1, 28, 28]"))
    assert p2pl("create", toml, "--out", tmp_path / "x.torrent").returncode == 0
    done = p2pl("join", tmp_path / "x.torrent", "--data", "digits", "--alone", cwd=tmp_path)
    assert done.returncode == 2
    assert "(1, 8, 8)" in done.stderr
    assert "(1, 28, 28)" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--data: missing"),
        (("--data", "digits", "--flower", "a:b"), "--data: not allowed with --flower"),
        (("--flower", "nothing"), "--flower"),
        (("--flower", "nowhere:client"), "No module named 'nowhere'"),
    ],
)
def test_my_data_or_my_client_must_be_named(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = p2pl("join", DIGITS.with_suffix(".torrent"), "--alone", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--dp-epsilon", "3"), ("--precision", "bfloat16"), ("--attack", "sign-flip")],
)
def test_how_a_client_of_flower_trains_is_not_ours_to_say(
    tmp_path: Path, option: str, value: str
) -> None:
    (tmp_path / "theirs.py").write_text(
        "class Client:\n"
        "    def get_parameters(self, config): raise NotImplementedError\n"
        "    def fit(self, parameters, config): raise NotImplementedError\n"
        "    def evaluate(self, parameters, config): raise NotImplementedError\n"
    )
    torrent = DIGITS.with_suffix(".torrent")
    tracker = ("--tracker", "http://127.0.0.1:1", "--listen", "127.0.0.1:0")
    theirs = ("--flower", "theirs:Client")
    done = p2pl("join", torrent, *theirs, option, value, *tracker, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{option}: not allowed with a client of Flower" in done.stderr


def test_a_session_for_clients_of_flower_cannot_be_joined_with_data_alone(tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    model = 'name = "arrays"\narguments = { a = [10, 64], b = [10] }'
    old = 'name = "mlp"\narguments = { hidden = [64] }'
    toml.write_text(DIGITS.read_text().replace(old, model))
    assert p2pl("create", toml, "--out", tmp_path / "x.torrent").returncode == 0
    done = p2pl("join", tmp_path / "x.torrent", "--data", "digits", "--alone", cwd=tmp_path)
    assert done.returncode == 2
    assert "--flower: missing" in done.stderr


def test_a_session_that_demands_privacy_is_not_joined(tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(DIGITS.read_text() + "[privacy]\nrequired = true\nmax_epsilon = 3.0\n")
    assert p2pl("create", toml, "--out", tmp_path / "x.torrent").returncode == 0
    done = p2pl("join", tmp_path / "x.torrent", "--data", "digits", "--alone", cwd=tmp_path)
    assert done.returncode == 2
    assert "privacy" in done.stderr


def test_finished_runs_are_kept_and_the_next_one_gets_its_own_directory(tmp_path: Path) -> None:
    assert p2pl("create", DIGITS, "--out", tmp_path / "x.torrent").returncode == 0
    command = ("join", "x.torrent", "--data", "digits", "--alone", "--rounds", "1")
    assert p2pl(*command, cwd=tmp_path).returncode == 0
    assert p2pl(*command, cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "digits-alone",
        "digits-alone-2",
    ]
    done = p2pl("report", "runs/digits-alone", "--out", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.md").exists()


def test_partition_shows_who_holds_what(tmp_path: Path) -> None:
    command = ("partition", "--data", "digits", "--peers", 5, "--partition", "classes:2")
    done = p2pl(*command, "--plot", tmp_path / "shards.png")
    assert done.returncode == 0, done.stderr
    for words in ("classes:2, seed 0: 1438 rows among 5 peers", "4/5", "picture", "sha256"):
        assert words in done.stdout
    assert (tmp_path / "shards.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads(p2pl(*command, "--json").stdout)
    assert figures["sha256"] in done.stdout
    # A saved hash must stay true: the same rows for the same words, for ever.
    assert figures["sha256"].startswith("36e96e3d24691bd5"), figures["sha256"]
    assert figures["rows"] == sum(figures["rows_by_peer"]) == 1_438
    assert [sum(count > 0 for count in row) for row in figures["counts"]] == [2] * 5
    assert [sum(row) for row in figures["counts"]] == figures["rows_by_peer"]


def test_a_partition_that_there_is_not_is_refused() -> None:
    done = p2pl("partition", "--data", "digits", "--peers", 5, "--partition", "magic")
    assert (done.returncode, "got 'magic'" in done.stderr) == (2, True)


def test_a_report_needs_a_run_directory(tmp_path: Path) -> None:
    done = p2pl("report", tmp_path, "--out", tmp_path / "report")
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
