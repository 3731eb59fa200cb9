"""What a peer makes of the models it received.

A rule returns the next parameters from my own and those received. The ones here are all weighted
means: a row of weights, and `mix`. `degroot` takes its row from `p2pl.learning.trust`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from torch import Tensor

# Sample counts are what strangers say of themselves. Within this factor of the median one peer
# among ten can at most take 4/13 of the weight, whatever it claims. Chosen: algorithms that weigh
# by samples lose nothing on shards that differ less.
MAX_SAMPLE_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule may know beside the parameters."""

    own_samples: int = 1  # training examples of mine
    samples: Sequence[int] = ()  # [K], as the senders say
    row: Sequence[float] = ()  # [K + 1], learned; row[0] is my own weight


Rule: TypeAlias = Callable[[Tensor, Sequence[Tensor], Context], Tensor]


def mix(own: Tensor, received: Sequence[Tensor], row: Sequence[float]) -> Tensor:
    """Returns the weighted mean of my parameters and those received, [P].

    Needs one more vector of memory, however many were received.

    Args:
        own: [P] float32.
        received: K vectors of [P]; K may be 0. Those with weight 0 are not read.
        row: K + 1 weights, non-negative, sum 1; row[0] is my own.
    """
    mixed = own * row[0]
    for vector, weight in zip(received, row[1:], strict=True):
        if weight != 0:
            mixed.add_(vector, alpha=weight)
    return mixed


def none(own: Tensor, received: Sequence[Tensor], context: Context) -> Tensor:
    """Returns my own parameters: training alone."""
    del received, context
    return own


def uniform(own: Tensor, received: Sequence[Tensor], context: Context) -> Tensor:
    """Returns the plain mean."""
    del context
    return mix(own, received, equal_row(len(received)))


def samples(own: Tensor, received: Sequence[Tensor], context: Context) -> Tensor:
    """Returns the mean weighted by sample counts, as in McMahan et al. 2017 (FedAvg).

    Counts are self-reported, hence kept within `MAX_SAMPLE_RATIO` of their median.
    """
    return mix(own, received, sample_row(context.own_samples, context.samples))


def degroot(own: Tensor, received: Sequence[Tensor], context: Context) -> Tensor:
    """Returns the mean weighted by the learned row."""
    return mix(own, received, context.row)


RULES: Mapping[str, Rule] = {
    "none": none,
    "uniform": uniform,
    "samples": samples,
    "degroot": degroot,
}


def fixed_row(rule: str, own_samples: int, counts: Sequence[int]) -> tuple[float, ...]:
    """Returns the row, [K + 1], of a rule that learns nothing: none, uniform or samples.

    Args:
        rule: of the session.
        own_samples: training examples of mine.
        counts: of the K others, as they say.
    """
    if rule == "none":
        return (1.0, *(0.0 for _ in counts))
    return equal_row(len(counts)) if rule == "uniform" else sample_row(own_samples, counts)


def equal_row(received: int) -> tuple[float, ...]:
    """Returns the row that trusts everybody equally, me included."""
    return (1 / (received + 1),) * (received + 1)


def sample_row(own_samples: int, counts: Sequence[int]) -> tuple[float, ...]:
    """Returns the row in proportion to the clamped sample counts."""
    all_counts = (own_samples, *counts)
    middle = max(1.0, median(all_counts))
    clamped = [
        min(max(count, middle / MAX_SAMPLE_RATIO), middle * MAX_SAMPLE_RATIO)
        for count in all_counts
    ]
    return tuple(count / sum(clamped) for count in clamped)
