"""The task `multilabel`: which of L labels hold for an input; any number of them may."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.data.examples import Examples, Source
from p2pl.errors import DataError, wrong
from p2pl.learning.judge import Judge
from p2pl.learning.task import TASKS, Task, check_settings, chosen
from p2pl.metric import Metric
from p2pl.protocol.session import Task as TaskSettings
from p2pl.tasks import measures
from p2pl.tasks.measures import AUROC, F1
from p2pl.tasks.probe import LabelsProbe

KNOWN = (Metric(AUROC, "%"), Metric(F1, "%"))


@TASKS.builtin("multilabel")
class Multilabel(Task):
    """Several labels for each input, each of which holds or does not.

    Outputs are [n, L] scores before the sigmoid, targets [n, L] float32 of 0 and 1. A label is
    given where its score is above 0. Both metrics are means over the labels.
    """

    loss_unit = "nats"

    def __init__(self, settings: TaskSettings) -> None:
        """Checks the metrics that the session names.

        Raises:
            InputError: one of them, or an argument, is unknown; or scikit-learn is missing.
        """
        check_settings(settings, ())
        self.outputs = settings.outputs
        self.metrics = chosen(settings, KNOWN, (AUROC, F1))
        measures.check_auroc()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the binary cross-entropy of each example, mean over its labels, [n], nats."""
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(
            1
        )

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns a row an example, its scores and its labels, [n, 2 L]."""
        return torch.cat([outputs.float(), targets], 1)

    def add(self, one: Tensor, other: Tensor) -> Tensor:
        """Returns the rows of both."""
        return torch.cat([one, other])

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the metrics, percent."""
        del examples
        scores, true = tally[:, : self.outputs], tally[:, self.outputs :].bool()
        made = {
            AUROC: lambda: measures.auroc(scores, true),
            F1: lambda: measures.f1_of_labels(scores > 0, true),
        }
        return {metric.name: made[metric.name]() for metric in self.metrics}

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns whether each label is given, [n, L] of 0 and 1, and its probability, [n, L]."""
        return {"label": (outputs > 0).long(), "probability": outputs.sigmoid()}

    def judge(self, model: nn.Module, examples: Source) -> Judge:
        """Returns a judge that is fair to peers with other labels."""
        return LabelsProbe(model, examples)

    def check(self, examples: Examples, what: str = "data") -> None:
        """Raises DataError unless the targets are 0 or 1 for each label."""
        targets = examples.y
        shape = (len(examples), self.outputs)
        known = targets.is_floating_point() and bool(((targets == 0) | (targets == 1)).all())
        if tuple(targets.shape) != shape or not known:
            low, high = float(targets.min()), float(targets.max())
            got = f"{targets.dtype} {list(targets.shape)}, {low:g}..{high:g}"
            allowed = f"0 or 1, {list(shape)}: one for each of the session's task.outputs"
            raise DataError(wrong(f"targets of the {what}", got=got, allowed=allowed))

    def shape_of(self, targets: Tensor) -> tuple[int, ...]:
        """Returns the shape of outputs, [n, L]."""
        return len(targets), self.outputs

    def groups(self, targets: Tensor) -> Tensor:
        """Returns the first label of each example; L where it has none."""
        first = targets.argmax(1)
        return first.where(targets.amax(1) > 0, self.outputs)

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns the labels that do not hold."""
        return 1 - targets
