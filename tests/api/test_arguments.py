"""Arguments of a wrong type or out of range, refused before anything is done."""

import inspect
import pydoc
from pathlib import Path
from typing import Any

import pytest
import torch
from support.modules import SPEC
from torch import nn

import p2pl
from p2pl.api import arguments
from p2pl.api.join import default_run_dir
from p2pl.errors import InputError
from p2pl.run.log import Marker, RunLog

DATA = (torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
WRONG: list[tuple[str, object]] = [
    ("run_dir", 5),
    ("run_dir", "a\0b"),
    ("identity", b"key.pem"),
    ("listen", 4000),
    ("trackers", "https://tracker.example"),
    ("trackers", [1]),
    ("ca", 1),
    ("invitation", 5),
    ("announce", 5),
    ("relay", ["auto"]),
    ("rounds", "3"),
    ("rounds", True),
    ("rounds", 0),
    ("seed_for", "60"),
    ("seed_for", float("nan")),
    ("seed_for", -1),
    ("alone", "no"),
    ("shard", (0, 2)),
    ("shard", p2pl.Shard("0", 2, "iid")),  # type: ignore[arg-type]
    ("test_share", "0.2"),
    ("dp_epsilon", "8"),
    ("device", 0),
    ("precision", torch.float32),
    ("threads", "2"),
    ("threads", 0),
    ("threads", 10**9),
    ("attack", "sign-flip:1"),
    ("trainer_or_model", 5),
    ("trainer_or_model", nn.Linear),
    ("session", 5),
]
WRONG_SIMULATED: list[tuple[str, object]] = [
    ("peers", "3"),
    ("peers", 2.5),
    ("partition", 5),
    ("seeds", 0),
    ("first_seed", -1),
    ("changes", [("exchange.rounds", 5)]),
    ("baseline", 5),
    ("attack", 5),
    ("attack", ""),
    ("held_out", 0.5),
    ("seeds", 10**12),
    ("peers", 3.0),
    ("delay_rounds", "1"),
    ("partition_seed", 1 << 40),
    ("held_out", 0),
    ("curves", "no"),
    ("engine", 1),
    ("model", nn.Linear),
    ("on_round", 5),
    ("threads", 10**9),
    ("out", 5),
    ("data", 5),
    ("data", (DATA, DATA, DATA)),
    ("session", 5),
]


@pytest.fixture
def session(tmp_path: Path) -> p2pl.SessionFile:
    return p2pl.create(SPEC | {"model": {"name": "mlp"}}, tmp_path / "s.torrent")


@pytest.mark.parametrize(("name", "given"), WRONG)
def test_joining_and_its_preflight_refuse_an_argument_of_another_type(
    session: p2pl.SessionFile, tmp_path: Path, name: str, given: object
) -> None:
    asked: dict[str, Any] = {
        "session": session,
        "data": DATA,
        "alone": True,
        "run_dir": tmp_path / "run",
        name: given,
    }
    with pytest.raises(InputError, match=f"{name}: got .* allowed"):
        p2pl.join(**asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "given"), WRONG_SIMULATED)
def test_a_simulation_refuses_an_argument_of_another_type(
    session: p2pl.SessionFile, name: str, given: object
) -> None:
    asked: dict[str, Any] = {"session": session, "data": (DATA, DATA), "peers": 2, name: given}
    with pytest.raises(InputError, match=f"{name}: got .* allowed"):
        p2pl.simulate(**asked)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("spec", 5),
        ("out", 5),
        ("trackers", "https://tracker.example"),
        ("model", nn.Linear),
        ("target", 5),
        ("tokenizer", 5),
        ("private", "yes"),
        ("replace", "yes"),
    ],
)
def test_making_a_session_refuses_an_argument_of_another_type(
    tmp_path: Path, name: str, given: object
) -> None:
    asked: dict[str, Any] = {
        "spec": SPEC | {"model": {"name": "mlp"}},
        "out": tmp_path / "t.torrent",
        name: given,
    }
    with pytest.raises(InputError, match=f"{name}: got .* allowed"):
        p2pl.create(**asked)


def test_a_preflight_refuses_the_same(session: p2pl.SessionFile) -> None:
    for wrong in ({"threads": 10**9}, {"rounds": "3"}):
        asked: dict[str, Any] = wrong
        with pytest.raises(InputError, match=r"(threads|rounds): got"):
            p2pl.check(session, data=DATA, **asked)


USED: list[tuple[Any, dict[str, object]]] = [
    (p2pl.load, {"run_dir": 5}),
    (p2pl.load, {"run_dir": "run", "model": nn.Linear}),
    (p2pl.load, {"run_dir": "run", "best": "yes"}),
    (p2pl.predict, {"run": 5, "inputs": DATA[0]}),
    (p2pl.evaluate, {"run": 5, "data": DATA}),
    (p2pl.evaluate, {"run": "run", "data": DATA, "shard": (0, 2)}),
    (p2pl.export, {"run": "run", "to": "onnx", "out": 5}),
    (p2pl.peer_id, {"identity": 5}),
    (p2pl.invite, {"session": "s.torrent", "peer": 5}),
    (p2pl.invite, {"session": "s.torrent", "peer": "ab" * 32, "expires": 7}),
    (p2pl.revoke, {"session": "s.torrent", "peers": "ab" * 32}),
    (p2pl.revoke, {"session": 5, "peers": []}),
]


@pytest.mark.parametrize(("function", "asked"), USED)
def test_what_is_done_with_a_run_or_a_private_session_refuses_an_argument_of_another_type(
    function: Any,  # noqa: ANN401
    asked: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match=r"[a-z_]+: got .* allowed (?!a directory)"):
        function(**asked)


def test_an_invitation_is_of_no_use_to_who_trains_alone(session: p2pl.SessionFile) -> None:
    with pytest.raises(InputError, match="not allowed with --alone"):
        p2pl.join(session, data=DATA, alone=True, invitation="anna.invitation")


def test_a_default_run_directory_is_of_this_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def place(session_id: str) -> str:
        return str(default_run_dir("s", None, alone=False, session_id=session_id))

    assert place("aa") == "runs/s"
    with RunLog(tmp_path / "runs/s", Marker(session_id="aa", peer_id="me")):
        pass
    assert (place("aa"), place("bb")) == ("runs/s", "runs/s-2")


def test_every_argument_of_the_public_functions_has_a_type_or_is_looked_at_elsewhere() -> None:
    elsewhere = {"session", "trainer_or_model", "data", "test", "fit", "on_event", "spec"}
    for function in (p2pl.join, p2pl.simulate, p2pl.create):
        names = set(inspect.signature(function).parameters) - elsewhere
        assert names - {"attack", "model", "out"} <= arguments.TYPES.keys()


def test_help_on_join_is_of_join() -> None:
    told = pydoc.plain(pydoc.render_doc(p2pl.join))
    assert "join(session: " in told
    assert "async" not in told.splitlines()[2]
    assert "It blocks meanwhile" in told
    assert "    seed_for: seconds" in told
    assert list(inspect.signature(p2pl.join).parameters)[:2] == ["session", "trainer_or_model"]
