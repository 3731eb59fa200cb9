"""The door `Trainer`: local training and evaluation, however they are done.

A node asks its trainer for two things: parameters that were trained a little on the peer's own
examples, and how good parameters are. Everything else a trainer may offer has a default here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from p2pl.data.examples import Source
from p2pl.learning import weights
from p2pl.learning.judge import Judge
from p2pl.learning.optimizers import of_round
from p2pl.learning.sample import Sample
from p2pl.learning.task import Metric, Scores
from p2pl.learning.train import OnStep, OptimizerState, Start, Trained
from p2pl.learning.weights import Layout, Payload
from p2pl.metric import ACCURACY
from p2pl.protocol.session import Session, Training

Split = Literal["test", "validation"]


def quietly(done: int, steps: int) -> None:
    """Takes no notice of a step."""
    del done, steps


@dataclass(frozen=True, slots=True)
class Round:
    """One round, as a trainer needs to know it.

    Attributes:
        index: number of the round, from 1.
        rounds: how many the session has.
        training: the session's settings, with the learning rate of this very round.
        on_step: called between two steps with (steps done, steps in all). What it raises ends the
            training at once and must be passed on: the person wants to stop.
        examples: the peer's own to train on, where the trainer has them; see `batches`.
        order: what the order of the batches is drawn from; on the CPU.
    """

    index: int
    rounds: int
    training: Training
    on_step: OnStep = quietly
    examples: Source | None = None
    order: torch.Generator | None = None

    @classmethod
    def of(cls, session: Session, index: int, on_step: OnStep = quietly) -> "Round":
        """Returns round `index` of a session.

        Args:
            session: whose settings hold.
            index: from 1 on.
            on_step: called between two steps with how many are done, and of how many.
        """
        exchange = session.exchange
        last = exchange.rounds - exchange.polish_rounds
        return cls(index, exchange.rounds, of_round(session.training, index, last), on_step)

    def batches(self, epochs: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields shuffled batches of the peer's own training examples: inputs and targets.

        Each is [B, *input] and [B, ...], of `training.batch_size` examples; the last of an epoch
        may have fewer.

        Args:
            epochs: over all examples; None: the session's `training.local_epochs`.
        """
        if self.examples is None:
            return
        for _ in range(self.training.local_epochs if epochs is None else epochs):
            shuffled = torch.randperm(len(self.examples), generator=self.order)
            for rows in torch.split(shuffled, self.training.batch_size):
                batch = self.examples.take(rows)
                yield batch.x, batch.y


@dataclass(frozen=True, slots=True)
class Spent:
    """The privacy that examples have lost so far.

    Attributes:
        epsilon: of the examples trained on.
        trust_epsilon: of those held back, by being asked about others; None: none is asked. It does
            not add to the other: an example pays for one of them.
        charged: steps and answers paid for, all together.
        delta: chance that a guarantee does not hold, of either; None: not known.
    """

    epsilon: float
    trust_epsilon: float | None = None
    charged: int = 0
    delta: float | None = None


def trains_in(session: Session, index: int) -> bool:
    """Returns whether round `index` has local work; the polish rounds at the end only mix."""
    exchange = session.exchange
    # A peer that does more rounds than the session has trains in those again.
    return not 0 <= exchange.rounds - index < exchange.polish_rounds


class Trainer(Protocol):
    """What trains and scores parameters on one peer's own examples.

    A class that names `Trainer` as its base inherits what is written out here; it must say
    `layout`, `samples`, `fit` and `evaluate`. One call at a time is made, from a worker thread.

    Attributes:
        layout: the names and shapes of the parameters; a vector [P] holds them in this order.
        samples: how many examples the peer trains on, as it tells others; at least 1.
    """

    if TYPE_CHECKING:  # at run time they may be plain attributes

        @property
        def layout(self) -> Layout:
            """The names and shapes of the parameters; the vector [P] holds them in this order."""
            ...

        @property
        def samples(self) -> int:
            """How many examples the peer trains on, as it tells others; at least 1."""
            ...

    @property
    def data_mark(self) -> str:
        """What tells the peer's examples from others, as it divided them; "": it cannot be told."""
        return ""

    def fit(self, start: Start, round: Round) -> Trained:
        """Returns the parameters after one round of local training.

        Args:
            start: parameters [P] float32 and optimizer state of the round before; both stay as they
                are.
            round: which round it is, and its settings.

        Raises:
            TrainingDiverged: the loss or a parameter is no longer finite.
        """
        ...

    def evaluate(self, vector: Tensor, split: Split) -> Scores:
        """Returns how good parameters are.

        Args:
            vector: [P] float32.
            split: `test`, everybody's; or `validation`, the peer's own examples that are held back.
                Where there is no test set, both may be the same.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where vectors are expected and returned."""
        return torch.device("cpu")

    @property
    def own_samples(self) -> int:
        """How many examples the peer trains on, in its own log."""
        return self.samples

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured, the primary metric first."""
        return (ACCURACY,)

    @property
    def loss_unit(self) -> str:
        """What follows a loss, e.g. `nats`; "" where that is not known."""
        return ""

    @property
    def spent(self) -> Spent | None:
        """The privacy lost so far; None: training is not private."""
        return None

    def follow(self, start: Start, trained: Trained, mixed: Tensor, round: Round) -> OptimizerState:
        """Returns the optimizer state for the next round, once this one is mixed.

        Args:
            start: of the round.
            trained: by the round's local steps.
            mixed: [P], what the round ended with.
            round: which round it was.
        """
        del start, mixed, round
        return trained.optimizer

    def judge(self) -> Judge | None:
        """Returns what judges other peers' parameters on own examples; None: nothing may."""
        return None

    def sample(self, split: Literal["train", "validation"], most: int) -> Sample | None:
        """Returns at most so many of the peer's own examples, to learn by; None: none are given.

        Args:
            split: which of the peer's examples.
            most: how many at most, at least 1.
        """
        del split, most
        return None

    def checkpoint(self, vector: Tensor) -> memoryview:
        """Returns parameters [P] as an exact safetensors file, with all that a peer begins with."""
        return weights.encode(vector.cpu(), self.layout, "float32")

    def begin(self, payload: Payload) -> Tensor:
        """Returns the parameters in such a file, [P]; called once before the first round.

        Raises:
            FrameError: it is the file of another model.
        """
        return weights.decode(payload, self.layout, "float32").to(self.device)

    def own_score(self, scores: Scores) -> float:
        """Returns the primary metric as it is where examples are like the peer's own.

        Args:
            scores: on the split `test`.
        """
        return scores.primary


def unchanged(start: Start) -> Trained:
    """Returns what a round without local training makes: the parameters as they were."""
    return Trained(start.vector, math.nan, steps=0, samples=0, optimizer=start.optimizer)
