"""What a private peer does before its first round: agrees with the session, opens its accounts."""

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from p2pl.errors import BudgetSpent, PrivacyError, wrong
from p2pl.exchange.accounts import (
    PURPOSE,
    Accounts,
    check_not_older,
    load_accounts,
    lost,
    save_accounts,
)
from p2pl.exchange.state import PeerState
from p2pl.learning.accountant import Account, Accountant, Budget, Charge, affordable, check_batch
from p2pl.learning.learner import Learner
from p2pl.learning.private import (
    DEFAULT_CLIP,
    PrivateTraining,
    check_clip,
    check_model,
    steps_a_round,
)
from p2pl.network.keys import Identity
from p2pl.protocol.session import Privacy, Session

LOOKS_AT_DATA = ("ubar",)  # mixing rules that compare losses on a peer's own examples


@dataclass(frozen=True, slots=True)
class Wanted:
    """The privacy that the person asked for."""

    epsilon: float
    delta: float | None = None  # None: the session's, or one that fits the data
    clip: float = DEFAULT_CLIP


def wanted(epsilon: float | None, delta: float | None, clip: float | None) -> Wanted | None:
    """Returns what three options ask for together; None where no privacy is asked for.

    Raises:
        PrivacyError: a delta or a clipping norm without an epsilon.
    """
    if epsilon is None:
        if delta is not None or clip is not None:
            raise PrivacyError("--dp-delta and --dp-clip: allowed only with --dp-epsilon")
        return None
    return Wanted(epsilon, delta, DEFAULT_CLIP if clip is None else clip)


@dataclass(frozen=True, slots=True)
class Book:
    """Where the accounts of a run are written, and by whom."""

    directory: Path
    session_id: str
    key: bytes

    @classmethod
    def of(cls, directory: Path, session_id: str, identity: Identity) -> "Book":
        """Returns the book of a run."""
        return cls(directory, session_id, identity.secret_for(PURPOSE))

    def load(self) -> Accounts | None:
        """Returns the accounts; None where there are none. Raises RunDirError."""
        return load_accounts(self.directory, self.session_id, self.key)

    def save(self, accounts: Accounts) -> None:
        """Writes the accounts down."""
        save_accounts(self.directory, self.session_id, self.key, accounts)


def check_session(session: Session, wanted: Wanted | None) -> None:
    """Raises PrivacyError where the session demands more privacy than the person asked for."""
    demanded = session.privacy
    if wanted is None:
        if demanded.required:
            raise PrivacyError(
                "--dp-epsilon: got none, and this session demands differential privacy; allowed: "
                f"above 0, at most {demanded.max_epsilon:g}; nothing was sent"
            )
        return
    _check_bound("--dp-epsilon", wanted.epsilon, demanded.max_epsilon)
    _check_bound("--dp-delta", wanted.delta, demanded.delta)
    if session.mixing.rule in LOOKS_AT_DATA:
        raise PrivacyError(
            wrong(
                "mixing.rule, for private training",
                got=session.mixing.rule,
                allowed=f"any but {', '.join(LOOKS_AT_DATA)}, which compares losses on my examples",
            )
        )


def _check_bound(option: str, got: float | None, bound: float | None) -> None:
    if got is not None and bound is not None and got > bound:
        raise PrivacyError(
            wrong(option, got=got, allowed=f"at most {bound:g}, which the session demands")
        )


def made_private(
    learner: Learner,
    wanted: Wanted | None,
    rounds: int,
    book: Book,
    state: PeerState | None,
) -> Learner:
    """Returns the learner as the person wants it: one that trains privately, or itself.

    The noise is that with which the budget lasts for all rounds of the run. It is found once: a
    restart goes on with it, unless the person has changed the budget.

    Args:
        learner: with the peer's data.
        wanted: within what the session demands; None: no privacy.
        rounds: of the whole run.
        book: of this run.
        state: what the run has reached; None before its first round.

    Raises:
        InputError: a budget that cannot be, too few data, or a run that lost its accounts.
        BudgetSpent: nothing is left before the first round.
    """
    saved = book.load()
    if wanted is None:
        if saved is not None:
            raise PrivacyError(
                "--dp-epsilon: got none, and this run trains privately; "
                f"allowed: the same command as before (it was {saved.training.epsilon:g})"
            )
        return learner
    if saved is None and state is not None:
        raise lost(book.directory)
    if saved is not None:
        check_not_older(book.directory, saved, state.charged if state else 0)
    clip = check_clip(wanted.clip)
    check_model(learner.model, learner.session.task.input)
    account = _account(learner, wanted, rounds, saved, state.round if state else 0)
    book.save(Accounts(training=account))
    return replace(
        learner, private=PrivateTraining(Accountant(account, partial(_write, book)), clip)
    )


def _account(
    learner: Learner, wanted: Wanted, rounds: int, saved: Accounts | None, done: int
) -> Account:
    """Returns the account to train with from round `done` + 1 on."""
    training = learner.session.training
    rate = check_batch(training.batch_size, len(learner.own))
    examples = len(learner.own) + len(learner.validation)
    allowed = budget(learner.session.privacy, wanted, examples)
    a_round = steps_a_round(training, len(learner.own))
    to_train = sum(1 for index in range(done + 1, rounds + 1) if learner.trains_in(index))
    if saved is None:
        return Account.opened(allowed, rate, a_round * to_train)
    account = _continued(saved.training, allowed, rate, a_round * max(1, to_train))
    first = Charge(account.noise_multiplier, rate, a_round)
    if not done and not affordable(allowed, account.spent, first):
        raise BudgetSpent(
            f"--dp-epsilon {allowed.epsilon:g}: already {account.spent_epsilon:.3g} spent by "
            "rounds that were begun and not finished; nothing is left for the first round, and "
            "nothing was sent"
        )
    return account


def _write(book: Book, training: Account) -> None:
    book.save(Accounts(training=training))


def budget(demanded: Privacy, wanted: Wanted, examples: int) -> Budget:
    """Returns what may be spent; a delta that nobody chose is the session's where it has one.

    Args:
        demanded: by the session.
        wanted: by the person, within that.
        examples: all of the peer's own.

    Raises:
        PrivacyError: a budget that cannot be.
    """
    made = Budget.checked(wanted.epsilon, wanted.delta, examples)
    if wanted.delta is None and demanded.delta is not None:
        return Budget.checked(wanted.epsilon, min(made.delta, demanded.delta), examples)
    return made


def _continued(saved: Account, budget: Budget, rate: float, steps: int) -> Account:
    """Returns the account to go on with: all that was spent stays spent."""
    if saved.budget == budget:
        return saved
    with contextlib.suppress(PrivacyError):  # nothing is left: the noise does not matter
        return Account.opened(budget, rate, steps, saved.spent)
    return Account(
        epsilon=budget.epsilon,
        delta=budget.delta,
        noise_multiplier=saved.noise_multiplier,
        spent=saved.spent,
    )
