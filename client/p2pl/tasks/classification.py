"""The task `classification`: one class of C for each input."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.data.examples import Examples, Source
from p2pl.errors import DataError, InputError, wrong
from p2pl.learning.judge import Judge
from p2pl.learning.task import TASKS, Reduction, Task, check_settings, chosen
from p2pl.metric import ACCURACY, Metric
from p2pl.protocol.session import Task as TaskSettings
from p2pl.tasks import measures
from p2pl.tasks.measures import AUROC, F1
from p2pl.tasks.probe import Probe

# Beyond so many, which class was taken for which is not counted: the matrix of 100,000 classes has
# 80 GB. Chosen: 32 MB.
MAX_CONFUSED = 2_000
KNOWN = (ACCURACY, Metric(F1, "%"), Metric(AUROC, "%"))


@TASKS.builtin("classification")
class Classification(Task):
    """One class for each input; the model gives a score to each class.

    Outputs are [n, C] scores before the softmax, targets [n] int64 numbers of classes. The area
    under the ROC curve is that of each class against all others, mean over the classes.
    """

    loss_unit = "nats"

    def __init__(self, settings: TaskSettings) -> None:
        """Checks the metrics that the session names.

        Raises:
            InputError: one of them, or an argument, is unknown.
        """
        check_settings(settings, ())
        self.classes = settings.classes
        self.metrics = chosen(settings, KNOWN, (ACCURACY.name,))
        self._counts_pairs = settings.classes <= MAX_CONFUSED
        if not self._counts_pairs and self.metrics != (ACCURACY,):
            allowed = f"accuracy alone where there are more than {MAX_CONFUSED} classes"
            names = [metric.name for metric in self.metrics]
            raise InputError(wrong("task.metrics", got=names, allowed=allowed))
        self.is_stackable = self.metrics == (ACCURACY,) and self._counts_pairs
        self._ranks = any(metric.name == AUROC for metric in self.metrics)
        if self._ranks:
            measures.check_auroc()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each example, [n], nats."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def loss(self, outputs: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Returns the mean or the sum of the cross-entropies, nats."""
        return functional.cross_entropy(outputs, targets, reduction=reduction)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns how many examples of each class were taken for which, [C * C] int64.

        Where scores are ranked, a row an example instead, its scores and its class: [n, C + 1].
        Where there are too many classes, how many were taken for the right one, [1].
        """
        if not self._counts_pairs:
            return (outputs.argmax(1) == targets).sum()[None]
        if self._ranks:
            return torch.cat([outputs.float(), targets.float()[:, None]], 1)
        return measures.confusion(targets, outputs.argmax(1), self.classes)

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the tally of two batches together."""
        return torch.cat([one, other]) if self._ranks else one + other

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the metrics, percent."""
        if not self._counts_pairs:
            return {ACCURACY.name: 100 * int(tally) / examples}
        counts = self.confusion(tally)
        made = {
            ACCURACY.name: lambda: 100 * int(counts.trace()) / examples,
            F1: lambda: measures.dice(counts),
            AUROC: lambda: self._auroc(tally),
        }
        return {metric.name: made[metric.name]() for metric in self.metrics}

    def _auroc(self, tally: Tensor) -> float:
        shares, targets = tally[:, :-1].softmax(1), tally[:, -1].long()
        return measures.auroc(shares, functional.one_hot(targets, self.classes).bool())

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns the likeliest class of each example, [n], and all probabilities, [n, C]."""
        return {"class": outputs.argmax(1), "probability": outputs.softmax(1)}

    def confusion(self, tally: Tensor) -> Tensor:
        """Returns the confusion matrix, [C, C]; row: true class, column: predicted.

        [0, 0] where there are too many classes.
        """
        if not self._counts_pairs:
            return torch.zeros(0, 0, dtype=torch.int64)
        if self._ranks:
            predicted, targets = tally[:, :-1].argmax(1), tally[:, -1].long()
            tally = measures.confusion(targets, predicted, self.classes)
        return tally.view(self.classes, self.classes).cpu()

    def judge(self, model: nn.Module, examples: Source) -> Judge:
        """Returns a judge that is fair to peers with other classes."""
        return Probe(model, examples)

    def check(self, examples: Examples, what: str = "data") -> None:
        """Raises DataError unless the targets are classes of the session."""
        check_classes(examples.y, (len(examples),), self.classes, what)

    def shape_of(self, targets: Tensor) -> tuple[int, ...]:
        """Returns the shape of outputs, [n, C]."""
        return len(targets), self.classes

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns C - 1 - y for each class y."""
        return self.classes - 1 - targets


def check_classes(
    targets: Tensor, shape: tuple[int, ...], classes: int, what: str, side: str = "targets"
) -> None:
    """Raises DataError unless targets are numbers of classes.

    Args:
        targets: of any shape.
        shape: that they must have.
        classes: C.
        what: how messages call the data.
        side: which part of them these are.
    """
    low, high = targets.min(), targets.max()
    if targets.is_floating_point() or tuple(targets.shape) != shape or low < 0 or high >= classes:
        got = f"{targets.dtype} {list(targets.shape)}, {float(low):g}..{float(high):g}"
        allowed = f"whole numbers {list(shape)}, 0..{classes - 1}, the session's task.classes"
        raise DataError(wrong(f"{side} of the {what}", got=got, allowed=allowed))
