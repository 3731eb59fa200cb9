import math

import pytest
import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.learning.judge import SHARE
from p2pl.tasks import probe
from p2pl.tasks.probe import LabelsProbe, Probe

# Two classes, told apart by the sign of the first input; the second input is noise.
X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MODEL = nn.Linear(2, 2, bias=False)
GOOD = torch.tensor([-2.0, 0.0, 2.0, 0.0])  # parameters that tell them apart
FOUR = nn.Linear(2, 4)  # four classes, of which I hold 0 and 1


def four(own: float, bias: float) -> Tensor:
    """Returns parameters that tell 0 from 1 by `own`, and call all of it 2 or 3 by `bias`."""
    weight = torch.tensor([[-own, 0.0], [own, 0.0], [0.0, 0.0], [0.0, 0.0]])
    return torch.cat([torch.tensor([0.0, 0.0, bias, bias]), weight.flatten()])


def test_an_honest_peer_with_other_classes_does_no_harm() -> None:
    harm, _ = Probe(FOUR, Examples(X, Y)).harm(four(3.0, 0.0), four(3.0, 6.0))
    assert harm == pytest.approx(0.0, abs=1e-5)


def test_who_confuses_my_classes_does() -> None:
    harm, noise = Probe(FOUR, Examples(X, Y)).harm(four(3.0, 0.0), four(-3.0, 0.0))
    assert harm > 0.4 > 10 * noise


def test_who_tells_them_apart_better_does_less_than_none() -> None:
    assert Probe(FOUR, Examples(X, Y)).harm(four(1.0, 0.0), four(3.0, 6.0))[0] < -0.1


def test_a_model_that_never_saw_my_classes_is_excused_and_what_it_says_is_not_known() -> None:
    probe = Probe(FOUR, Examples(X, Y))
    known = four(3.0, 0.0)
    unknowing = (1 - SHARE) * known + SHARE * four(0.0, 9.0)
    harm, noise = probe.harm(known, unknowing)
    assert harm == pytest.approx(0.0, abs=1e-6)
    assert noise > 0.01


def test_who_gives_no_reason_to_be_excused_is_not() -> None:
    probe = Probe(FOUR, Examples(X, Y))
    weaker = (1 - SHARE) * four(3.0, 0.0)  # as if it knew nothing, and shifts no class
    assert probe.harm(four(3.0, 0.0), weaker)[0] > 0.01


def test_who_shifts_my_classes_and_lies_is_excused_no_more_than_ignorance_costs() -> None:
    probe = Probe(FOUR, Examples(X, Y))
    known = four(3.0, 0.0)
    lie = (1 - SHARE) * known + SHARE * four(-6.0, 9.0)
    assert probe.harm(known, lie)[0] > 0.1


def test_the_classes_i_hold_count_nearly_alike() -> None:
    rare = torch.cat([torch.arange(400)[Y == 0], torch.arange(400)[Y == 1][:5]])
    x, y = X[rare], Y[rare]
    before, after = GOOD, torch.tensor([-4.0, 0.0, 4.0, 0.5])  # better: nothing to excuse
    old, new = (x @ vector.view(2, 2).T for vector in (before, after))
    count = int((Y == 0).sum())
    weight = torch.where(y == 0, 1 / (count + 10), 1 / 15)
    weight = weight / weight.sum()
    shifted = new - (weight[:, None] * (new - old)).sum(0)
    right = [scores.softmax(1)[torch.arange(len(y)), y] for scores in (old, shifted)]
    expected = float((weight * (right[0] - right[1])).sum())
    harm, _ = Probe(MODEL, Examples(x, y)).harm(before, after)
    assert harm == pytest.approx(expected, rel=1e-4)
    assert float(weight[y == 1].sum()) == pytest.approx(1 / 3.9, rel=0.05)


def test_the_noise_is_the_standard_error_of_the_harm() -> None:
    harms = []
    for seed in range(200):
        x = torch.randn(100, 2, generator=torch.Generator().manual_seed(seed))
        x[:, 0] = x[:, 0].abs() * torch.tensor([-1.0, 1.0]).repeat(50)
        probe = Probe(MODEL, Examples(x, (x[:, 0] > 0).long()))
        harms.append(probe.harm(GOOD, torch.tensor([-1.0, 1.0, 1.0, -1.0])))
    means, noises = zip(*harms, strict=True)
    assert sum(noises) / 200 == pytest.approx(float(torch.tensor(means).std()), rel=0.15)


def test_no_noise_is_smaller_than_one_example() -> None:
    x, y = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    assert Probe(MODEL, Examples(x, y)).harm(GOOD, -GOOD)[1] == 0.5
    assert Probe(MODEL, Examples(x[:1], y[:1])).harm(GOOD, -GOOD)[1] == 1.0


def test_a_probe_takes_of_each_class_as_many_as_of_the_others() -> None:
    y = torch.cat([torch.zeros(9_000), torch.ones(900), torch.full((100,), 2.0)]).long()
    rows = probe._spread(y, 512)
    assert torch.bincount(y[rows]).tolist() == [206, 206, 100]
    assert len(set(rows.tolist())) == 512


def test_of_few_examples_it_takes_all() -> None:
    assert probe._spread(torch.tensor([3, 1, 1]), 512).tolist() == [0, 1, 2]


def test_harm_is_a_difference_of_probabilities() -> None:
    y = torch.arange(10_000) // 5_000  # sorted by class
    x = torch.stack([2.0 * y - 1, torch.zeros(10_000)], 1)
    harm, _ = Probe(MODEL, Examples(x, y)).harm(GOOD, -GOOD)
    right = 1 / (1 + math.exp(-4))
    assert harm == pytest.approx(2 * right - 1, rel=1e-3)


# Two labels, each told by the sign of one input.
LABELS = nn.Linear(2, 2)
BOTH = (X > 0).float()


def two(own: float, bias: float = 0.0) -> Tensor:
    """Returns parameters that tell both labels by `own`, and say yes to all by `bias`."""
    return torch.cat([torch.full((2,), bias), (own * torch.eye(2)).flatten()])


def test_an_honest_peer_that_sees_a_label_more_often_does_no_harm() -> None:
    harm, _ = LabelsProbe(LABELS, Examples(X, BOTH)).harm(two(3.0), two(3.0, 2.0))
    assert harm == pytest.approx(0.0, abs=1e-5)


def test_who_turns_labels_around_undoes_more_than_all_that_was_learned() -> None:
    harm, noise = LabelsProbe(LABELS, Examples(X, BOTH)).harm(two(3.0), two(-3.0))
    assert harm == pytest.approx(2.0, abs=0.05)
    assert noise < 0.1


def test_who_forgets_all_labels_undoes_all_that_was_learned() -> None:
    assert LabelsProbe(LABELS, Examples(X, BOTH)).harm(two(3.0), two(0.0))[0] == pytest.approx(
        1.0, abs=0.02
    )


def test_who_shifts_my_labels_and_turns_them_around_is_not_excused() -> None:
    lie = (1 - SHARE) * two(3.0) + SHARE * two(-3.0, 4.0)
    harm, noise = LabelsProbe(LABELS, Examples(X, BOTH)).harm(two(3.0), lie)
    assert harm > 0.2 > 5 * noise


def test_a_label_that_few_examples_have_counts_like_the_others() -> None:
    rare = torch.cat([torch.arange(400)[BOTH[:, 0] == 0], torch.arange(400)[BOTH[:, 0] == 1][:20]])
    x, y = X[rare], BOTH[rare]
    says_no = torch.cat([torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 3.0])])
    assert LabelsProbe(LABELS, Examples(x, y)).harm(two(3.0), says_no)[0] > 0.3


def test_the_error_of_labels_shrinks_with_the_number_of_examples() -> None:
    few, many = (
        LabelsProbe(LABELS, Examples(X[:n], BOTH[:n])).harm(two(3.0), two(2.0))[1]
        for n in (25, 400)
    )
    assert many < 0.6 * few
