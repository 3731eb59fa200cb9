"""What a model says of examples."""

from collections import defaultdict

import torch
from torch import Tensor

from p2pl.data.examples import Source
from p2pl.learning.evaluate import batch_examples
from p2pl.learning.objective import Objective
from p2pl.learning.weights import flatten


def predict(objective: Objective, examples: Source) -> dict[str, Tensor]:
    """Returns what the module says of each example, by name: each [N, ...] on the CPU.

    Args:
        objective: the module, with the weights to predict by, and its task.
        examples: at least one, on the module's device; targets are not looked at.
    """
    objective.model.eval()
    vector = flatten(objective.model)
    size = batch_examples(objective.task, examples, images=True)
    said: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode():
        for batch in examples.batches(size):
            outputs = objective.outputs(vector, batch.x)
            for name, values in objective.task.predictions(outputs).items():
                said[name].append(values.cpu())
    return {name: torch.cat(parts) for name, parts in said.items()}
