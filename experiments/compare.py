"""Differences between two lists of figures for the same seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Paired:
    """By how much one is above the other, seed by seed."""

    mean: float
    low: float  # of the 95 % confidence interval of the mean, by Student's t
    high: float
    p: float  # of the paired t-test, two-sided

    def __str__(self) -> str:
        """As in a table."""
        if self.low == self.high == 0:
            return "0 in every seed"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p {p_value(self.p)}"


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Returns the difference between two lists of figures for the same seeds.

    Wilcoxon's signed-rank test is no use here: its least two-sided p for five pairs is 1/16.
    """
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean = statistics.fmean(apart)
    if len(set(apart)) == 1:  # no spread to judge by
        return Paired(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(apart) - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(apart) - 1))
    return Paired(mean, mean - half, mean + half, p)


def p_value(p: float) -> str:
    """Returns a p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
