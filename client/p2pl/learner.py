"""The numbers' side of a peer: how it trains, what it sends, and what it makes of others' models.

A node in a network and a virtual peer in a simulation compute with the same learner. All of it is
slow beside a network event, and one call at a time may use it: the model is working space.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median_high

import msgspec
import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples, Source
from p2pl.errors import FrameError, ModelError, PrivacyError, wrong
from p2pl.learning import dithered
from p2pl.learning.codec import Codec, WholeModel
from p2pl.learning.quantised import Quantised
from p2pl.learning.task import Scores
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.train import OnStep, OptimizerState, Start, Trained
from p2pl.learning.trainer import Round, Trainer, quietly, trains_in, unchanged
from p2pl.metric import ACCURACY
from p2pl.mixing import personal, size
from p2pl.mixing.base import Mixed, Mixer, Own, PeerModel, mixed_by, rule_of
from p2pl.protocol.session import Session

MAX_AGE_ROUNDS = 5  # chosen: an older model holds the mix back more than it adds to it
# Models whose median round says where the others are: half of fewer may be a single straggler.
LEAST_COMPANY = 3


@dataclass(frozen=True, slots=True)
class Scored:
    """How good a peer's parameters are, around one mix."""

    before: Scores  # as trained, on the test set
    after: Scores  # as mixed, on the test set
    validation: Scores  # as mixed, on the peer's own validation examples


@dataclass(frozen=True, slots=True)
class Learner:
    """A trainer, a codec and a mixing rule, for one peer in one session.

    Attributes:
        session: what all peers agreed on.
        session_id: 64 hex digits.
        peer_id: 64 hex digits.
        trainer: trains and scores parameters.
        codec: turns parameters into bytes and back.
        mixer: mixes parameters.
    """

    session: Session
    session_id: str
    peer_id: str
    trainer: Trainer
    codec: Codec
    mixer: Mixer

    def __post_init__(self) -> None:
        """Raises PrivacyError for a codec that may tell more than parameters in private training.

        Those that p2pl brings make a payload of the parameters alone, which are paid for: whatever
        is computed from them costs nothing more (Dwork and Roth 2014, proposition 2.1).
        """
        if self.trainer.spent is not None and not self.codec.keeps_privacy:
            raise PrivacyError(
                wrong(
                    "codec, for private training",
                    got=type(self.codec).__name__,
                    allowed="one whose keeps_privacy is True: made of parameters, of nothing else",
                )
            )

    @classmethod
    def around(cls, session: Session, names: tuple[str, str], trainer: Trainer) -> "Learner":
        """Returns the learner of a peer that trains with `trainer`.

        Args:
            session: what all peers agreed on.
            names: the session's id and the peer's.
            trainer: the peer's own.

        Raises:
            InputError: the session's mixing rule is not known here.
        """
        layout = trainer.layout
        if session.training.buffers == "local":
            layout = layout.travelling
        wire = session.wire
        codec: Codec = WholeModel(layout, wire.dtype, trainer.device)
        if wire.compression != "none":
            few = dithered.Dithered if wire.compression in dithered.BITS else Quantised
            codec = few(layout, wire.compression, trainer.device)
        return cls(session, *names, trainer, codec, rule_of(session)(session, names[1]))

    def beginning(self, vector: Tensor) -> "Learner":
        """Returns the learner of a session whose initial checkpoint holds these parameters, [P]."""
        codec = self.codec.beginning(vector)
        return self if codec is self.codec else replace(self, codec=codec)

    def beside(self, peer_id: str, trainer: Trainer) -> "Learner":
        """Returns the learner of another peer of the session, around the same codec.

        Args:
            peer_id: the other's.
            trainer: the other's, with a model of the same layout on the same device.
        """
        mixer = rule_of(self.session)(self.session, peer_id)
        return Learner(self.session, self.session_id, peer_id, trainer, self.codec, mixer)

    @classmethod
    def of(
        cls,
        session: Session,
        names: tuple[str, str],
        model: nn.Module,
        mine: Source,
        test: Examples | None,
    ) -> "Learner":
        """Returns the learner of a peer with a module and examples of its own.

        Args:
            session: what all peers agreed on.
            names: the session's id and the peer's.
            model: working space, on the device to compute on.
            mine: all of the peer's examples, on that device.
            test: everybody's, on that device; None: the validation examples are the test set too.

        Raises:
            InputError: the task or the mixing rule is not known here, or the model can't be mixed.
        """
        return cls.around(session, names, TorchTrainer.of(session, names, model, mine, test))

    # Training.

    def fit(self, start: Start, index: int, on_step: OnStep = quietly) -> Trained:
        """Returns the parameters after the local training of round `index`.

        In a polish round they are those that were given.

        Args:
            start: parameters [P] and optimizer state to begin with.
            index: the peer's round, from 1 on.
            on_step: called between two steps with how many are done, and of how many.

        Raises:
            TrainingDiverged: the loss or a parameter is no longer finite.
        """
        if not trains_in(self.session, index):
            return unchanged(start)
        return self.trainer.fit(start, Round.of(self.session, index, on_step))

    def follow(self, start: Start, trained: Trained, mixed: Tensor, index: int) -> OptimizerState:
        """Returns the optimizer state for the round after `index`, once this one is mixed.

        Args:
            start: of the round.
            trained: what its local training made.
            mixed: [P], what the round ended with.
            index: the round, from 1 on.
        """
        return self.trainer.follow(start, trained, mixed, Round.of(self.session, index))

    # Evaluation.

    def judge(self, vector: Tensor) -> Scores:
        """Returns the scores on the test set; on the validation examples where there is none."""
        return self.trainer.evaluate(vector, "test")

    def score(self, before: Tensor, after: Tensor) -> Scored:
        """Returns how good the parameters before and after mixing are, [P] each."""
        evaluate = self.trainer.evaluate
        return Scored(
            evaluate(before, "test"), evaluate(after, "test"), evaluate(after, "validation")
        )

    def own_scores(self, personal: Tensor, scored: Scored) -> dict[str, float]:
        """Returns how good models are for the peer itself, by the names in the run log.

        Args:
            personal: [P], the peer's personal model.
            scored: the shared one, around the mix.
        """
        own = self.trainer.own_score
        kept, after, before = own(self.judge(personal)), own(scored.after), own(scored.before)
        scores = {"personal_score": kept, "own_score": after, "own_score_before_mix": before}
        if self.trainer.metrics[0] != ACCURACY:
            return scores
        return {name.replace("score", "accuracy"): value for name, value in scores.items()} | scores

    def loss_by_taking(self, theirs: Tensor, mine: Tensor) -> float:
        """Returns how much worse `theirs` are than `mine` on the validation examples.

        0 under privacy: the examples are not asked, because what is done with the answer can be
        seen.

        Args:
            theirs: [P], that might be taken over.
            mine: [P], the peer's own.
        """
        if self.trainer.spent is not None:
            return 0.0
        evaluate = self.trainer.evaluate
        theirs = self.at_home(theirs, mine)
        return evaluate(theirs, "validation").loss - evaluate(mine, "validation").loss

    # Mixing.

    @property
    def samples(self) -> int:
        """How many examples the peer says that it trains on."""
        return self.trainer.samples

    def mix(
        self,
        own: Tensor,
        received: Mapping[str, PeerModel],
        index: int,
        memory: msgspec.Struct | None = None,
        start: Tensor | None = None,
    ) -> Mixed:
        """Returns the mix of the peer's parameters and those received, by the session's rule.

        Args:
            own: [P].
            received: by peer id.
            index: the peer's round; in `gossip`, the age of its model.
            memory: what the rule remembers of earlier rounds; None: nothing yet.
            start: [P], from where the peer trained; None where that is not known.
        """
        present = present_of(index, received)
        stale = {
            peer_id: f"stale: of round {model.round}, {_whose(index, present)} {present}"
            for peer_id, model in received.items()
            if model.round < present - MAX_AGE_ROUNDS
        }
        # By peer id: sums and ties must not depend on the order in which models came.
        usable = {
            who: replace(received[who], vector=self.at_home(received[who].vector, own))
            for who in sorted(received)
            if who not in stale
        }
        huge = {} if self.mixer.bounds_sizes else self.too_large(own, usable)
        usable = {who: model for who, model in usable.items() if who not in huge}
        mine = Own(own, index, self.samples, self.trainer, start)
        mixed = mixed_by(self.mixer, mine, usable, self.memory(memory))
        mixed = replace(mixed, vector=self.at_home(mixed.vector, own))
        if not stale and not huge:
            return mixed
        return Mixed(mixed.vector, mixed.row, {**stale, **huge, **mixed.rejected}, mixed.memory)

    def too_large(self, own: Tensor, received: Mapping[str, PeerModel]) -> dict[str, str]:
        """Returns whose parameters are out of all proportion to the peer's, [P], and why."""
        return size.too_large(own, {who: model.vector for who, model in received.items()})

    def at_home(self, theirs: Tensor, mine: Tensor) -> Tensor:
        """Returns parameters of another peer with what of the peer's own never travels, [P].

        That is the normalisation layers under `training.buffers = "local"`, as in FedBN (Li et al.
        2021, arXiv:2102.07623), and else nothing.

        Args:
            theirs: [P], or only the part that travels.
            mine: [P], the peer's own.
        """
        layout = self.trainer.layout
        if self.session.training.buffers == "mix" or not layout.local:
            return theirs
        count = layout.travelling.total
        return torch.cat([theirs[:count], mine[count:]])

    def memory(self, saved: msgspec.Struct | None) -> msgspec.Struct:
        """Returns what the mixing rule remembers: `saved`, or an empty memory before round 1."""
        return self.mixer.Memory() if saved is None else saved

    def notes(self, memory: msgspec.Struct | None) -> bytes:
        """Returns what to tell others beside the peer's next model."""
        return self.mixer.notes(self.memory(memory))

    def blocked(self, memory: msgspec.Struct | None) -> frozenset[str]:
        """Returns the ids of those who need not be asked: what they give would be rejected."""
        return self.mixer.blocked(self.memory(memory))

    def personalise(
        self,
        trained: Tensor,
        before: Tensor | None,
        received: Mapping[str, PeerModel],
        mixed: Mixed,
    ) -> Tensor:
        """Returns the peer's personal model after a round, [P]; it never leaves the peer.

        Args:
            trained: [P], what the peer trained in it.
            before: [P], its personal model of the round before; None in the first.
            received: by peer id; only what had weight in the mix is looked at.
            mixed: what the peer made of it.
        """
        useful = [
            self.at_home(received[who].vector, trained)
            for who in sorted(received)
            if mixed.row.get(who, 0.0) > 0
        ]
        mine = self.trainer.sample("validation", personal.EXAMPLES)
        if mine is None:
            return trained
        return personal.choose(trained, before, useful, mine)

    # Checkpoints, which are exact whatever travels.

    def checkpoint(self, vector: Tensor) -> memoryview:
        """Returns the parameters [P], and what is frozen, as an exact safetensors file."""
        return self.trainer.checkpoint(vector)

    def decode_checkpoint(self, payload: bytes | memoryview) -> Tensor:
        """Returns the parameters in a verified checkpoint, [P] on the trainer's device.

        Raises:
            ModelError: the trainer's model is another than the one that the session began with.
        """
        try:
            return self.trainer.begin(payload)
        except FrameError as fault:
            raise ModelError(
                f"{fault}; the model here is not the one that the session began with: you and its "
                "author have different versions of it"
            ) from fault


def present_of(index: int, received: Mapping[str, PeerModel]) -> int:
    """Returns the round that models are not to be older than by more than `MAX_AGE_ROUNDS`.

    A peer that is far ahead of all others would else mix with nobody, and end with what it makes
    alone: the faster its machine, the worse its model. Where the others are it takes from most.

    Args:
        index: the peer's round.
        received: by peer id.
    """
    if len(received) < LEAST_COMPANY:
        return index
    return min(index, median_high(model.round for model in received.values()))


def _whose(index: int, present: int) -> str:
    return "the peer's is" if present == index else "most are of"
