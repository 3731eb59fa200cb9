"""How good a model is."""

import math

import torch
from torch import Tensor

from p2pl.data.examples import Source
from p2pl.learning.channels import are_convolved, channels_last
from p2pl.learning.objective import Objective
from p2pl.learning.parts import lend
from p2pl.learning.task import Scores, Task

BATCH_EXAMPLES = 1_024  # chosen: keeps a small network's activations in tens of megabytes
IMAGE_BATCH_EXAMPLES = 128  # of a convolutional network on a CPU: activations stay in the cache
MAX_OUTPUTS = 1 << 24  # numbers that a model gives for one batch: 64 MiB; tokens make many


def batch_examples(task: Task, examples: Source, *, images: bool) -> int:
    """Returns how many examples are worth computing at once.

    Args:
        task: what is to be done with them.
        examples: at least one.
        images: whether they are convolved on a CPU.
    """
    size = IMAGE_BATCH_EXAMPLES if images else BATCH_EXAMPLES
    shape = task.shape_of(examples.take(torch.tensor([0])).y)
    return size if shape is None else max(1, min(size, MAX_OUTPUTS // math.prod(shape)))


def evaluate(objective: Objective, vector: Tensor, examples: Source) -> Scores:
    """Returns the scores of the parameters `vector`, which stay loaded in the model.

    Args:
        objective: the model and its task, on the same device as the examples.
        vector: [P].
        examples: at least one.
    """
    model, task = objective.model, objective.task
    lend(model, vector, objective.layout)
    model.eval()
    images = are_convolved(examples, model)
    if images:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    size = batch_examples(task, examples, images=images)
    loss = torch.zeros((), device=vector.device)
    tally: Tensor | None = None
    with torch.inference_mode():
        for batch in examples.batches(size):
            if images:
                batch = channels_last(batch)
            outputs = objective.checked(objective.here(batch.x), batch.y)
            loss += task.loss(outputs, batch.y, "sum")
            counted = task.tally(outputs, batch.y)
            tally = counted if tally is None else task.add(tally, counted)
    assert tally is not None  # there is at least one example
    metrics = task.metrics_of(tally, len(examples))
    return Scores(float(loss) / len(examples), metrics, task.confusion(tally))
