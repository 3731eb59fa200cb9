"""Privacy before and after: what a budget buys and whether a claim holds, as figures and tables."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pl.data.examples import Examples
from p2pl.errors import InputError, PrivacyError, wrong
from p2pl.learning import device, models
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.weights import flatten
from p2pl.privacy.accountant import (
    MAX_NOISE,
    Budget,
    Charge,
    check_batch,
    epsilon,
    noise_multiplier,
)
from p2pl.privacy.audit.canaries import FAULTS, Audited, Verdict, one_run
from p2pl.privacy.audit.membership import FALSE_POSITIVES, MIN_MODELS, Attack, attack
from p2pl.privacy.training import DEFAULT_CLIP, check_clip, check_model
from p2pl.protocol.session import Session
from p2pl.seeds import seeded

EPSILONS = (1.0, 2.0, 3.0, 8.0)  # shown where none is asked for: from strong to weak
CURVE_EPSILONS = tuple(0.5 * 2 ** (step / 3) for step in range(16))  # 0.5 to 16, for the picture


@dataclass(frozen=True, slots=True)
class Setting:
    """How a peer would train."""

    examples: int  # of its own, those held back for validation included
    validation_share: float = 0.2
    batch: int = 256
    rounds: int = 20
    epochs: int = 1  # in a round
    cohort: int = 5  # peers whose models it mixes with its own
    parameters: int = 7_850  # of the model; this is logistic regression on 28x28 images
    delta: float | None = None  # None: one that fits the data
    clip: float = DEFAULT_CLIP

    @classmethod
    def of(cls, session: Session, examples: int) -> "Setting":
        """Returns the setting of a peer with `examples` in a session."""
        return cls(
            examples=examples,
            validation_share=session.training.validation_share,
            batch=session.training.batch_size,
            rounds=session.exchange.rounds,
            epochs=session.training.local_epochs,
            cohort=session.exchange.cohort,
            parameters=len(models.initial_vector(session)),
            delta=session.privacy.delta,
        )

    def changed(self, **given: Any) -> "Setting":  # noqa: ANN401  # fields of this class
        """Returns the setting with those of the fields that are given, and not None."""
        return replace(self, **{name: one for name, one in given.items() if one is not None})

    @property
    def trained_on(self) -> int:
        """How many examples are trained on."""
        return self.examples - max(1, round(self.examples * self.validation_share))

    @property
    def steps(self) -> int:
        """Steps of the whole session."""
        return math.ceil(self.trained_on / self.batch) * self.epochs * self.rounds

    @property
    def sample_rate(self) -> float:
        """Chance of an example to take part in a step; raises InputError."""
        return check_batch(self.batch, self.trained_on)


@dataclass(frozen=True, slots=True)
class Row:
    """One budget in one setting."""

    epsilon: float
    noise_multiplier: float
    noise_norm: float  # of one step's mean gradient, expected
    noise_to_signal: float  # the same beside the most that all examples together can add
    run_noise_to_signal: float  # over all steps: noise grows by their square root
    mixed_noise_to_signal: float  # after a mix with the cohort, whose noise is independent


@dataclass(frozen=True, slots=True)
class Plan:
    """What budgets buy in a setting."""

    setting: Setting
    delta: float
    rows: tuple[Row, ...]

    def curves(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Returns (epsilon, noise beside the signal of the whole run) by whose model, to draw."""
        rows = plan(self.setting, CURVE_EPSILONS, ()).rows
        return {
            "alone": tuple((row.epsilon, row.run_noise_to_signal) for row in rows),
            f"mean of {self.setting.cohort + 1}": tuple(
                (row.epsilon, row.mixed_noise_to_signal) for row in rows
            ),
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures, for JSON."""
        setting = asdict(replace(self.setting, delta=self.delta))
        counted = {
            "training_examples": self.setting.trained_on,
            "steps": self.setting.steps,
            "sample_rate": self.setting.sample_rate,
        }
        return {**setting, **counted, "rows": [asdict(row) for row in self.rows]}


def plan(setting: Setting, epsilons: Sequence[float], noises: Sequence[float]) -> Plan:
    """Returns the noise that each epsilon needs, and the epsilon that each noise gives.

    Raises:
        InputError: a batch larger than the data.
        PrivacyError: an epsilon, a delta or a noise that cannot be.
    """
    rate, steps = setting.sample_rate, setting.steps
    check_clip(setting.clip)
    delta = Budget.checked(1.0, setting.delta, setting.examples).delta
    rows = []
    for wanted in epsilons:
        budget = Budget.checked(wanted, delta, setting.examples)
        rows.append(_row(setting, wanted, noise_multiplier(budget, (), rate, steps)))
    for noise in noises:
        if not 0 < noise <= MAX_NOISE:
            raise PrivacyError(
                wrong("--noise", got=noise, allowed=f"above 0, at most {MAX_NOISE:g}")
            )
        rows.append(_row(setting, epsilon((Charge(noise, rate, steps),), delta), noise))
    return Plan(setting, delta, tuple(sorted(rows, key=lambda row: row.epsilon)))


def _row(setting: Setting, spent: float, noise: float) -> Row:
    # A coordinate has noise * clip / batch; the mean gradient is at most clip long.
    to_signal = noise * math.sqrt(setting.parameters) / setting.batch
    over_run = to_signal / math.sqrt(setting.steps)
    return Row(
        epsilon=spent,
        noise_multiplier=noise,
        noise_norm=to_signal * setting.clip,
        noise_to_signal=to_signal,
        run_noise_to_signal=over_run,
        mixed_noise_to_signal=over_run / math.sqrt(setting.cohort + 1),
    )


def plan_table(made: Plan) -> RenderableType:
    """Returns the plan as it is shown in a terminal."""
    setting = made.setting
    table = Table(box=SIMPLE_HEAD)
    heads = ("epsilon", "noise multiplier", "norm a step", "of signal", "of the run", "once mixed")
    for head in heads:
        table.add_column(head, justify="right")
    for row in made.rows:
        shares = (row.noise_to_signal, row.run_noise_to_signal, row.mixed_noise_to_signal)
        table.add_row(
            f"{row.epsilon:.3g}",
            f"{row.noise_multiplier:.3f}",
            f"{row.noise_norm:.3g}",
            *(f"{100 * share:.3g} %" for share in shares),
        )
    about = Text(
        f"{setting.trained_on} examples to train on, {setting.steps} steps of {setting.batch} "
        f"expected (a chance of {setting.sample_rate:.3g} each), delta {made.delta:.3g}, gradients "
        f"clipped to {setting.clip:g}, {setting.parameters} parameters, {setting.cohort + 1} "
        "models in a mix"
    )
    return Group(about, table)


# --- the audit -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audit:
    """What is audited, and how hard."""

    budget: Budget | None  # None: training is not private
    rounds: int
    canaries: int
    models: int  # for attacks on membership; 0: none
    confidence: float
    seed: int  # of the coins: who is in
    fault: str = "none"  # one of FAULTS, put in to see that the audit finds it
    clip: float = DEFAULT_CLIP
    threads: int | None = None  # to compute with; None = one for small models, else all cores


def audit(session: Session, data: Examples, wanted: Audit) -> tuple[Verdict, tuple[Attack, ...]]:
    """Returns what attacks on a peer of a session find out about its examples.

    Args:
        session: whose training is audited.
        data: the peer's own; a part is held back for validation, as in the session.
        wanted: what and how hard.

    Raises:
        InputError: a fault or numbers that cannot be, or too few data.
    """
    _check(wanted)
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
    )
    coins = seeded("audit", str(wanted.seed), 0, "coins")
    threads = wanted.threads or device.auto_threads(len(audited.start), device.cores())
    with device.computing_with(threads):
        verdict = one_run(audited, own, wanted.canaries, wanted.confidence, coins)
        if not wanted.models:
            return verdict, ()
        return verdict, attack(audited, own, wanted.models, wanted.confidence, coins)


def _check(wanted: Audit) -> None:
    if wanted.fault not in FAULTS:
        raise InputError(wrong("--fault", got=wanted.fault, allowed=", ".join(FAULTS)))
    if not 0.5 <= wanted.confidence < 1:
        raise InputError(wrong("--confidence", got=wanted.confidence, allowed="0.5 to below 1"))
    if wanted.models and wanted.models < MIN_MODELS:
        raise InputError(
            wrong("--models", got=wanted.models, allowed=f"0, or at least {MIN_MODELS}")
        )


def audit_dict(verdict: Verdict, attacks: Sequence[Attack]) -> dict[str, Any]:
    """Returns what an audit found, for JSON; an infinite claim is null: there was none."""
    found = asdict(verdict)
    found["claimed"] = None if math.isinf(verdict.claimed) else verdict.claimed
    found["verdict"] = _verdict(verdict)
    members = {
        attack.name: {
            **asdict(attack),
            "true_positives": dict(
                zip(map(str, FALSE_POSITIVES), attack.true_positives, strict=True)
            ),
        }
        for attack in attacks
    }
    return {**found, "membership": members}


def audit_table(verdict: Verdict, attacks: Sequence[Attack]) -> RenderableType:
    """Returns what an audit found, as it is shown in a terminal."""
    claim = (
        "no claim: training without privacy"
        if math.isinf(verdict.claimed)
        else f"claimed   epsilon {verdict.claimed:.3f} at delta {verdict.delta:.3g}"
    )
    best = max(verdict.ways, key=lambda way: way.epsilon)
    lines = [
        claim,
        f"found     epsilon at least {verdict.bound:.3f}, with {100 * verdict.confidence:g} % "
        f"confidence: {best.right} of {best.guesses} guesses right, {verdict.canaries} canaries",
        f"could have found at most {verdict.most:.2f}",
        f"verdict   {_verdict(verdict)}",
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    if attacks:
        parts.append(_attack_table(verdict, attacks))
    return Group(*parts)


def _verdict(verdict: Verdict) -> str:
    if verdict.broken:
        return "broken"
    return "no claim" if math.isinf(verdict.claimed) else "no contradiction"


def _attack_table(verdict: Verdict, attacks: Sequence[Attack]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="who was in the training data", title_justify="left")
    table.add_column("attack on the final model")
    for head in ("AUC", *(f"TPR at {100 * share:g} % FPR" for share in FALSE_POSITIVES), "needs"):
        table.add_column(head, justify="right")
    for one in attacks:
        rates = [
            f"{100 * rate:.2f} % ({100 * interval.low:.2f}..{100 * interval.high:.2f})"
            for rate, interval in zip(one.true_positives, one.intervals, strict=True)
        ]
        table.add_row(one.name, f"{one.area:.3f}", *rates, f"epsilon {one.epsilon:.3f}")
    allowed = [
        "any"
        if math.isinf(verdict.claimed)
        else f"{100 * min(1.0, share * math.exp(verdict.claimed) + verdict.delta):.2f} %"
        for share in FALSE_POSITIVES
    ]
    table.add_row("allowed by the claim", "", *allowed, "")
    return table
