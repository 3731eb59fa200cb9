"""`p2pl create` and `p2pl inspect`: session files, made and shown."""

import json
from pathlib import Path

import pytest
from support.commands import p2pl
from support.processes import ROOT

DIGITS = ROOT / "torrentfiles" / "digits.toml"


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
