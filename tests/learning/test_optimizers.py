"""Optimizers and schedules by name, held to those of torch."""

from typing import Any

import pytest
import torch
from support.objectives import objective
from torch import nn

from p2pl.data.examples import Examples
from p2pl.errors import InputError, SessionFileError
from p2pl.learning.optimizers import check_private, of_round, share_of_rate
from p2pl.learning.parts import flatten, load_into
from p2pl.learning.train import Start, train
from p2pl.protocol import session as sessions
from p2pl.protocol.session import Training
from p2pl.seeds import seeded

SPEC: dict[str, Any] = {
    "name": "digits",
    "task": {"input": [4], "classes": 3},
    "model": {"name": "mlp", "arguments": {"hidden": [5]}},
    "training": {"learning_rate": 0.05},
    "exchange": {"rounds": 2, "cohort": 1},
}


def examples() -> Examples:
    """Returns 22 examples of three classes."""
    torch.manual_seed(3)
    return Examples(torch.randn(22, 4), torch.arange(22) % 3)


def model() -> nn.Sequential:
    """Returns a network of two layers."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def session(**training: object) -> Training:
    """Returns checked settings of training."""
    raw = {**SPEC, "training": {"learning_rate": 0.05, "batch_size": 8, **training}}
    return sessions.spec_of(raw).session().training


@pytest.mark.parametrize(
    ("name", "arguments", "theirs"),
    [
        ("SGD", {"momentum": 0.9, "nesterov": 1}, {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"beta1": 0.8, "amsgrad": 1}, {"betas": (0.8, 0.999), "amsgrad": True}),
        ("AdamW", {"beta2": 0.95, "eps": 1e-6}, {"betas": (0.9, 0.95), "eps": 1e-6}),
        ("NAdam", {}, {}),
        ("RAdam", {}, {}),
        ("Adamax", {}, {}),
        ("Adagrad", {"lr_decay": 0.1}, {"lr_decay": 0.1}),
        ("Adadelta", {"rho": 0.5}, {"rho": 0.5}),
        ("RMSprop", {"momentum": 0.5, "centered": 1}, {"momentum": 0.5, "centered": True}),
    ],
)
def test_an_optimizer_of_torch_does_over_two_rounds_what_it_does_in_one_loop(
    name: str, arguments: dict[str, object], theirs: dict[str, Any]
) -> None:
    training = session(optimizer=name, arguments=arguments, weight_decay=0.01)
    one, data, net = objective(model(), 3), examples(), model()
    begun = Start(flatten(net))
    first = train(one, begun, data, training, seeded("", "", 1, "x"))
    second = train(one, Start(first.vector, first.optimizer), data, training, seeded("", "", 2, ""))
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.05, weight_decay=0.01, **theirs)
    for order in (seeded("", "", 1, "x"), seeded("", "", 2, "")):
        for rows in torch.split(torch.randperm(22, generator=order), 8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(data.x[rows]), data.y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch.testing.assert_close(second.vector, flatten(net))
    assert torch.equal(begun.vector, flatten(model()))


def test_gradients_are_clipped_and_gathered_as_in_a_loop_of_torch() -> None:
    training = session(clip_norm=0.1, accumulate=2, batch_size=8)
    data, net = examples(), model()
    made = train(objective(model(), 3), Start(flatten(net)), data, training, seeded("", "", 1, "x"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    order = torch.randperm(22, generator=seeded("", "", 1, "x"))
    for rows in (order[:16], order[16:]):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(data.x[rows]), data.y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        assert nn.utils.clip_grad_norm_(net.parameters(), 0.1) > 0.1
        optimizer.step()
    torch.testing.assert_close(made.vector, flatten(net))
    load_into(net, made.vector)


def test_schedules_go_as_they_are_named() -> None:
    def rates(rounds: int, **training: object) -> list[float]:
        settings = session(learning_rate=1.0, **training)
        return [
            round(of_round(settings, at, rounds).learning_rate, 4) for at in range(1, rounds + 1)
        ]

    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(5, schedule="step", step_rounds=2, step_factor=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(5, rate_warmup_rounds=3) == [0.25, 0.5, 0.75, 1, 1]
    assert rates(4, schedule="linear", rate_warmup_rounds=2) == [0.3333, 0.6667, 1, 0.5]
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD(model().parameters(), lr=1.0, momentum=0.9), max_lr=1.0, total_steps=20
    )
    theirs = []
    for _ in range(20):
        theirs.append(round(float(cycle.get_last_lr()[0]), 4))
        cycle.optimizer.step()
        if len(theirs) < 20:
            cycle.step()
    assert rates(20, schedule="one-cycle") == theirs
    assert share_of_rate(session(schedule="one-cycle"), 1, 1) == 1


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": "Muon"}, "training.optimizer.*'Muon'"),
        ({"optimizer": "AdamW", "arguments": {"rho": 0.9}}, "of AdamW: got 'rho'.*beta1"),
        ({"optimizer": "AdamW", "arguments": {"beta1": 1.0}}, "beta1.*got 1.0.*0 to 1"),
        ({"optimizer": "AdamW", "arguments": {"eps": 0}}, "eps.*got 0"),
        ({"optimizer": "AdamW", "arguments": {"amsgrad": 0.5}}, "amsgrad.*0 or 1"),
        ({"optimizer": "SGD", "arguments": {"nesterov": 1}}, "nesterov.*momentum above 0"),
        ({"optimizer": "SGD", "momentum": 0.9}, "training.momentum.*training.arguments"),
        ({"arguments": {"beta1": 0.5}}, "of sgd: got 'beta1', allowed none"),
    ],
)
def test_what_an_optimizer_does_not_have_is_refused(
    training: dict[str, object], message: str
) -> None:
    with pytest.raises(SessionFileError, match=message):
        session(**training)


def test_private_training_takes_no_clipping_of_steps() -> None:
    check_private(session(optimizer="AdamW"))
    for training in ({"clip_norm": 1.0}, {"accumulate": 2}):
        with pytest.raises(InputError, match="clip_norm"):
            check_private(session(**training))
