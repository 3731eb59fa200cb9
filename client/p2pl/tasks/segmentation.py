"""The task `segmentation`: one class of C for each pixel of an image."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from p2pl.data.examples import Examples
from p2pl.errors import InputError, wrong
from p2pl.learning.task import TASKS, Task, check_settings, chosen
from p2pl.metric import Metric
from p2pl.protocol.session import Task as TaskSettings
from p2pl.tasks import measures
from p2pl.tasks.classification import check_classes

DICE, IOU = "Dice", "IoU"
KNOWN = (Metric(DICE, "%"), Metric(IOU, "%"))
IGNORED = -100  # a target that does not count, as in torch


@TASKS.builtin("segmentation")
class Segmentation(Task):
    """One class for each pixel; the model gives a score to each class.

    Outputs are [n, C, H, W] scores before the softmax, targets [n, H, W] int64 numbers of classes,
    or -100 where a pixel does not count. Both metrics are of the pixels of all examples together,
    mean over the classes; `task.arguments` may name as `background` one class that is left out.
    """

    loss_unit = "nats"

    def __init__(self, settings: TaskSettings) -> None:
        """Checks the metrics and the background that the session names.

        Raises:
            InputError: one of them, or an argument, is unknown.
        """
        check_settings(settings, ("background",))
        self.classes, self.size = settings.classes, settings.input[1:]
        self.metrics = chosen(settings, KNOWN, (DICE, IOU))
        background = settings.arguments.get("background")
        self._without: tuple[int, ...] = ()
        if isinstance(background, int) and 0 <= background < self.classes:
            self._without = (background,)
        elif background is not None:
            raise InputError(
                wrong(
                    "task.arguments.background",
                    got=background,
                    allowed=f"0..{self.classes - 1}, a class",
                )
            )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each example, mean over its pixels, [n], nats."""
        return mean_cross_entropy(outputs, targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns how many pixels of each class were taken for which, [C * C] int64."""
        counted = targets != IGNORED
        predicted = outputs.argmax(1)
        return measures.confusion(targets[counted], predicted[counted], self.classes)

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the metrics, percent."""
        del examples
        counts = self.confusion(tally)
        made = {DICE: measures.dice, IOU: measures.iou}
        return {metric.name: made[metric.name](counts, self._without) for metric in self.metrics}

    def confusion(self, tally: Tensor) -> Tensor:
        """Returns the confusion matrix of pixels, [C, C]; row: true class, column: predicted."""
        return tally.view(self.classes, self.classes).cpu()

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns the likeliest class of each pixel, [n, H, W]."""
        return {"class": outputs.argmax(1)}

    def check(self, examples: Examples, what: str = "data") -> None:
        """Raises DataError unless the targets are classes of the session, one a pixel."""
        shape = (len(examples), *self.size)
        counted = examples.y.where(examples.y != IGNORED, 0)
        check_classes(counted, shape, self.classes, what)

    def shape_of(self, targets: Tensor) -> tuple[int, ...]:
        """Returns the shape of outputs, [n, C, H, W]."""
        return len(targets), self.classes, *targets.shape[1:]

    def groups(self, targets: Tensor) -> Tensor:
        """Returns the class other than 0 that most pixels have, of each example; 0: none has."""
        pixels = targets.flatten(1)
        held = torch.stack([(pixels == kind).sum(1) for kind in range(1, self.classes)], 1)
        return (held.argmax(1) + 1).where(held.amax(1) > 0, 0)

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns C - 1 - y for each class y."""
        return targets.where(targets == IGNORED, self.classes - 1 - targets)


def mean_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of each example, mean over its targets that count, [n], nats.

    Args:
        outputs: [n, C, ...], scores before the softmax.
        targets: [n, ...] int64, -100 where one does not count; an example without any has loss 0.
    """
    each = functional.cross_entropy(outputs, targets, reduction="none", ignore_index=IGNORED)
    counted = (targets != IGNORED).flatten(1).sum(1)
    return each.flatten(1).sum(1) / counted.clamp(min=1)
