"""The task `classification`: one class of C for each input."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.data.examples import Source
from p2pl.learning.judge import Judge
from p2pl.learning.task import TASKS, Metric, Reduction, Task
from p2pl.protocol.session import Task as TaskSettings
from p2pl.tasks.probe import Probe

# Beyond so many, which class was taken for which is not counted: the matrix of 100,000 classes has
# 80 GB. Chosen: 32 MB.
MAX_CONFUSED = 2_000


@TASKS.builtin("classification")
class Classification(Task):
    """One class for each input; the model gives a score to each class.

    Outputs are [n, C] scores before the softmax, targets [n] int64 numbers of classes.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "%"),)

    def __init__(self, settings: TaskSettings) -> None:
        self.classes = settings.classes
        self.is_stackable = self._counts_pairs = settings.classes <= MAX_CONFUSED

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each example, [n], nats."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def loss(self, outputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Returns the mean or the sum of the cross-entropies, nats."""
        return functional.cross_entropy(outputs, targets, reduction=reduction)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns how many examples of each class were taken for which, [C * C] int64.

        Where there are too many classes, how many were taken for the right one, [1].
        """
        if not self._counts_pairs:
            return (outputs.argmax(1) == targets).sum()[None]
        pairs = targets * self.classes + outputs.argmax(1)
        return torch.bincount(pairs, minlength=self.classes * self.classes)

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the accuracy, percent."""
        right = self.confusion(tally).trace() if self._counts_pairs else tally.sum()
        return {"accuracy": 100 * int(right) / examples}

    def confusion(self, tally: Tensor) -> Tensor:
        """Returns the confusion matrix, [C, C]; row: true class, column: predicted.

        [0, 0] where there are too many classes.
        """
        if not self._counts_pairs:
            return torch.zeros(0, 0, dtype=torch.int64)
        return tally.view(self.classes, self.classes).cpu()

    def judge(self, model: nn.Module, examples: Source) -> Judge:
        """Returns a judge that is fair to peers with other classes."""
        return Probe(model, examples)
