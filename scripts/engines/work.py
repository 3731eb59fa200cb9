"""The work that all engines do in `scripts/bench simulate --parts engines`; needs numpy alone.

A file of it holds who trains on which rows, and the parameters that all begin with, so that all
engines do the same steps on the same examples. They draw the order of the batches themselves.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """Federated averaging of all peers' models, after one local epoch of plain SGD each."""

    x: np.ndarray[Any, Any]  # [n, *input] float32, 0..1
    y: np.ndarray[Any, Any]  # [n] int32
    rows: np.ndarray[Any, Any]  # [N, k]: what each peer trains on
    test_x: np.ndarray[Any, Any]
    test_y: np.ndarray[Any, Any]
    initial: tuple[np.ndarray[Any, Any], ...]  # weight and bias of each layer, the first one first
    rounds: int
    rate: float
    batch: int

    @property
    def peers(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def convolves(self) -> bool:
        """Whether it is the small CNN, and not logistic regression."""
        return len(self.initial) > 2


def read() -> Work:
    """Returns the work in the file that the command line names."""
    file = np.load(sys.argv[1])
    layers = tuple(file[f"initial_{k}"] for k in range(int(file["layers"])))
    x, test_x = (file[name].astype(np.float32) / 255 for name in ("x", "test_x"))
    if len(layers) == 2:
        x, test_x = x.reshape(len(x), -1), test_x.reshape(len(test_x), -1)
    return Work(
        x,
        file["y"].astype(np.int32),
        file["rows"],
        test_x,
        file["test_y"].astype(np.int32),
        layers,
        int(file["rounds"]),
        float(file["rate"]),
        int(file["batch"]),
    )


def cpu_s() -> float:
    """Returns the seconds of processor time so far, with those of children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class Clock:
    """Processor time of the engine alone, from when it is made."""

    def __init__(self) -> None:
        self._begun = cpu_s()

    @property
    def took_s(self) -> float:
        """Seconds so far."""
        return cpu_s() - self._begun


def tell(engine_s: float, right: float, compile_s: float = 0.0) -> None:
    """Prints the figures of a run as one JSON object.

    Args:
        engine_s: processor time of all rounds.
        right: share of the test examples that the mean model gets right.
        compile_s: processor time of a first round that was thrown away, with compilation.
    """
    print(
        json.dumps(
            {
                "engine_s": engine_s,
                "compile_s": compile_s,
                "accuracy": 100 * float(right),
                "told": time.time(),
            }
        )
    )
