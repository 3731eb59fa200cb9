"""How good a model is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from p2pl.data.examples import Source
from p2pl.learning.channels import are_convolved, channels_last
from p2pl.learning.objective import Objective
from p2pl.learning.task import Scores
from p2pl.learning.weights import load_into

BATCH_EXAMPLES = 1_024  # chosen: keeps a small network's activations in tens of megabytes
IMAGE_BATCH_EXAMPLES = 128  # of a convolutional network on a CPU: activations stay in the cache


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class against all others; 0 where a ratio has nothing below the line."""

    precision: float
    recall: float
    f1: float
    examples: int  # of this class


def evaluate(objective: Objective, vector: Tensor, examples: Source) -> Scores:
    """Returns the scores of the parameters `vector`, which stay loaded in the model.

    Args:
        objective: the model and its task, on the same device as the examples.
        vector: [P].
        examples: at least one.
    """
    model, task = objective.model, objective.task
    load_into(model, vector)
    model.eval()
    images = are_convolved(examples, model)
    if images:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    size = IMAGE_BATCH_EXAMPLES if images else BATCH_EXAMPLES
    loss = torch.zeros((), device=vector.device)
    tally: Tensor | None = None
    with torch.inference_mode():
        for batch in examples.batches(size):
            if images:
                batch = channels_last(batch)
            outputs = model(batch.x)
            loss += task.loss(outputs, batch.y, "sum")
            counted = task.tally(outputs, batch.y)
            tally = counted if tally is None else tally + counted
    assert tally is not None  # there is at least one example
    metrics = task.metrics_of(tally, len(examples))
    return Scores(float(loss) / len(examples), metrics, task.confusion(tally))


def by_class(confusion: Tensor) -> tuple[ClassScores, ...]:
    """Returns precision, recall and F1 of each class.

    Args:
        confusion: [C, C]; row: true class, column: predicted.
    """
    right = confusion.diagonal().double()
    predicted, true = confusion.sum(0).double(), confusion.sum(1).double()
    precision = right / predicted.clamp(min=1)
    recall = right / true.clamp(min=1)
    f1 = 2 * right / (predicted + true).clamp(min=1)
    return tuple(
        ClassScores(float(p), float(r), float(f), int(count))
        for p, r, f, count in zip(precision, recall, f1, true, strict=True)
    )
