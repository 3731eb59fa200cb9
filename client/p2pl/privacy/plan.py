"""What a privacy budget buys, before any of it is spent: the figures of `p2pl privacy`.

Nothing here reads data: the noise depends on how many examples there are, not on what they hold.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from p2pl.errors import PrivacyError, wrong
from p2pl.learning import models
from p2pl.privacy.accountant import (
    MAX_NOISE,
    Budget,
    Charge,
    check_batch,
    epsilon,
    noise_multiplier,
)
from p2pl.privacy.training import DEFAULT_CLIP, check_clip
from p2pl.protocol.session import Session

EPSILONS = (1.0, 2.0, 3.0, 8.0)  # shown where none is asked for: from strong to weak
CURVE_EPSILONS = tuple(0.5 * 2 ** (step / 3) for step in range(16))  # 0.5 to 16, for the picture


@dataclass(frozen=True, slots=True)
class Setting:
    """How a peer would train."""

    examples: int  # of its own, those held back for validation included; at least 2
    validation_share: float = 0.2  # 0..1, held back for validation
    batch: int = 256  # examples expected in a step
    rounds: int = 20
    epochs: int = 1  # in a round
    cohort: int = 5  # peers whose models it mixes with its own
    parameters: int = 7_850  # of the model; this is logistic regression on 28x28 images
    delta: float | None = None  # below 1/examples; None: one that fits the data
    clip: float = DEFAULT_CLIP  # the largest norm of one example's gradient

    @classmethod
    def of(cls, session: Session, examples: int) -> "Setting":
        """Returns the setting of a peer with `examples` in a session.

        Args:
            session: which says how a peer trains, and with whom it mixes.
            examples: of the peer's own, at least 2.

        Raises:
            ModelError: the session's model cannot be made.
        """
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
        """Returns the setting with other values.

        Args:
            given: by the name of the field; one that is None leaves the field as it is.
        """
        return replace(self, **{name: one for name, one in given.items() if one is not None})

    @property
    def trained_on(self) -> int:
        """How many examples are trained on: those that are not held back."""
        return self.examples - max(1, round(self.examples * self.validation_share))

    @property
    def steps(self) -> int:
        """How many steps the whole session has."""
        return math.ceil(self.trained_on / self.batch) * self.epochs * self.rounds

    @property
    def sample_rate(self) -> float:
        """The chance of an example to take part in a step, 0..1.

        Raises:
            InputError: a batch is larger than the data.
        """
        return check_batch(self.batch, self.trained_on)


@dataclass(frozen=True, slots=True)
class Row:
    """One budget in one setting."""

    epsilon: float
    noise_multiplier: float  # standard deviation of the noise, in clipping norms
    noise_norm: float  # of one step's mean gradient, expected
    noise_to_signal: float  # the same beside the most that all examples together can add; a ratio
    run_noise_to_signal: float  # over all steps: noise grows by their square root
    mixed_noise_to_signal: float  # after a mix with the cohort, whose noise is independent


@dataclass(frozen=True, slots=True)
class Plan:
    """What budgets buy in a setting."""

    setting: Setting
    delta: float
    rows: tuple[Row, ...]

    def curves(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Returns what `draw_plan` draws: (epsilon, noise over the whole run's signal), by model.

        Raises:
            PrivacyError: no noise is enough for one of `CURVE_EPSILONS`.
        """
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

    Args:
        setting: how the peer would train.
        epsilons: budgets, each above 0 and at most `MAX_EPSILON`; may be empty.
        noises: noise multipliers, each above 0 and at most `MAX_NOISE`; may be empty.

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
    """Returns the figures of training with such noise, which costs `spent` epsilon."""
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
