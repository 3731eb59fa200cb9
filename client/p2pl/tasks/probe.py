"""How good parameters are on a peer's own examples, in a way that is fair to peers with others.

Under label skew an honest specialist looks like a liar to most: its model moves everything towards
its own classes. But it moves all examples of other classes alike, and a liar does not. So each
class's score is first shifted back to the mean that it had over the peer's examples; what is then
lost of the right class's probability is what a model does to one example and not to another.

Who never saw one of the peer's classes cannot tell it from others either, and what it is given of
the mix takes that much away. That is ignorance, and no lie. It shows in the scores: the shift
against the peer's classes costs far more than what is left once it is undone. So as much as the
shift costs is excused, but no more than a model would cost that knows nothing at all of the peer's
examples; and what is excused is not known either way, so it counts as noise.

Probabilities and not nats: under skew a few confident mistakes outweigh everything in nats.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from p2pl.data.examples import Source
from p2pl.learning.channels import are_convolved, channels_last
from p2pl.learning.evaluate import IMAGE_BATCH_EXAMPLES
from p2pl.learning.judge import LEAST_LEARNED, SHARE
from p2pl.learning.objective import arguments_of, tensor_of
from p2pl.learning.weights import Layout

PROBE_EXAMPLES = 512  # resolve a harm of 0.003; more only costs time
LARGE_MODEL, LARGE_EXAMPLES = 50_000, 256  # parameters from which examples are dear, and how many
CHANCE = 0.5  # of two answers, how sure a model is of the right one that knows nothing
FEW_EXAMPLES = 10  # of a class count as half of what many do: they say little and vary much


class Probe:
    """A peer's validation examples, as a judge of parameters."""

    def __init__(self, model: nn.Module, validation: Source) -> None:
        """Keeps a part of the examples, of rare classes all.

        Args:
            model: what the parameters mean; its own are neither read nor changed.
            validation: at least one example, on the model's device.
        """
        self._model, self._layout = model, Layout.of(model)
        most = PROBE_EXAMPLES if self._layout.total < LARGE_MODEL else LARGE_EXAMPLES
        part = validation.take(_spread(validation.labels, most))
        images = are_convolved(part, model)
        if images:
            part = channels_last(part)
        size = IMAGE_BATCH_EXAMPLES if images else most
        self._inputs = [arguments_of(batch.x) for batch in part.batches(size)]
        self._y = part.y
        held = torch.bincount(part.y)
        weight = 1 / (held + FEW_EXAMPLES)[part.y]
        self._weight = weight / weight.sum()  # [n]

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns how much of the right class's probability a change costs, and its standard error.

        The mean over the peer's examples, the classes nearly alike; what shifts a class's score for
        all of them alike is left out, and ignorance excused. No error is taken to be smaller than
        one example, or than what is excused.

        Args:
            before: [P].
            after: [P].
        """
        with torch.no_grad():
            old, new = self._scores(before), self._scores(after)
            right = self._right(old)
            lost = right - self._right(new - self._weight @ (new - old))
            mean = self._weight @ lost
            variance = self._weight.square() @ (lost - mean).square()
            usual = self._weight @ old
            unknowing = self._weight @ (right - self._right(usual + (1 - SHARE) * (old - usual)))
            shift = self._weight @ (right - self._right(new)) - mean
        excused = max(0.0, min(float(mean), float(unknowing), float(shift)))
        return float(mean) - excused, max(math.sqrt(float(variance)), 1 / len(lost), excused)

    def _scores(self, vector: Tensor) -> Tensor:
        """Returns the scores before the softmax, [n, C]."""
        self._model.eval()  # no layer looks at the batch, and none is left out by chance
        parameters = self._layout.unflatten(vector)
        made = (functional_call(self._model, parameters, *x) for x in self._inputs)
        return torch.cat([tensor_of(one) for one in made])

    def _right(self, scores: Tensor) -> Tensor:
        """Returns the probability of each example's right class, [n]."""
        return scores.softmax(1).gather(1, self._y[:, None])[:, 0]


class LabelsProbe:
    """A peer's validation examples of several labels each, as a judge of parameters.

    Each label is a question of two answers, yes and no, and what `Probe` says of classes holds for
    it: where labels are skewed, an honest specialist says yes to its own too often, and to all
    examples alike. So each label's score is shifted back, and yes and no count nearly alike.
    Ignorance is not excused: whoever turns all labels around shifts them as well, and would be.
    As two answers leave little to learn beyond chance, harm is the share of it that is undone.
    """

    def __init__(self, model: nn.Module, validation: Source) -> None:
        """Keeps a part of the examples, evenly spaced.

        Args:
            model: what the parameters mean; its own are neither read nor changed.
            validation: at least one example, on the model's device; targets [n, L] of 0 and 1.
        """
        self._model, self._layout = model, Layout.of(model)
        most = PROBE_EXAMPLES if self._layout.total < LARGE_MODEL else LARGE_EXAMPLES
        count = min(len(validation), most)
        part = validation.take(torch.linspace(0, len(validation) - 1, count).long())
        images = are_convolved(part, model)
        if images:
            part = channels_last(part)
        size = IMAGE_BATCH_EXAMPLES if images else most
        self._inputs = [arguments_of(batch.x) for batch in part.batches(size)]
        self._sign = 2 * part.y - 1  # [n, L]: 1 where the label holds, -1 where it does not
        yes = part.y.sum(0)
        held = torch.where(part.y > 0, yes, len(part) - yes)
        weight = 1 / (held + FEW_EXAMPLES)
        self._weight = weight / weight.sum(0)  # [n, L], of each label 1

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns the share of what was learned that a change undoes, and its standard error.

        Args:
            before: [P].
            after: [P].
        """
        with torch.no_grad():
            old, new = self._scores(before), self._scores(after)
            right = self._right(old)
            shifted = new - (self._weight * (new - old)).sum(0)
            lost = right - self._right(shifted)
            mean, learned = self._mean(lost), max(LEAST_LEARNED, self._mean(right) - CHANCE)
            # The labels of an example are not independent of each other.
            error = math.sqrt(float((self._weight * (lost - mean)).mean(1).square().sum()))
        return mean / learned, max(error, 1 / lost.numel()) / learned

    def _mean(self, values: Tensor) -> float:
        """Returns the mean over the labels of their weighted means over the examples."""
        return float((self._weight * values).sum(0).mean())

    def _scores(self, vector: Tensor) -> Tensor:
        """Returns the scores before the sigmoid, [n, L]."""
        self._model.eval()
        parameters = self._layout.unflatten(vector)
        made = (functional_call(self._model, parameters, *x) for x in self._inputs)
        return torch.cat([tensor_of(one) for one in made])

    def _right(self, scores: Tensor) -> Tensor:
        """Returns the probability of each label's right answer, [n, L]."""
        return (self._sign * scores).sigmoid()


def _spread(labels: Tensor, most: int) -> Tensor:
    """Returns the rows of at most so many examples, evenly spread over the classes, [n] int64."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    labels = labels.cpu()
    order = labels.argsort(stable=True)
    held = torch.bincount(labels).tolist()
    place = torch.cat([torch.arange(count) for count in held])  # of an example in its class
    return order[place.argsort(stable=True)[:most]]
