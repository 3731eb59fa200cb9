"""The numbers' side of a peer: its model, its own data, and what it does with them.

Everything here is slow beside a network event and belongs into a worker thread. The model is
working space: one call at a time may use it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples, Source
from p2pl.data.load import split_validation
from p2pl.learning import evaluate, probe, weights
from p2pl.learning.evaluate import Scores
from p2pl.learning.sample import Sample
from p2pl.learning.train import OnStep, OptimizerState, Start, Trained, follow, of_round, train
from p2pl.mixing import fixed as mixing
from p2pl.mixing import naive, personal, robust
from p2pl.mixing.trust import row as trust
from p2pl.mixing.trust.screening import Received
from p2pl.privacy.training import PrivateTraining
from p2pl.protocol.session import Session, Training
from p2pl.seeds import seeded

MAX_AGE_ROUNDS = 5  # chosen: an older model holds the mix back more than it adds to it


@dataclass(frozen=True, slots=True)
class Model:
    """What a peer received from another, decoded."""

    round: int
    samples: int  # that it says it trained on
    vector: Tensor  # [P] float32
    notes: bytes = b""  # its opinions of others, as it says


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a peer made of what it received."""

    vector: Tensor  # [P] float32
    row: Mapping[str, float]  # peer id -> weight in the mix, me included; sums to 1
    rejected: Mapping[str, str]  # peer id -> why it has no weight
    trust: trust.Trust


@dataclass(frozen=True, slots=True)
class Scored:
    """How good a peer's parameters are, around one mix."""

    before: Scores  # as trained, on the test set
    after: Scores  # as mixed, on the test set
    validation: Scores  # as mixed, on my own validation data


@dataclass(frozen=True, slots=True)
class Learner:
    """One peer's model and data, on one device."""

    session: Session
    session_id: str
    peer_id: str
    model: nn.Module
    layout: weights.Layout
    device: torch.device
    own: Source  # to train on
    validation: Source  # of the peer's own, held back: trust is learned on it
    test: Examples | None  # everybody's; None: accuracies are on `validation`
    private: PrivateTraining | None = None  # None: what leaves says what it likes of my data

    @classmethod
    def of(
        cls,
        session: Session,
        names: tuple[str, str],
        model: nn.Module,
        mine: Source,
        test: Examples | None,
    ) -> "Learner":
        """Returns the learner of a peer, its data split into training and validation.

        The split depends on the session and the amount of data alone, so that a peer that
        comes back under a new identity does not train on what it validates on.

        Args:
            session: what all peers agreed on.
            names: the session's id and the peer's.
            model: working space, on the device to compute on.
            mine: all of the peer's data, on that device.
            test: everybody's, on that device.
        """
        session_id, peer_id = names
        order = seeded(session_id, "", 0, "validation split")
        own, held = split_validation(len(mine), session.training.validation_share, order)
        return cls(
            session=session,
            session_id=session_id,
            peer_id=peer_id,
            model=model,
            layout=weights.Layout.of(model),
            device=next(model.parameters()).device,
            own=mine.part(own),
            validation=mine.part(held),
            test=test,
        )

    @property
    def payload_bytes(self) -> int:
        """The exact size of every payload of this session."""
        return weights.payload_bytes(self.layout, self.session.wire.dtype)

    def encode(self, vector: Tensor) -> memoryview:
        """Returns the payload to serve."""
        return weights.encode(vector.cpu(), self.layout, self.session.wire.dtype)

    def decode(self, payload: weights.Payload) -> Tensor:
        """Returns the parameters in a peer's payload, [P] on this device; raises FrameError."""
        return weights.decode(payload, self.layout, self.session.wire.dtype).to(self.device)

    def train(self, start: Start, index: int, on_step: OnStep) -> Trained:
        """Returns the parameters after this round's local epochs.

        Under privacy, after as many of their steps as the budget still allows; none is no error.
        In a polish round they are those that were given.
        """
        if not self.trains_in(index):
            return Trained(start.vector, math.nan, 0, 0, start.optimizer)
        if self.private is not None:
            return self.private.train(self.model, start, self.own, self.training_of(index), on_step)
        order = self.order(index)
        return train(self.model, start, self.own, self.training_of(index), order, on_step)

    def training_of(self, index: int) -> Training:
        """Returns the session's training, with the learning rate of round `index`."""
        exchange = self.session.exchange
        return of_round(self.session.training, index, exchange.rounds - exchange.polish_rounds)

    def trains_in(self, index: int) -> bool:
        """Returns whether round `index` has local work; the polish rounds at the end only mix."""
        exchange = self.session.exchange
        # Who does more rounds than the session has trains in those again.
        return not 0 <= exchange.rounds - index < exchange.polish_rounds

    def follow(self, start: Start, trained: Trained, mixed: Tensor, index: int) -> OptimizerState:
        """Returns the optimizer state for the round after `index`, once this one is mixed."""
        return follow(start, trained, mixed, self.training_of(index))

    def order(self, index: int) -> torch.Generator:
        """Returns what the order of the batches is drawn from in round `index`."""
        return seeded(self.session_id, self.peer_id, index, "batches")

    @property
    def samples(self) -> int:
        """How many examples I say that I train on: under privacy, a number that all say."""
        return len(self.own) if self.private is None else self.session.training.batch_size

    @property
    def charged(self) -> int:
        """How many steps and answers of my private examples were paid for."""
        return 0 if self.private is None else self.private.charged

    @property
    def epsilon(self) -> float | None:
        """The privacy that examples I train on have lost; None: training is not private."""
        return None if self.private is None else self.private.accountant.account.spent_epsilon

    @property
    def trust_epsilon(self) -> float | None:
        """The privacy that examples held back have lost, by being asked; None: none is asked."""
        trust = None if self.private is None else self.private.trust
        return None if trust is None else trust.account.spent_epsilon

    def checkpoint(self, vector: Tensor) -> bytes:
        """Returns the parameters as an exact safetensors file."""
        return bytes(weights.encode(vector.cpu(), self.layout, "float32"))

    def decode_checkpoint(self, payload: bytes) -> Tensor:
        """Returns the parameters in a verified checkpoint, [P] on this device."""
        return weights.decode(payload, self.layout, "float32").to(self.device)

    def judge(self, vector: Tensor) -> Scores:
        """Returns the scores on the test set; on my validation data where there is none."""
        judge = self.test or self.validation
        classes = self.session.task.classes
        return evaluate.evaluate(self.model, vector, judge, classes)

    def validate(self, vector: Tensor) -> Scores:
        """Returns the scores on my validation data."""
        classes = self.session.task.classes
        return evaluate.evaluate(self.model, vector, self.validation, classes)

    def score(self, before: Tensor, after: Tensor) -> Scored:
        """Returns how good the parameters before and after mixing are."""
        return Scored(self.judge(before), self.judge(after), self.validate(after))

    def personalise(
        self, trained: Tensor, before: Tensor | None, received: Mapping[str, Model], mixed: Mixed
    ) -> Tensor:
        """Returns my personal model after a round, [P]; it never leaves, so nothing is noised.

        Args:
            trained: [P], what I trained in it.
            before: [P], my personal model of the round before; None in the first.
            received: by peer id; only what had weight in the mix is looked at.
            mixed: what I made of it.
        """
        useful = [received[who].vector for who in sorted(received) if mixed.row.get(who, 0.0) > 0]
        mine = Sample(self.model, self.validation, personal.EXAMPLES)
        return personal.choose(trained, before, useful, mine)

    def own_accuracy(self, scores: Scores) -> float:
        """Returns the accuracy, percent, that a model has where labels are as frequent as mine.

        Args:
            scores: of the model, as `judge` gives them.
        """
        if self.test is None:
            return scores.accuracy
        right, all_of_it = scores.confusion.diagonal().double(), scores.confusion.sum(1).double()
        mine = torch.bincount(self.own.labels.cpu(), minlength=len(right)) * (all_of_it > 0)
        return 100 * float((mine * right / all_of_it.clamp(min=1)).sum() / mine.sum())

    def validation_loss(self, vector: Tensor) -> float:
        """Returns the mean cross-entropy on my own validation data, nats."""
        held = self.validation
        classes = self.session.task.classes
        return evaluate.evaluate(self.model, vector, held, classes).loss

    def loss_by_taking(self, theirs: Tensor, mine: Tensor) -> float:
        """Returns how much worse `theirs` are than `mine` on my validation data, nats.

        0 under privacy: my data are not asked, because what I do with the answer can be seen.
        """
        if self.private is not None:
            return 0.0
        return self.validation_loss(theirs) - self.validation_loss(mine)

    def shunned(self, state: trust.Trust) -> frozenset[str]:
        """Returns the ids of those whom I need not ask: I would reject what they give.

        Nobody where rounds are in step: there, what is mixed must not depend on who was met.
        """
        if self.session.mixing.rule != "degroot" or self.session.exchange.lockstep:
            return frozenset()
        return trust.shunned(state, self.peer_id, self.session.mixing)

    def notes(self, state: trust.Trust) -> bytes:
        """Returns what to tell others of what I measured; under privacy it was noised then."""
        if self.session.mixing.rule != "degroot":
            return b""
        return trust.told(state, self.session.mixing)

    def mix(
        self,
        own: Tensor,
        received: Mapping[str, Model],
        index: int,
        state: trust.Trust,
        start: Tensor | None = None,
    ) -> Mixed:
        """Returns the mix of my parameters and those received, by the session's rule.

        Args:
            own: [P].
            received: by peer id.
            index: my round.
            state: what I remember of the others.
            start: [P], from where I trained; None where that is not known.
        """
        rule = self.session.mixing.rule
        old = {
            peer_id: f"stale: of round {model.round}, mine is {index}"
            for peer_id, model in received.items()
            if model.round < index - MAX_AGE_ROUNDS
        }
        # By peer id: sums and ties must not depend on the order in which models came.
        usable = {who: received[who] for who in sorted(received) if who not in old}
        vectors = [model.vector for model in usable.values()]
        if rule in robust.RULES:
            return self._mix_robustly(own, usable, index, old, state)
        if rule == "degroot":
            mine = trust.Mine(own, self.probe(own, vectors), start, self.peer_id)
            theirs = [
                Received(who, one.vector, one.round, one.notes) for who, one in usable.items()
            ]
            learned = trust.learn(state, mine, theirs, self.session.mixing)
            row, rejected, state = learned.row, learned.rejected, learned.trust
        elif rule == "degroot-naive":
            row, state = self._naive_row(own, usable, state)
            rejected = {}
        else:
            row, rejected = self.fixed_row(usable, index), {}
        mixed = mixing.mix(own, vectors, row)
        named = dict(zip((self.peer_id, *usable), row, strict=True))
        return Mixed(mixed, named, {**old, **rejected}, state)

    def _naive_row(
        self, own: Tensor, usable: Mapping[str, Model], state: trust.Trust
    ) -> tuple[mixing.Row, trust.Trust]:
        """Returns the row of `degroot-naive`; an equal one where there is nothing to learn by."""
        if not self.stackable:
            return mixing.equal_row(0, [0] * len(usable)), state
        vectors = {naive.ME: own, **{who: one.vector for who, one in usable.items()}}
        mine = Sample(self.model, self.validation, naive.EXAMPLES)
        row, numbers = naive.learn(state.naive, vectors, mine, self.session.mixing)
        return row, msgspec.structs.replace(state, naive=numbers)

    def probe(self, own: Tensor, received: Sequence[Tensor]) -> probe.Judge | None:
        """Returns what judges the parameters received; None where my examples must not be asked.

        What is made of the answer leaves, so under privacy it is noised, and paid for.
        """
        del own, received
        if self.private is not None:
            return self.private.judge(self.model, self.validation)
        return probe.Probe(self.model, self.validation)

    @property
    def stackable(self) -> bool:
        """Whether peers like me can be computed all together, each step for all of them at once."""
        return self.private is None

    def fixed_row(self, usable: Mapping[str, Model], index: int) -> mixing.Row:
        """Returns the weights of a rule that learns nothing: mine, then those of the models."""
        rule = self.session.mixing.rule
        by_age = rule == "age"
        counts = [model.round if by_age else model.samples for model in usable.values()]
        return mixing.fixed_row(rule, index if by_age else self.samples, counts)

    def _mix_robustly(
        self,
        own: Tensor,
        usable: Mapping[str, Model],
        index: int,
        old: Mapping[str, str],
        state: trust.Trust,
    ) -> Mixed:
        """Returns the mix by a rule that makes a vector, and not a row of weights alone."""
        settings, vectors = self.session.mixing, [model.vector for model in usable.values()]
        mine = robust.Mine(index / self.session.exchange.rounds, self.validation_loss)
        combined = robust.combine(settings.rule, own, vectors, settings, mine)
        named = dict(zip((self.peer_id, *usable), combined.row, strict=True))
        peers = tuple(usable)
        rejected = {peers[k]: why for k, why in combined.rejected.items()}
        return Mixed(combined.vector, named, {**old, **rejected}, state)
