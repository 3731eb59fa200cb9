"""Attacks on membership find what a model remembers, and nothing where there is nothing."""

from dataclasses import replace

import msgspec
import pytest
import torch
from support.audits import SESSION, audited, coins, pictures

from p2pl.data.examples import Examples
from p2pl.privacy.accountant import Budget
from p2pl.privacy.audit.membership import attack_membership, score_attack
from p2pl.protocol.session import Training


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
    leaky = attack_membership(openly, data, 12, 0.95, coins(0))
    safe = attack_membership(private, data, 12, 0.95, coins(0))
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
    perfect = score_attack("perfect", present.double(), present, 1e-5, 0.95)
    assert (perfect.area, perfect.advantage) == (1.0, 1.0)
    assert perfect.true_positives == (1.0, 1.0)
    constant = score_attack("constant", torch.zeros(3, 2_000), present, 1e-5, 0.95)
    assert (constant.area, constant.advantage) == (0.5, 0.0)
    assert constant.true_positives == (0.0, 0.0)
    assert constant.epsilon == 0.0


def test_rates_are_counted_at_the_lowest_threshold_that_accuses_few_enough() -> None:
    # 200 others score 0 to 199, so 2 of them may be accused at 1 %, and none at 0.1 %.
    others = torch.arange(200.0)
    members = torch.tensor([300.0, 198.5, 197.5, 197.0, 10.0])
    scores, present = torch.cat([others, members])[None], torch.arange(205)[None] >= 200
    told = score_attack("by hand", scores, present, 0.0, 0.95)
    # Above 197, where the third highest of the others is: 300, 198.5 and 197.5.
    assert told.true_positives == (3 / 5, 1 / 5)
    beaten = 200 + 199 + 198 + 197.5 + 10.5  # pairs (member, other) in order; half of a tie
    assert told.area == pytest.approx(beaten / (5 * 200))
    assert told.advantage == pytest.approx(4 / 5 - 3 / 200)  # above 196.5


def test_scores_that_are_infinite_count_as_the_largest_and_the_least() -> None:
    scores = torch.tensor([[torch.inf, 1.0, 0.0, -torch.inf]])
    present = torch.tensor([[True, True, False, False]])
    assert score_attack("infinite", scores, present, 0.0, 0.95).area == 1.0
