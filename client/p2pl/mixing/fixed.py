"""Rules that learn nothing: a row of weights that depends on counts alone.

A row has K + 1 weights, non-negative and of sum 1; the first is the peer's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import ClassVar

import msgspec

from p2pl.mixing.base import MIXERS, Mixed, Mixer, Own, PeerModel, Row, by_row

# Sample counts are what strangers say of themselves. Within this factor of the median one peer
# among ten can at most take 4/13 of the weight, whatever it claims. Chosen: algorithms that weigh
# by samples lose nothing on shards that differ less.
MAX_SAMPLE_RATIO = 4.0
MAX_AGE_GAP = 5  # rounds; chosen: what is older than that is stale under every other rule as well


def own_row(others: int) -> Row:
    """Returns the row that trusts nobody, with K others: training alone."""
    return (1.0, *(0.0,) * others)


def equal_row(others: int) -> Row:
    """Returns the row that trusts K others and the peer itself equally."""
    return (1 / (others + 1),) * (others + 1)


def sample_row(own_samples: int, counts: Sequence[int]) -> Row:
    """Returns the row in proportion to sample counts, as in McMahan et al. 2017 (FedAvg).

    Counts are self-reported, hence kept within `MAX_SAMPLE_RATIO` of their median.

    Args:
        own_samples: examples that the peer trains on, at least 0.
        counts: of the K others, as they say.
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
    far behind the oldest has no weight (limited merging, Danner et al. 2023), be it the peer's own.
    Ages are self-reported: whoever asks for this row has capped them.

    Args:
        own_age: of the peer's own model, in rounds; at least 0.
        ages: of the K others.
    """
    all_ages = (own_age, *ages)
    oldest = max(all_ages)
    weights = [age if age >= oldest - MAX_AGE_GAP else 0 for age in all_ages]
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total else equal_row(len(ages))


class FixedRow(Mixer):
    """A rule whose row depends on counts alone: nothing is learned, and nothing remembered."""

    keeps_privacy: ClassVar[bool] = True
    # Whether whoever mixes the same models gives each of them the same weight, whichever is its
    # own: then peers that hold the same come to the same.
    is_even: ClassVar[bool] = False

    def row(self, own: Own, received: Mapping[str, PeerModel]) -> Row:
        """Returns the weights of the mix: the peer's own, then those of the K models, sum 1.

        Args:
            own: the peer's own model.
            received: K models by peer id.
        """
        raise NotImplementedError

    def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
        """Returns the weighted mean."""
        return replace(by_row(self.peer_id, own, received, self.row(own, received)), memory=memory)


@MIXERS.builtin("none")
class OwnOnly(FixedRow):
    """Trusts nobody: what others give is thrown away."""

    def row(self, own: Own, received: Mapping[str, PeerModel]) -> Row:
        """Returns a 1 and K zeros."""
        return own_row(len(received))


@MIXERS.builtin("uniform")
class Uniform(FixedRow):
    """Trusts everybody equally, the peer itself included."""

    is_even: ClassVar[bool] = True

    def row(self, own: Own, received: Mapping[str, PeerModel]) -> Row:
        """Returns K + 1 equal weights."""
        return equal_row(len(received))


@MIXERS.builtin("samples")
class BySamples(FixedRow):
    """Weighs by sample counts, as federated averaging does."""

    is_even: ClassVar[bool] = True

    def row(self, own: Own, received: Mapping[str, PeerModel]) -> Row:
        """Returns weights in proportion to sample counts, within a factor of their median."""
        return sample_row(own.samples, [model.samples for model in received.values()])


@MIXERS.builtin("age")
class ByAge(FixedRow):
    """Weighs by age: how many rounds of training are in a model."""

    def row(self, own: Own, received: Mapping[str, PeerModel]) -> Row:
        """Returns weights in proportion to ages; 0 for what is far behind the oldest."""
        return age_row(own.round, [model.round for model in received.values()])
