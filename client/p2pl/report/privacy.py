"""What a privacy budget buys and what an audit found, as tables for a terminal."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pl.privacy.audit.canaries import Verdict
from p2pl.privacy.audit.membership import FALSE_POSITIVES, MembershipAttack
from p2pl.privacy.plan import Plan


def plan_table(made: Plan) -> RenderableType:
    """Returns the plan as it is shown in a terminal: a line about the setting, a row a budget."""
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


def audit_table(verdict: Verdict, attacks: Sequence[MembershipAttack]) -> RenderableType:
    """Returns what an audit found, as it is shown in a terminal.

    Args:
        verdict: on the run with canaries.
        attacks: on membership; may be empty, and then there is no table of them.
    """
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
        f"verdict   {verdict.word}",
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    if attacks:
        parts.append(_membership_table(verdict, attacks))
    return Group(*parts)


def _membership_table(verdict: Verdict, attacks: Sequence[MembershipAttack]) -> Table:
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
