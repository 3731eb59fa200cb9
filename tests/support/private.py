"""Small sessions, data and accounts for tests of private training."""

import math
from typing import Any

import torch
from dp_accounting import dp_event, pld, rdp

from p2pl.data.examples import Examples
from p2pl.privacy.accountant import Account, Budget, Spent
from p2pl.protocol.session import Exchange, Model, Session, Task, Training


def session(model: str, **training: Any) -> Session:  # noqa: ANN401  # the settings to change
    """Returns a session on 8x8 images of 10 classes."""
    return Session(
        task=Task(input=(1, 8, 8), classes=10),
        model=Model(name=model, arguments={"hidden": (16,)} if model == "mlp" else {}),
        training=Training(**{"learning_rate": 0.1, "batch_size": 16, **training}),
        exchange=Exchange(rounds=3, cohort=1),
    )


def examples(count: int) -> Examples:
    """Returns `count` random images, the same every time."""
    source = torch.Generator().manual_seed(count)
    x = torch.rand(count, 1, 8, 8, generator=source)
    return Examples(x, torch.randint(10, (count,), generator=source))


def account(count: int, batch_size: int, steps: int, epsilon: float = 3.0) -> Account:
    """Returns an account that lasts for `steps` on `count` examples."""
    return Account.opened(
        Budget.checked(epsilon, None, count), batch_size / count, math.ceil(steps)
    )


def composed(
    accountant: pld.PLDAccountant | rdp.RdpAccountant, spent: Spent, delta: float
) -> float:
    """Returns the epsilon that an accountant of dp-accounting makes of the same steps."""
    for charge in spent:
        gaussian = dp_event.GaussianDpEvent(charge.noise_multiplier)
        step = dp_event.PoissonSampledDpEvent(charge.sample_rate, gaussian)
        accountant.compose(step, charge.steps)
    return float(accountant.get_epsilon(delta))
