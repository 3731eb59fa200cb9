"""The door `Task`: what a batch is, how wrong an output is, and how good a model is.

A task is said in one place. Training, evaluation, trust and private training ask it, and know
nothing of classes or labels themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples, Source
from p2pl.errors import InputError
from p2pl.learning.judge import Judge
from p2pl.protocol.session import Task as TaskSettings
from p2pl.registry import Registry

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that says how good a model is.

    Attributes:
        name: as it stands in logs and tables, e.g. `accuracy`.
        unit: what follows the number, e.g. `%`; "" where it has none.
        higher_is_better: which way is better.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model made of some examples.

    Attributes:
        loss: mean loss an example.
        metrics: by name, the primary one first.
        confusion: [C, C] int64 on the CPU, row: true class, column: predicted; [0, 0] where the
            task has no classes.
    """

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    confusion: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    @property
    def accuracy(self) -> float:
        """The metric `accuracy`, percent; NaN where the task has none."""
        return self.metrics.get("accuracy", float("nan"))

    @property
    def primary(self) -> float:
        """The primary metric; NaN where there is none."""
        return next(iter(self.metrics.values()), float("nan"))


class Task(Protocol):
    """One kind of task, with a session's settings.

    A class that names `Task` as its base inherits all that is written out here; it must say
    `metrics`, `losses`, `tally` and `metrics_of`. It is made with the session's `task` table.

    Attributes:
        metrics: what is measured, the primary metric first.
        is_stackable: whether many peers of one process may be trained in one tensor operation;
            only for tasks whose loss is the mean cross-entropy of classes.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    is_stackable: ClassVar[bool] = False

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each example, [n] float32.

        Args:
            outputs: [n, ...], of the model.
            targets: [n, ...], as the data hold them.
        """
        ...

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns what the metrics are made of, as sums over the examples: [S], of any number type.

        The sums of two batches added up must be those of both together.

        Args:
            outputs: [n, ...], of the model.
            targets: [n, ...].
        """
        ...

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the metrics by name, in the order of `metrics`.

        Args:
            tally: [S], summed over all examples.
            examples: how many there were, at least 1.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Returns the mean or the sum of the losses, a single number with a gradient.

        Args:
            outputs: [n, ...], of the model; n at least 1.
            targets: [n, ...], as the data hold them.
            reduction: `mean` or `sum`.
        """
        losses = self.losses(outputs, targets)
        return losses.mean() if reduction == "mean" else losses.sum()

    def confusion(self, tally: Tensor) -> Tensor:
        """Returns the confusion matrix in a tally, [C, C]; [0, 0] where there are no classes."""
        del tally
        return torch.zeros(0, 0, dtype=torch.int64)

    def judge(self, model: nn.Module, examples: Source) -> Judge | None:
        """Returns what judges parameters on a peer's own examples; None: the general judge does.

        Args:
            model: what the parameters mean.
            examples: at least one, held back from training.
        """
        del model, examples
        return None

    def check(self, examples: Examples) -> None:
        """Raises DataError unless the examples are of this task."""
        del examples

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns what outputs say of each example, by name, what is asked for first.

        Numbers of classes are called `class`, and a number for each class `probability`: where
        classes have names, people see those.

        Args:
            outputs: [n, ...], of the model.
        """
        return {"output": outputs}


TASKS: Registry[Callable[[TaskSettings], Task]] = Registry(
    "task.kind", "p2pl.tasks", "p2pl.tasks", InputError
)


def task_of(settings: TaskSettings) -> Task:
    """Returns the task of a session.

    Raises:
        InputError: its kind is not known here.
    """
    return TASKS.find(settings.kind)(settings)
