"""The audit of a peer's own training, whole: the figures of `p2pl audit`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch

from p2pl.data.examples import Examples
from p2pl.errors import InputError, wrong
from p2pl.learning import device, models
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.weights import flatten
from p2pl.privacy.accountant import Budget
from p2pl.privacy.audit.canaries import RUNS, Verdict, one_run
from p2pl.privacy.audit.membership import (
    FALSE_POSITIVES,
    MIN_MODELS,
    MembershipAttack,
    attack_membership,
)
from p2pl.privacy.audit.target import FAULTS, Audited
from p2pl.privacy.training import DEFAULT_CLIP, check_clip, check_model
from p2pl.protocol.session import Session
from p2pl.seeds import seeded


@dataclass(frozen=True, slots=True)
class Audit:
    """What is audited, and how hard."""

    budget: Budget | None  # None: training is not private
    rounds: int  # at least 1
    canaries: int  # to plant, at most
    models: int  # for membership inference, at least `MIN_MODELS`; 0: none
    confidence: float  # that the bounds are true, 0.5 to below 1
    seed: int  # of the coins: who is in
    fault: str = "none"  # one of FAULTS, put in to see that the audit finds it
    clip: float = DEFAULT_CLIP  # the largest norm of one example's gradient
    threads: int | None = None  # to compute with; None: one for small models, else all cores

    @property
    def rounds_of_all(self) -> int:
        """How many rounds are trained: with canaries, without, and by each model."""
        return self.rounds * (RUNS + self.models)


def audit(
    session: Session,
    data: Examples,
    wanted: Audit,
    on_begin: Callable[[], None] | None = None,
    on_round: Callable[[], None] | None = None,
) -> tuple[Verdict, tuple[MembershipAttack, ...]]:
    """Returns what attacks on a peer of a session find out about its examples.

    The membership attacks are left out where no models are wanted for them.

    Args:
        session: whose training is audited.
        data: the peer's own; a part is held back for validation, as in the session.
        wanted: what and how hard.
        on_begin: called once everything that could be checked is.
        on_round: called when a round of any of the trainings is over, `rounds_of_all` times.

    Raises:
        InputError: a fault or numbers that cannot be, or too few data.
        ModelError: a model whose examples have no gradients of their own.
        PrivacyError: a budget that no noise meets, or a clipping norm that is none.
        TrainingDiverged: the parameters of a model are no longer finite.
        ModuleNotFoundError: the extra `dp` is not installed.
    """
    _check(wanted)
    for needed in ("scipy.stats", "sklearn.metrics"):  # used after much training: missed before it
        import_module(needed)
    check_clip(wanted.clip)
    model = models.build(session)
    check_model(model, session.task.input)
    mine = TorchTrainer.of(session, ("audit", "audit"), model, data)
    own = mine.own.take(torch.arange(len(mine.own)))
    fault: Any = wanted.fault
    audited = Audited(
        session=session,
        model=model,
        start=flatten(model),
        rounds=wanted.rounds,
        budget=wanted.budget,
        clip=wanted.clip,
        fault=fault,
        on_round=on_round,
    )
    if on_begin is not None:
        on_begin()
    coins = seeded("audit", str(wanted.seed), 0, "coins")
    threads = wanted.threads or device.auto_threads(len(audited.start), device.cores())
    with device.computing_with(threads):
        verdict = one_run(audited, own, wanted.canaries, wanted.confidence, coins)
        if not wanted.models:
            return verdict, ()
        return verdict, attack_membership(audited, own, wanted.models, wanted.confidence, coins)


def _check(wanted: Audit) -> None:
    device.check_threads(wanted.threads)
    if wanted.fault not in FAULTS:
        raise InputError(wrong("--fault", got=wanted.fault, allowed=", ".join(FAULTS)))
    if not 0.5 <= wanted.confidence < 1:
        raise InputError(wrong("--confidence", got=wanted.confidence, allowed="0.5 to below 1"))
    if wanted.models and wanted.models < MIN_MODELS:
        raise InputError(
            wrong("--models", got=wanted.models, allowed=f"0, or at least {MIN_MODELS}")
        )


def as_dict(verdict: Verdict, attacks: Sequence[MembershipAttack]) -> dict[str, Any]:
    """Returns what an audit found, for JSON; an infinite claim is null: there was none.

    Args:
        verdict: on the run with canaries.
        attacks: how each attack on membership did, under `membership` by its name; may be empty.
    """
    found = asdict(verdict)
    found["claimed"] = None if math.isinf(verdict.claimed) else verdict.claimed
    found["verdict"] = verdict.word
    members = {
        one.name: {
            **asdict(one),
            "true_positives": dict(zip(map(str, FALSE_POSITIVES), one.true_positives, strict=True)),
        }
        for one in attacks
    }
    return {**found, "membership": members}
