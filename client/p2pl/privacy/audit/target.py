"""The training that an audit attacks: a peer's own, as in a session, and what it would have served.

What the other peers add to a mix is known to the attacker of an audit, and is subtracted; so the
peer trains alone here. A fault can be put into the training, to see that the audit finds it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.learning.objective import Objective
from p2pl.learning.task import task_of
from p2pl.learning.train import Start, Trained, of_round, train
from p2pl.privacy import noise
from p2pl.privacy.accountant import Account, Accountant, Budget, check_batch
from p2pl.privacy.training import PrivateTraining, steps_a_round
from p2pl.protocol.session import Session, Training

Versions: TypeAlias = Sequence[Tensor]  # [P] each: the start, then after each round
Fault: TypeAlias = Literal["none", "no-noise", "fresh-accountant", "seeded-noise"]
FAULTS: tuple[Fault, ...] = ("none", "no-noise", "fresh-accountant", "seeded-noise")


@dataclass(frozen=True, slots=True)
class Served:
    """What an attacker has to go by."""

    versions: Versions
    claimed: float  # epsilon, by the peer's own accountant; infinite without privacy


@dataclass(frozen=True, slots=True)
class Audited:
    """The training that is audited."""

    session: Session
    model: nn.Module  # working space
    start: Tensor  # [P], the initial checkpoint
    rounds: int  # at least 1
    budget: Budget | None  # None: training is not private, and claims nothing
    clip: float  # the largest norm of one example's gradient
    fault: Fault = "none"  # put in, to see that the audit finds it
    on_round: Callable[[], None] | None = None  # called when a round of any training is over

    def run(self, data: Examples, present: Tensor) -> Served:
        """Returns what a peer serves that has some of the examples.

        Args:
            data: n examples, on the model's device.
            present: [n] bool, on the CPU; which of them the peer has.

        Raises:
            InputError: private training with fewer examples than a batch.
            PrivacyError: no noise is enough for the budget.
            TrainingDiverged: the parameters are no longer finite.
        """
        if self.budget is None:
            return self._run_openly(data.take(present.nonzero().flatten()))
        # An absent example is one that adds nothing: their number is no secret, and stays.
        mine, budget = _blanked(data, present), self.budget
        accountant = self._accountant(budget, len(data))
        claimed = 0.0

        def train_privately(start: Start, training: Training, index: int) -> Trained:
            nonlocal accountant, claimed
            if self.fault == "fresh-accountant":
                accountant = self._accountant(budget, len(data))
            private = PrivateTraining(accountant, self.clip, gaussian=self._gaussian(index))
            trained = private.train(self.model, start, mine, training)
            claimed = max(claimed, accountant.account.spent_epsilon)
            return trained

        versions = self._versions(train_privately)
        return Served(versions, claimed)

    def _run_openly(self, data: Examples) -> Served:
        order = torch.Generator()
        order.seed()  # from the system

        def train_openly(start: Start, training: Training, index: int) -> Trained:
            del index
            objective = Objective.of(self.model, task_of(self.session.task))
            return train(objective, start, data, training, order)

        return Served(self._versions(train_openly), math.inf)

    def _versions(self, trained: Callable[[Start, Training, int], Trained]) -> Versions:
        start, versions = Start(self.start), [self.start]
        for index in range(1, self.rounds + 1):
            after = trained(start, of_round(self.session.training, index, self.rounds), index)
            start = Start(after.vector, after.optimizer)
            versions.append(after.vector)
            if self.on_round is not None:
                self.on_round()
        return versions

    def _accountant(self, budget: Budget, count: int) -> Accountant:
        """Returns a new accountant; the faulty one plans for a round, and forgets it after."""
        training = self.session.training
        rounds = 1 if self.fault == "fresh-accountant" else self.rounds
        steps = steps_a_round(training, count) * rounds
        return Accountant(Account.opened(budget, check_batch(training.batch_size, count), steps))

    def _gaussian(self, index: int) -> Callable[[int], Tensor]:
        """Returns where the noise of round `index` comes from."""
        if self.fault == "no-noise":
            return _silence
        return _noise_of_round(index) if self.fault == "seeded-noise" else noise.gaussian


def _silence(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64)


def _noise_of_round(index: int) -> Callable[[int], Tensor]:
    source = torch.Generator().manual_seed(index)
    return lambda count: torch.randn(count, generator=source, dtype=torch.float64)


def _blanked(data: Examples, present: Tensor) -> Examples:
    """Returns the examples, the absent ones as no numbers: private training takes 0 from those."""
    x = data.x.clone()
    x[~present] = math.nan
    return Examples(x, data.y)
