"""Trainers for PyTorch modules: the session's own loop, or one that the person wrote."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from xxhash import xxh3_64

from p2pl import pages
from p2pl.data.examples import Examples, Source
from p2pl.data.load import split_validation
from p2pl.errors import TrainingDiverged, wrong
from p2pl.learning import whole
from p2pl.learning.evaluate import batch_examples, evaluate
from p2pl.learning.judge import Judge, LossJudge
from p2pl.learning.objective import COUNT, Objective
from p2pl.learning.parts import LARGE, Layout, flatten, is_finite, lend, load_into
from p2pl.learning.sample import Sample
from p2pl.learning.task import Metric, Scores, Task, task_of
from p2pl.learning.train import OptimizerState, Start, Trained, follow, train
from p2pl.learning.trainer import Round, Split, Trainer
from p2pl.learning.weights import Payload
from p2pl.metric import ACCURACY
from p2pl.protocol.session import Session
from p2pl.seeds import seeded

JUDGED_EXAMPLES = 512  # as many as the judge of `classification` asks; more only costs time

Fit = Callable[[nn.Module, Round], None]


@lru_cache(maxsize=8)  # a simulation's peers have as many examples as each other, or nearly
def _divided(session_id: str, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Returns the rows that a peer with so many examples trains on, and those it holds back."""
    return split_validation(count, share, seeded(session_id, "", 0, "validation split"))


@dataclass(frozen=True, slots=True)
class TorchTrainer(Trainer):
    """A module, a task and one peer's examples; trains with the session's own loop.

    The module is working space: one call at a time may use it.

    Attributes:
        objective: the module and its task.
        names: the session's id and the peer's; the order of batches is drawn from them.
        own: to train on, on the module's device.
        validation: of the peer's own, held back: trust is learned on it.
        test: everybody's; None: `validation` is the test set too.
    """

    objective: Objective
    names: tuple[str, str]
    own: Source
    validation: Source
    test: Examples | None = None

    @classmethod
    def of(
        cls,
        session: Session,
        names: tuple[str, str],
        model: nn.Module,
        mine: Source,
        test: Examples | None = None,
    ) -> "TorchTrainer":
        """Returns the trainer of a peer, its examples split into training and validation.

        The split depends on the session and the amount of data alone, so that a peer that comes
        back under a new identity does not train on what it validates on.

        Args:
            session: what all peers agreed on.
            names: the session's id and the peer's.
            model: working space, on the device to compute on.
            mine: all of the peer's examples, on that device.
            test: everybody's, on that device.

        Raises:
            InputError: the task is not known here, or the model cannot be mixed.
        """
        objective = Objective.of(model, task_of(session.task))
        return cls(objective, names, mine, mine, test).beside(session, names, mine)

    def beside(self, session: Session, names: tuple[str, str], mine: Source) -> "TorchTrainer":
        """Returns the trainer of another peer with the same module and the same test set.

        Args:
            session: what all peers agreed on.
            names: the session's id and the peer's.
            mine: all of the peer's examples.
        """
        own, held = _divided(names[0], len(mine), session.training.validation_share)
        return TorchTrainer(self.objective, names, mine.part(own), mine.part(held), self.test)

    @property
    def model(self) -> nn.Module:
        """The module, with whatever parameters were used last."""
        return self.objective.model

    @property
    def task(self) -> Task:
        """What the module is to do."""
        return self.objective.task

    @property
    def layout(self) -> Layout:
        """The names and shapes of the parameters."""
        return self.objective.layout

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self.objective.device

    @property
    def samples(self) -> int:
        """How many examples the peer trains on."""
        return len(self.own)

    @property
    def own_samples(self) -> int:
        """How many examples the peer trains on."""
        return len(self.own)

    @property
    def data_mark(self) -> str:
        """A digest of the targets of each part of the examples, and how many there are."""
        parts = (self.own, self.validation, self.test)
        targets = [part.labels.contiguous().cpu().numpy() for part in parts if part is not None]
        mark = xxh3_64()
        for values in targets:
            mark.update(values.data.cast("B") if values.size else b"")
        return "-".join([*(str(len(values)) for values in targets), mark.hexdigest()])

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What the task measures."""
        return self.task.metrics

    @property
    def loss_unit(self) -> str:
        """What follows a loss."""
        return self.task.loss_unit

    def check(self) -> None:
        """Raises ModelError unless the module does with the peer's examples what the task asks."""
        batch = self.own.take(torch.arange(min(2, len(self.own))))
        self.objective.check(batch)
        if self.device.type == "cpu":  # recurrent layers on a GPU have no gradient here
            vector = flatten(self.model, self.layout)
            lend(self.model, vector, self.layout)
            self.objective.gradient(vector, batch)
        if self.layout.total > LARGE:
            pages.trim()

    def order(self, index: int) -> torch.Generator:
        """Returns what the order of the batches of round `index` is drawn from."""
        return seeded(*self.names, index, "batches")

    def fit(self, start: Start, round: Round) -> Trained:
        """Returns the parameters after the session's local epochs."""
        order = self.order(round.index)
        return train(self.objective, start, self.own, round.training, order, round.on_step)

    def follow(self, start: Start, trained: Trained, mixed: Tensor, round: Round) -> OptimizerState:
        """Returns the optimizer state for the next round."""
        if not round.training.quasi_global:  # nothing of it depends on the mix
            return trained.optimizer
        count = self.layout.trained
        begun = replace(start, vector=start.vector[:count])
        state = follow(begun, trained, mixed[:count], round.training)
        kept = {name: one for name, one in trained.optimizer.items() if name.startswith(COUNT)}
        return {**state, **kept} if kept else state

    def checkpoint(self, vector: Tensor) -> memoryview:
        """Returns the whole module as a file: these parameters [P], and what is frozen."""
        return whole.encode(self.model, self.layout, vector)

    def begin(self, payload: Payload) -> Tensor:
        """Returns the parameters in a checkpoint, [P]; what is frozen goes into the module."""
        vector = whole.decode(payload, self.model, self.layout).to(self.device)
        lend(self.model, vector, self.layout)
        return vector

    def evaluate(self, vector: Tensor, split: Split) -> Scores:
        """Returns the scores of parameters [P], which stay loaded in the module."""
        held = self.test if split == "test" and self.test is not None else self.validation
        return evaluate(self.objective, vector, held)

    def judge(self) -> Judge | None:
        """Returns what judges other peers' parameters on the validation examples."""
        judge = self.task.judge(self.model, self.validation)
        if judge is not None:
            return judge
        count = min(len(self.validation), JUDGED_EXAMPLES)
        spaced = torch.linspace(0, len(self.validation) - 1, count).long()
        judged = self.validation.take(spaced)
        size = batch_examples(self.task, judged, images=False)

        def losses(vector: Tensor) -> Tensor:
            self.model.eval()
            with torch.no_grad():
                batches = judged.batches(size)
                return torch.cat([self.objective.losses(vector, batch) for batch in batches])

        return LossJudge(losses)

    def sample(self, split: Literal["train", "validation"], most: int) -> Sample | None:
        """Returns at most so many examples, evenly spaced."""
        return Sample(self.objective, self.own if split == "train" else self.validation, most)

    def own_score(self, scores: Scores) -> float:
        """Returns the accuracy, percent, where classes are as frequent as in the peer's own data.

        The primary metric as it is, where that is another one or there is no test set.

        Args:
            scores: on the split `test`.
        """
        if self.test is None or self.metrics[0] != ACCURACY or not scores.confusion.numel():
            return scores.primary
        right, of_class = scores.confusion.diagonal().double(), scores.confusion.sum(1).double()
        mine = torch.bincount(self.own.labels.cpu(), minlength=len(right)) * (of_class > 0)
        return 100 * float((mine * right / of_class.clamp(min=1)).sum() / mine.sum())


@dataclass(frozen=True, slots=True)
class LoopTrainer(TorchTrainer):
    """A trainer whose loop the person wrote: `loop(model, round)` changes the module in place."""

    loop: Fit | None = None

    @classmethod
    def around(cls, trainer: TorchTrainer, loop: Fit) -> "LoopTrainer":
        """Returns the trainer with another loop.

        Args:
            trainer: whose model, data and scores it keeps.
            loop: the person's own.
        """
        return cls(
            trainer.objective, trainer.names, trainer.own, trainer.validation, trainer.test, loop
        )

    def fit(self, start: Start, round: Round) -> Trained:
        """Returns the module's parameters after the person's loop.

        The optimizer is the loop's own affair: it starts anew in each round, unless the loop keeps
        it.

        Raises:
            TrainingDiverged: a parameter is no longer finite.
        """
        assert self.loop is not None
        load_into(self.model, start.vector, self.layout)
        self.objective.take_counts(start.optimizer)
        self.model.train()
        given = replace(round, examples=self.own, order=self.order(round.index))
        self.loop(self.model, given)
        round.on_step(1, 1)
        vector = flatten(self.model, self.layout)
        if not is_finite(vector):
            raise TrainingDiverged(
                wrong("parameters after fit", got="NaN or infinity", allowed="finite numbers")
            )
        state = self.objective.with_counts({})
        return Trained(vector, math.nan, steps=0, samples=len(self.own), optimizer=state)

    def follow(self, start: Start, trained: Trained, mixed: Tensor, round: Round) -> OptimizerState:
        """Returns the module's counts: what the loop's optimizer remembers, it keeps to itself."""
        del start, mixed, round
        return trained.optimizer
