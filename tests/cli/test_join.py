"""`p2pl join`: what it refuses, and where a run goes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import p2pl
from support.image_sets import pictures
from support.processes import BIN, PATIENCE_S, ROOT, Swarm

from p2pl import network
from p2pl.cli.join import Fetch, _fetching
from p2pl.errors import InputError
from p2pl.run.log import read_run

DIGITS = ROOT / "torrentfiles" / "digits.toml"


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


def test_a_partition_without_a_shard_is_not_passed_over(tmp_path: Path) -> None:
    for words in (("--partition", "dirichlet:0.5"), ("--partition-seed", "3")):
        asked = ("--data", "digits", "--alone", *words)
        done = p2pl("join", DIGITS.with_suffix(".torrent"), *asked, cwd=tmp_path)
        assert done.returncode == 2
        assert f"p2pl: {words[0]}: allowed only with --shard" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--data: missing"),
        (
            ("--data", "digits", "--flower", "a:b"),
            "--data, --test-share: not allowed with --flower",
        ),
        (("--flower", "nothing"), "--flower"),
        (("--flower", "nowhere:client"), "No module named 'nowhere'"),
    ],
)
def test_data_or_a_client_must_be_named(
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
        "import numpy as np\n"
        "class Client:\n"
        "    def get_parameters(self, config): return [np.zeros((10, 64)), np.zeros(10)]\n"
        "    def fit(self, parameters, config): raise NotImplementedError\n"
        "    def evaluate(self, parameters, config): raise NotImplementedError\n"
    )
    torrent = session_for_clients(tmp_path)
    tracker = ("--tracker", "http://127.0.0.1:1", "--listen", "127.0.0.1:0")
    theirs = ("--flower", "theirs:Client")
    done = p2pl("join", torrent, *theirs, option, value, *tracker, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{option}: not allowed with a client of Flower" in done.stderr


def session_for_clients(folder: Path) -> Path:
    """Returns a session file whose model is that of a client of Flower; its TOML lies beside."""
    toml = folder / "x.toml"
    model = 'name = "arrays"\narguments = { a = [10, 64], b = [10] }'
    old = 'name = "mlp"\narguments = { hidden = [64] }'
    toml.write_text(DIGITS.read_text().replace(old, model))
    assert p2pl("create", toml, "--out", folder / "x.torrent").returncode == 0
    return folder / "x.torrent"


def test_a_session_for_clients_of_flower_cannot_be_joined_with_data_alone(tmp_path: Path) -> None:
    torrent = session_for_clients(tmp_path)
    done = p2pl("join", torrent, "--data", "digits", "--alone", cwd=tmp_path)
    assert done.returncode == 2
    assert "--flower MODULE:CLIENT" in done.stderr


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


def test_a_run_that_was_alone_is_not_joined_with_others(tmp_path: Path) -> None:
    command = ("join", DIGITS.with_suffix(".torrent"), "--data", "digits", "--run-dir", "run")
    assert p2pl(*command, "--alone", "--rounds", "1", cwd=tmp_path).returncode == 0
    done = p2pl(*command, "--tracker", "http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 2
    assert "got 'a run with --alone'" in done.stderr
    assert "give another --run-dir" in done.stderr


CLIENT = """
class Client:
    def get_parameters(self, config): import nowhere.inside
    def fit(self, parameters, config): raise NotImplementedError
    def evaluate(self, parameters, config): raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"import nowhere.inside\n{CLIENT}", 1),
        (CLIENT, 3),
        (CLIENT.replace("nowhere.inside", "scipy.stats"), 3),
    ],
)
@pytest.mark.parametrize("command", ["create", "join"])
def test_a_module_that_a_client_imports_and_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, text: str, line: int
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    monkeypatch.delitem(sys.modules, "theirs_lacking", raising=False)
    (tmp_path / "theirs_lacking.py").write_text(text)
    torrent = session_for_clients(tmp_path)
    words = {
        "create": ("create", torrent.with_suffix(".toml"), "--out", tmp_path / "y.torrent"),
        "join": ("join", torrent, "--alone"),
    }
    done = p2pl(*words[command], "--flower", "theirs_lacking:Client", cwd=tmp_path)
    missing = "scipy.stats" if "scipy" in text else "nowhere"
    assert done.returncode == 2, done.stderr
    assert f"theirs_lacking.py, line {line}: got 'import of {missing}" in done.stderr
    assert "pip install" not in done.stderr


def test_who_met_nobody_is_told_by_the_exit_code(tmp_path: Path) -> None:
    spec = DIGITS.read_text().replace("start_deadline_s = 60.0", "start_deadline_s = 0.1")
    (tmp_path / "d.toml").write_text(spec)
    p2pl("create", tmp_path / "d.toml", "--out", tmp_path / "d.torrent")
    with Swarm(tmp_path) as swarm:
        swarm.tracker()
        words = ("--data", "digits", "--shard", "0/6", "--rounds", 1, "--seed-for", 0)
        where = ("--tracker", swarm.url, "--listen", "127.0.0.1:0", "--run-dir", tmp_path / "run")
        done = p2pl("join", tmp_path / "d.torrent", *words, *where)
        assert done.returncode == 5
        assert "nobody was met" in done.stderr
        assert "--listen names where it is reached" in done.stderr
        alone = (*words, "--alone", "--run-dir", tmp_path / "alone")
        assert p2pl("join", tmp_path / "d.torrent", *alone).returncode == 0


def test_a_run_whose_output_cannot_be_written_is_not_lost(tmp_path: Path) -> None:
    command = [str(BIN / "p2pl"), "join", str(DIGITS.with_suffix(".torrent")), "--data", "digits"]
    command += ["--shard", "0/6", "--alone", "--rounds", "2", "--run-dir", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 1
    assert "p2pl: what was to be printed: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    summary = read_run(tmp_path / "run").summary
    assert summary is not None
    assert (summary.state, summary.rounds) == ("finished", 2)


def test_a_reader_that_has_enough_ends_no_run_and_sees_no_traceback(tmp_path: Path) -> None:
    command = [str(BIN / "p2pl"), "join", str(DIGITS.with_suffix(".torrent")), "--data", "digits"]
    command += ["--shard", "0/6", "--alone", "--rounds", "2", "--run-dir", str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline().startswith("session digits")
        run.stdout.close()  # as `| head -1` does
        said = run.stderr.read()
    assert "Traceback" not in said
    assert "nothing more is shown: [Errno 32] Broken pipe" in said
    summary = read_run(tmp_path / "run").summary
    assert summary is not None
    assert (summary.state, summary.rounds) == ("finished", 2)


@pytest.mark.parametrize(
    ("name", "words"), [("file", "File exists"), ("run\udcff", "allowed a name in UTF-8")]
)
def test_a_run_directory_that_cannot_be_made_is_told(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    words_of_join = ("join", DIGITS.with_suffix(".torrent"), "--data", "digits", "--alone")
    done = p2pl(*words_of_join, "--run-dir", tmp_path / name)
    assert done.returncode == 2
    assert "run directory" in done.stderr
    assert words in done.stderr


def test_an_authority_s_file_that_is_none_is_told(tmp_path: Path) -> None:
    options = ("--data", "digits", "--tracker", "https://127.0.0.1:1", "--ca", "/gone.pem")
    where = ("--listen", "127.0.0.1:0", "--run-dir", tmp_path / "run")
    done = p2pl("join", DIGITS.with_suffix(".torrent"), *options, *where)
    assert done.returncode == 2
    assert "--ca: got '/gone.pem" in done.stderr


PERCENT = """
import numpy as np
class Client:
    def get_parameters(self, config): return [np.zeros((10, 64)), np.zeros(10)]
    def fit(self, parameters, config):
        if config["server_round"] == 3:
            raise RuntimeError("no memory left")
        return [array + 1 for array in parameters], 10, {}
    def evaluate(self, parameters, config): return 0.5, 10, {"accuracy": 93.0, "f1": 0.25}
"""


def test_a_client_that_tells_percent_ends_well_and_one_that_fails_is_shown_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "theirs_percent", raising=False)
    (tmp_path / "theirs_percent.py").write_text(PERCENT)
    torrent = session_for_clients(tmp_path)
    command = ("join", torrent, "--alone", "--flower", "theirs_percent:Client", "--run-dir", "run")
    done = p2pl(*command, "--rounds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy 93.0 %" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"] == {"accuracy": 93.0, "f1": 0.25}
    failed = p2pl(*command, "--rounds", "3", cwd=tmp_path)
    assert failed.returncode == 1
    where = f"{tmp_path / 'theirs_percent.py'}, line 7, in fit: RuntimeError: no memory left"
    assert f"own code failed in fit, in round 3: {where}" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("labels", [(), ("dog", "cat")])
def test_how_classes_are_numbered_is_said_where_the_session_does_not_say_it(
    tmp_path: Path, labels: tuple[str, ...]
) -> None:
    named = f"labels = {json.dumps(labels)}" if labels else ""
    spec = f"""
name = "pets"
[task]
input = [1, 2, 2]
classes = 2
{named}
[model]
name = "logreg"
[training]
learning_rate = 0.1
batch_size = 1
[exchange]
rounds = 1
cohort = 1
"""
    (tmp_path / "pets.toml").write_text(spec)
    pictures(tmp_path / "data", ["cat", "dog"], [0, 255])
    pictures(tmp_path / "data", ["cat", "dog"], [10, 245])
    made = p2pl("create", tmp_path / "pets.toml", "--out", tmp_path / "pets.torrent")
    assert ("classes    not named" in made.stdout) is not bool(labels)
    done = p2pl(
        *("join", tmp_path / "pets.torrent", "--data", tmp_path / "data", "--alone"),
        *("--run-dir", tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    assert ("classes 0 cat, 1 dog: so these data number them" in done.stdout) is not bool(labels)
    summary = read_run(tmp_path / "run").summary
    assert summary is not None
    assert summary.labels == (labels or ("cat", "dog"))


def test_bittorrent_is_an_extra_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    monkeypatch.delitem(sys.modules, "p2pl.network.torrent", raising=False)
    monkeypatch.delattr(network, "torrent", raising=False)
    assert _fetching(Fetch.own) is None
    with pytest.raises(InputError, match=r"libtorrent is not installed; it comes with: .*torrent"):
        _fetching(Fetch.torrent)
