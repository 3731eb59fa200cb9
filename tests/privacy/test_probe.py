"""A private judge: its answers are bounded, noised, paid for, and still tell a liar."""

import math

import pytest
import torch
from support.objectives import objective
from support.private import account, examples, session
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.learning import models
from p2pl.learning.train import Start, train
from p2pl.learning.weights import flatten
from p2pl.privacy.accountant import Account, Accountant, Budget
from p2pl.privacy.probe import MAX_LOSS, MAX_SHIFT, RELEASES, PrivateProbe


def silence(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64)


def trained(count: int = 400) -> tuple[nn.Module, Tensor, Examples]:
    """Returns a model, parameters that fit the examples, and the examples."""
    wanted = session("logreg", local_epochs=20, learning_rate=0.5)
    model, data = models.build(wanted), examples(count)
    means = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Examples(data.x + means[data.y], data.y)
    order = torch.Generator().manual_seed(0)
    return (
        model,
        train(objective(model), Start(flatten(model)), data, wanted.training, order).vector,
        data,
    )


def paying(questions: int = 50, epsilon: float = 3.0) -> Accountant:
    return Accountant(Account.opened(Budget(epsilon, 1e-5), 1.0, RELEASES * questions))


def test_what_is_lost_is_the_mean_over_the_examples() -> None:
    model, vector, data = trained()
    probe = PrivateProbe(model, data, paying(), silence)
    same, _ = probe.harm(vector, vector)
    assert same == 0.0
    worse, _ = probe.harm(vector, vector + 0.02 * torch.randn_like(vector))
    flipped, _ = probe.harm(vector, -vector)
    assert 0 <= abs(worse) < 0.05 < 0.2 < flipped <= MAX_LOSS


def test_a_shift_of_a_class_for_all_examples_alike_is_no_harm() -> None:
    model, vector, data = trained()
    shifted = vector.clone()
    shifted[3] += 0.5  # the bias of class 3: what a peer does that holds little else
    probe = PrivateProbe(model, data, paying(), silence)
    assert abs(probe.harm(vector, shifted)[0]) < 1e-6


@pytest.mark.parametrize("value", [0.0, 1e6, -1e30, math.nan, math.inf])
def test_no_example_moves_an_answer_by_more_than_the_noise_is_made_for(value: float) -> None:
    model, vector, data = trained(100)
    wild = Examples(data.x.clone(), data.y.clone())
    wild.x[17] = value
    gone = Examples(data.x, data.y).take(torch.tensor([k for k in range(100) if k != 17]))
    other = vector + 0.1 * torch.randn_like(vector)
    sums = []
    for held in (wild, gone):
        asked: list[Tensor] = []

        def watched(count: int, asked: list[Tensor] = asked) -> Tensor:
            asked.append(torch.zeros(count))
            return silence(count)

        probe = PrivateProbe(model, held, paying(), watched)
        answer, noise = probe.harm(vector, other)
        assert [len(one) for one in asked] == [10, 1]  # one for the shift, one for the loss
        assert math.isfinite(answer)
        assert math.isfinite(noise)
        sums.append(answer * len(held.y))
    # Its own loss, and what its shift makes of the others': a probability's slope is below 0.36.
    assert abs(sums[0] - sums[1]) <= MAX_LOSS + 0.4 * MAX_SHIFT


def test_the_noise_of_an_answer_is_what_it_says() -> None:
    model, vector, data = trained()
    opened = paying(300, 1.0)
    probe = PrivateProbe(model, data, opened)
    answers = torch.tensor([probe.harm(vector, vector) for _ in range(200)])
    deviation = MAX_LOSS * opened.account.noise_multiplier / 400
    spread = float(answers[:, 0].std())
    # Of 200 normal numbers it is less one time in ten million; the noise on the shift adds some.
    assert 0.75 * deviation < spread < 1.5 * deviation
    assert float(answers[0, 1]) == pytest.approx(math.hypot(deviation, MAX_LOSS / math.sqrt(400)))


def test_every_answer_is_paid_for_and_then_there_are_none() -> None:
    model, vector, data = trained(100)
    opened = paying(3)
    probe = PrivateProbe(model, data, opened)
    for asked in (1, 2, 3):
        assert math.isfinite(probe.harm(vector, vector)[1])
        assert opened.account.steps == RELEASES * asked
    assert probe.harm(vector, -vector) == (0.0, math.inf)
    assert opened.account.spent_epsilon <= 3.0


def test_a_liar_is_told_from_an_honest_peer_at_epsilon_1() -> None:
    model, vector, data = trained(2_000)
    probe = PrivateProbe(model, data, paying(120, 1.0))  # 20 rounds of 4 peers, and half as many
    for _ in range(20):
        honest = vector + 0.05 * torch.randn_like(vector)
        fine, noise = probe.harm(vector, 0.8 * vector + 0.2 * honest)
        lie, _ = probe.harm(vector, 0.8 * vector - 0.2 * 3 * vector)
        assert noise < 0.012
        assert lie > fine + 5 * noise


def test_an_account_of_training_is_not_touched() -> None:
    model, vector, data = trained(100)
    training = Accountant(account(100, 16, 10))
    PrivateProbe(model, data, paying()).harm(vector, vector)
    assert training.account.steps == 0
