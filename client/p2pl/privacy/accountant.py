"""What training has cost in privacy, and what more it may cost.

The unit is one example of one peer: two data sets are neighbours when one example of the one is
replaced by nothing in the other (zero-out adjacency, Ponomareva et al. 2023, arXiv:2303.00654,
section 2.1; how many examples a peer has is taken as known). The adversary is everybody else
together, and sees every version that the peer ever served, so nothing is gained by hiding steps.

One step of DP-SGD is a Poisson-subsampled Gaussian mechanism. Steps compose by their Renyi
divergences (Mironov et al. 2019, arXiv:1908.10530), which Opacus computes; they add up, so the cost
of one step is computed once. The result is an upper bound, 7 to 8 % above the tightest known at the
settings of this project, and up to a third above it where noise is little and sampling rare.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import msgspec
import numpy as np

from p2pl.errors import InputError, PrivacyError, wrong

# Opacus' own orders, and larger ones, which it lacks: with much noise they give the bound.
_LARGE_ORDERS = (64, 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
ORDERS: tuple[float, ...] = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), *_LARGE_ORDERS)

MAX_EPSILON = 100.0  # chosen: e^100 to 1 promises nothing
MIN_NOISE, MAX_NOISE = 0.2, 1_000.0  # multiples of the clipping norm: no more, no less is sought
NOISE_TOLERANCE = 1e-3  # relative, always to the side of more noise
# The least share of a budget that the search for its noise tells from nothing (chosen). With much
# noise and a large delta the epsilon of the steps is 0, and 0 has no logarithm.
NOTHING = 1e-6
DEFAULT_DELTA = 1e-5
DELTA_SHARE = 0.1  # of 1/n: what delta is at most when nobody chose it


class Charge(msgspec.Struct, frozen=True):
    """Steps of one kind: `steps` releases of a Gaussian on a random part of the data."""

    noise_multiplier: float  # standard deviation of the noise, in sensitivities; 0 or more
    sample_rate: float  # chance of an example to take part in a step, 0..1
    steps: int  # 0 or more


Bounds: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]  # one for each of ORDERS
Spent: TypeAlias = tuple[Charge, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on one example, over all that is ever done with it."""

    epsilon: float  # above 0
    delta: float  # chance of failure that the guarantee leaves; above 0, below 1/n

    @classmethod
    def checked(cls, epsilon: float, delta: float | None, examples: int) -> "Budget":
        """Returns the budget, with a sensible delta where none was chosen.

        Args:
            epsilon: above 0, at most `MAX_EPSILON`.
            delta: above 0, below 1/n; None: a tenth of 1/n, at most `DEFAULT_DELTA`.
            examples: n, all of the peer's own, at least 1.

        Raises:
            PrivacyError: a value out of its range.
        """
        if not 0 < epsilon <= MAX_EPSILON:
            raise PrivacyError(
                wrong("epsilon", got=epsilon, allowed=f"above 0, at most {MAX_EPSILON:g}")
            )
        if delta is None:
            delta = min(DEFAULT_DELTA, DELTA_SHARE / examples)
        if not 0 < delta < 1 / examples:
            raise PrivacyError(
                wrong(
                    "delta",
                    got=delta,
                    allowed=f"above 0, below 1/n = {1 / examples:.2g}: at 1/n, publishing one "
                    "example in full would count as private",
                )
            )
        return cls(epsilon, delta)


def epsilon(spent: Sequence[Charge], delta: float) -> float:
    """Returns the epsilon of everything in `spent` together; 0 for nothing, infinite without noise.

    It is 0, too, where noise is so much that `delta` covers all that an example can change.

    Args:
        spent: in any order.
        delta: at which epsilon is wanted; above 0, below 1.
    """
    if not any(charge.steps for charge in spent):
        return 0.0
    orders = np.array(ORDERS)
    divergence = sum(
        charge.steps * _divergence(charge.noise_multiplier, charge.sample_rate)
        for charge in spent
        if charge.steps
    )
    # Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), proposition 12, as Opacus has it.
    bounds = divergence - np.log(delta * orders) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(np.nanmin(bounds)))


@lru_cache(maxsize=256)
def _divergence(noise_multiplier: float, sample_rate: float) -> Bounds:
    """Returns the Renyi divergence of one step at each of `ORDERS`."""
    if not noise_multiplier > 0:
        return np.full(len(ORDERS), math.inf)
    from opacus.accountants.analysis.rdp import compute_rdp  # takes 4 s to import

    return np.asarray(
        compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS))
    )


def affordable(budget: Budget, spent: Sequence[Charge], wanted: Charge) -> int:
    """Returns how many of the wanted steps the budget still allows, 0 to `wanted.steps`.

    Args:
        budget: for everything together.
        spent: before.
        wanted: steps of one kind.
    """

    def within(steps: int) -> bool:
        more = msgspec.structs.replace(wanted, steps=steps)
        return epsilon((*spent, more), budget.delta) <= budget.epsilon

    if within(wanted.steps):
        return wanted.steps
    low, high = 0, wanted.steps  # low is affordable, high is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


@lru_cache(maxsize=256)  # peers with as many examples need the same, and it takes a second
def noise_multiplier(budget: Budget, spent: Spent, sample_rate: float, steps: int) -> float:
    """Returns the least noise multiplier with which the budget lasts for `steps` more steps.

    It is found to `NOISE_TOLERANCE`, and less than about `MIN_NOISE` is not sought.

    Args:
        budget: for everything together.
        spent: before.
        sample_rate: chance of an example to take part in a step, 0..1.
        steps: at least 1.

    Raises:
        PrivacyError: no noise up to `MAX_NOISE` is enough.
    """
    from scipy.optimize import brentq  # with Opacus

    def overrun(log_noise: float) -> float:
        """Returns by what factor such noise overruns the budget, as a logarithm; nearly linear."""
        more = Charge(math.exp(log_noise), sample_rate, steps)
        return math.log(max(epsilon((*spent, more), budget.delta) / budget.epsilon, NOTHING))

    if overrun(math.log(MAX_NOISE)) > 0:
        raise PrivacyError(
            wrong(
                "epsilon",
                got=budget.epsilon,
                allowed=f"enough for {steps} steps at a sampling rate of {sample_rate:.3g}",
                hint=f"not even {MAX_NOISE:g} times the clipping norm of noise would do; "
                "train fewer steps, or allow a larger epsilon",
            )
        )
    low = high = 0.0  # noise of 1; each is moved until the budget is between the two
    while overrun(high) > 0:
        low, high = high, high + 1
    while overrun(low) <= 0:
        low, high = low - 0.5, low
        if math.exp(high) < MIN_NOISE:
            return math.exp(high)
    found = brentq(overrun, low, high, xtol=NOISE_TOLERANCE / 2)
    while overrun(found) > 0:
        found += NOISE_TOLERANCE / 4
    return math.exp(found)


def merged(spent: Spent, more: Charge) -> Spent:
    """Returns `spent` with `more`; steps of the kind of the last entry are added to that entry.

    Args:
        spent: so far.
        more: what is spent next.
    """
    if spent and (spent[-1].noise_multiplier, spent[-1].sample_rate) == (
        more.noise_multiplier,
        more.sample_rate,
    ):
        total = msgspec.structs.replace(more, steps=spent[-1].steps + more.steps)
        return (*spent[:-1], total)
    return (*spent, more)


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One budget and everything that was ever charged to it: what is written to disk."""

    epsilon: float
    delta: float
    noise_multiplier: float  # with which the budget lasts for what was planned
    spent: Spent = ()

    @property
    def budget(self) -> Budget:
        """What may be spent, on all that was and will be done."""
        return Budget(self.epsilon, self.delta)

    @property
    def spent_epsilon(self) -> float:
        """The epsilon of everything charged so far."""
        return epsilon(self.spent, self.delta)

    @property
    def steps(self) -> int:
        """How many steps were ever charged."""
        return sum(charge.steps for charge in self.spent)

    @classmethod
    def opened(cls, budget: Budget, sample_rate: float, steps: int, spent: Spent = ()) -> "Account":
        """Returns an account whose noise makes the budget last for `steps` more steps.

        Args:
            budget: for everything together.
            sample_rate: chance of an example to take part in a step, 0..1.
            steps: that are planned, at least 1.
            spent: before.

        Raises:
            PrivacyError: no noise is enough.
        """
        noise = noise_multiplier(budget, spent, sample_rate, steps)
        return cls(epsilon=budget.epsilon, delta=budget.delta, noise_multiplier=noise, spent=spent)


class Accountant:
    """An account that is written down before what it pays for is done.

    A crash in between charges for steps that never were: what is spent is at most over-counted.
    """

    def __init__(
        self, account: Account, write: Callable[[Account], None] = lambda account: None
    ) -> None:
        """Keeps the account.

        Args:
            account: what may be spent, and what was spent already.
            write: keeps an account for ever. If it raises, nothing was charged.
        """
        self.account = account
        self._write = write

    def charge(self, sample_rate: float, steps: int) -> int:
        """Returns how many of the `steps` may be done now; they are paid for when this returns.

        Args:
            sample_rate: chance of an example to take part in a step, 0..1.
            steps: wanted, at least 0.
        """
        account = self.account
        wanted = Charge(account.noise_multiplier, sample_rate, steps)
        allowed = affordable(account.budget, account.spent, wanted)
        if allowed:
            paid = msgspec.structs.replace(wanted, steps=allowed)
            after = msgspec.structs.replace(account, spent=merged(account.spent, paid))
            self._write(after)
            self.account = after
        return allowed


def check_batch(batch_size: int, examples: int) -> float:
    """Returns the sampling rate, 0..1, with which a batch is expected in a step.

    Args:
        batch_size: examples expected in a step, at least 1.
        examples: to train on.

    Raises:
        InputError: there are fewer examples than that.
    """
    if batch_size > examples:
        raise InputError(
            wrong(
                "training.batch_size",
                got=batch_size,
                allowed=f"at most the {examples} examples to train on, for private training",
            )
        )
    return batch_size / examples
