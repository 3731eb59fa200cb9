import pytest
import torch
from support.objectives import objective
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.learner import Learner
from p2pl.learning.sample import Sample
from p2pl.mixing import naive
from p2pl.mixing.base import PeerModel
from p2pl.mixing.naive import ME, learn
from p2pl.protocol.session import Exchange, Mixing, Session, Task, Training
from p2pl.protocol.session import Model as ModelSpec

X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
MINE = Sample(objective(nn.Linear(2, 2, bias=False), 2), Examples(X, Y), naive.EXAMPLES)
GOOD = torch.tensor([-2.0, 0.0, 2.0, 0.0])
BETTER, WORSE = 2 * GOOD, 0.5 * GOOD


def rounds(count: int, **others: Tensor) -> tuple[float, ...]:
    logits: dict[str, float] = {}
    row: tuple[float, ...] = ()
    for _ in range(count):
        row, logits = learn(logits, {ME: GOOD, **others}, MINE, Mixing())
    return row


def test_the_row_turns_to_what_fits_my_data() -> None:
    row = rounds(3, a=BETTER, b=WORSE)
    assert row[1] > row[0] > row[2]
    assert sum(row) == pytest.approx(1)


def test_a_liar_is_thrown_out() -> None:
    assert rounds(10, a=1.1 * GOOD, b=-3 * GOOD)[2] < 0.02


def test_my_own_weight_is_learned_too_so_that_i_may_end_up_alone() -> None:
    assert rounds(10, a=WORSE, b=0 * GOOD)[0] > 0.7


def test_alike_models_share_equally() -> None:
    assert rounds(3, a=GOOD, b=GOOD) == pytest.approx((1 / 3,) * 3)


def test_the_slopes_are_those_of_the_loss_by_the_numbers() -> None:
    vectors = {ME: GOOD, "a": BETTER, "b": WORSE}
    stacked = torch.stack(list(vectors.values()))
    numbers = torch.tensor([0.3, -0.1, -0.2], requires_grad=True)
    scores = X @ (numbers.softmax(0) @ stacked).view(2, 2).T
    (slopes,) = torch.autograd.grad(nn.functional.cross_entropy(scores, Y), numbers)
    logits = dict(zip(vectors, [0.3, -0.1, -0.2], strict=True))
    _, after = learn(logits, vectors, MINE, Mixing(trust_steps=1, trust_rate=0.1))
    moved = torch.tensor(list(after.values())) - numbers.detach()
    assert torch.allclose(moved, -0.1 * slopes, atol=1e-6)


def test_numbers_stay_bounded_and_so_does_memory() -> None:
    crowd = {f"peer {i}": 1.0 for i in range(2_000)}
    _, logits = learn(crowd, {ME: GOOD, "a": -9 * GOOD}, MINE, Mixing(trust_rate=100))
    assert len(logits) == naive.MAX_REMEMBERED
    assert {ME, "a"} <= set(logits)
    assert max(map(abs, logits.values())) <= naive.MAX_LOGIT


def test_a_learner_remembers_the_numbers_between_rounds() -> None:
    session = Session(
        task=Task(input=(2,), classes=2),
        model=ModelSpec(name="logreg"),
        training=Training(learning_rate=0.1),
        exchange=Exchange(rounds=3, cohort=2),
        mixing=Mixing(rule="degroot-naive"),
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    learner = Learner.of(session, ("s", "me"), model, Examples(X, Y), None)
    own = torch.tensor([0.0, 0.0, -2.0, 0.0, 2.0, 0.0])
    received = {"a": PeerModel(1, 9, 2 * own), "b": PeerModel(1, 9, -own)}
    first = learner.mix(own, received, 1)
    second = learner.mix(own, received, 2, first.memory)
    assert second.row["b"] < first.row["b"] < 0.1
    assert second.row["a"] > first.row["a"] > 0.4
    assert second.rejected == {}
    assert learner.notes(second.memory) == b""
