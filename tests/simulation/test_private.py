"""Virtual peers train privately as networked ones do, each with a budget of its own."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from support.simulations import digits, small_setup

from p2pl.attacks import kinds as attacks
from p2pl.errors import InputError, PrivacyError
from p2pl.privacy.policy import Wanted
from p2pl.privacy.trainer import PrivateTrainer
from p2pl.protocol.session import Model, Privacy
from p2pl.simulation.engine import Result, run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.setup import Setup

CPU = torch.device("cpu")


def private(*changes: tuple[str, str, object], **more: object) -> Setup:
    """Returns a short simulation of logistic regression on the digits, with a budget of 2."""
    setup = small_setup(("training", "momentum", 0.0), ("training", "batch_size", 64), *changes)
    session = msgspec.structs.replace(setup.session, model=Model(name="logreg"))
    given: dict[str, Any] = {"session": session, "privacy": Wanted(2.0), **more}
    return replace(setup, **given)


def spent(result: Result) -> list[list[float | None]]:
    """Returns what each round's log says was spent, by peer."""
    return [
        [one.entries[peer].epsilon for one in result.rounds] for peer in range(len(result.learners))
    ]


def test_every_peer_spends_its_own_budget_and_no_more() -> None:
    result = run(private(partition="unbalanced"), digits(), CPU)
    for curve in spent(result):
        assert curve == sorted(curve)  # type: ignore[type-var]
        assert 1.97 < curve[-1] <= 2.0  # type: ignore[operator]
    noises = {
        one.trainer.private.accountant.account.noise_multiplier
        for one in result.learners
        if isinstance(one.trainer, PrivateTrainer)
    }
    assert len(noises) > 1  # who has less data needs more noise


def test_the_figures_say_what_was_spent_and_by_asking_whom() -> None:
    figures = numbers([run(private(), digits(), CPU)])
    assert 1.97 < figures["epsilon"] <= 2.0
    assert 0 < figures["trust_epsilon"] <= 2.0
    assert figures["delta"] == 1e-5
    assert figures["noise_multiplier"] > 0.5
    plain = numbers([run(private(privacy=None), digits(), CPU)])
    assert plain["epsilon"] is plain["trust_epsilon"] is plain["delta"] is None


def test_a_large_delta_is_a_budget_like_any_other() -> None:
    changes = (("exchange", "rounds", 1),)
    figures = numbers([run(private(*changes, privacy=Wanted(1.0, 2e-3)), digits(), CPU)])
    assert figures["delta"] == 2e-3
    assert 0.97 < figures["epsilon"] <= 1.0
    assert 0 < figures["trust_epsilon"] <= 1.0


def test_rules_that_ask_nobody_spend_nothing_on_trust() -> None:
    figures = numbers([run(private(("mixing", "rule", "uniform")), digits(), CPU)])
    assert figures["trust_epsilon"] is None


@pytest.mark.parametrize("baseline", ["centralised", "isolated"])
def test_a_baseline_trains_privately_too(baseline: str) -> None:
    result = run(private(baseline=baseline), digits(), CPU)
    assert all(1.97 < curve[-1] <= 2.0 for curve in spent(result))  # type: ignore[operator]


def test_noise_is_new_every_time_though_the_seed_is_the_same() -> None:
    one, other = (run(private(), digits(), CPU) for _ in range(2))
    assert not torch.equal(one.vectors[0], other.vectors[0])


def test_a_peer_that_flips_its_sign_is_thrown_out_at_epsilon_1() -> None:
    attack, bad = attacks.parse("sign-flip:1")
    setup = private(
        ("exchange", "rounds", 4),
        ("exchange", "cohort", 4),
        peers=5,
        bad=bad,
        attack=attack,
        privacy=Wanted(1.0),
    )
    figures = numbers([run(setup, digits(), CPU)])
    assert figures["bad_rejected"] == 100
    assert figures["good_rejected"] < 20
    assert figures["trust_epsilon"] <= 1.0


def test_what_cannot_be_private_is_refused() -> None:
    with pytest.raises(InputError, match="stacked"):
        run(private(engine="stacked"), digits(), CPU)
    with pytest.raises(PrivacyError, match="epsilon"):
        run(private(privacy=Wanted(0.0)), digits(), CPU)
    with pytest.raises(InputError, match=r"training\.batch_size"):
        run(private(("training", "batch_size", 1_000)), digits(), CPU)
    demanding = msgspec.structs.replace(private().session, privacy=Privacy(max_epsilon=1.0))
    with pytest.raises(PrivacyError, match="which the session demands"):
        run(private(session=demanding), digits(), CPU)
