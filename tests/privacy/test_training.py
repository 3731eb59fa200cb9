"""Private training: what one example can do is bounded, and the budget ends it."""

import math
from collections.abc import Callable

import pytest
import torch
from support.objectives import objective
from support.private import account, examples, session
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from p2pl.data.examples import Examples
from p2pl.errors import InputError, ModelError, PrivacyError
from p2pl.learning import models
from p2pl.learning.train import Start, train
from p2pl.learning.weights import Layout, flatten, load_into
from p2pl.privacy.accountant import Account, Accountant, Budget
from p2pl.privacy.clipping import MAX_GRADIENT_NUMBERS, clipped_gradients, has_closed_form
from p2pl.privacy.training import PrivateTraining, check_clip, check_model
from p2pl.seeds import seeded

NAMES = ("logreg", "mlp", "cnn", "resnet-gn")
CLOSED = NAMES[:3]
TIED = nn.Linear(4, 4)


def silence(count: int) -> Tensor:
    """Returns no noise at all."""
    return torch.zeros(count, dtype=torch.float64)


def one_by_one(model: nn.Module, vector: Tensor, batch: Examples, clip: float) -> Tensor:
    """Returns the sum of the clipped gradients, each computed by itself."""
    layout = Layout.of(model)
    total = torch.zeros_like(vector)
    for example in batch.batches(1):
        at = vector.clone().requires_grad_()
        logits = functional_call(model, layout.unflatten(at), example.x)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, example.y), at)
        total += gradient * min(1.0, clip / float(gradient.norm()))
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", [0.3, 1e3])
def test_the_clipped_sum_is_that_of_the_examples_one_by_one(name: str, clip: float) -> None:
    model = models.build(session(name))
    vector, batch = flatten(model), examples(9)
    with clipped_gradients(model) as clipped:
        got = clipped(vector, batch, clip)
    assert torch.allclose(got.gradient, one_by_one(model, vector, batch, clip), atol=2e-5)
    logits = functional_call(model, Layout.of(model).unflatten(vector), batch.x)
    assert float(got.loss) == pytest.approx(
        float(functional.cross_entropy(logits, batch.y, reduction="sum")), rel=1e-5
    )


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_is_what_opacus_makes_of_it(name: str) -> None:
    model = models.build(session(name))
    assert has_closed_form(model)
    batch = examples(50)
    vector = flatten(model)
    vector += 0.1 * torch.randn(len(vector), generator=torch.Generator().manual_seed(0))
    for clip in (0.5, 2.0, 100.0):
        with clipped_gradients(model, closed_form=False) as through_opacus:
            theirs = through_opacus(vector, batch, clip)
        with clipped_gradients(model) as closed_form:
            ours = closed_form(vector, batch, clip)
        assert torch.allclose(ours.gradient, theirs.gradient, atol=1e-5)
        assert torch.allclose(ours.loss, theirs.loss)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 2),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
        nn.Sequential(nn.Flatten(), TIED, nn.ReLU(), TIED),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()),
    ],
    ids=[
        "no sequence",
        "no bias",
        "another layer",
        "flattened late",
        "not flattened",
        "nothing linear",
        "a layer used twice",
        "in place",
        "a convolution in groups",
        "padding by name",
        "a convolution without a bias",
        "a norm of the image",
        "no linear layer at the end",
    ],
)
def test_any_other_model_has_no_closed_form(model: nn.Module) -> None:
    assert not has_closed_form(model)


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv2d(1, 3, (3, 2), stride=2, padding=(0, 2)), nn.Conv2d(1, 2, 3, dilation=2)],
    ids=["strided", "dilated"],
)
def test_convolutions_of_every_shape_are_what_opacus_makes_of_them(convolution: nn.Conv2d) -> None:
    layers = [convolution, nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(convolution.out_channels, 4, 1)]
    made = nn.Sequential(*layers, nn.Flatten())(torch.zeros(1, 1, 8, 8))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(made.shape[1], 10))
    assert has_closed_form(model)
    vector, batch = flatten(model), examples(7)
    with clipped_gradients(model, closed_form=False) as through_opacus:
        theirs = through_opacus(vector, batch, 0.3)
    with clipped_gradients(model) as closed_form:
        ours = closed_form(vector, batch, 0.3)
    assert torch.allclose(ours.gradient, theirs.gradient, atol=1e-6)


@pytest.mark.parametrize("name", CLOSED)
def test_no_example_moves_the_sum_by_more_than_the_clipping_norm(name: str) -> None:
    model = models.build(session(name))
    vector, batch = flatten(model), examples(6)
    wild = [1e6, -1e30, math.nan, math.inf]
    with clipped_gradients(model) as clipped:
        without = clipped(vector, batch, 0.7).gradient
        for value in wild:
            x = torch.cat([batch.x, torch.full((1, *batch.x.shape[1:]), value)])
            y = torch.cat([batch.y, torch.tensor([3])])
            with_it = clipped(vector, Examples(x, y), 0.7).gradient
            assert float((with_it - without).norm()) <= 0.7 * (1 + 1e-5), value
        far = torch.full_like(vector, 1e30)  # what a malicious peer may serve
        assert float(clipped(far, batch, 0.7).gradient.norm()) <= 6 * 0.7 * (1 + 1e-5)


@pytest.mark.parametrize("name", ["cnn", "resnet-gn"])
def test_a_large_batch_is_worked_off_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build(session(name))
    vector, batch = flatten(model), examples(11)
    assert MAX_GRADIENT_NUMBERS // len(vector) > 11

    def summed() -> Tensor:
        with clipped_gradients(model) as clipped:
            return clipped(vector, batch, 0.5).gradient

    whole = summed()
    monkeypatch.setattr("p2pl.privacy.clipping.MAX_GRADIENT_NUMBERS", 4 * len(vector))
    assert torch.allclose(summed(), whole, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_drawn_is_a_step_of_noise_alone(name: str) -> None:
    model = models.build(session(name))
    with clipped_gradients(model) as clipped:
        got = clipped(flatten(model), examples(4).take(torch.arange(0)), 1.0)
    assert float(got.gradient.abs().sum()) == float(got.loss) == 0


def test_training_leaves_the_model_usable_by_others() -> None:
    model = models.build(session("cnn"))
    with clipped_gradients(model) as clipped:
        clipped(flatten(model), examples(3), 1.0)
    assert not any(
        hooks for m in model.modules() for hooks in (m._forward_hooks, m._backward_hooks)
    )
    flatten(model)
    with clipped_gradients(model) as clipped:  # and may be wrapped again
        clipped(flatten(model), examples(3), 1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["logreg", "mlp"])
def test_without_noise_and_clipping_it_is_ordinary_training(name: str, optimizer: str) -> None:
    wanted = session(name, batch_size=40, local_epochs=3, optimizer=optimizer, learning_rate=0.05)
    model, data = models.build(wanted), examples(40)
    start = Start(flatten(model))
    plain = train(objective(model), start, data, wanted.training, seeded("s", "p", 1, "batches"))
    training = PrivateTraining(Accountant(account(40, 40, 3)), clip=1e6, gaussian=silence)
    private = training.train(model, start, data, wanted.training)
    assert torch.allclose(private.vector, plain.vector, atol=1e-4)
    assert (private.steps, private.samples) == (plain.steps, plain.samples) == (3, 120)
    assert private.optimizer.keys() == plain.optimizer.keys()


def test_the_noise_of_a_step_is_the_multiplier_times_the_clip_over_the_batch() -> None:
    wanted = session("logreg", batch_size=20, learning_rate=1.0)
    model, data = models.build(wanted), examples(40)
    opened = account(40, 20, 2)
    start = Start(torch.zeros_like(flatten(model)))
    moves = []
    for _ in range(40):
        training = PrivateTraining(Accountant(opened), clip=0.25)
        moves.append(training.train(model, start, data, wanted.training).vector)
    spread = torch.stack(moves).std(0).median()
    # Two steps, each with noise of its own; who is drawn adds a little.
    deviation = opened.noise_multiplier * 0.25 / 20 * math.sqrt(2)
    assert float(spread) == pytest.approx(deviation, rel=0.15)


def test_a_round_is_paid_for_before_it_begins_and_a_spent_budget_changes_nothing() -> None:
    wanted = session("logreg", batch_size=16)
    model, data = models.build(wanted), examples(64)
    accountant = Accountant(account(64, 16, 8))
    training = PrivateTraining(accountant)
    start = Start(flatten(model))
    seen: list[int] = []
    first = training.train(
        model, start, data, wanted.training, lambda done, of: seen.append(accountant.account.steps)
    )
    assert first.steps == 4
    assert seen == [4, 4, 4, 4]  # all of the round, before its first step
    second = training.train(model, Start(first.vector), data, wanted.training)
    assert not torch.equal(second.vector, first.vector)
    third = training.train(
        model, Start(second.vector, {"momentum": start.vector}), data, wanted.training
    )
    assert (third.steps, third.samples) == (0, 0)
    assert math.isnan(third.loss)
    assert torch.equal(third.vector, second.vector)
    assert set(third.optimizer) == {"momentum"}
    assert accountant.account.spent_epsilon <= 3.0


def test_the_next_round_is_different_every_time() -> None:
    wanted = session("logreg", batch_size=16)
    model, data = models.build(wanted), examples(64)

    def once() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            training = PrivateTraining(Accountant(account(64, 16, 8)))
            return training.train(model, Start(flatten(model)), data, wanted.training).vector

    assert not torch.equal(once(), once())


def test_fewer_examples_than_a_batch_are_refused() -> None:
    wanted = session("logreg", batch_size=16)
    training = PrivateTraining(Accountant(account(64, 16, 8)))
    model = models.build(wanted)
    with pytest.raises(InputError, match=r"training.batch_size: got 16, allowed at most the 15"):
        training.train(model, Start(flatten(model)), examples(15), wanted.training)
    assert training.accountant.account.steps == 0


class OthersInTheBatch(nn.Module):
    """A layer that no list knows, and that takes the mean of the batch off every example."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(64), nn.BatchNorm1d(64, track_running_stats=False), OthersInTheBatch()],
    ids=["batchnorm", "without running statistics", "unknown"],
)
def test_a_model_that_mixes_the_examples_of_a_batch_is_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), layer, nn.Linear(64, 10))
    with pytest.raises(ModelError, match="treat each example by itself"):
        check_model(model, (1, 8, 8))


class Table(nn.Module):
    """An embedding of 17 levels of brightness, and a layer on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 6)
        self.out = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        looked_up: Tensor = self.table((16 * x.flatten(1)).long()).mean(1)
        scores: Tensor = self.out(looked_up)
        return scores


def partly_frozen() -> nn.Module:
    """Returns a module of which the first layer is not trained."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(12, 10))


def frozen_in_a_row() -> nn.Module:
    """Returns layers that would have a closed form, if one of them were not frozen."""
    frozen = nn.Linear(64, 12).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), frozen, nn.ReLU(), nn.Linear(12, 10))


@pytest.mark.parametrize("make", [Table, partly_frozen, frozen_in_a_row])
def test_tables_and_frozen_layers_are_trained_privately(make: Callable[[], nn.Module]) -> None:
    model = make()
    check_model(model, (1, 8, 8))
    layout, vector, batch = Layout.of(model), flatten(model), examples(9)
    with clipped_gradients(model) as clipped:
        got = layout.unflatten(clipped(vector, batch, 0.3).gradient)
    for one in batch.batches(1):
        mine = layout.unflatten(_clipped_alone(model, vector, one, 0.3))
        got = {name: got[name] - mine[name] for name in got}
    assert all(torch.allclose(left, torch.zeros_like(left), atol=2e-6) for left in got.values())


def _clipped_alone(model: nn.Module, vector: Tensor, one: Examples, clip: float) -> Tensor:
    """Returns the clipped gradient of one example by what is trained; 0 for what is frozen."""
    layout = Layout.of(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    at = {n: part.clone().requires_grad_() for n, part in layout.unflatten(vector).items()}
    loss = functional.cross_entropy(functional_call(model, at, one.x), one.y)
    found = torch.autograd.grad(loss, list(at.values()))
    parts = [
        part if name in trained else torch.zeros_like(part)
        for name, part in zip(at, found, strict=True)
    ]
    gradient = torch.cat([part.flatten() for part in parts])
    return gradient * min(1.0, clip / float(gradient.norm()))


@pytest.mark.parametrize("make", [partly_frozen, frozen_in_a_row])
def test_what_is_frozen_gets_no_noise(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = {name: one.clone() for name, one in model.named_parameters()}
    wanted = session("logreg", batch_size=16, learning_rate=1.0)
    training = PrivateTraining(Accountant(account(64, 16, 8)))
    after = training.train(model, Start(flatten(model)), examples(64), wanted.training).vector
    load_into(model, after)
    for name, one in model.named_parameters():
        assert torch.equal(one, before[name]) is not one.requires_grad, name


class Shifted(nn.Module):
    """A layer that keeps numbers which no gradient changes."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.linspace(0, 1, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + self.shift


def test_what_a_layer_keeps_gets_no_noise() -> None:
    model = nn.Sequential(Shifted(), nn.Linear(64, 10))
    check_model(model, (1, 8, 8))
    wanted = session("logreg", batch_size=16, learning_rate=1.0, weight_decay=0.1)
    training = PrivateTraining(Accountant(account(64, 16, 8)))
    start = flatten(model)
    after = training.train(model, Start(start), examples(64), wanted.training).vector
    assert len(after) == len(start) == 650 + 64
    load_into(model, after)
    assert torch.equal(model.get_buffer("0.shift"), torch.linspace(0, 1, 64))
    assert not torch.equal(after, start)


class Sulking(nn.Module):
    """A module that fails for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no weights file")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Sulking(), "KeyError: 'no weights file'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 10)), "RuntimeError: mat1 and mat2"),
        (nn.Sequential(nn.Flatten(1, 2), nn.LSTM(8, 10)), "LSTM"),
    ],
    ids=["it raises", "another shape", "a layer that Opacus does not know"],
)
def test_a_model_that_cannot_be_tried_is_refused_before_the_first_round(
    model: nn.Module, said: str
) -> None:
    with pytest.raises(ModelError, match=f"model, for private training.*{said}"):
        check_model(model, (1, 8, 8))


@pytest.mark.parametrize("name", NAMES)
def test_the_models_of_the_zoo_treat_each_example_by_itself(name: str) -> None:
    check_model(models.build(session(name)), (1, 8, 8))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_a_clipping_norm_that_is_none_is_refused(clip: float) -> None:
    with pytest.raises(PrivacyError, match="clipping norm"):
        check_clip(clip)


def test_many_peers_with_uneven_data_each_keep_their_own_budget() -> None:
    wanted = session("logreg", batch_size=16)
    model = models.build(wanted)
    for count in (16, 40, 150):
        opened = Account.opened(Budget.checked(2.0, None, count), 16 / count, 3 * -(-count // 16))
        training = PrivateTraining(Accountant(opened))
        start = Start(flatten(model))
        for _ in range(3):
            start = Start(training.train(model, start, examples(count), wanted.training).vector)
        assert 1.97 < training.accountant.account.spent_epsilon <= 2.0
