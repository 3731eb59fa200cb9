"""What privacy was spent, held to exact values and other accountants, and what more is allowed."""

import math

import msgspec
import pytest
from dp_accounting import pld, rdp
from opacus.accountants import RDPAccountant
from scipy.stats import norm
from support.private import composed

from p2pl.errors import InputError, PrivacyError
from p2pl.privacy.accountant import (
    MAX_NOISE,
    MIN_NOISE,
    Account,
    Accountant,
    Budget,
    Charge,
    Spent,
    affordable,
    check_batch,
    epsilon,
    merged,
    noise_multiplier,
)

DELTA = 1e-5
# Shards of 240 to 48,000 examples, batches of 64 to 512, 5 to 60 epochs; epsilon 0.3 to 20.
GRID = [
    (Charge(noise, rate, steps),)
    for rate, steps, noises in (
        (0.333, 60, (2.0, 5.0, 12.0)),
        (0.064, 312, (1.04, 1.92, 4.73)),
        (0.032, 625, (0.86, 1.45, 3.39)),
        (0.0107, 1875, (0.68, 1.0, 2.04)),
        (0.004, 2000, (0.7,)),
        (1.0, 20, (4.7, 18.1)),
    )
    for noise in noises
]
RESTARTED: Spent = (  # a run that was resumed with a larger budget, then with more data
    Charge(4.7, 0.064, 100),
    Charge(2.6, 0.064, 150),
    Charge(2.6, 0.05, 40),
)


@pytest.mark.parametrize("spent", [*GRID, RESTARTED], ids=str)
def test_epsilon_is_within_a_hundredth_of_the_tightest_bound(spent: Spent) -> None:
    tightest = composed(pld.PLDAccountant(value_discretization_interval=2e-4), spent, DELTA)
    assert 0.9999 * tightest <= epsilon(spent, DELTA) <= 1.01 * tightest


@pytest.mark.parametrize("spent", [*GRID, RESTARTED], ids=str)
def test_epsilon_is_below_what_renyi_divergences_give(spent: Spent) -> None:
    # Other mathematics, and other code: what this project charged before.
    opacus = RDPAccountant()
    opacus.history = [msgspec.structs.astuple(charge) for charge in spent]
    assert epsilon(spent, DELTA) < opacus.get_epsilon(DELTA)


@pytest.mark.parametrize(("noise", "steps"), [(4.7, 20), (18.1, 20), (0.8, 1), (300.0, 5_000)])
def test_epsilon_without_sampling_is_that_of_one_gaussian(noise: float, steps: int) -> None:
    # Balle and Wang 2018 (arXiv:1805.06530), theorem 8: exact.
    got = epsilon((Charge(noise, 1.0, steps),), DELTA)
    shift = math.sqrt(steps) / noise

    def delta(at: float) -> float:
        over, under = norm.cdf(shift / 2 - at / shift), norm.cdf(-shift / 2 - at / shift)
        return float(over - math.exp(at) * under)

    assert delta(got) <= DELTA * (1 + 1e-9)
    assert delta(0.995 * got) > DELTA


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.02), (0.6, 0.3), (2.0, 0.5)])
def test_epsilon_of_one_sampled_step_is_the_exact_one(noise: float, rate: float) -> None:
    got = epsilon((Charge(noise, rate, 1),), DELTA)

    def delta(at: float) -> float:
        """Returns what the set of outcomes that say most against the bound leaves of it."""
        odds = math.log((math.exp(at) - 1 + rate) / rate)  # of outcomes at the edge of that set
        edge = odds * noise**2 + 0.5
        without = norm.sf(edge / noise)
        return float((1 - rate - math.exp(at)) * without + rate * norm.sf((edge - 1) / noise))

    assert delta(got) <= DELTA * (1 + 1e-9)
    assert delta(0.995 * got) > DELTA


def test_where_no_grid_helps_epsilon_is_a_looser_bound() -> None:
    tiny = 1e-14
    spent = (Charge(2.0, 0.064, 312),)
    accountant = rdp.RdpAccountant([1 + x / 10 for x in range(1, 400)])
    assert composed(accountant, spent, tiny) == pytest.approx(epsilon(spent, tiny), rel=0.02)
    assert epsilon(spent, tiny) > epsilon(spent, 1e-12)
    assert 1e6 < epsilon((Charge(0.01, 0.3, 1_000),), DELTA) < math.inf


def test_a_run_that_was_begun_under_a_looser_bound_may_go_on_for_longer() -> None:
    old = 1.92  # what lasted for these 312 steps when Renyi divergences were counted
    half = Account(epsilon=3.0, delta=DELTA, noise_multiplier=old, spent=(Charge(old, 0.064, 156),))
    accountant = Accountant(half)
    assert accountant.charge(0.064, 156) == 156
    more = sum(accountant.charge(0.064, 10) for _ in range(20))
    assert 30 < more < 80
    tightest = pld.PLDAccountant(value_discretization_interval=1e-3)
    assert 0.99 * 3.0 < composed(tightest, accountant.account.spent, DELTA) <= 3.0


def test_what_was_spent_adds_up_however_it_was_cut() -> None:
    whole = (Charge(1.5, 0.03, 600),)
    parts: Spent = ()
    for steps in (1, 99, 300, 200):
        parts = merged(parts, Charge(1.5, 0.03, steps))
    assert parts == whole
    alternating = (Charge(1.5, 0.03, 300), Charge(9.0, 0.5, 0), Charge(1.5, 0.03, 300))
    assert epsilon(alternating, DELTA) == pytest.approx(epsilon(whole, DELTA))
    assert epsilon((), DELTA) == epsilon((Charge(1.5, 0.03, 0),), DELTA) == 0


@pytest.mark.parametrize(
    ("wanted", "rate", "steps"),
    [(0.5, 0.333, 60), (8.0, 0.333, 60), (1.0, 0.064, 312), (3.0, 0.03, 600)],
)
def test_the_noise_makes_the_budget_last_exactly(wanted: float, rate: float, steps: int) -> None:
    noise = noise_multiplier(Budget(wanted, DELTA), (), rate, steps)
    assert 0.99 * wanted < epsilon((Charge(noise, rate, steps),), DELTA) <= wanted
    less = epsilon((Charge(0.99 * noise, rate, steps),), DELTA)
    assert less > wanted


def test_no_noise_costs_everything() -> None:
    assert epsilon((Charge(0.0, 0.1, 1),), DELTA) == float("inf")


def test_a_budget_allows_the_steps_it_was_made_for_and_no_more() -> None:
    account = Account.opened(Budget(3.0, DELTA), 0.064, 300)
    accountant = Accountant(account)
    assert [accountant.charge(0.064, 70) for _ in range(4)] == [70] * 4
    left = accountant.charge(0.064, 70)
    assert 20 <= left < 25  # the noise is found to a thousandth, which is a step or two
    assert accountant.charge(0.064, 70) == 0
    assert 2.97 < accountant.account.spent_epsilon <= 3.0


def test_a_peer_with_less_data_pays_more_for_a_step() -> None:
    budget = Budget(2.0, DELTA)
    noise = [noise_multiplier(budget, (), 64 / count, 200) for count in (500, 2000, 8000)]
    assert noise[0] > noise[1] > noise[2]


def test_what_was_spent_before_leaves_less_for_what_comes() -> None:
    before = (Charge(4.0, 0.064, 300),)
    budget = Budget(3.0, DELTA)
    more = noise_multiplier(budget, before, 0.064, 300)
    assert more > noise_multiplier(budget, (), 0.064, 300)
    assert epsilon((*before, Charge(more, 0.064, 300)), DELTA) <= 3.0
    assert affordable(Budget(0.5, DELTA), before, Charge(4.0, 0.064, 300)) == 0


def test_steps_are_written_down_before_they_are_done() -> None:
    written: list[Account] = []
    accountant = Accountant(Account.opened(Budget(3.0, DELTA), 0.064, 300), written.append)
    accountant.charge(0.064, 10)
    assert [account.steps for account in written] == [10]
    assert written[-1] == accountant.account


def test_steps_that_cannot_be_written_down_are_not_done() -> None:
    def full(account: Account) -> None:
        raise InputError("no space left on device")

    accountant = Accountant(Account.opened(Budget(3.0, DELTA), 0.064, 300), full)
    with pytest.raises(InputError, match="no space"):
        accountant.charge(0.064, 10)
    assert accountant.account.steps == 0


@pytest.mark.parametrize(
    ("wanted", "delta", "message"),
    [
        (0.0, None, "epsilon: got 0.0, allowed above 0"),
        (-1.0, None, "epsilon"),
        (float("nan"), None, "epsilon"),
        (float("inf"), None, "epsilon"),
        (101.0, None, "at most 100"),
        (1.0, 0.0, "delta"),
        (1.0, 1 / 1000, "below 1/n = 0.001"),
        (1.0, float("nan"), "delta"),
    ],
)
def test_a_budget_that_promises_nothing_is_refused(
    wanted: float, delta: float | None, message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        Budget.checked(wanted, delta, 1000)


def test_delta_fits_the_data_where_nobody_chose_it() -> None:
    assert Budget.checked(1.0, None, 1000).delta == 1e-5
    assert Budget.checked(1.0, None, 100_000).delta == pytest.approx(1e-6)


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyError, match=f"not even {MAX_NOISE:g} times"):
        noise_multiplier(Budget(1e-3, DELTA), (), 0.5, 100_000)


@pytest.mark.parametrize("examples", [2, 50, 1_000, 2_500, 1_000_000])
@pytest.mark.parametrize("place", ["least", "third", "below 1/n"])
def test_every_delta_below_one_in_n_has_its_noise(examples: int, place: str) -> None:
    top = 1 / examples
    delta = {"least": 1e-12, "third": top / 3, "below 1/n": math.nextafter(top, 0)}[place]
    batch = max(1, examples // 50)
    rate, steps = batch / examples, 3 * math.ceil(examples / batch)
    for wanted in (1.0, 100.0):
        budget = Budget.checked(wanted, delta, examples)
        noise = noise_multiplier(budget, (), rate, steps)
        spent = epsilon((Charge(noise, rate, steps),), delta)
        assert spent <= wanted
        assert spent > 0.98 * wanted or noise < MIN_NOISE


def test_noise_that_a_large_delta_forgives_costs_nothing() -> None:
    # One answer under noise of a thousand sensitivities differs by 2 Phi(1 / 2000) - 1 = 4e-4 at
    # most (total variation), so a failure chance above that leaves an epsilon of 0.
    charge = (Charge(1_000.0, 1.0, 1),)
    assert epsilon(charge, 2e-3) == 0.0
    assert epsilon(charge, 1e-4) > 0.0


def test_a_batch_larger_than_the_data_is_refused() -> None:
    assert check_batch(64, 64) == 1.0
    with pytest.raises(InputError, match="got 65, allowed at most the 64"):
        check_batch(65, 64)
