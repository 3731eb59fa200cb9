"""Clients that bring their own numbers, as Flower's do, in a simulation."""

import numpy as np
import torch

from p2pl.protocol import session
from p2pl.simulation.engine import run
from p2pl.simulation.setup import Setup

SPEC = """
name = "foreign"
[task]
input = [3]
classes = 2
[model]
name = "arrays"
arguments = { a = [3], b = [] }
[training]
learning_rate = 0.1
[exchange]
kind = "gossip"
rounds = 3
cohort = 4
[mixing]
rule = "samples"
"""
Arrays = list[np.ndarray]


class Adding:
    """Trains by adding its number; knows nothing of p2pl."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count

    def get_parameters(self, config: object) -> Arrays:
        return [np.zeros(3, np.float64), np.zeros((), np.float32)]

    def fit(self, parameters: Arrays, config: object) -> tuple[Arrays, int, dict[str, float]]:
        assert [array.dtype for array in parameters] == [np.float64, np.float32]
        return [array + self.number for array in parameters], 10 + self.number, {}

    def evaluate(self, parameters: Arrays, config: object) -> tuple[float, int, dict[str, float]]:
        return float(parameters[1]), 1, {"accuracy": 0.5}


def test_all_to_all_by_sample_counts_is_fedavg() -> None:
    setup = Setup(session.read_spec(SPEC).session(), "ab" * 32, peers=5, partition="iid")
    result = run(setup, Adding, torch.device("cpu"))
    gain = sum(n * (10 + n) for n in range(5)) / sum(10 + n for n in range(5))
    expected = torch.full((5, 4), 3 * gain)  # arrays of one dimension or none begin at 0
    assert torch.allclose(torch.stack(result.vectors), expected)
    assert result.samples == (10, 11, 12, 13, 14)
    assert result.rounds[-1].entries[0].accuracy == 50
