"""The model of the round that did best on validation is kept beside the last one."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import p2pl
from p2pl.errors import InputError, RunDirError
from p2pl.events import Undone
from p2pl.exchange.round import better, undo
from p2pl.run.log import BEST_FILE
from p2pl.run.state import Best

SPEC = {
    "name": "small",
    "task": {"input": [2], "classes": 2},
    "model": {"name": "arrays", "arguments": {"a": [2]}},
    "training": {"learning_rate": 0.5},
    "exchange": {"rounds": 3, "cohort": 1},
}


class Scripted(p2pl.Trainer):
    """Makes parameters that are the number of their round, whose validation loss is given."""

    layout = p2pl.Layout(("a",), ((2,),))
    samples = 4

    def __init__(self, *losses: float) -> None:
        self.losses = (math.nan, *losses)

    def fit(self, start: p2pl.Start, round: p2pl.Round) -> p2pl.Trained:
        return p2pl.Trained(torch.full((2,), float(round.index)), math.nan, 0, 4, {})

    def evaluate(self, vector: Tensor, split: str) -> p2pl.Scores:
        loss = self.losses[int(vector[0])] if split == "validation" else -vector[0].item()
        return p2pl.Scores(loss, {"accuracy": 50.0})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Returns a session file with its checkpoint beside it."""
    p2pl.create(SPEC, tmp_path / "small.torrent")
    return tmp_path / "small.torrent"


def joined(file: Path, *losses: float, rounds: int) -> tuple[int | None, list[float]]:
    """Returns which round was best after `rounds` rounds, and the parameters kept for it."""
    where = file.parent / "run"
    run = p2pl.join(file, Scripted(*losses), alone=True, run_dir=where, rounds=rounds)
    assert run.summary is not None
    (last,) = run.model.parameters()
    assert last.tolist() == [float(rounds)] * 2
    (best,) = p2pl.load(where, best=True).model.parameters()
    return run.summary.best_round, best.tolist()


def test_the_best_round_is_kept_and_the_earlier_one_of_two_alike(file: Path) -> None:
    assert joined(file, 0.5, 0.25, 0.25, rounds=3) == (2, [2.0, 2.0])


def test_a_run_that_goes_on_remembers_its_best_round(file: Path) -> None:
    losses = (0.5, 0.25, 0.75, 0.125)
    assert joined(file, *losses, rounds=2) == (2, [2.0, 2.0])
    assert joined(file, *losses, rounds=3) == (2, [2.0, 2.0])
    assert joined(file, *losses, rounds=4) == (4, [4.0, 4.0])


def test_a_crash_before_the_best_model_was_written_loses_nothing(file: Path) -> None:
    assert joined(file, 0.5, 0.25, 0.75, rounds=2) == (2, [2.0, 2.0])
    (file.parent / "run" / BEST_FILE).unlink()
    assert joined(file, 0.5, 0.25, 0.75, rounds=3) == (2, [2.0, 2.0])


def test_without_anything_to_validate_on_none_is_kept(file: Path) -> None:
    where = file.parent / "run"
    run = p2pl.join(file, Scripted(math.nan), alone=True, run_dir=where, rounds=1)
    assert run.summary is not None
    assert run.summary.best_round is None
    with pytest.raises(RunDirError, match=r"model-best\.safetensors: there is none"):
        p2pl.load(where, best=True)
    with pytest.raises(InputError, match="allowed only one of them"):
        p2pl.load(where, best=True, personal=True)


@pytest.mark.slow
def test_a_private_run_keeps_none(tmp_path: Path) -> None:
    spec = {**SPEC, "task": {"input": [1, 8, 8], "classes": 10}, "model": {"name": "logreg"}}
    p2pl.create(spec, tmp_path / "x.torrent")
    where = tmp_path / "run"
    run = p2pl.join(
        tmp_path / "x.torrent", data="digits", alone=True, run_dir=where, rounds=1, dp_epsilon=8
    )
    assert run.summary is not None
    assert run.summary.epsilon is not None
    assert run.summary.best_round is None
    assert not (where / BEST_FILE).exists()


def test_which_of_two_rounds_is_better() -> None:
    first = better(None, 1, 0.5)
    assert first == Best(1, 0.5)
    assert better(first, 2, 0.5) is first
    assert better(first, 2, math.nan) is first
    assert better(first, 2, 0.4) == Best(2, 0.4)


@pytest.mark.parametrize(("index", "kept"), [(2, Best(2, 0.5)), (1, None)])
def test_a_round_that_is_taken_back_is_no_longer_the_best(index: int, kept: Best | None) -> None:
    told: list[object] = []
    node = SimpleNamespace(events=told.append, best=Best(2, 0.5))
    undo(node, index)  # type: ignore[arg-type]
    assert (told, node.best) == ([Undone(index)], kept)
