"""What training has cost in privacy, and what more it may cost.

The unit is one example of one peer: two data sets are neighbours when one example of the one is
replaced by nothing in the other (zero-out adjacency, Ponomareva et al. 2023, arXiv:2303.00654,
section 2.1; how many examples a peer has is taken as known). The adversary is everybody else
together, and sees every version that the peer ever served, so nothing is gained by hiding steps.

One step of DP-SGD is a Poisson-subsampled Gaussian mechanism. Steps compose by their privacy loss
distributions (Koskela et al. 2020, arXiv:1906.03049), which dp-accounting rounds to a grid on the
safe side (connect the dots, Doroshenko et al. 2022, arXiv:2207.04380). The result is an upper
bound, within 1 % of the tightest known at the settings of this project.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from p2pl.errors import InputError, PrivacyError, wrong

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

# The grid is this much finer than one step's loss is wide, and never coarser than COARSEST: then
# epsilon is at most 0.3 % above that of a grid ten times as fine (tests hold it to 1 %).
FINENESS, COARSEST = 10, 1e-2
# Points of the grid for one step, and for all together, so that nothing takes seconds or gigabytes;
# chosen. Where they are too few, epsilon is further above the tightest, and never below.
STEP_POINTS, ALL_POINTS = 1 << 17, 1 << 22
TAIL = 10.0  # deviations of noise beyond which less than e^-50 lies, which dp-accounting cuts off
# A delta below this is lost in what is cut off and rounded (1e-15), and a grid coarser than this
# is none: then Renyi divergences bound epsilon, more loosely (Mironov et al. 2019,
# arXiv:1908.10530).
LEAST_DELTA, COARSE = 1e-12, 1.0
ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)  # chosen

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
    kinds: dict[tuple[float, float], int] = {}
    for charge in spent:
        kind = (charge.noise_multiplier, charge.sample_rate)
        if charge.steps and charge.sample_rate:
            kinds[kind] = kinds.get(kind, 0) + charge.steps
    if any(not noise > 0 for noise, _ in kinds):
        return math.inf
    return _composed(tuple((*kind, steps) for kind, steps in sorted(kinds.items())), delta)


@lru_cache(maxsize=4096)  # peers with as many examples have spent the same
def _composed(kinds: tuple[tuple[float, float, int], ...], delta: float) -> float:
    """Returns the epsilon of all kinds of steps: (noise, sampling rate above 0, steps)."""
    if not kinds:
        return 0.0
    interval = _interval(kinds)
    if delta < LEAST_DELTA or interval > COARSE:
        return _by_divergence(kinds, delta)
    losses = [_losses(noise, rate, steps, interval) for noise, rate, steps in kinds]
    total = reduce(lambda some, more: some.compose(more), losses)
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


def _losses(noise: float, rate: float, steps: int, interval: float) -> "PrivacyLossDistribution":
    """Returns what so many steps lose, on a grid."""
    if rate < 1:
        return _step(noise, rate, interval).self_compose(steps)
    return _step(noise / math.sqrt(steps), 1.0, interval)  # of Gaussians the sum is one


@lru_cache(maxsize=32)
def _step(noise: float, rate: float, interval: float) -> "PrivacyLossDistribution":
    """Returns what one step loses, on a grid."""
    from dp_accounting.pld import privacy_loss_distribution  # takes a second to import

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=interval, sampling_prob=rate
    )


def _interval(kinds: Sequence[tuple[float, float, int]]) -> float:
    """Returns how far apart the points of the grid are."""
    fine, coarse, spread = COARSEST, 0.0, 0.0
    for noise, rate, steps in kinds:
        if rate == 1:
            noise, steps = noise / math.sqrt(steps), 1
        most = (0.5 + TAIL * noise) / noise**2  # that one step can lose
        # The second moment of a step's likelihood ratio, less 1: for much noise, of its loss.
        moment = rate**2 * math.expm1(min(noise**-2, 700.0))
        fine = min(fine, math.sqrt(moment) / FINENESS)
        coarse = max(coarse, most / STEP_POINTS)
        spread += steps * min(moment, most)
    whole = spread + 2 * TAIL * math.sqrt(spread)
    return max(fine, coarse, whole / ALL_POINTS)


def _by_divergence(kinds: Sequence[tuple[float, float, int]], delta: float) -> float:
    from dp_accounting import dp_event, rdp

    accountant = rdp.RdpAccountant(ORDERS)
    for noise, rate, steps in kinds:
        step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        accountant.compose(step, steps)
    return max(0.0, float(accountant.get_epsilon(delta)))


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
    from scipy.optimize import brentq

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
