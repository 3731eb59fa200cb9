"""What a client of Flower may tell, and what is said where its code fails; without Flower itself.

Clients that are made with Flower, and apps, are in tests/flower.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from p2pl.errors import ClientError, ModelError
from p2pl.learner import Learner
from p2pl.learning import flower, models
from p2pl.learning.flower import FlowerTrainer
from p2pl.learning.train import Start
from p2pl.protocol import session

SPEC = """
name = "flower"
[task]
input = [64]
classes = 10
[model]
name = "arrays"
arguments = { a = [2], b = [] }
[training]
learning_rate = 0.1
[exchange]
rounds = 3
cohort = 1
"""


class Client:
    """Adds one to everything, and tells what it is told to tell."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.given: list[dict[str, object]] = []

    def get_parameters(self, config: object) -> list[np.ndarray]:
        return []

    def fit(self, parameters: list[np.ndarray], config: dict[str, object]) -> object:
        return [array + 1 for array in parameters], 10, {"train_loss": 0.5}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, object]) -> object:
        self.given.append(config)
        return self.answers.pop(0)


def trainer(client: object) -> FlowerTrainer:
    """Returns the trainer of a peer around a client."""
    wanted = session.read_spec(SPEC).session()
    return FlowerTrainer.around(wanted, models.build(wanted), client)  # type: ignore[arg-type]


def metrics(*told: dict[str, object]) -> list[dict[str, float]]:
    """Returns the metrics that each of a client's answers becomes, in their order."""
    peer = trainer(Client(*((0.5, 4, one) for one in told)))
    return [dict(peer.evaluate(torch.zeros(3), "test").metrics) for _ in told]


def test_an_accuracy_is_in_percent_whichever_way_it_is_told() -> None:
    assert metrics({"accuracy": 0.93}) == [{"accuracy": 93.0}]
    assert metrics({"accuracy": 93}) == [{"accuracy": 93.0}]
    assert metrics({"accuracy": 40.0}, {"accuracy": 0.5}) == [{"accuracy": 40.0}, {"accuracy": 0.5}]


def test_an_accuracy_that_can_be_none_is_not_taken_for_one() -> None:
    assert metrics({"accuracy": -1.0}, {"accuracy": math.nan}) == [{}, {}]
    assert metrics({"accuracy": 9_300.0, "f1": 0.5}) == [{"accuracy_told": 9_300.0, "f1": 0.5}]


def test_metrics_of_any_name_and_range_stay_as_they_are_told() -> None:
    told = {"r2": -3.5, "mae": np.float32(41.5), "n": 7, "text": "0.5", "list": [1, 2], "z": None}
    assert metrics(told) == [{"r2": -3.5, "mae": 41.5, "n": 7.0}]


def test_an_accuracy_comes_first_among_metrics() -> None:
    (told,) = metrics({"f1": 0.5, "accuracy": 0.25})
    assert list(told) == ["accuracy", "f1"]


def test_a_client_that_evaluated_nothing_tells_nothing() -> None:
    scores = trainer(Client((0.1, 0, {"accuracy": 1.0}))).evaluate(torch.zeros(3), "test")
    assert math.isnan(scores.loss)
    assert scores.metrics == {}


def test_evaluate_is_told_what_fit_was_told() -> None:
    client = Client((0.5, 4, {}))
    wanted = session.read_spec(SPEC).session()
    peer = Learner.around(wanted, ("ab" * 32, "me"), trainer(client))
    peer.fit(Start(torch.zeros(3)), 2)
    peer.judge(torch.zeros(3))
    assert client.given[0]["server_round"] == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (0.5, "evaluate: got 'float', allowed (loss, number of examples, metrics)"),
        ((0.5, "many", {}), "evaluate: got 'many', allowed a number of examples"),
        (("low", 4, {}), "evaluate: got 'low', allowed a number as its loss"),
    ],
)
def test_an_answer_of_another_form_is_refused_in_words(answer: object, words: str) -> None:
    peer = trainer(Client(answer))
    with pytest.raises(ModelError) as refused:
        peer.evaluate(torch.zeros(3), "test")
    assert words in str(refused.value)


def test_parameters_that_are_no_numbers_are_refused_in_words() -> None:
    class Wordy(Client):
        def fit(self, parameters: list[np.ndarray], config: dict[str, object]) -> object:
            return ["a", "b"], 10, {}

    peer = Learner.around(session.read_spec(SPEC).session(), ("ab" * 32, "me"), trainer(Wordy()))
    with pytest.raises(ModelError, match="a list of arrays of numbers"):
        peer.fit(Start(torch.zeros(3)), 1)


THEIRS = """
import numpy as np

def deep(values):
    return np.reshape(values, (2, 5))

class Client:
    def get_parameters(self, config):
        return []
    def fit(self, parameters, config):
        return deep(parameters[0]), 1, {}
    def evaluate(self, parameters, config):
        raise KeyError("no such key")

class Unmade:
    def __init__(self):
        raise OSError("the file is gone")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of a module that the person wrote."""
    name = f"theirs_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_fault_in_a_library_is_shown_at_the_line_of_theirs_that_called_it(module: str) -> None:
    client = flower.load(f"{module}:Client")
    wanted = session.read_spec(SPEC).session()
    peer = Learner.around(wanted, ("ab" * 32, "me"), trainer(client))
    with pytest.raises(ClientError) as fault:
        peer.fit(Start(torch.zeros(3)), 2)
    said = str(fault.value)
    assert f"{module}:Client: its own code failed in fit, in round 2: " in said
    assert f"{module}.py, line 5, in deep: ValueError: cannot reshape" in said


def test_a_fault_in_evaluate_and_in_the_making_is_shown_with_its_place(module: str) -> None:
    with pytest.raises(ClientError, match=r"in evaluate: .*line 13, in evaluate: KeyError"):
        trainer(flower.load(f"{module}:Client")).evaluate(torch.zeros(3), "test")
    with pytest.raises(
        ClientError, match=r"in its making: .*line 17, in __init__: OSError: the file is gone"
    ):
        flower.load(f"{module}:Unmade")


def test_a_module_that_cannot_be_read_is_shown_with_its_line(module: str) -> None:
    Path(f"{module}_broken.py").write_text("x = 1\ny = (\n")
    with pytest.raises(ClientError, match=r"_broken\.py, line 2: SyntaxError"):
        flower.load(f"{module}_broken:Client")
