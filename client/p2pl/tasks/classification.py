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


@TASKS.builtin("classification")
class Classification(Task):
    """One class for each input; the model gives a score to each class.

    Outputs are [n, C] scores before the softmax, targets [n] int64 numbers of classes.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "%"),)
    is_stackable: ClassVar[bool] = True

    def __init__(self, settings: TaskSettings) -> None:
        self.classes = settings.classes

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each example, [n], nats."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def loss(self, outputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Returns the mean or the sum of the cross-entropies, nats."""
        return functional.cross_entropy(outputs, targets, reduction=reduction)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns how many examples of each class were taken for which, [C * C] int64."""
        pairs = targets * self.classes + outputs.argmax(1)
        return torch.bincount(pairs, minlength=self.classes * self.classes)

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the accuracy, percent."""
        return {"accuracy": 100 * int(self.confusion(tally).trace()) / examples}

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns the likeliest class of each example, [n], and all probabilities, [n, C]."""
        return {"class": outputs.argmax(1), "probability": outputs.softmax(1)}

    def confusion(self, tally: Tensor) -> Tensor:
        """Returns the confusion matrix, [C, C]; row: true class, column: predicted."""
        return tally.view(self.classes, self.classes).cpu()

    def judge(self, model: nn.Module, examples: Source) -> Judge:
        """Returns a judge that is fair to peers with other classes."""
        return Probe(model, examples)
