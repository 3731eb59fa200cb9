"""The task `language`: the next token of a text, at every place of it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from p2pl.data.examples import Examples
from p2pl.errors import DataError, InputError, wrong
from p2pl.learning.task import TASKS, Task, check_settings, chosen
from p2pl.metric import Metric
from p2pl.protocol.session import Task as TaskSettings
from p2pl.tasks.classification import check_classes
from p2pl.tasks.segmentation import IGNORED, mean_cross_entropy

PERPLEXITY, RIGHT = "perplexity", "tokens right"
MAX_NATS = 700.0  # of a token; exp of more is no float any longer
KNOWN = (Metric(PERPLEXITY, higher_is_better=False), Metric(RIGHT, "%"))


@TASKS.builtin("language")
class Language(Task):
    """The next token at every place; the model gives a score to each of V tokens.

    Inputs are [n, T] int64 tokens, outputs [n, T, V] scores before the softmax, targets [n, T]
    int64: at each place the token that follows, or -100 where none is asked for. The perplexity is
    that of all tokens of all examples together.
    """

    loss_unit = "nats a token"

    def __init__(self, settings: TaskSettings) -> None:
        """Checks the metrics that the session names.

        Raises:
            InputError: one of them, or an argument, is unknown; or an input is no row of tokens.
        """
        check_settings(settings, ())
        if len(settings.input) != 1:
            allowed = "one number: tokens in a row, with task.kind language"
            raise InputError(wrong("task.input", got=settings.input, allowed=allowed))
        self.vocabulary, self.length = settings.classes, settings.input[0]
        self.metrics = chosen(settings, KNOWN, (PERPLEXITY, RIGHT))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each example, mean over its tokens, [n], nats."""
        return mean_cross_entropy(outputs.transpose(1, 2), targets)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the sum of all tokens' nats, how many are right, and how many there are, [3]."""
        counted = targets != IGNORED
        nats = functional.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
        )
        right = (outputs.argmax(2) == targets) & counted
        return torch.stack([nats.double().sum(), right.sum().double(), counted.sum().double()])

    def metrics_of(self, tally: Tensor, examples: int) -> Mapping[str, float]:
        """Returns the perplexity, and the percentage of tokens that are taken for the likeliest."""
        del examples
        nats, right, tokens = tally.tolist()
        mean = nats / tokens if tokens else math.nan
        made = {
            PERPLEXITY: math.exp(mean) if mean < MAX_NATS else math.inf,
            RIGHT: 100 * right / tokens if tokens else math.nan,
        }
        return {metric.name: made[metric.name] for metric in self.metrics}

    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """Returns the likeliest token after each place, [n, T]."""
        return {"token": outputs.argmax(2)}

    def check(self, examples: Examples, what: str = "data") -> None:
        """Raises DataError unless inputs and targets are tokens of the session."""
        shape = (len(examples), self.length)
        check_classes(examples.x, shape, self.vocabulary, what, "inputs")
        counted = examples.y != IGNORED
        check_classes(examples.y.where(counted, 0), shape, self.vocabulary, what)
        if not counted.any(1).all():
            allowed = "at least one that is not -100 in each example"
            raise DataError(wrong(f"targets of the {what}", got="-100 alone", allowed=allowed))

    def shape_of(self, targets: Tensor) -> tuple[int, ...]:
        """Returns the shape of outputs, [n, T, V]."""
        return *targets.shape, self.vocabulary

    def flipped(self, targets: Tensor) -> Tensor:
        """Returns V - 1 - y for each token y."""
        return targets.where(targets == IGNORED, self.vocabulary - 1 - targets)
