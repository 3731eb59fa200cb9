"""Training to audit: a small session, pictures for it, and coins."""

import torch

from p2pl.data.examples import Examples
from p2pl.learning import models
from p2pl.learning.weights import flatten
from p2pl.privacy.accountant import Budget
from p2pl.privacy.audit.target import Audited, Fault
from p2pl.protocol.session import Exchange, Model, Session, Task, Training

ROUNDS, BATCH, COUNT = 100, 256, 1024
SESSION = Session(
    task=Task(input=(1, 10, 10), classes=10),
    model=Model(name="logreg"),
    training=Training(learning_rate=0.2, batch_size=BATCH),
    exchange=Exchange(rounds=ROUNDS, cohort=1),
)


def pictures(count: int = COUNT, seed: int = 0) -> Examples:
    """Returns pictures of ten classes with an empty margin, as photographs of digits have."""
    source = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (count,), generator=source)
    means = torch.randn(10, 36, generator=torch.Generator().manual_seed(7))
    inner = means[y] + torch.randn(count, 36, generator=source)
    x = torch.zeros(count, 1, 10, 10)
    x[:, 0, 2:8, 2:8] = inner.view(count, 6, 6) / 4
    return Examples(x, y)


def audited(epsilon: float | None, fault: Fault = "none", rounds: int = ROUNDS) -> Audited:
    """Returns training to audit."""
    model = models.build(SESSION)
    budget = None if epsilon is None else Budget.checked(epsilon, 1e-5, COUNT)
    return Audited(SESSION, model, flatten(model), rounds, budget, 1.0, fault)


def coins(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
