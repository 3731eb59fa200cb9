import math
from collections.abc import Sequence

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from p2pl.learning import trust as trusting
from p2pl.learning.examples import Examples
from p2pl.learning.mixing import mix
from p2pl.learning.seeds import seeded
from p2pl.learning.trust import Learned, Probe, Trust, learn
from p2pl.protocol.session import Mixing

# Two classes, told apart by the sign of the first input; the second input is noise.
X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MODEL = nn.Linear(2, 2, bias=False)
PROBE = Probe(MODEL, Examples(X, Y))
GOOD = torch.tensor([-2.0, 0.0, 2.0, 0.0])  # parameters that tell them apart
AT_ONCE = Mixing(warmup_rounds=0)
PEERS = ("a", "b", "c", "d", "e", "f")


def near(vector: Tensor, seed: int, distance: float = 0.05) -> Tensor:
    """Returns an honest variation of `vector`: at `distance`, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    step = functional.normalize(torch.randn(vector.shape, generator=generator), dim=0)
    return vector + distance * step


def ask(
    received: Sequence[Tensor],
    trust: Trust | None = None,
    mixing: Mixing = AT_ONCE,
    probe: Probe = PROBE,
    own: Tensor = GOOD,
) -> Learned:
    return learn(trust or Trust(), own, received, PEERS[: len(received)], probe, mixing)


def honest(count: int) -> list[Tensor]:
    return [near(GOOD, seed) for seed in range(count)]


def test_among_honest_peers_the_row_is_exactly_equal() -> None:
    learned = ask(honest(4))
    assert learned.row[1:] == (0.2,) * 4
    assert sum(learned.row) == pytest.approx(1)
    assert learned.rejected == {}
    assert learned.trust.logits == {}


def test_with_nobody_there_i_keep_my_own() -> None:
    before = Trust(logits={"a": 1.0}, radius=0.5, rounds=3)
    assert ask([], before) == Learned((1.0,), before, {})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (-3 * GOOD, "direction"),
        (-GOOD, "direction"),
        (0 * GOOD, "direction"),
        (1e6 * GOOD, "norm"),
        (-1e6 * GOOD, "norm"),
        (9 * GOOD, "distance"),
    ],
)
@pytest.mark.parametrize("warmup", [0, 5])
def test_a_model_of_nobody_s_session_is_rejected_from_round_one(
    bad: Tensor, reason: str, warmup: int
) -> None:
    learned = ask([*honest(3), bad], mixing=Mixing(warmup_rounds=warmup))
    assert list(learned.rejected) == ["d"]
    assert learned.rejected["d"].startswith(reason)
    assert learned.row[4] == 0
    assert learned.row[1:4] == (0.25,) * 3


def test_a_liar_alone_with_me_is_rejected_all_the_same() -> None:
    for bad in (-GOOD, 1e6 * GOOD):
        assert ask([bad]).row == (1.0, 0.0)


def test_a_majority_of_liars_is_rejected_all_the_same() -> None:
    learned = ask([honest(1)[0], -3 * GOOD, -GOOD, 1e6 * GOOD])
    assert sorted(learned.rejected) == ["b", "c", "d"]
    assert learned.row == pytest.approx((0.5, 0.5, 0, 0, 0))


def test_where_i_stand_at_zero_nobody_can_be_compared() -> None:
    assert ask(honest(2), own=torch.zeros(4)).row == (1.0, 0.0, 0.0)


def test_a_model_further_than_usual_is_pulled_in() -> None:
    shift = torch.tensor([0.0, 1.0, 0.0, 1.0])  # a change that no class is told apart by
    received = [GOOD + 0.1 * shift] * 3 + [GOOD + 0.4 * shift]
    learned = ask(received)
    assert learned.rejected == {}
    assert learned.row == pytest.approx((0.3, 0.2, 0.2, 0.2, 0.1))
    assert mix(GOOD, received, learned.row)[1] == pytest.approx(3 * 0.02 + 0.04)


def test_a_model_pulled_in_earns_what_it_would_earn_there() -> None:
    close = [GOOD + 0.2 * (WORSE - GOOD), GOOD - 0.2 * (WORSE - GOOD)]
    far = ask([*close, WORSE])
    there = ask([*close, GOOD + 0.4 * (WORSE - GOOD)])
    assert far.trust.logits == pytest.approx(there.trust.logits, abs=1e-4)
    assert far.trust.logits["c"] < -0.05


def test_the_usual_distance_cannot_be_set_by_one_cohort() -> None:
    shift = torch.tensor([0.0, 1.0, 0.0, 1.0])
    calm = ask([GOOD + 0.01 * shift] * 3).trust
    learned = ask([GOOD + 1.0 * shift] * 3, calm)
    assert learned.trust.radius == pytest.approx(2 * (calm.radius or 0))
    assert sorted(learned.rejected) == ["a", "b", "c"]
    assert learned.row == (1.0, 0.0, 0.0, 0.0)


def test_the_same_model_as_mine_is_welcome() -> None:
    assert ask([GOOD, GOOD]).row == pytest.approx((1 / 3, 1 / 3, 1 / 3))


# Models far out in a direction that no class is told apart by, so that turning the classes round is
# not yet turning round.
OWN = torch.tensor([-2.0, 8.0, 2.0, 8.0])
HARMFUL = torch.tensor([2.0, 8.0, -2.0, 8.0])
SIDEWAYS = torch.tensor([0.0, 3.0, 0.0, 3.0])


def test_a_model_that_harms_the_mix_is_rejected() -> None:
    learned = ask([OWN + SIDEWAYS, OWN - SIDEWAYS, OWN + 0.9 * SIDEWAYS, HARMFUL], own=OWN)
    assert list(learned.rejected) == ["d"]
    assert learned.rejected["d"].startswith("damage: my validation loss rises by")
    assert learned.row == pytest.approx((0.25, 0.25, 0.25, 0.25, 0))


def test_two_that_harm_the_mix_are_both_found() -> None:
    helpful = [OWN + SIDEWAYS, OWN - SIDEWAYS, OWN + 0.9 * SIDEWAYS, OWN - 0.9 * SIDEWAYS]
    assert sorted(ask([*helpful, HARMFUL, 1.01 * HARMFUL], own=OWN).rejected) == ["e", "f"]


def test_two_examples_that_disagree_are_too_few_to_reject_anybody_for_damage() -> None:
    cohort = [OWN + SIDEWAYS, OWN - SIDEWAYS, OWN + 0.9 * SIDEWAYS, HARMFUL]
    probe = Probe(MODEL, Examples(torch.tensor([[-0.001, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])))
    with torch.no_grad():
        assert float((probe.losses(HARMFUL) - probe.losses(OWN)).mean()) > 1
    assert ask(cohort, own=OWN, probe=probe).rejected == {}


def test_of_two_models_none_is_called_the_odd_one_out() -> None:
    learned = ask([OWN + SIDEWAYS, HARMFUL], own=OWN)
    assert learned.rejected == {}
    assert 0 < learned.row[2] < learned.row[1]  # but it is trusted less


WORSE = torch.tensor([-1.0, 0.0, 1.0, 0.0])  # the right direction, less sure of it


def learned_over(rounds: int, mixing: Mixing = AT_ONCE) -> list[Learned]:
    trust, history = Trust(), []
    received = [2 * GOOD, GOOD, WORSE]
    for _ in range(rounds):
        history.append(ask(received, trust, mixing))
        trust = history[-1].trust
    return history


def test_trust_moves_towards_the_model_that_helps() -> None:
    row = learned_over(3)[-1].row
    assert row[1] > row[2] > row[3]
    assert sum(row) == pytest.approx(1)


def test_warm_up_shares_equally() -> None:
    history = learned_over(3, Mixing(warmup_rounds=2))
    assert history[0].row == history[1].row == pytest.approx((0.25,) * 4)
    assert history[2].row[1] > 0.25 > history[2].row[3]


def test_my_own_weight_is_that_of_an_equal_share() -> None:
    for learned in learned_over(10, Mixing(warmup_rounds=0, trust_rate=100, trust_pull=0)):
        assert learned.row[0] == pytest.approx(0.25)


def test_the_floor_keeps_everybody_in() -> None:
    mixing = Mixing(warmup_rounds=0, trust_rate=100, trust_pull=0, trust_floor=0.6)
    assert min(learned_over(20, mixing)[-1].row) >= 0.75 * 0.6 / 3


def test_what_is_within_the_noise_of_my_examples_moves_nothing() -> None:
    received = [2 * GOOD, GOOD, WORSE]
    few = Probe(MODEL, Examples(X[:12], Y[:12]))
    careful = ask(received, mixing=Mixing(warmup_rounds=0, trust_gate=10), probe=few)
    rash = ask(received, mixing=Mixing(warmup_rounds=0, trust_gate=0), probe=few)
    assert careful.row == pytest.approx((0.25,) * 4)
    assert rash.row[1] > 0.3


def test_one_example_is_no_evidence() -> None:
    one = Probe(MODEL, Examples(X[:1], Y[:1]))
    assert ask([2 * GOOD, GOOD, WORSE], probe=one).row == pytest.approx((0.25,) * 4)


def test_a_difference_too_small_to_matter_moves_nothing() -> None:
    received = [near(GOOD, seed, 0.01) for seed in range(4)]
    mixing = Mixing(warmup_rounds=0, trust_gate=0, trust_rate=100, trust_pull=0)
    assert ask(received, mixing=mixing).row[1:] == (0.2,) * 4


def test_a_strong_pull_keeps_shares_nearly_equal() -> None:
    free = learned_over(5, Mixing(warmup_rounds=0, trust_pull=0))[-1].row
    held = learned_over(5, Mixing(warmup_rounds=0, trust_pull=10))[-1].row
    assert abs(held[1] - 0.25) < 0.1 * abs(free[1] - 0.25)


def test_no_peer_s_logit_leaves_its_bounds_or_moves_far_at_once() -> None:
    history = learned_over(6, Mixing(warmup_rounds=0, trust_rate=100, trust_pull=0))
    before: dict[str, float] = {}
    for learned in history:
        for peer, logit in learned.trust.logits.items():
            assert abs(logit) <= trusting.MAX_LOGIT
            assert abs(logit - before.get(peer, 0)) <= trusting.MAX_LOGIT_MOVE + 1e-9
        before = learned.trust.logits
    assert max(map(abs, before.values())) == trusting.MAX_LOGIT


def test_trust_in_a_peer_not_seen_fades() -> None:
    before = Trust(logits={"z": 1.0, "y": 0.0011}, rounds=5)
    assert ask(honest(2), before).trust.logits == {"z": 0.9}


def test_a_rejected_peer_pays() -> None:
    trust = Trust()
    for _ in range(3):
        trust = ask([*honest(2), -GOOD], trust).trust
    assert trust.logits == {"c": -trusting.MAX_LOGIT}


def test_a_peer_that_lied_is_forgiven_in_time() -> None:
    lied = ask([*honest(2), -GOOD]).trust
    forgiven = lied
    for _ in range(5):
        forgiven = ask(honest(3), forgiven).trust
    assert lied.logits == {"c": -1.0}
    assert forgiven.logits == {}


def test_memory_of_strangers_is_bounded_and_keeps_the_most_telling() -> None:
    crowd = {f"peer {i}": 1 + i / 10_000 for i in range(2_000)}
    kept = ask(honest(2), Trust(logits=crowd, rounds=1)).trust.logits
    assert len(kept) == trusting.MAX_REMEMBERED
    assert "peer 1999" in kept
    assert "peer 0" not in kept


def test_what_is_remembered_survives_json() -> None:
    trust = learned_over(2)[-1].trust
    assert msgspec.json.decode(msgspec.json.encode(trust), type=Trust) == trust
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"logits": {"a": 99.0}}, Trust)


def test_an_honest_peer_with_other_classes_is_not_a_liar() -> None:
    # Four classes by quadrant; I hold classes 0 and 1, the other peers 2 and 3 as well.
    model = nn.Linear(2, 4)
    probe = Probe(model, Examples(X, Y))
    mine = torch.cat([torch.tensor([3.0, 3.0, -3.0, -3.0]), torch.zeros(8)])
    mine[4], mine[6] = -2.0, 2.0
    other = torch.cat([torch.tensor([-2.0, -2.0, 2.0, 2.0]), torch.zeros(8)])
    other[4], other[6] = -2.0, 2.0
    with torch.no_grad():
        logits = torch.func.functional_call(model, probe_layout(model, other), X)
    whole = functional.cross_entropy(logits, Y)
    assert float(probe.losses(other).mean()) < 0.5 < 3 < float(whole)
    assert float(probe.losses(other).mean()) == pytest.approx(float(probe.losses(mine).mean()))


def probe_layout(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    names = sorted(name for name, _ in model.named_parameters())
    assert names == ["bias", "weight"]
    return {"bias": vector[:4], "weight": vector[4:].view(4, 2)}


def test_each_class_i_hold_counts_the_same() -> None:
    rare = torch.cat([torch.arange(400)[Y == 0], torch.arange(400)[Y == 1][:5]])
    probe = Probe(MODEL, Examples(X[rare], Y[rare]))
    with torch.no_grad():
        by_example = probe.losses(torch.tensor([5.0, 0.0, -5.0, 0.0]))
    y = Y[rare]
    plain = functional.cross_entropy(
        X[rare] @ torch.tensor([[5.0, -5.0], [0, 0]]), y, reduction="none"
    )
    expected = (plain[y == 0].mean() + plain[y == 1].mean()) / 2
    assert float(by_example.mean()) == pytest.approx(float(expected), rel=1e-4)


def test_a_probe_takes_its_examples_from_all_over() -> None:
    x = torch.zeros(10_000, 2)
    y = torch.arange(10_000) // 5_000  # sorted by class
    with torch.no_grad():
        losses = Probe(MODEL, Examples(x, y)).losses(GOOD)
    assert len(losses) == trusting.PROBE_EXAMPLES
    assert float(losses.mean()) == pytest.approx(math.log(2), rel=1e-3)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    gradient = PROBE.gradient(WORSE)
    small = 1e-2 * torch.eye(4)
    with torch.no_grad():
        for k in range(4):
            up, down = PROBE.losses(WORSE + small[k]), PROBE.losses(WORSE - small[k])
            assert float((up - down).mean() / 2e-2) == pytest.approx(float(gradient[k]), abs=1e-3)


def test_learning_changes_nobody_s_parameters() -> None:
    received = [2 * GOOD, GOOD.clone(), WORSE.clone()]
    before = [vector.clone() for vector in received]
    ask(received)
    assert all(torch.equal(a, b) for a, b in zip(received, before, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(0, 10_000), st.floats(0.01, 100), st.integers(0, 2))
def test_a_row_is_always_a_row(count: int, seed: int, size: float, warmup: int) -> None:
    generator = seeded("s", "p", seed, "vectors")
    received = [size * torch.randn(4, generator=generator) + GOOD for _ in range(count)]
    learned = ask(received, Trust(logits={"a": 1.5, "b": -2.0}), Mixing(warmup_rounds=warmup))
    assert len(learned.row) == count + 1
    assert min(learned.row) >= 0
    assert sum(learned.row) == pytest.approx(1)
    for peer, weight in zip(PEERS, learned.row[1:], strict=False):
        assert (weight == 0) == (peer in learned.rejected)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(4)))
def test_the_order_in_which_models_arrive_does_not_matter(order: list[int]) -> None:
    received = [2 * GOOD, GOOD, WORSE, -GOOD]
    straight = ask(received)
    turned = learn(
        Trust(), GOOD, [received[i] for i in order], [PEERS[i] for i in order], PROBE, AT_ONCE
    )
    assert turned.rejected == straight.rejected
    for place, i in enumerate(order):
        assert turned.row[place + 1] == pytest.approx(straight.row[i + 1], abs=1e-5)
