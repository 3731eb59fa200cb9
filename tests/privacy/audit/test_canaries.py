"""The audit lets honest training pass and finds out three ways of being dishonest."""

import math
from dataclasses import replace

import msgspec
import pytest
import torch

from p2pl.data.examples import Examples
from p2pl.errors import InputError
from p2pl.learning import models
from p2pl.learning.weights import flatten
from p2pl.privacy.accountant import Budget
from p2pl.privacy.audit import membership
from p2pl.privacy.audit.canaries import Audited, Fault, make_canaries, one_run, right_guesses
from p2pl.privacy.audit.membership import attack
from p2pl.protocol.session import Exchange, Model, Session, Task, Training

ROUNDS, BATCH, COUNT = 100, 256, 1024
SESSION = Session(
    task=Task(input=(1, 10, 10), classes=10),
    model=Model(name="logreg"),
    training=Training(learning_rate=0.2, batch_size=BATCH),
    exchange=Exchange(rounds=ROUNDS, cohort=1),
)


def pictures(count: int = COUNT, seed: int = 0) -> Examples:
    """Returns pictures of ten classes with an empty margin, as photographs of digits have."""
    source = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (count,), generator=source)
    means = torch.randn(10, 36, generator=torch.Generator().manual_seed(7))
    inner = means[y] + torch.randn(count, 36, generator=source)
    x = torch.zeros(count, 1, 10, 10)
    x[:, 0, 2:8, 2:8] = inner.view(count, 6, 6) / 4
    return Examples(x, y)


def audited(epsilon: float | None, fault: Fault = "none", rounds: int = ROUNDS) -> Audited:
    """Returns training to audit."""
    model = models.build(SESSION)
    budget = None if epsilon is None else Budget.checked(epsilon, 1e-5, COUNT)
    return Audited(SESSION, model, flatten(model), rounds, budget, 1.0, fault)


def coins(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


# --- membership ----------------------------------------------------------------------------------


def noisy(count: int) -> Examples:
    """Returns pictures with random labels: what a model says of them, it can only remember."""
    data = pictures(count)
    return Examples(data.x, torch.randint(10, (count,), generator=coins(3)))


def test_members_are_found_without_privacy_and_hidden_with_it() -> None:
    data = noisy(256)
    session = msgspec.structs.replace(
        SESSION, training=Training(learning_rate=1.0, batch_size=64, local_epochs=4)
    )
    openly = replace(audited(None, rounds=30), session=session)
    private = replace(openly, budget=Budget.checked(1.0, 1e-5, 256))
    leaky = attack(openly, data, 12, 0.95, coins(0))
    safe = attack(private, data, 12, 0.95, coins(0))
    assert [one.name for one in leaky] == ["loss threshold", "LiRA"]
    for bad, good in zip(leaky, safe, strict=True):
        assert bad.area > 0.65
        assert 0.38 < good.area < 0.62
        assert bad.advantage > good.advantage
        assert bad.true_positives[0] > good.true_positives[0]
        assert good.intervals[0].low <= good.true_positives[0] <= good.intervals[0].high
        assert good.epsilon < 1.0
    assert leaky[1].epsilon > 0.5


def test_a_perfect_score_finds_everybody_and_a_constant_one_nobody() -> None:
    present = torch.rand(3, 2_000, generator=coins(0)) < 0.5
    perfect = membership._judged("perfect", present.double(), present, 1e-5, 0.95)
    assert (perfect.area, perfect.advantage) == (1.0, 1.0)
    assert perfect.true_positives == (1.0, 1.0)
    constant = membership._judged("constant", torch.zeros(3, 2_000), present, 1e-5, 0.95)
    assert (constant.area, constant.advantage) == (0.5, 0.0)
    assert constant.true_positives == (0.0, 0.0)
    assert constant.epsilon == 0.0
