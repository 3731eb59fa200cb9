"""The task `regression`: numbers for each input."""

from collections.abc import Mapping

import torch
from torch import Tensor

from p2pl.data.examples import Examples
from p2pl.errors import DataError, wrong
from p2pl.learning.task import TASKS, Task, check_settings, chosen
from p2pl.metric import Metric
from p2pl.protocol.session import Task as TaskSettings

RMSE, MAE, R2 = "RMSE", "MAE", "R2"
GROUPS = 10  # of targets, equally many examples each, for partitions by classes; chosen


@TASKS.builtin("regression")
class Regression(Task):
    """Some numbers for each input.

    Outputs are [n, O], targets [n, O] float32. A model gives (target - mean) / std, with the
    session's `target_mean` and `target_std`, and the loss is the squared error of that; metrics are
    of the targets as they are, in the session's `unit`. All are means over the O outputs.
    """

    def __init__(self, settings: TaskSettings) -> None:
        """Checks the metrics that the session names.

        Raises:
            InputError: one of them, or an argument, is unknown.
        """
        check_settings(settings, ())
        self.outputs = settings.outputs
        self.metrics = chosen(
            settings,
            (
                Metric(RMSE, settings.unit, higher_is_better=False),
                Metric(MAE, settings.unit, higher_is_better=False),
                Metric(R2),
            ),
            (RMSE, MAE, R2),
        )
        self._mean = torch.tensor(settings.target_mean or (0.0,), dtype=torch.float64)
        self._std = torch.tensor(settings.target_std or (1.0,), dtype=torch.float64)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the squared error of each example, mean over its outputs, [n]."""
        return (outputs - self._scaled(targets).to(outputs)).square().mean(1)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns sums by output: of the error squared and absolute, of targets and their squares.

        [4 * O] float64, in the scale of the model: small numbers, whose squares keep their digits.
        """
        true = self._scaled(targets)
        error = outputs.double() - true
        return torch.cat([error.square(), error.abs(), true, true.square()], 1).sum(0)

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns root mean squared and mean absolute error, and the share of variance explained.

        R2 of an output whose targets are all alike is 1 without any error and else 0, as in
        scikit-learn.
        """
        square, absolute, total, squares = tally.cpu().view(4, self.outputs)
        spread = (squares - total.square() / examples).clamp(min=0)  # sum of squares about the mean
        varies = spread > torch.finfo(spread.dtype).eps * squares
        explained = (1 - square / spread).where(varies, (square == 0).double())
        made = {
            RMSE: ((square / examples).sqrt() * self._std).mean(),
            MAE: (absolute / examples * self._std).mean(),
            R2: explained.mean(),
        }
        return {metric.name: float(made[metric.name]) for metric in self.metrics}

    def _scaled(self, targets: Tensor) -> Tensor:
        """Returns what a model is to give for targets [n, O], float64."""
        return (targets.double() - self._mean.to(targets.device)) / self._std.to(targets.device)

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns the numbers in the session's unit, [n, O]."""
        std, mean = self._std.to(outputs.device), self._mean.to(outputs.device)
        return {"prediction": (outputs.double() * std + mean).float()}

    def check(self, examples: Examples, what: str = "data") -> None:
        """Raises DataError unless the targets are finite numbers."""
        targets, shape = examples.y, (len(examples), self.outputs)
        if tuple(targets.shape) != shape or not targets.is_floating_point():
            got = f"{targets.dtype} {list(targets.shape)}"
            allowed = f"float32 {list(shape)}: one for each of the session's task.outputs"
            raise DataError(wrong(f"targets of the {what}", got=got, allowed=allowed))
        if not targets.isfinite().all():
            raise DataError(
                wrong(f"targets of the {what}", got="NaN or infinity", allowed="finite numbers")
            )

    def shape_of(self, targets: Tensor) -> tuple[int, ...]:
        """Returns the shape of outputs, [n, O]."""
        return len(targets), self.outputs

    def groups(self, targets: Tensor) -> Tensor:
        """Returns in which tenth of all examples the first target is, [n] int64."""
        place = targets[:, 0].argsort(stable=True).argsort()
        return place * GROUPS // len(targets)

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns what is as far from the session's `target_mean` on its other side."""
        return (2 * self._mean.to(targets.device) - targets.double()).float()
