"""The door `Task`: what a batch is, how wrong an output is, and how good a model is.

A task is said in one place. Training, evaluation, trust and private training ask it, and know
nothing of classes or labels themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples, Source
from p2pl.errors import DataError, InputError, wrong
from p2pl.learning.judge import Judge
from p2pl.metric import Metric
from p2pl.protocol.session import Task as TaskSettings
from p2pl.registry import Registry, check_arguments

__all__ = ["TASKS", "Metric", "Reduction", "Scores", "Task", "check_settings", "chosen", "task_of"]

Reduction = Literal["mean", "sum"]


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

    A tally is most often sums, which are added up. What ranks all examples, as the area under a
    ROC curve does, is no sum of any fixed size: a histogram of the scores is wrong by up to half
    of the pairs that share a bar, and those are all of them as long as a model tells its examples
    apart by less than a bar. So such a task keeps a row an example, and says in `add` that two
    tallies are put one below the other. For a test set of 10,000 and 10 classes, that is 0.4 MB.

    Attributes:
        metrics: what is measured, the primary metric first.
        loss_unit: what follows a loss, e.g. `nats`; "" where it has none.
        is_stackable: whether many peers of one process may be trained in one tensor operation;
            only for tasks whose loss is the mean cross-entropy of classes, and whose only metric is
            the accuracy.
    """

    metrics: tuple[Metric, ...]
    loss_unit: str = ""
    is_stackable: bool = False

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss of each example, [n] float32.

        Args:
            outputs: [n, ...], of the model.
            targets: [n, ...], as the data hold them.
        """
        ...

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns what the metrics are made of: sums over the examples, [S], of any number type.

        The sums of two batches added up must be those of both together; or see `add`.

        Args:
            outputs: [n, ...], of the model.
            targets: [n, ...].
        """
        ...

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the metrics by name, in the order of `metrics`.

        Args:
            tally: of all examples.
            examples: how many there were, at least 1.
        """
        ...

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the tally of two batches together: their sum."""
        return one + other

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

    def check(self, examples: Examples, what: str = "data") -> None:
        """Raises DataError unless the examples are of this task.

        Args:
            examples: at least one.
            what: how messages call them.
        """
        del examples, what

    def shape_of(self, targets: Tensor) -> tuple[int, ...] | None:
        """Returns the shape that outputs for these targets have; None: it is not known.

        Args:
            targets: [n, ...].
        """
        del targets
        return None

    def groups(self, targets: Tensor) -> Tensor:
        """Returns what a partition of the data by classes goes by: a number an example, [n] int64.

        Args:
            targets: [n, ...], of all examples.

        Raises:
            DataError: examples of this task are not of one class each.
        """
        if targets.dim() != 1 or targets.is_floating_point():
            allowed = "iid or unbalanced; a target of this task is not one class"
            raise DataError(wrong("--partition", got="one by classes", allowed=allowed))
        return targets

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns the most wrong targets that there are, to test against: each is turned around.

        Args:
            targets: [n, ...].

        Raises:
            InputError: there are none, as far as this task knows.
        """
        del targets
        name = type(self).__name__
        raise InputError(wrong("--attack label-flip", got=f"the task {name}", allowed="others"))

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
        InputError: its kind is not known here, or does not measure what the session says.
    """
    made = TASKS.find(settings.kind)(settings)
    names = tuple(metric.name for metric in made.metrics)
    if settings.metrics and settings.metrics != names:
        raise InputError(wrong("task.metrics", got=settings.metrics, allowed=", ".join(names)))
    return made


def chosen(
    settings: TaskSettings, known: Sequence[Metric], usual: Sequence[str]
) -> tuple[Metric, ...]:
    """Returns the metrics that a session names, in its order; those that are usual if it does not.

    Args:
        settings: of the session.
        known: all that the task can measure.
        usual: names of some of them.

    Raises:
        InputError: the session names one that the task does not measure.
    """
    by_name = {metric.name: metric for metric in known}
    for name in settings.metrics:
        if name not in by_name:
            allowed = f"{', '.join(by_name)}, with task.kind {settings.kind}"
            raise InputError(wrong("task.metrics", got=name, allowed=allowed))
    return tuple(by_name[name] for name in settings.metrics or usual)


def check_settings(settings: TaskSettings, known: Sequence[str]) -> None:
    """Raises InputError where a session gives its task an argument that it does not read.

    Args:
        settings: of the session.
        known: names of arguments that the task reads.
    """
    check_arguments("task.arguments", settings.kind, settings.arguments, known)
