"""`p2pl create` and `p2pl inspect`: session files, made and shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support.commands import p2pl
from support.processes import PATIENCE_S, ROOT

from p2pl.api import session as api
from p2pl.errors import SessionFileError
from p2pl.learning.checkpoint import build
from p2pl.protocol import bencode
from p2pl.protocol.session import SessionFile, read_spec

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


def test_a_device_in_the_place_of_the_file_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = p2pl("create", DIGITS, "--out", tmp_path / "pipe")
    assert done.returncode == 2
    assert "pipe: cannot be written: got a named pipe or a device" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["pipe"]


def test_a_second_session_does_not_take_the_checkpoint_of_the_first(tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(DIGITS.read_text())
    first, second = tmp_path / "first.torrent", tmp_path / "second.torrent"
    api.create(spec, first)
    (tmp_path / "other.torrent").write_bytes(b"an ordinary torrent")
    before = (tmp_path / "digits.safetensors").read_bytes()
    api.create(spec, second)  # the same checkpoint: nobody loses anything
    spec.write_text(DIGITS.read_text().replace("seed = 1", "seed = 2"))
    with pytest.raises(SessionFileError, match=r"got .digits., allowed another.*first\.torrent"):
        api.create(spec, second)
    assert (tmp_path / "digits.safetensors").read_bytes() == before
    spec.write_text(spec.read_text().replace('name = "digits"', 'name = "digits-2"'))
    api.create(spec, second)
    assert (tmp_path / "digits.safetensors").read_bytes() == before
    spec.write_text(spec.read_text().replace("seed = 2", "seed = 3"))
    api.create(spec, second)  # its own checkpoint may be replaced


def test_the_file_of_another_session_is_replaced_by_force_alone(tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "x.torrent"
    spec.write_text(DIGITS.read_text())
    first = api.create(spec, out)
    again = p2pl("create", spec, "--out", out, "--tracker", "http://a")
    assert again.returncode == 0, again.stderr  # the same session, so nobody loses anything
    kept, checkpoint = out.read_bytes(), tmp_path / "digits.safetensors"
    weights = checkpoint.read_bytes()

    spec.write_text(DIGITS.read_text().replace("seed = 1", "seed = 2"))
    refused = p2pl("create", spec, "--out", out)
    assert refused.returncode == 2
    assert f"this is another session, digits {first.id[:8]}, and would be" in refused.stderr
    assert "--force" in refused.stderr
    assert (out.read_bytes(), checkpoint.read_bytes()) == (kept, weights)

    forced = p2pl("create", spec, "--out", out, "--force")
    assert forced.returncode == 0, forced.stderr
    assert api.read_session(out).id != first.id
    assert checkpoint.read_bytes() != weights


def test_a_file_that_is_no_session_is_not_replaced_either(tmp_path: Path) -> None:
    out = tmp_path / "thesis.torrent"
    out.write_bytes(b"four years of work")
    with pytest.raises(SessionFileError, match=r"this is no session file of p2pl.*--force"):
        api.create(DIGITS, out, replace=False)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.torrent"]
    api.create(DIGITS, out)  # in Python, who calls twice means it


def test_weights_that_are_no_sessions_are_not_replaced_either(tmp_path: Path) -> None:
    weights, out = tmp_path / "digits.safetensors", tmp_path / "x.torrent"
    weights.write_bytes(b"a month of training")
    refused = p2pl("create", DIGITS, "--out", out, "--private")
    assert refused.returncode == 2
    assert f"{weights} would be replaced" in refused.stderr
    assert "--force" in refused.stderr
    assert [one.name for one in tmp_path.iterdir()] == [weights.name]
    assert p2pl("create", DIGITS, "--out", out, "--force").returncode == 0
    out.unlink()  # as a `create` leaves it that was cut short
    assert p2pl("create", DIGITS, "--out", out).returncode == 0


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


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("mixing.rule", "", '[mixing]\nrule = "no-such-rule"\n'),
        ("exchange.kind", "[exchange]\n", '[exchange]\nkind = "no-such-kind"\n'),
        ("task.kind", "[task]\n", '[task]\nkind = "no-such-task"\n'),
    ],
)
def test_what_is_unknown_here_is_refused_but_may_be_looked_at(
    tmp_path: Path, field: str, old: str, new: str
) -> None:
    spec = DIGITS.read_text()
    spec = spec.replace(old, new) if old else f"{spec}\n{new}"
    toml, torrent = tmp_path / "x.toml", tmp_path / "x.torrent"
    toml.write_text(spec)
    done = p2pl("create", toml, "--out", torrent)
    assert done.returncode == 2
    assert f"{field}: got 'no-such-" in done.stderr
    assert not torrent.exists()
    # Somebody who has installed what it names made it elsewhere:
    session = read_spec(spec).session()
    made = SessionFile("x", session, build(read_spec(DIGITS.read_text()).session())[1], ())
    torrent.write_bytes(made.encode())
    done = p2pl("inspect", torrent)
    assert done.returncode == 0
    assert f"{field} 'no-such-" in done.stdout
    assert "is unknown here" in done.stdout
    assert list(json.loads(p2pl("inspect", torrent, "--json").stdout)["unknown_here"]) == [field]
    join = ("join", torrent, "--data", "digits", "--tracker", "http://127.0.0.1:1")
    done = p2pl(*join, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{field}: got 'no-such-" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_nothing_is_noted_of_names_that_are_known(tmp_path: Path) -> None:
    assert "unknown" not in p2pl("inspect", DIGITS.with_suffix(".torrent")).stdout


@pytest.mark.parametrize("table", ["mixing", "exchange"])
def test_an_argument_that_nothing_reads_is_refused(tmp_path: Path, table: str) -> None:
    toml = tmp_path / "x.toml"
    spec = DIGITS.read_text()
    old = f"[{table}]\n"
    new = f"{old}arguments = {{ strength = 0.5 }}\n"
    toml.write_text(spec.replace(old, new) if old in spec else f"{spec}\n{new}")
    done = p2pl("create", toml, "--out", tmp_path / "x.torrent")
    assert done.returncode == 2
    assert f"{table}.arguments of " in done.stderr
    assert "got 'strength', allowed no arguments" in done.stderr


def test_a_machine_without_torch_can_look_at_a_session_file() -> None:
    torrent = str(DIGITS.with_suffix(".torrent"))
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['inspect', sys.argv[1]]; "
        "from p2pl.cli import main; main()"
    )
    command = [sys.executable, "-c", code, torrent]
    shown = subprocess.check_output(command, text=True, timeout=PATIENCE_S)
    assert "name        digits" in shown
    assert "unknown" not in shown


EVIL = "\x1b]0;OWNED\x07\x1b[2J\x9b31m\u202egnp.exe"


def test_nothing_in_a_session_file_speaks_to_the_terminal(tmp_path: Path) -> None:
    made = read_spec(DIGITS.read_text())
    session = made.session()
    labels = tuple(f"{EVIL}{number}" for number in range(session.task.classes))
    task = msgspec.structs.replace(session.task, labels=labels)
    session = msgspec.structs.replace(session, task=task)
    file = SessionFile(
        name="evil",
        session=session,
        checkpoint=build(session)[1],
        trackers=(("http://a.example/\x9b31m\u202egnp.exe",),),
        comment=EVIL,
    )
    (tmp_path / "evil.torrent").write_bytes(file.encode())
    done = p2pl("inspect", tmp_path / "evil.torrent")
    assert done.returncode == 0
    assert "OWNED" in done.stdout
    assert not set("\x1b\x07\x9b\u202e") & set(done.stdout)
    top = bencode.decode(file.encode())
    top[b"info"][b"p2pl"][EVIL.encode()] = 1
    (tmp_path / "evil.torrent").write_bytes(bencode.encode(top))
    refused = p2pl("inspect", tmp_path / "evil.torrent")
    assert refused.returncode == 2
    assert "OWNED" in refused.stderr
    assert not set("\x1b\x07\x9b\u202e") & set(refused.stderr)


def test_a_tracker_s_name_that_is_none_is_told_to_who_makes_the_session(tmp_path: Path) -> None:
    out = tmp_path / "digits.torrent"
    done = p2pl("create", DIGITS, "--out", out, "--tracker", "http://\u2603.example:8000")
    assert done.returncode == 0
    assert "nobody will get an answer there" in done.stdout


def test_inspect_shows_values_for_reading_and_the_settings_of_its_own_kind_alone() -> None:
    shown = p2pl("inspect", DIGITS.with_suffix(".torrent")).stdout
    assert "input=1,8,8" in shown
    assert "lockstep=no" in shown
    for internal in ("True", "False", "None", "[", "(", "{", "raft", "gossip"):
        assert internal not in shown
    shown = p2pl("inspect", DIGITS.with_name("raft.torrent")).stdout
    assert "raft.heartbeat_s=0.15" in shown
    assert "gossip" not in shown
