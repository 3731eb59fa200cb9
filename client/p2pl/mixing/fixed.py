"""What a peer makes of the models it received: a weighted mean.

A rule is a row of K + 1 weights, non-negative and of sum 1; the first is my own. The rules here
learn nothing; `degroot` takes its row from `p2pl.mixing.trust.row`.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeAlias

from torch import Tensor

Row: TypeAlias = tuple[float, ...]

# Sample counts are what strangers say of themselves. Within this factor of the median one peer
# among ten can at most take 4/13 of the weight, whatever it claims. Chosen: algorithms that weigh
# by samples lose nothing on shards that differ less.
MAX_SAMPLE_RATIO = 4.0
MAX_AGE_GAP = 5  # rounds; chosen: what is older than that is stale under every other rule as well


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


def fixed_row(rule: str, own_samples: int, counts: Sequence[int]) -> Row:
    """Returns the row of a rule that learns nothing.

    Args:
        rule: one of `FIXED`.
        own_samples: training examples of mine; for `age`, the age of my model.
        counts: of the K others, as they say.
    """
    return FIXED[rule](own_samples, counts)


def own_row(own_samples: int, counts: Sequence[int]) -> Row:
    """Returns the row that trusts nobody: training alone."""
    del own_samples
    return (1.0, *(0.0 for _ in counts))


def equal_row(own_samples: int, counts: Sequence[int]) -> Row:
    """Returns the row that trusts everybody equally, me included."""
    del own_samples
    return (1 / (len(counts) + 1),) * (len(counts) + 1)


def sample_row(own_samples: int, counts: Sequence[int]) -> Row:
    """Returns the row in proportion to sample counts, as in McMahan et al. 2017 (FedAvg).

    Counts are self-reported, hence kept within `MAX_SAMPLE_RATIO` of their median.
    """
    all_counts = (own_samples, *counts)
    middle = max(1.0, median(all_counts))
    clamped = [
        min(max(count, middle / MAX_SAMPLE_RATIO), middle * MAX_SAMPLE_RATIO)
        for count in all_counts
    ]
    return tuple(count / sum(clamped) for count in clamped)


def age_row(own_age: int, ages: Sequence[int]) -> Row:
    """Returns the row in proportion to ages, which say how much training a model has seen.

    The merge of gossip learning (Hegedus et al. 2021), for several models at once; and one that is
    far behind the oldest has no weight (limited merging, Danner et al. 2023), be it my own. Ages
    are self-reported: whoever asks for this row has capped them.

    Args:
        own_age: of my own model, in rounds; at least 0.
        ages: of the K others.
    """
    all_ages = (own_age, *ages)
    oldest = max(all_ages)
    weights = [age if age >= oldest - MAX_AGE_GAP else 0 for age in all_ages]
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total else equal_row(own_age, ages)


FIXED: Mapping[str, Callable[[int, Sequence[int]], Row]] = {
    "none": own_row,
    "uniform": equal_row,
    "samples": sample_row,
    "age": age_row,
}
