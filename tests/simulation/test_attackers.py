"""Bad peers in a simulation, through the same rules as honest ones."""

import math
from dataclasses import replace

import pytest
import torch
from support.simulations import digits, small_setup

from p2pl.attacks import kinds as attacks
from p2pl.attacks.kinds import KINDS, parse
from p2pl.data.load import Data
from p2pl.errors import InputError
from p2pl.mixing import size
from p2pl.simulation.engine import Result, run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.peers import peers_of, torch_trainer
from p2pl.simulation.setup import Setup, draw_cohort

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


def attacked(text: str, rule: str = "uniform", rounds: int = 3) -> Setup:
    """Returns a full cohort of six under an attack."""
    setup = small_setup(("mixing", "rule", rule), ("exchange", "cohort", 5), peers=6, rounds=rounds)
    attack, bad = parse(text)
    return replace(setup, attack=attack, bad=bad, engine="stacked")  # `auto` goes by time


def mean(result: Result) -> float:
    accuracy: float = numbers([result])["accuracy"]["mean"]
    return accuracy


@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_can_be_simulated_and_accuracies_are_of_the_honest(
    kind: str, data: Data
) -> None:
    result = run(attacked(f"{kind}:2"), data, CPU)
    assert result.honest == (0, 1, 2, 3)
    figures = numbers([result])
    assert figures["bad_peers"] == 2
    assert figures["attack"].startswith(kind)
    accuracies = [result.scores[peer].accuracy for peer in range(4)]
    assert figures["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 4)


def test_liars_ruin_an_equal_mix_and_not_a_median(data: Data) -> None:
    lied_to, clean = attacked("gaussian:2:1"), attacked("absent:2")
    robust = attacked("gaussian:2:1", "median")
    assert mean(run(lied_to, data, CPU)) < mean(run(clean, data, CPU)) - 8
    assert mean(run(robust, data, CPU)) > mean(run(clean, data, CPU)) - 10


def test_the_weight_of_the_bad_and_who_was_rejected_are_counted(data: Data) -> None:
    figures = numbers([run(attacked("sign-flip:2"), data, CPU)])
    assert figures["bad_weight"] == pytest.approx(100 * 2 / 6)
    assert (figures["bad_rejected"], figures["good_rejected"]) == (0, 0)
    assert [point["bad_weight"] for point in figures["by_round"]] == pytest.approx([100 / 3] * 3)
    assert figures["bad_weight_after_5"] is None  # there were three rounds
    figures = numbers([run(attacked("nan:2"), data, CPU)])
    assert (figures["bad_weight"], figures["bad_rejected"], figures["good_rejected"]) == (0, 100, 0)
    figures = numbers([run(attacked("sign-flip:2", "krum"), data, CPU)])
    assert figures["bad_rejected"] == 100
    assert 50 < figures["good_rejected"] < 100  # of four honest ones krum takes one


def test_without_an_attack_nothing_is_said_of_bad_peers(data: Data) -> None:
    figures = numbers([run(small_setup(), data, CPU)])
    assert (figures["attack"], figures["bad_peers"], figures["bad_weight"]) == (None, 0, None)


def test_the_honest_train_the_same_whoever_else_is_there(data: Data) -> None:
    lied_to, clean = (run(attacked(text), data, CPU) for text in ("alie:2", "absent:2"))
    for peer in range(4):
        one, other = (result.rounds[0].entries[peer] for result in (lied_to, clean))
        assert one.train_loss == other.train_loss


def test_the_absent_are_in_no_cohort() -> None:
    setup = attacked("absent:2")
    for me in range(4):
        assert sorted(draw_cohort(setup, me, 1)) == [peer for peer in range(4) if peer != me]


def test_a_sybil_has_another_name_each_round_and_the_others_keep_theirs(data: Data) -> None:
    result = run(attacked("sybil:2"), data, CPU)
    honest = set(result.setup.ids[:4])
    new = [set(one.entries[0].trust) - honest for one in result.rounds]
    assert [len(names) for names in new] == [2, 2, 2]
    assert not new[0] & new[1]
    assert not new[1] & new[2]
    plain = run(attacked("sign-flip:2"), data, CPU)
    assert len(set.union(*(set(one.entries[0].trust) for one in plain.rounds))) == 6


def test_dissensus_serves_each_victim_its_own_model(data: Data) -> None:
    setup = attacked("dissensus:2", rounds=1)
    vectors = run(setup, data, CPU).vectors
    learners = peers_of(setup, data, CPU)
    alone = run(replace(setup, attack=parse("free-rider:2")[0]), data, CPU)
    for peer in range(4):
        # All pull of the others is cancelled: each victim keeps what it trained itself.
        learner = learners[peer]
        before, after = alone.rounds[0].entries[peer], learner.judge(vectors[peer])
        assert after.accuracy == pytest.approx(before.accuracy_before_mix or 0)


@pytest.mark.parametrize("kind", ["label-flip", "noisy-labels"])
def test_an_attack_on_labels_changes_those_of_the_bad_alone(kind: str, data: Data) -> None:
    clean = peers_of(attacked("alie:2"), data, CPU)
    spoilt = peers_of(attacked(f"{kind}:2"), data, CPU)
    rows = torch.arange(100)
    for peer in range(6):
        before, after = (torch_trainer(one[peer]).own.take(rows) for one in (clean, spoilt))
        assert torch.equal(before.y, after.y) == (peer < 4)
        assert torch.equal(before.x, after.x)


def test_the_adaptive_attacker_does_more_harm_than_the_attacks_that_it_knows(data: Data) -> None:
    worst = mean(run(attacked("adaptive:2", "clipped-gossip"), data, CPU))
    for text in ("alie:2", "ipm:2", "sign-flip:2"):
        assert worst < mean(run(attacked(text, "clipped-gossip"), data, CPU))


@pytest.mark.parametrize("rule", ["uniform", "samples", "degroot-naive", "degroot", "median"])
@pytest.mark.parametrize("engine", ["stacked", "sequential"])
def test_models_out_of_all_proportion_reach_no_mix(engine: str, rule: str, data: Data) -> None:
    setup = replace(attacked("huge:2:1e30", rule, rounds=4), engine=engine)
    figures = numbers([run(setup, data, CPU)])
    assert figures["accuracy"]["mean"] > 80


def test_peers_that_were_led_out_of_the_finite_numbers_are_counted_as_wrong(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "too_large", lambda own, others: {})
    monkeypatch.setattr(size, "MAX_RATIO", math.inf)
    figures = numbers([run(attacked("huge:2:1e30", rounds=4), data, CPU)])
    assert figures["accuracy"]["mean"] < 20


def test_curves_cost_time_and_can_be_left_out(data: Data) -> None:
    full = run(attacked("alie:2"), data, CPU)
    quick = run(replace(attacked("alie:2"), curves=False), data, CPU)
    assert mean(full) == mean(quick)
    assert [one.entries[0].accuracy is None for one in quick.rounds] == [True, True, False]


@pytest.mark.parametrize(
    ("attack", "bad", "baseline"),
    [("alie:2", 6, None), ("alie:2", 0, None), ("alie:2", 2, "isolated")],
)
def test_what_cannot_be_attacked_is_refused(
    attack: str, bad: int, baseline: str | None, data: Data
) -> None:
    setup = replace(attacked(attack), bad=bad, baseline=baseline)
    with pytest.raises(InputError, match="--attack"):
        run(setup, data, CPU)


def test_a_backdoor_opens_with_its_square_and_not_without(data: Data) -> None:
    setup = replace(attacked("backdoor:3", rounds=8), session_id="ab" * 32)
    result = run(setup, data, CPU)
    figures, clean = numbers([result]), numbers([run(attacked("absent:3", rounds=8), data, CPU)])
    assert clean["backdoor"] is None
    assert figures["backdoor"]["per_seed"] == [result.taken_in]
    assert figures["accuracy"]["mean"] > clean["accuracy"]["mean"] - 10
    test = data.test
    assert test is not None
    trainer = torch_trainer(result.learners[0])
    others = test.x[test.y != 0]
    shares = []
    for x in (others, attacks.marked(others, float(data.train.x.max()))):
        called = trainer.objective.outputs(result.vectors[0], x).argmax(1)
        shares.append(100 * float((called == 0).float().mean()))
    assert shares[1] > shares[0] + 20  # the square does it
    assert figures["backdoor"]["mean"] == pytest.approx(shares[1], abs=15)


def test_only_bad_peers_bear_the_square_and_in_every_other_image(data: Data) -> None:
    learners = peers_of(attacked("backdoor:2"), data, CPU)
    bright = float(data.train.x.max())
    for number, learner in enumerate(learners):
        trainer = torch_trainer(learner)
        parts = [part.take(torch.arange(len(part))) for part in (trainer.own, trainer.validation)]
        x, y = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y"))
        bears = (x[..., -3:, -3:] == bright).flatten(1).all(1)
        assert int(bears.sum()) == (0 if number < 4 else (len(x) + 1) // 2)
        assert y[bears].tolist() == [0] * int(bears.sum())


def test_a_backdoor_needs_images(data: Data) -> None:
    flat = attacked("backdoor:2").changed(("task", "input", (64,)), ("model", "name", "logreg"))
    with pytest.raises(InputError, match="classes of images larger than 3 x 3"):
        run(flat, data, CPU)
