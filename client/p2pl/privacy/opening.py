"""What a private peer does before its first round: it opens its accounts, or goes on with them."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2pl.errors import BudgetSpent, PrivacyError
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.trainer import trains_in
from p2pl.privacy.accountant import Account, Accountant, Budget, Charge, affordable, check_batch
from p2pl.privacy.ledger import Ledger, check_not_older, load_ledger, lost, save_ledger
from p2pl.privacy.policy import Wanted, budget, check_task, open_training, open_trust
from p2pl.privacy.trainer import PrivateTrainer
from p2pl.privacy.training import PrivateTraining, check_clip, check_model, steps_a_round
from p2pl.protocol.session import Session
from p2pl.run.state import PeerState


@dataclass(frozen=True, slots=True)
class Book:
    """Where the accounts of a run are written, and by whom."""

    directory: Path
    session_id: str
    key: bytes  # `Identity.secret_for(ledger.PURPOSE)`

    def load(self) -> Ledger | None:
        """Returns the accounts; None where there are none. Raises RunDirError."""
        return load_ledger(self.directory, self.session_id, self.key)

    def save(self, accounts: Ledger) -> None:
        """Writes the accounts down.

        Raises:
            InputError: they cannot be written.
        """
        save_ledger(self.directory, self.session_id, self.key, accounts)


class _Clerk:
    """Keeps both accounts in the one file, whichever of them changes."""

    def __init__(self, book: Book, accounts: Ledger) -> None:
        self._book, self._accounts = book, accounts
        book.save(accounts)

    def write_training(self, account: Account) -> None:
        self._write(msgspec.structs.replace(self._accounts, training=account))

    def write_trust(self, account: Account) -> None:
        self._write(msgspec.structs.replace(self._accounts, trust=account))

    def _write(self, accounts: Ledger) -> None:
        self._book.save(accounts)
        self._accounts = accounts


def made_private(
    session: Session,
    trainer: TorchTrainer,
    asked: Wanted | None,
    rounds: int,
    book: Book,
    state: PeerState | None,
) -> TorchTrainer:
    """Returns the trainer as the person wants it: one that trains privately, or itself.

    The noise is that with which the budget lasts for all rounds of the run. It is found once: a
    restart goes on with it, unless the person has changed the budget.

    Args:
        session: what all peers agreed on.
        trainer: with the peer's data.
        asked: within what the session demands; None: no privacy.
        rounds: of the whole run.
        book: of this run.
        state: what the run has reached; None before its first round.

    Raises:
        InputError: a budget that cannot be, too few data, or a run that lost its accounts.
        BudgetSpent: nothing is left before the first round.
    """
    saved = book.load()
    if asked is None:
        if saved is not None:
            raise PrivacyError(
                "--dp-epsilon: got none, and this run trains privately; "
                f"allowed: the same command as before (it was {saved.training.epsilon:g})"
            )
        return trainer
    if saved is None and state is not None:
        raise lost(book.directory)
    if saved is not None:
        check_not_older(book.directory, saved, state.charged if state else 0)
    clip = check_clip(asked.clip)
    check_task(session)
    check_model(trainer.model, session.task.input)
    done = state.round if state else 0
    accounts = _accounts(session, trainer, asked, (done, rounds), saved)
    clerk = _Clerk(book, accounts)
    training = Accountant(accounts.training, clerk.write_training)
    trust = Accountant(accounts.trust, clerk.write_trust) if accounts.trust else None
    private = PrivateTraining(training, clip, trust)
    return PrivateTrainer.around(trainer, private, session.training.batch_size)


def _accounts(
    session: Session,
    trainer: TorchTrainer,
    asked: Wanted,
    span: tuple[int, int],
    saved: Ledger | None,
) -> Ledger:
    """Returns the accounts to go on with: of a run whose rounds are (done, in all)."""
    (done, rounds), own = span, len(trainer.own)
    allowed = budget(session.privacy, asked, own + len(trainer.validation))
    to_train = sum(trains_in(session, index) for index in range(done + 1, rounds + 1))
    if saved is None:
        return Ledger(
            training=open_training(session, allowed, own, to_train),
            trust=open_trust(session, allowed, rounds),
        )
    training, trust = saved.training, saved.trust
    if training.budget != allowed:
        training = _moved(training, allowed)
        with contextlib.suppress(PrivacyError):  # nothing is left: the noise does not matter
            training = open_training(session, allowed, own, to_train, training.spent)
    if trust is not None and trust.budget != allowed:
        trust = _moved(trust, allowed)
        with contextlib.suppress(PrivacyError):
            trust = open_trust(session, allowed, rounds - done, trust.spent)
    _check_left(session, own, training, done)
    return Ledger(training=training, trust=trust)


def _moved(account: Account, allowed: Budget) -> Account:
    """Returns the account with another budget: all that was spent stays spent."""
    return msgspec.structs.replace(account, epsilon=allowed.epsilon, delta=allowed.delta)


def _check_left(session: Session, own: int, account: Account, done: int) -> None:
    """Raises BudgetSpent where there is no round yet, and nothing left to begin one with."""
    training = session.training
    rate = check_batch(training.batch_size, own)
    first = Charge(account.noise_multiplier, rate, steps_a_round(training, own))
    if not done and not affordable(account.budget, account.spent, first):
        raise BudgetSpent(
            f"--dp-epsilon {account.epsilon:g}: already {account.spent_epsilon:.3g} spent by "
            "rounds that were begun and not finished; nothing is left for the first round, and "
            "nothing was sent"
        )
