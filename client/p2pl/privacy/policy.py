"""The privacy policy of a peer: what its session demands, what the person wants, and within what.

An account that is opened here keeps to both.
"""

from dataclasses import dataclass

from p2pl.errors import PrivacyError, wrong
from p2pl.mixing.base import MIXERS, rule_of
from p2pl.privacy.accountant import Account, Accountant, Budget, Spent, check_batch
from p2pl.privacy.probe import RELEASES
from p2pl.privacy.training import DEFAULT_CLIP, PrivateTraining, check_clip, steps_a_round
from p2pl.protocol.session import Privacy, Session

# How many questions to the validation examples are planned for, beside one a round and peer that is
# asked: a peer that finds a liar evaluates the others again. Chosen; once all questions are used
# up, no model is evaluated any more.
SPARE_QUESTIONS = 1.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """The privacy that the person asked for."""

    epsilon: float
    delta: float | None = None  # None: the session's, or one that fits the data
    clip: float = DEFAULT_CLIP  # the largest norm of one example's gradient


def wanted(epsilon: float | None, delta: float | None, clip: float | None) -> Wanted | None:
    """Returns what three options ask for together; None where no privacy is asked for.

    Args:
        epsilon: of `--dp-epsilon`; it is checked once the number of examples is known.
        delta: of `--dp-delta`, likewise.
        clip: of `--dp-clip`, above 0; None: `DEFAULT_CLIP`.

    Raises:
        PrivacyError: a delta or a clipping norm without an epsilon, or a norm that is none.
    """
    if epsilon is None:
        if delta is not None or clip is not None:
            raise PrivacyError("--dp-delta and --dp-clip: allowed only with --dp-epsilon")
        return None
    return Wanted(epsilon, delta, DEFAULT_CLIP if clip is None else check_clip(clip))


def check_session(session: Session, asked: Wanted | None) -> None:
    """Checks that the person asked for all the privacy that the session demands.

    Args:
        session: which may demand privacy, and bound epsilon and delta.
        asked: by the person; None: no privacy.

    Raises:
        PrivacyError: the session demands more, or its mixing rule may not be used privately.
        InputError: the mixing rule is not known here.
    """
    demanded = session.privacy
    if asked is None:
        if demanded.required:
            raise PrivacyError(
                "--dp-epsilon: got none, and this session demands differential privacy; allowed: "
                f"above 0, at most {demanded.max_epsilon:g}; nothing was sent"
            )
        return
    _check_bound("--dp-epsilon", asked.epsilon, demanded.max_epsilon)
    _check_bound("--dp-delta", asked.delta, demanded.delta)
    if not rule_of(session).keeps_privacy:
        keeping = [name for name in MIXERS.names() if MIXERS.find(name).keeps_privacy]
        raise PrivacyError(
            wrong(
                "mixing.rule, for private training",
                got=session.mixing.rule,
                allowed=", ".join(keeping),
                hint="it may ask the peer's examples, and nobody counts what the answers say",
            )
        )


def check_task(session: Session) -> None:
    """Raises PrivacyError unless gradients of single examples can be had for the session's task."""
    if session.task.kind != "classification":
        raise PrivacyError(
            wrong(
                "task.kind, for private training", got=session.task.kind, allowed="classification"
            )
        )


def _check_bound(option: str, got: float | None, bound: float | None) -> None:
    if got is not None and bound is not None and got > bound:
        raise PrivacyError(
            wrong(option, got=got, allowed=f"at most {bound:g}, which the session demands")
        )


def budget(demanded: Privacy, asked: Wanted, examples: int) -> Budget:
    """Returns what may be spent; a delta that nobody chose is the session's where it has one.

    Args:
        demanded: by the session.
        asked: by the person, within that.
        examples: n, all of the peer's own, at least 1.

    Raises:
        PrivacyError: an epsilon or a delta out of its range.
    """
    made = Budget.checked(asked.epsilon, asked.delta, examples)
    if asked.delta is None and demanded.delta is not None:
        return Budget.checked(asked.epsilon, min(made.delta, demanded.delta), examples)
    return made


def private_training(
    session: Session, asked: Wanted, sizes: tuple[int, int], rounds: tuple[int, int]
) -> PrivateTraining:
    """Returns how a peer trains privately whose accounts live as long as this process does.

    Args:
        session: what all peers agreed on.
        asked: by the person, within what the session demands.
        sizes: how many examples are trained on, and how many held back for validation.
        rounds: in how many the peer trains, and how many there are in all.

    Raises:
        InputError: fewer examples than a batch.
        PrivacyError: a budget or a clipping norm out of its range, or a budget that no noise meets.
    """
    allowed = budget(session.privacy, asked, sum(sizes))
    training = Accountant(open_training(session, allowed, sizes[0], rounds[0]))
    trust = open_trust(session, allowed, rounds[1])
    return PrivateTraining(training, check_clip(asked.clip), Accountant(trust) if trust else None)


def open_training(
    session: Session, allowed: Budget, examples: int, rounds: int, spent: Spent = ()
) -> Account:
    """Returns an account whose noise makes the budget last for `rounds` more rounds of training.

    Args:
        session: how a round trains.
        allowed: what may be spent, on all that was and will be done.
        examples: to train on.
        rounds: in how many the peer trains; 0 counts as 1.
        spent: before.

    Raises:
        InputError: fewer examples than a batch.
        PrivacyError: no noise is enough for the budget.
    """
    rate = check_batch(session.training.batch_size, examples)
    steps = steps_a_round(session.training, examples) * max(1, rounds)
    return Account.opened(allowed, rate, steps, spent)


def open_trust(session: Session, allowed: Budget, rounds: int, spent: Spent = ()) -> Account | None:
    """Returns the account from which validation examples are asked about other peers' models.

    An example is trained on or asked, never both, and which of the two was settled without looking
    at it. So both accounts may spend the whole budget: each example pays for one of them, and the
    guarantee is the larger (parallel composition, McSherry 2009). None where the rule asks nothing.

    Args:
        session: its mixing rule says whether examples are asked, its cohort how often in a round.
        allowed: what may be spent, on all that was and will be asked.
        rounds: of the whole run, or those that are left; 0 counts as 1.
        spent: before.

    Raises:
        PrivacyError: no noise is enough for the budget.
        InputError: the mixing rule is not known here.
    """
    if not rule_of(session).asks_judge:
        return None
    questions = round(SPARE_QUESTIONS * max(1, session.exchange.cohort) * max(1, rounds))
    return Account.opened(allowed, 1.0, RELEASES * questions, spent)
