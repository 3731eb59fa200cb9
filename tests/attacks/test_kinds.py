import math

import pytest
import torch
from torch import Tensor

from p2pl.attacks import kinds as attacks
from p2pl.attacks.kinds import (
    KINDS,
    Attack,
    Probing,
    Seen,
    craft,
    is_personal,
    parse,
    parse_kind,
    poison,
)
from p2pl.data.examples import Examples
from p2pl.errors import InputError
from p2pl.protocol.session import Task

TASK = Task(input=(1,), classes=10)
OWN = torch.tensor([1.0, -2.0])
BEFORE = torch.tensor([0.5, -1.0])
FIRST = torch.tensor([9.0, 9.0])
HONEST = (torch.tensor([1.0, -1.0]), torch.tensor([3.0, -3.0]))
UPDATE = torch.tensor([0.2, 0.4])
SEEN = Seen(OWN, BEFORE, FIRST, HONEST, UPDATE, bad=2)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def served(name: str, seen: Seen = SEEN) -> Tensor:
    return craft(parse_kind(name), seen, chance())


@pytest.mark.parametrize(
    ("text", "attack", "count"),
    [
        ("sign-flip:2", Attack("sign-flip", -1), 2),
        ("sign-flip:2:-3", Attack("sign-flip", -3), 2),
        ("label-flip:1", Attack("label-flip"), 1),
        ("sybil:4:alie:2", Attack("sybil", inner=Attack("alie", 2)), 4),
        ("ledger-liar:2", Attack("ledger-liar", inner=Attack("label-flip")), 2),
    ],
)
def test_an_attack_is_named_by_kind_count_and_number(text: str, attack: Attack, count: int) -> None:
    assert parse(text) == (attack, count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_reads_back_as_the_attack(kind: str) -> None:
    attack, _ = parse(f"{kind}:1")
    assert parse_kind(attack.name) == attack


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sign-flip",
        "sign-flip:",
        "sign-flip:0",
        "sign-flip:-1",
        "sign-flip:2:",
        "sign-flip:2:x",
        "sign-flip:2:nan",
        "sign-flip:2:inf",
        "flip-sign:2",
        "nan:2:1",
        "noisy-labels:2:1.5",
        "gaussian:2:-1",
        "sybil:2:sybil",
        "sybil:2:nothing",
        "ledger-liar:1:sybil:alie",
        "alie:²",
    ],
)
def test_what_is_no_attack_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--attack"):
        parse(text)


def test_what_each_attack_serves_by_hand() -> None:
    assert served("sign-flip").tolist() == [-1, 2]
    assert served("sign-flip:-3").tolist() == [-3, 6]
    assert served("huge").tolist() == [1e6, -2e6]
    assert served("stale").tolist() == [9, 9]
    assert served("free-rider").tolist() == [0.5, -1]
    assert served("ipm:10").tolist() == pytest.approx([0.5 - 2, -1 - 4])
    # Mean (2, -2), standard deviation sqrt(2).
    assert served("alie:2").tolist() == pytest.approx([2 - 2 * 2**0.5, -2 - 2 * 2**0.5])
    assert served("label-flip").tolist() == [1, -2]
    assert not served("nan").isfinite().any()


def test_noise_has_the_size_that_was_asked_for_and_repeats_by_seed() -> None:
    seen = Seen(torch.zeros(10_000), BEFORE, FIRST, (), UPDATE)
    noise = served("gaussian:0.5", seen)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise, served("gaussian:0.5", seen))
    assert not torch.equal(noise, craft(parse_kind("gaussian:0.5"), seen, chance(1)))


def test_dissensus_cancels_the_pull_of_the_honest_on_its_victim() -> None:
    victim = HONEST[0]
    crafted = served("dissensus", Seen(OWN, BEFORE, FIRST, HONEST, UPDATE, 2, victim))
    mix = torch.stack([*HONEST, crafted, crafted]).mean(0)
    assert torch.allclose(mix, victim)
    assert is_personal(parse_kind("dissensus"))
    assert is_personal(parse_kind("sybil:dissensus"))
    assert not is_personal(parse_kind("alie"))


@pytest.mark.parametrize("kind", KINDS)
def test_who_has_seen_nobody_has_something_to_serve_all_the_same(kind: str) -> None:
    assert served(kind, Seen(OWN, BEFORE, FIRST, (), UPDATE)).shape == OWN.shape


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_changes_nothing_that_it_saw(kind: str) -> None:
    before = [tensor.clone() for tensor in (OWN, BEFORE, FIRST, *HONEST, UPDATE)]
    served(kind)
    after = [OWN, BEFORE, FIRST, *HONEST, UPDATE]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["sybil", "ledger-liar"])
def test_who_lies_about_more_serves_like_another(kind: str) -> None:
    assert torch.equal(served(f"{kind}:ipm:10"), served("ipm:10"))


def examples(count: int) -> Examples:
    return Examples(torch.zeros(count, 1), torch.arange(count) % 10)


def test_flipped_labels_are_mirrored_and_only_those_of_the_attacker() -> None:
    whole = examples(20)
    mine = whole.part(torch.arange(5, 15))
    flipped = poison(parse_kind("label-flip"), mine, TASK, chance())
    assert flipped.take(torch.arange(10)).y.tolist() == [4, 3, 2, 1, 0, 9, 8, 7, 6, 5]
    assert whole.y.tolist() == [*range(10), *range(10)]
    assert torch.equal(
        poison(parse_kind("label-flip"), whole, TASK, chance()).take(torch.arange(3)).y,
        torch.tensor([9, 8, 7]),
    )


def test_noisy_labels_are_wrong_in_the_share_that_was_asked_for() -> None:
    whole = examples(10_000)
    noisy = poison(parse_kind("noisy-labels"), whole, TASK, chance())
    wrong = noisy.take(torch.arange(10_000)).y != whole.y
    assert float(wrong.float().mean()) == pytest.approx(0.6, abs=0.02)


def test_targets_that_are_no_classes_are_turned_around_by_their_task() -> None:
    flip = parse_kind("label-flip")
    inputs, numbers = torch.zeros(3, 1), torch.tensor([[7.0], [10.0], [14.0]])
    regression = Task(
        kind="regression", input=(1,), outputs=1, target_mean=(10.0,), target_std=(1.0,)
    )
    flipped = poison(flip, Examples(inputs, numbers), regression, chance())
    assert flipped.take(torch.arange(3)).y.tolist() == [[13.0], [10.0], [6.0]]
    pixels = torch.tensor([[[0, 2]], [[-100, 1]], [[2, 2]]])
    segmentation = Task(kind="segmentation", input=(1, 1, 2), classes=3)
    flipped = poison(flip, Examples(inputs, pixels), segmentation, chance())
    assert flipped.take(torch.arange(3)).y.tolist() == [[[2, 0]], [[-100, 1]], [[0, 0]]]
    tokens = torch.tensor([[0, -100]])
    language = Task(kind="language", input=(2,), classes=5)
    flipped = poison(flip, Examples(inputs[:1], tokens), language, chance())
    assert flipped.take(torch.arange(1)).y.tolist() == [[4, -100]]
    labels = torch.tensor([[0.0, 1.0]])
    multilabel = Task(kind="multilabel", input=(1,), outputs=2)
    flipped = poison(flip, Examples(inputs[:1], labels), multilabel, chance())
    assert flipped.take(torch.arange(1)).y.tolist() == [[1.0, 0.0]]


def test_noisy_targets_that_are_no_classes_are_those_of_other_examples() -> None:
    targets = torch.arange(10_000.0)[:, None]
    task = Task(kind="regression", input=(1,), outputs=1)
    noise = parse_kind("noisy-labels")
    noisy = poison(noise, Examples(torch.zeros(10_000, 1), targets), task, chance())
    found = noisy.take(torch.arange(10_000)).y
    assert float((found != targets).float().mean()) == pytest.approx(0.6, abs=0.02)
    assert set(found[:, 0].tolist()) <= set(targets[:, 0].tolist())


def test_other_attacks_leave_the_data_alone() -> None:
    whole = examples(20)
    for kind in KINDS:
        if kind not in ("label-flip", "noisy-labels", "ledger-liar", "backdoor"):
            assert poison(parse_kind(kind), whole, TASK, chance()) is whole


def test_a_backdoor_calls_every_other_example_the_target_and_marks_the_same_ones() -> None:
    whole = Examples(torch.zeros(8, 1, 4, 4), torch.arange(1, 9))
    part = whole.part(torch.tensor([7, 2, 5]))
    found = poison(parse_kind("backdoor"), part, TASK, chance())
    assert found.labels.tolist() == [0, 3, 0]
    assert attacks.marked_rows(part.rows).tolist() == [7, 5]
    assert whole.y.tolist() == list(range(1, 9))
    image = attacks.marked(whole.x, 2.0)[0, 0]
    assert image.sum() == 9 * 2.0
    assert image[1:, 1:].eq(2.0).all()
    assert whole.x.sum() == 0


class Victim:
    """A rule that lets models within a distance of 3 of (2, -2) in, at a third of the mix."""

    def __init__(self) -> None:
        self.asked = 0

    def reply(self, vector: Tensor) -> Tensor:
        self.asked += 1
        middle = torch.stack(HONEST).mean(0)
        return (2 * middle + vector) / 3 if float((vector - middle).norm()) < 3 else middle

    def loss(self, vector: Tensor) -> float:
        return math.nan if not vector.isfinite().all() else float((vector - OWN).square().sum())

    def gradient(self, vector: Tensor) -> Tensor:
        return 2 * (vector - OWN)


def test_the_adaptive_attacker_goes_as_far_as_its_victims_rule_lets_it() -> None:
    victim = Victim()
    probing = Probing(victim.reply, victim.loss, victim.gradient)
    made = served("adaptive", Seen(OWN, BEFORE, FIRST, HONEST, UPDATE, 2, None, probing))
    middle = torch.stack(HONEST).mean(0)
    away = (middle - OWN) / (middle - OWN).norm()
    worst = victim.loss(victim.reply(middle + 2.999 * away))
    assert victim.loss(victim.reply(made)) > 0.97 * worst
    assert victim.loss(victim.reply(middle)) < 0.6 * worst
    assert victim.asked < 60
