import math

import pytest
import torch
from support.objectives import objective
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.errors import TrainingDiverged
from p2pl.learning.train import OptimizerState, Start, Trained, advance, follow, of_round, train
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Training
from p2pl.seeds import seeded

X = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
EXAMPLES = Examples(X, Y)
SETTINGS = {
    "sgd": Training(learning_rate=0.1, batch_size=16),
    "momentum": Training(learning_rate=0.1, batch_size=16, momentum=0.9, weight_decay=0.01),
    "adam": Training(learning_rate=0.01, batch_size=16, optimizer="adam", weight_decay=0.01),
}


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def shuffle(round_index: int = 0) -> torch.Generator:
    return seeded("session", "peer", round_index, "batches")


def two_rounds(training: Training) -> Trained:
    model = net()
    first = train(objective(model), Start(flatten(model)), EXAMPLES, training, shuffle(0))
    start = Start(first.vector, first.optimizer)
    return train(objective(model), start, EXAMPLES, training, shuffle(1))


def test_the_cosine_schedule_falls_from_the_rate_to_almost_nothing() -> None:
    cosine = Training(learning_rate=0.2, momentum=0.9, schedule="cosine")
    rates = [of_round(cosine, index, 4).learning_rate for index in (1, 2, 3, 4, 5, 99)]
    assert rates == pytest.approx([0.2, 0.170711, 0.1, 0.029289, 0.029289, 0.029289], abs=1e-6)
    assert of_round(cosine, 3, 4).momentum == 0.9
    constant = Training(learning_rate=0.2)
    assert of_round(constant, 3, 4) is constant


def by_torch(training: Training) -> Tensor:
    """Returns what torch.optim makes of the same two rounds."""
    model = net()
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adam":
        optimizer = torch.optim.Adam(
            model.parameters(), training.learning_rate, weight_decay=training.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            training.learning_rate,
            training.momentum,
            weight_decay=training.weight_decay,
        )
    for round_index in range(2):
        order = torch.randperm(100, generator=shuffle(round_index))
        for at in range(0, 100, 16):
            rows = order[at : at + 16]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]), Y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return flatten(model)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_rounds_are_those_of_torch_optim(name: str) -> None:
    assert torch.allclose(two_rounds(SETTINGS[name]).vector, by_torch(SETTINGS[name]), atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_forgetting_the_optimizer_state_gives_another_result(name: str) -> None:
    model = net()
    first = train(objective(model), Start(flatten(model)), EXAMPLES, SETTINGS[name], shuffle(0))
    second = train(objective(model), Start(first.vector), EXAMPLES, SETTINGS[name], shuffle(1))
    assert not torch.allclose(second.vector, two_rounds(SETTINGS[name]).vector, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_training_changes_none_of_its_inputs(name: str) -> None:
    model = net()
    first = train(objective(model), Start(flatten(model)), EXAMPLES, SETTINGS[name], shuffle())
    vector = first.vector.clone()
    state: OptimizerState = {key: value.clone() for key, value in first.optimizer.items()}
    train(
        objective(model), Start(first.vector, first.optimizer), EXAMPLES, SETTINGS[name], shuffle(1)
    )
    assert torch.equal(first.vector, vector)
    assert all(torch.equal(first.optimizer[key], state[key]) for key in state)
    assert torch.equal(flatten(model), flatten(net()))


def test_the_same_generator_gives_the_same_model_and_another_gives_another() -> None:
    model = net()
    start = Start(flatten(model))
    runs = [
        train(objective(model), start, EXAMPLES, SETTINGS["sgd"], shuffle(i)).vector
        for i in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_counts_and_loss_are_of_this_round() -> None:
    training = Training(learning_rate=0.5, batch_size=16, local_epochs=20)
    model = net()
    trained = train(objective(model), Start(flatten(model)), EXAMPLES, training, shuffle())
    assert (trained.steps, trained.samples) == (140, 2_000)
    assert trained.loss < 0.1 < math.log(2)
    with torch.no_grad():
        first_loss = float(nn.functional.cross_entropy(model(X), Y))
    still = Training(learning_rate=1e-9, batch_size=16)
    frozen = train(objective(model), Start(flatten(model)), EXAMPLES, still, shuffle())
    assert frozen.loss == pytest.approx(first_loss, abs=1e-5)


def test_whoever_watches_can_stop_between_two_steps() -> None:
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    model = net()
    with pytest.raises(KeyboardInterrupt):
        train(objective(model), Start(flatten(model)), EXAMPLES, SETTINGS["sgd"], shuffle(), watch)
    assert seen == [(1, 7), (2, 7), (3, 7)]


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_rate() -> None:
    training = Training(learning_rate=1000.0, momentum=0.9, batch_size=1, local_epochs=50)
    model = net()
    with pytest.raises(TrainingDiverged, match=r"allowed a finite number.*learning_rate 1000\.0"):
        train(objective(model), Start(flatten(model)), Examples(1e6 * X, Y), training, shuffle())


def test_examples_move_and_split() -> None:
    part = EXAMPLES.take(torch.tensor([3, 1])).to(torch.device("cpu"))
    assert len(part) == 2
    assert torch.equal(part.x, X[[3, 1]])
    assert part.y.tolist() == Y[[3, 1]].tolist()


def test_a_name_gives_its_own_random_numbers() -> None:
    def first(*name: str) -> float:
        return float(torch.rand(1, generator=seeded(name[0], name[1], 0, name[2])))

    assert first("s", "p", "batches") == first("s", "p", "batches")
    names = [("s", "p", "batches"), ("s", "q", "batches"), ("t", "p", "batches"), ("s", "p", "x")]
    assert len({first(*name) for name in names}) == 4


def test_quasi_global_momentum_is_the_papers_step_by_hand() -> None:
    training = Training(learning_rate=0.1, momentum=0.5, quasi_global=True)
    state = {"quasi_global": torch.tensor([3.0])}
    vector, after = advance(torch.tensor([1.0]), torch.tensor([2.0]), state, training)
    # u = 0.5 * 3 + 2 = 3.5; the step is 0.1 * (2 + 0.5 * 3.5); the buffer stays.
    torch.testing.assert_close(vector, torch.tensor([0.625]))
    assert after == state
    first = Start(torch.tensor([1.0]))
    trained = Trained(vector, loss=0.0, steps=5, samples=5, optimizer={})
    # From 1 to 0 in 5 steps of 0.1: 2 a step, of which a half is new.
    moved = follow(first, trained, torch.tensor([0.0]), training)
    torch.testing.assert_close(moved["quasi_global"], torch.tensor([1.0]))
    moved = follow(Start(first.vector, state), trained, torch.tensor([0.0]), training)
    torch.testing.assert_close(moved["quasi_global"], torch.tensor([2.5]))


class HalfUsed(nn.Module):
    """A network with a layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.used(x)
        return made


def test_parameters_that_nothing_depends_on_stay_and_the_others_are_trained() -> None:
    model = HalfUsed()
    begun = flatten(model)
    made = train(objective(model), Start(begun), EXAMPLES, SETTINGS["sgd"], shuffle()).vector
    moved = objective(model).layout.unflatten(made != begun)
    assert not moved["idle.weight"].any()
    assert moved["used.weight"].all()
