"""A simulation on the screen: how far it is, and what came of it."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pl.errors import visible
from p2pl.metric import Metric
from p2pl.progress import RoundsBar
from p2pl.simulation.engine import SimulatedRound


class Bar(RoundsBar):
    """A progress bar over all rounds of all seeds, which says how good the mean model is.

    Args:
        rounds: of all seeds.
        console: where it is drawn.
        metrics: those of the task, which know their units.
    """

    def __init__(self, rounds: int, console: Console, metrics: Sequence[Metric] = ()) -> None:
        super().__init__("simulating", rounds, console)
        self._metrics = {metric.name: metric for metric in metrics}

    def round(self, one: SimulatedRound) -> None:
        """Shows that a round is over, and how good the mean of all models is by then."""
        self.advance()
        for name, value in list(one.mean_model.items())[:1]:  # none in a round that is not scored
            said = self._metrics.get(name, Metric(name)).said(value)
            self.describe(f"mean model: {visible(said)}")


def table(figures: dict[str, Any]) -> Table:
    """Returns the figures of a simulation as a table for people."""
    primary = figures["primary"]
    name, unit = primary["metric"], primary["unit"]
    lower = "" if primary["higher_is_better"] else ", lower is better"
    shown = Table(box=SIMPLE_HEAD, title=_title(figures), title_justify="left")
    shown.add_column("on the test set, after the last mix")
    shown.add_column("", justify="right")
    rows = [
        (
            f"{name}, mean over peers{' and seeds' * (figures['seeds'] > 1)}{lower}",
            _score(primary["mean"], unit),
        ),
        *([("  std over seeds", _score(primary["std_over_seeds"], unit))] * (figures["seeds"] > 1)),
        ("  std over peers", _score(primary["std_over_peers"], unit)),
        ("  worst peer", _score(primary["worst_peer"], unit)),
        ("  before the last mix", _score(primary["before_mix"], unit)),
        ("  of the mean model", _score(primary["of_mean_model"], unit)),
        *_others(figures),
        ("consensus distance", _exponent(figures["consensus_distance"])),
        ("bytes received a peer and round", f"{figures['bytes_per_peer_round']:,}"),
        ("seconds", _seconds(figures)),
    ]
    if figures["accuracy"]:
        rows.insert(6 - (figures["seeds"] == 1), ("F1, macro", f"{figures['f1_macro']:.4f}"))
    if figures["attack"]:
        rows += [
            ("bad peers' share of the last mix", _percent(figures["bad_weight"])),
            ("bad models rejected", _percent(figures["bad_rejected"])),
            ("honest models rejected", _percent(figures["good_rejected"])),
        ]
    if figures["backdoor"]:
        rows.append(("marked images taken for class 0", _percent(figures["backdoor"]["mean"])))
    if figures["took_part"] < 100 or figures["lost_links"] or figures["delay_rounds"]:
        rows += [
            ("peers that took part in a round", _percent(figures["took_part"])),
            (
                "pulls that failed (link lost, or peer away)",
                _percent(figures["pulls_failed"]),
            ),
            ("what was pulled is late by at most", _counted(figures["delay_rounds"], "round")),
        ]
    if own := figures["personal"]:
        like = "labels as frequent as a peer's own" if figures["accuracy"] else name
        rows += [
            (f"personal model, {like}", _score(own["mean"], unit)),
            ("  shared model, likewise", _score(own["shared"], unit)),
            ("  shared model, fine-tuned", _score(own["fine_tuned"], unit)),
        ]
    for what, value in rows:
        shown.add_row(Text(visible(what)), Text(visible(value)))
    return shown


def _others(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns a row for each metric but the primary one."""
    others = list(figures["metrics"].values())[1:]
    return [(f"{one['metric']}, likewise", _score(one["mean"], one["unit"])) for one in others]


def _score(value: float | None, unit: str) -> str:
    if value is None:
        return "not finite"
    return f"{value:.2f} %" if unit == "%" else f"{value:.4g} {unit}".rstrip()


def _exponent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2e}"


def _percent(value: float | None) -> str:
    return "none came" if value is None else f"{value:.2f} %"


def _title(figures: dict[str, Any]) -> str:
    what = figures["baseline"] or figures["mixing"]
    if figures["attack"]:
        what += f", {figures['bad_peers']} of them {figures['attack']}"
    return (
        f"{figures['peers']} peers, {figures['partition']}, {what}, "
        f"{_counted(figures['rounds'], 'round')}, {_counted(figures['seeds'], 'seed')}, "
        f"{figures['engine']} training in {figures['precision']}"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _seconds(figures: dict[str, Any]) -> str:
    by_phase = figures["seconds_by_phase"]
    rest = max(0.0, figures["seconds"] - sum(by_phase.values()))  # peers made, figures put together
    phases = ", ".join(f"{p} {s:.1f}" for p, s in {**by_phase, "all else": rest}.items())
    return f"{figures['seconds']:.1f} ({phases})"
