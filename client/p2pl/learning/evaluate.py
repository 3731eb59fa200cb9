"""How good a model is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pl.data.examples import Source
from p2pl.learning.channels import are_convolved, channels_last
from p2pl.learning.weights import load_into

BATCH_EXAMPLES = 1_024  # chosen: keeps a small network's activations in tens of megabytes
IMAGE_BATCH_EXAMPLES = 128  # of a convolutional network on a CPU: activations stay in the cache


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model made of some examples."""

    accuracy: float  # percent
    loss: float  # mean cross-entropy, nats
    confusion: Tensor  # [C, C] int64, on the CPU; row: true class, column: predicted


def evaluate(model: nn.Module, vector: Tensor, examples: Source, classes: int) -> Scores:
    """Returns the scores of the model with the parameters `vector`, which stay loaded in it.

    Args:
        model: on the same device as the examples.
        vector: [P].
        examples: at least one.
        classes: C.
    """
    load_into(model, vector)
    model.eval()
    images = are_convolved(examples, model)
    if images:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
    size = IMAGE_BATCH_EXAMPLES if images else BATCH_EXAMPLES
    loss = torch.zeros((), device=vector.device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=vector.device)
    with torch.inference_mode():
        for batch in examples.batches(size):
            if images:
                batch = channels_last(batch)
            logits = model(batch.x)
            loss += functional.cross_entropy(logits, batch.y, reduction="sum")
            pairs = batch.y * classes + logits.argmax(1)
            confusion += torch.bincount(pairs, minlength=classes * classes)
    square = confusion.view(classes, classes).cpu()
    right = int(square.trace())
    return Scores(100 * right / len(examples), float(loss) / len(examples), square)
