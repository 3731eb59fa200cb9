"""How good a model is."""

import torch
from torch import Tensor

from p2pl.data.examples import Source
from p2pl.learning.channels import are_convolved, channels_last
from p2pl.learning.objective import Objective, arguments_of
from p2pl.learning.task import Scores
from p2pl.learning.weights import load_into

BATCH_EXAMPLES = 1_024  # chosen: keeps a small network's activations in tens of megabytes
IMAGE_BATCH_EXAMPLES = 128  # of a convolutional network on a CPU: activations stay in the cache


def evaluate(objective: Objective, vector: Tensor, examples: Source) -> Scores:
    """Returns the scores of the parameters `vector`, which stay loaded in the model.

    Args:
        objective: the model and its task, on the same device as the examples.
        vector: [P].
        examples: at least one.
    """
    model, task = objective.model, objective.task
    load_into(model, vector, objective.layout)
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
            args, named = arguments_of(batch.x)
            outputs = model(*args, **named)
            loss += task.loss(outputs, batch.y, "sum")
            counted = task.tally(outputs, batch.y)
            tally = counted if tally is None else tally + counted
    assert tally is not None  # there is at least one example
    metrics = task.metrics_of(tally, len(examples))
    return Scores(float(loss) / len(examples), metrics, task.confusion(tally))
