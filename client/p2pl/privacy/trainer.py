"""A trainer such that what comes out says little about any one example."""

from dataclasses import dataclass

from p2pl.learning.judge import Judge
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.train import Start, Trained
from p2pl.learning.trainer import Round, Spent
from p2pl.privacy.training import PrivateTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateTrainer(TorchTrainer):
    """A peer's module and examples, trained with DP-SGD.

    Attributes:
        private: how, and what was spent; it changes in place.
        told_samples: how many examples the peer says that it trains on: a number that all peers
            say, because its own would tell something about its data.
    """

    private: PrivateTraining
    told_samples: int

    @classmethod
    def around(
        cls, trainer: TorchTrainer, private: PrivateTraining, told_samples: int
    ) -> "PrivateTrainer":
        """Returns the trainer, private from now on.

        Args:
            trainer: whose model, data and scores it keeps.
            private: how it trains.
            told_samples: how many examples others are told that the peer has.
        """
        return cls(
            trainer.objective,
            trainer.names,
            trainer.own,
            trainer.validation,
            trainer.test,
            private=private,
            told_samples=told_samples,
        )

    @property
    def samples(self) -> int:
        """How many examples the peer says that it trains on: the same for all peers."""
        return self.told_samples

    @property
    def spent(self) -> Spent:
        """The privacy lost so far."""
        trust = self.private.trust
        return Spent(
            self.private.accountant.account.spent_epsilon,
            None if trust is None else trust.account.spent_epsilon,
            self.private.charged,
            self.private.accountant.account.delta,
        )

    def fit(self, start: Start, round: Round) -> Trained:
        """Returns the parameters after as many steps as the budget still allows; 0 are no error."""
        private, training = self.private, round.training
        return private.train(self.model, start, self.own, training, round.on_step)

    def judge(self) -> Judge | None:
        """Returns a judge whose answers are noised and paid for; None where nothing pays."""
        return self.private.judge(self.model, self.validation)
