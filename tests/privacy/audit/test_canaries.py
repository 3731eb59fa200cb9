"""The audit lets honest training pass and finds out three ways of being dishonest."""

import math

import pytest
import torch
from support.audits import audited, coins, pictures

from p2pl.data.examples import Examples
from p2pl.errors import InputError
from p2pl.privacy.audit.canaries import make_canaries, one_run, right_guesses
from p2pl.privacy.audit.target import Fault


@pytest.mark.parametrize("seed", range(5))
def test_honest_training_is_never_contradicted(seed: int) -> None:
    verdict = one_run(audited(2.0), pictures(), 500, 0.95, coins(seed))
    assert 1.98 < verdict.claimed <= 2.0
    assert verdict.bound < verdict.claimed
    assert not verdict.broken
    assert verdict.most > 4 > verdict.claimed  # it could have been


@pytest.mark.parametrize("fault", ["no-noise", "fresh-accountant", "seeded-noise"])
def test_what_is_wrong_is_found_out(fault: Fault) -> None:
    verdict = one_run(audited(2.0, fault), pictures(), 500, 0.95, coins(0))
    assert verdict.claimed <= 2.0  # the peer believes what it says
    assert verdict.broken, verdict


def test_only_comparing_with_ones_own_training_finds_noise_that_everybody_knows() -> None:
    verdict = one_run(audited(2.0, "seeded-noise"), pictures(), 500, 0.95, coins(0))
    blind = max(way.epsilon for way in verdict.ways if not way.reference)
    assert blind < verdict.claimed < verdict.bound


def test_training_without_privacy_claims_nothing_and_leaks() -> None:
    verdict = one_run(audited(None, rounds=20), pictures(), 500, 0.95, coins(0))
    assert math.isinf(verdict.claimed)
    assert not verdict.broken
    assert verdict.bound > 1


def test_canaries_pull_where_the_data_do_not_and_each_in_its_own_way() -> None:
    data = pictures()
    canaries = make_canaries(data, 300, 10, 1.0)
    inputs = canaries.x.flatten(1)
    assert len(canaries) == 300
    assert torch.allclose(inputs.norm(dim=1), torch.full((300,), 4.0), atol=1e-4)
    assert float((inputs @ data.x.flatten(1).T).abs().max()) < 1e-4
    pairs = {(tuple(x.tolist()), int(y)) for x, y in zip(inputs, canaries.y, strict=True)}
    assert len(pairs) == 300


def test_data_that_leave_no_room_for_canaries_are_refused() -> None:
    noise = Examples(torch.randn(400, 1, 2, 2), torch.randint(10, (400,)))
    with pytest.raises(InputError, match="room for 0 canaries"):
        make_canaries(noise, 100, 10, 1.0)
    with pytest.raises(InputError, match="room for 15"):
        make_canaries(pictures(30), 100, 10, 1.0)


def test_guesses_are_the_surest_ones() -> None:
    score = torch.tensor([5.0, -5.0, 1.0, -1.0, 0.5, -0.5])
    present = torch.tensor([True, False, False, True, True, False])
    assert right_guesses(score, present, 2) == 2
    assert right_guesses(score, present, 4) == 2
    assert right_guesses(score, present, 6) == 4
