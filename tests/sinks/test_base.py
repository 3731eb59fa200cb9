"""Logs elsewhere: what they are told, and that they never end or hold up a run."""

import re
import threading
from collections.abc import Mapping

import pytest

from p2pl.errors import InputError
from p2pl.events import Ended, Event, RoundEnded, Said, Started
from p2pl.extras import install
from p2pl.metric import Metric
from p2pl.run.log import RoundEntry, Summary
from p2pl.sinks.base import SINKS, Log, figures_of, named, opened, run_name, settings_of

ERROR = Metric("MAE", "mm", higher_is_better=False)
RUN = Started(
    "teeth",
    "ab" * 32,
    "cd" * 32,
    0,
    9,
    (ERROR,),
    "mm²",
    3.0,
    {"exchange.rounds": 9, "task.std": ()},
)
ENTRY = RoundEntry(
    round=2,
    metrics={"MAE": 0.5},
    metrics_before_mix={"MAE": 0.75},
    train_loss=0.25,
    trust={"cd" * 32: 0.625, "ef" * 32: 0.375},
    received=("ef" * 32,),
    rejected={"01" * 32: "late: no answer after 3 s"},
    bytes_in=10,
    seconds=1.5,
    epsilon=0.75,
)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a busy machine take its time."""
    monkeypatch.setattr("p2pl.sinks.base.END_S", 250.0)


class Notes:
    """A journal that only remembers, or that fails at one of its rounds."""

    def __init__(self, fails_at: int = 0) -> None:
        self.told: list[object] = []
        self._fails_at = fails_at

    def begin(self, run: Started) -> None:
        self.told.append(run.name)

    def round(self, index: int, figures: Mapping[str, float]) -> None:
        if index == self._fails_at:
            raise RuntimeError("the disk\x1b[2J is full")
        self.told.append((index, figures["MAE_mm"]))

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        self.told.append((state, dict(figures)))


def entry(index: int) -> RoundEntry:
    """Returns a round with an error of as much."""
    return RoundEntry(round=index, metrics={"MAE": float(index)})


def test_figures_have_the_same_names_with_units_whatever_program_keeps_them() -> None:
    figures = figures_of(ENTRY, RUN)
    assert figures == {
        "MAE_mm": 0.5,
        "MAE_before_mix_mm": 0.75,
        "train_loss_mm": 0.25,
        "weight_of_others": 0.375,
        "peers_received": 1.0,
        "peers_turned_down": 1.0,
        "received_bytes": 10.0,
        "sent_bytes": 0.0,
        "relayed_bytes": 0.0,
        "tracker_bytes": 0.0,
        "round_seconds": 1.5,
        "epsilon": 0.75,
    }
    assert named("accuracy", "%") == "accuracy_percent"
    assert named("F1, macro", "") == "F1_macro"


def test_settings_are_those_of_the_session_and_whose_run_it_is() -> None:
    settings = settings_of(RUN)
    assert settings["exchange.rounds"] == 9
    assert settings["task.std"] == "()"
    assert settings["epsilon_budget"] == 3.0
    assert settings["peer_id"] == "cd" * 32
    assert run_name(RUN) == "teeth-cdcdcdcd"


def test_a_journal_is_told_of_a_run_in_order() -> None:
    notes = Notes()
    log = Log("notes:here", notes)
    summary = Summary(rounds=2, metrics={"MAE": 1.5})
    for event in (RUN, RoundEnded(entry(1)), RoundEnded(entry(2)), Ended(summary)):
        log(event)
    log.close()
    end = ("finished", {"final_MAE_mm": 1.5})
    assert notes.told == ["teeth", (1, 1.0), (2, 2.0), end]


def test_a_run_that_fails_is_told_as_failed() -> None:
    notes = Notes()
    log = Log("notes:here", notes)
    log(RUN)
    log.close()
    assert notes.told == ["teeth", ("failed", {})]


def test_what_fails_is_said_once_and_ends_nothing() -> None:
    heard: list[Event] = []
    notes = Notes(fails_at=2)
    log = Log("notes:here", notes, [heard.append])
    log(RUN)
    for index in range(1, 5):
        log(RoundEnded(entry(index)))
    log.close()
    text = "nothing more is logged to notes:here: RuntimeError: the disk?[2J is full"
    assert heard == [Said(text)]
    assert notes.told == ["teeth", (1, 1.0)]


def test_what_is_slow_does_not_hold_up_a_run() -> None:
    may_go_on = threading.Event()

    class Slow(Notes):
        def begin(self, run: Started) -> None:
            may_go_on.wait(60)
            super().begin(run)

    slow = Slow()
    log = Log("slow:here", slow)
    log(RUN)
    log(RoundEnded(entry(1)))  # returns although nothing is written yet
    assert slow.told == []
    may_go_on.set()
    log.close()
    assert slow.told[:2] == ["teeth", (1, 1.0)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere:here", "allowed .*mlflow, tensorboard, wandb"),
        ("tensorboard", "NAME:PLACE"),
        ("tensorboard:", "NAME:PLACE"),
    ],
)
def test_what_cannot_be_logged_to_is_refused_before_the_run(target: str, message: str) -> None:
    with pytest.raises(InputError, match=message), opened([target]):
        pass


def test_a_package_that_is_missing_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(place: str) -> Notes:
        raise ModuleNotFoundError("No module named 'wandb'", name="wandb")

    monkeypatch.setitem(SINKS._registered, "lacking", missing)
    said = f"wandb is not installed; it comes with: {install('lacking')}"
    with pytest.raises(InputError, match=re.escape(said)), opened(["lacking:here"]):
        pass


def test_a_sink_of_ones_own_is_registered_by_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    monkeypatch.setitem(SINKS._registered, "mine", lambda place: notes)
    with opened(["mine:a:b"]) as logs:
        for log in logs:
            log(RUN)
    assert notes.told[0] == "teeth"
