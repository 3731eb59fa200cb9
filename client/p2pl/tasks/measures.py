"""Metrics that several tasks have: of counts by class, and of the order of scores."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from p2pl.errors import InputError
from p2pl.extras import install
from p2pl.metric import Metric

ACCURACY, F1, AUROC = "accuracy", "macro F1", "AUROC"


def dice(counts: Tensor, without: Sequence[int] = ()) -> float:
    """Returns the mean over the classes of 2 TP / (2 TP + FP + FN), percent: Dice, or macro F1.

    A class that is neither among the targets nor among the predictions does not count, as in
    scikit-learn; NaN where none is left.

    Args:
        counts: [C, C], row: true class, column: predicted.
        without: classes that do not count.
    """
    right, both = counts.diagonal().double(), (counts.sum(0) + counts.sum(1)).double()
    return _mean_percent(2 * right, both, without)


def iou(counts: Tensor, without: Sequence[int] = ()) -> float:
    """Returns the mean over the classes of TP / (TP + FP + FN), percent: intersection over union.

    Args:
        counts: [C, C], row: true class, column: predicted.
        without: classes that do not count.
    """
    right, both = counts.diagonal().double(), (counts.sum(0) + counts.sum(1)).double()
    return _mean_percent(right, both - right, without)


def f1_of_labels(hits: Tensor, true: Tensor) -> float:
    """Returns the mean F1 over the labels, percent; a label that nobody has or is given counts 0.

    Args:
        hits: [n, L] bool, which labels were given.
        true: [n, L] bool, which hold.
    """
    right, both = (hits & true).sum(0).double(), (hits.sum(0) + true.sum(0)).double()
    return 100 * float((2 * right / both.clamp(min=1)).mean())


def _mean_percent(over: Tensor, under: Tensor, without: Sequence[int]) -> float:
    counted = under > 0
    counted[list(without)] = False
    return 100 * float((over[counted] / under[counted]).mean())


def auroc(scores: Tensor, true: Tensor) -> float:
    """Returns the mean area under the ROC curve over the labels, percent.

    A label that holds for all examples or for none has no such area, and does not count. NaN where
    no label is left, or a score is not finite.

    Args:
        scores: [n, L], more where a label is more likely.
        true: [n, L] bool, which hold.

    Raises:
        InputError: scikit-learn is not installed.
    """
    if not scores.isfinite().all():
        return float("nan")
    area = _area_under_roc()
    x, y = scores.cpu().numpy(), true.cpu().numpy()
    areas = [area(y[:, k], x[:, k]) for k in range(y.shape[1]) if 0 < y[:, k].sum() < len(y)]
    return 100 * float(np.mean(areas)) if areas else float("nan")


def why_no_auroc(metrics: Sequence[Metric], targets: Tensor) -> str:
    """Returns why an area under the ROC curve cannot be measured; "": it can, or nobody asked.

    Args:
        metrics: those of the task.
        targets: [n] classes, or [n, L] labels, of the examples that models are scored on.
    """
    if AUROC not in (metric.name for metric in metrics) or bool((targets != targets[:1]).any()):
        return ""
    return (
        f"{AUROC} cannot be measured: the {len(targets)} examples that models are scored on are "
        "all of one class, so that there is nothing to tell apart"
    )


def check_auroc() -> None:
    """Raises InputError unless areas under ROC curves can be measured here."""
    _area_under_roc()


def _area_under_roc() -> Callable[..., float]:
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as fault:
        raise InputError(f"AUROC: scikit-learn is missing: {install('metrics')}") from fault
    area: Callable[..., float] = roc_auc_score
    return area


def confusion(targets: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Returns how many targets of each class were taken for which, [C * C] int64.

    Args:
        targets: of any shape, 0..C-1.
        predicted: of the same shape.
        classes: C.
    """
    return torch.bincount((targets * classes + predicted).flatten(), minlength=classes * classes)
