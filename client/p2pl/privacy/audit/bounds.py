"""From how often an attacker was right to the least epsilon that the training can have.

An audit proves nothing good: it can only show that a claim is false. So every figure here is a
lower bound with a confidence, and 0 means that nothing was found.
"""

import math
from dataclasses import dataclass

import numpy as np

MAX_AUDITED = 50.0  # beyond this no sample is large enough


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Returns the chance that so many guesses come out right if training is as private as claimed.

    Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846), appendix D: each canary was left in or out
    by a fair coin; the attacker may abstain.

    Args:
        canaries: m, with a coin each.
        guesses: r, made on the canaries that the attacker is surest of; at most m.
        right: v of them, 0 to r.
        epsilon: claimed, 0 or more.
        delta: claimed, 0..1.
    """
    from scipy import stats

    if right <= 0:
        return 1.0
    chance = 1 / (1 + math.exp(-epsilon))
    exceeded = float(stats.binom.sf(right - 1, guesses, chance))
    # The chance of v - i <= Bin < v, by i: a failure of delta can add so many right guesses.
    just_below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    slack = float(np.max(just_below / np.arange(1, right + 1)))
    return min(1.0, exceeded + 2 * canaries * delta * slack)


def epsilon_of_guesses(
    canaries: int, guesses: int, right: int, delta: float, confidence: float
) -> float:
    """Returns the largest epsilon, up to `MAX_AUDITED`, that the guesses contradict; 0 if none.

    Args:
        canaries: m, with a coin each.
        guesses: r, at most m.
        right: v of them, 0 to r.
        delta: claimed, 0..1.
        confidence: 0..1, that the bound is true.
    """

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, MAX_AUDITED
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a share lies, with some confidence."""

    low: float  # 0..1
    high: float  # 0..1


def clopper_pearson(count: int, trials: int, confidence: float) -> Interval:
    """Returns where the chance behind `count` of `trials` lies, with that confidence.

    Clopper and Pearson 1934: exact, each end with half of the error.

    Args:
        count: of successes, 0 to `trials`.
        trials: independent, at least 1.
        confidence: 0..1.
    """
    from scipy import stats

    found = stats.binomtest(count, trials).proportion_ci(confidence, method="exact")
    return Interval(float(found.low), float(found.high))


def epsilon_of_rates(
    true_positives: tuple[int, int],
    false_positives: tuple[int, int],
    delta: float,
    confidence: float,
) -> float:
    """Returns the least epsilon at which an attack can have such rates; 0 if any can.

    Kairouz, Oh and Viswanath 2015: TPR <= e^epsilon FPR + delta, and the same of the negatives.

    Args:
        true_positives: (count, members), how many were found of how many. The bound holds where
            the trials are independent.
        false_positives: (count, others), how many were accused of how many.
        delta: claimed, 0..1.
        confidence: 0..1, that the bound is true; the two intervals share the error.
    """
    each = 1 - (1 - confidence) / 2
    tpr, fpr = (
        clopper_pearson(count, trials, each) for count, trials in (true_positives, false_positives)
    )
    ratios = ((tpr.low - delta, fpr.high), (1 - fpr.high - delta, 1 - tpr.low))
    return max([0.0, *(math.log(a / b) for a, b in ratios if a > 0 and b > 0)])
