"""Many peers computed at once come to what each of them comes to alone."""

import math
from collections.abc import Sequence

import msgspec
import pytest
import torch
from support.objectives import objective
from torch import Tensor, nn

from p2pl.data.examples import Examples, Part
from p2pl.learning import models
from p2pl.learning.batched import stacked
from p2pl.learning.batched.forward import Forward
from p2pl.learning.batched.schedule import Job
from p2pl.learning.batched.stacked import Stack, Unstackable
from p2pl.learning.evaluate import evaluate
from p2pl.learning.task import Scores
from p2pl.learning.train import Start, Trained, follow, train
from p2pl.learning.weights import Layout, flatten
from p2pl.protocol.session import Task, Training

TASK = Task(input=(1, 8, 8), classes=5)
SIZES = [40, 7, 33, 16, 1]  # two batches and a half, less than one, one, a single example
SGD = Training(learning_rate=0.1, batch_size=16, local_epochs=2)
MOMENTUM = Training(
    learning_rate=0.1, momentum=0.9, weight_decay=1e-2, batch_size=16, local_epochs=2
)
QUASI_GLOBAL = msgspec.structs.replace(MOMENTUM, quasi_global=True)
ADAM = Training(
    learning_rate=1e-3, optimizer="adam", weight_decay=1e-2, batch_size=16, local_epochs=2
)


def unknown(task: Task) -> nn.Module:
    """Returns a model whose layers are not all known, so that it goes through vmap."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ELU(), nn.Linear(6, task.classes))


MODELS = [models.logreg, models.mlp, models.cnn, unknown]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def parts(sizes: Sequence[int] = SIZES) -> list[Part]:
    """Returns each peer's part of the same random images."""
    count = sum(sizes)
    whole = Examples(torch.rand(count, 1, 8, 8), torch.randint(0, 5, (count,)))
    return [whole.part(rows) for rows in torch.split(torch.randperm(count), list(sizes))]


def order(peer: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 * index + peer)


def starts(make: models.Make, peers: int) -> list[Start]:
    """Returns different parameters for every peer."""
    return [Start(flatten(make(TASK))) for _ in range(peers)]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def alone_and_together(
    make: models.Make, training: Training, rounds: int = 2
) -> tuple[list[Trained], list[Trained]]:
    """Returns what some rounds of training come to, peer by peer and stacked."""
    model, mine = make(TASK), parts()
    stack = Stack(model, mine[0].whole)
    alone = together = starts(make, len(mine))
    for index in range(rounds):
        one = [
            train(objective(model), start, part, training, order(peer, index))
            for peer, (start, part) in enumerate(zip(alone, mine, strict=True))
        ]
        jobs = [
            Job(start, part, order(peer, index))
            for peer, (start, part) in enumerate(zip(together, mine, strict=True))
        ]
        other = stack.train(jobs, training)
        alone = next_starts(alone, one, training)
        together = next_starts(together, other, training)
    return one, other


def next_starts(
    starts: Sequence[Start], trained: Sequence[Trained], training: Training
) -> list[Start]:
    """Returns where the next round begins, of peers that do not mix."""
    return [
        Start(one.vector, follow(start, one, one.vector, training))
        for start, one in zip(starts, trained, strict=True)
    ]


@pytest.mark.parametrize("training", [SGD, MOMENTUM, QUASI_GLOBAL, ADAM])
@pytest.mark.parametrize("make", MODELS)
def test_training_together_equals_training_alone(make: models.Make, training: Training) -> None:
    alone, together = alone_and_together(make, training)
    for one, other in zip(alone, together, strict=True):
        # Adam divides by the root of its squares: rounding counts for more where they are small.
        assert apart(other.vector, one.vector) < (1e-4 if training is ADAM else 1e-6)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert (other.steps, other.samples) == (one.steps, one.samples)
        assert other.optimizer.keys() == one.optimizer.keys()
        for name, state in one.optimizer.items():
            torch.testing.assert_close(other.optimizer[name], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_groups_of_peers_change_nothing(make: models.Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = alone_and_together(make, MOMENTUM, rounds=1)
    torch.manual_seed(0)
    monkeypatch.setattr(stacked, "GROUP_BYTES", {"cpu": 1})
    monkeypatch.setattr(stacked, "CHAIN_BYTES", 1)
    _, one_by_one = alone_and_together(make, MOMENTUM, rounds=1)
    for one, other in zip(one_by_one, together, strict=True):
        assert apart(other.vector, one.vector) < 1e-6
        assert other.loss == pytest.approx(one.loss, rel=1e-5)


def test_peers_may_have_other_labels_for_the_same_inputs() -> None:
    model, (mine, *_) = models.logreg(TASK), parts([32])
    flipped = Part(Examples(mine.whole.x, 4 - mine.whole.y), mine.rows)
    start = Start(flatten(model))
    jobs = [Job(start, part, order(0, 0)) for part in (mine, flipped)]
    for done, part in zip(
        Stack(model, jobs[0].part.whole).train(jobs, SGD), (mine, flipped), strict=True
    ):
        alone = train(objective(model), start, part, SGD, order(0, 0))
        assert apart(done.vector, alone.vector) < 1e-6


def test_a_peer_that_diverges_is_told_by_its_loss_and_disturbs_nobody() -> None:
    model, mine = models.mlp(TASK), parts([20, 20])
    good = Start(flatten(model))
    bad = Start(torch.full_like(good.vector, 1e30))
    jobs = [Job(s, p, order(k, 0)) for k, (s, p) in enumerate(zip((bad, good), mine, strict=True))]
    lost, kept = Stack(model, jobs[0].part.whole).train(jobs, SGD)
    assert math.isnan(lost.loss)
    alone = train(objective(model), good, mine[1], SGD, order(1, 0))
    assert apart(kept.vector, alone.vector) < 1e-6


def assert_same(some: Sequence[Scores], others: Sequence[Scores]) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.confusion, other.confusion)
        assert one.accuracy == pytest.approx(other.accuracy)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("batch", [1_024, 13])
@pytest.mark.parametrize("make", MODELS)
def test_scoring_together_equals_scoring_alone(
    make: models.Make, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "BATCH_EXAMPLES", batch)
    model, mine = make(TASK), parts()
    vectors = [start.vector for start in starts(make, len(mine))]
    whole = mine[0].whole
    together = stacked.evaluate(model, vectors, whole, TASK.classes)
    assert_same(
        together, [evaluate(objective(model, TASK.classes), vector, whole) for vector in vectors]
    )
    own = stacked.evaluate_own(model, vectors, mine, TASK.classes)
    pairs = zip(vectors, mine, strict=True)
    assert_same(
        own, [evaluate(objective(model, TASK.classes), vector, part) for vector, part in pairs]
    )


@pytest.mark.parametrize("make", [*MODELS, models.resnet_gn])
def test_the_forward_pass_of_many_is_that_of_each(make: models.Make) -> None:
    peers = [make(TASK) for _ in range(3)]
    parameters = stacked.unflatten(
        Layout.of(peers[0]), torch.stack([flatten(model) for model in peers])
    )
    forward, x = Forward(peers[0]), torch.rand(3, 4, 1, 8, 8)
    mine = forward(parameters, x.transpose(0, 1) if forward.by_example else x, shared=False)
    ours = forward(parameters, x[0], shared=True)
    for k, model in enumerate(peers):
        torch.testing.assert_close(mine[k].t(), model(x[k]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[k].t(), model(x[0]), rtol=1e-5, atol=1e-5)


def test_a_layer_used_twice_is_not_taken_for_two() -> None:
    layer = nn.Linear(64, 64)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, 5))
    parameters = {name: one.unsqueeze(0) for name, one in model.named_parameters()}
    x = torch.rand(4, 1, 8, 8)
    expected = model(x)
    got = Forward(model)(parameters, x, shared=True)
    torch.testing.assert_close(got[0].t(), expected, rtol=1e-5, atol=1e-5)


class Peeking(nn.Module):
    """A model that looks at its numbers, which many peers cannot do as one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits if float(logits.sum()) > 0 else 2 * logits


def test_a_model_that_cannot_be_stacked_says_so() -> None:
    model, (mine, *_) = Peeking(), parts([32])
    with pytest.raises(Unstackable):
        Stack(model, mine.whole).train([Job(Start(flatten(model)), mine, order(0, 0))], SGD)


def test_workers_change_nothing() -> None:
    model, mine = models.mlp(TASK), parts([20 + k for k in range(40)])
    begin, whole = starts(models.mlp, len(mine)), mine[0].whole
    trained: list[list[Trained]] = []
    for workers in (1, 2):
        jobs = [Job(s, p, order(k, 0)) for k, (s, p) in enumerate(zip(begin, mine, strict=True))]
        trained.append(Stack(model, whole, workers).train(jobs, MOMENTUM))
    for one, other in zip(*trained, strict=True):
        assert apart(one.vector, other.vector) < 1e-6
    vectors = [start.vector for start in begin]
    assert_same(*(stacked.evaluate(model, vectors, whole, TASK.classes, n) for n in (1, 2)))
