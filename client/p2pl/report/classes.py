"""How well each class is told from the others, by what was taken for what."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Confusion: TypeAlias = NDArray[np.floating[Any] | np.integer[Any]]


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class against all others, in 0..1; 0 where a ratio has nothing below the line."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # test samples of this class, over all runs
    predicted: int = 0  # test samples that were taken for it


def class_scores(
    confusion: Confusion, labels: Sequence[str] | None = None
) -> tuple[ClassScore, ...]:
    """Returns precision, recall and F1 of each class; () where there are no classes.

    Args:
        confusion: [C, C], counts; row: true class, column: predicted.
        labels: C names of the classes; None: their numbers.
    """
    if labels is None:
        labels = tuple(map(str, range(len(confusion))))
    right, predicted, true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(predicted + true, 1)
    return tuple(
        ClassScore(
            label=label,
            precision=float(precision[index]),
            recall=float(recall[index]),
            f1=float(f1[index]),
            support=int(true[index]),
            predicted=int(predicted[index]),
        )
        for index, label in enumerate(labels)
    )


def macro_score(classes: Sequence[ClassScore]) -> ClassScore | None:
    """Returns the unweighted mean over the classes; None where there are none.

    A class that no sample has, and for which none was taken, says nothing and is left out.
    """
    told = [score for score in classes if score.support or score.predicted]
    if not told:
        return None
    return ClassScore(
        label="macro mean",
        precision=float(np.mean([score.precision for score in told])),
        recall=float(np.mean([score.recall for score in told])),
        f1=float(np.mean([score.f1 for score in told])),
        support=sum(score.support for score in told),
        predicted=sum(score.predicted for score in told),
    )
