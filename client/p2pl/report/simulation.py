"""What came out of a simulation: its seeds side by side, as pictures, a page, and the numbers.

`write_simulation_report` reads what `p2pl simulate --out DIR` wrote, and writes another directory:

    report.md      a page for people, with every picture and table
    report.json    what `p2pl simulate --json` printed, and every peer's score
    *.png          the pictures; one is left out where there is nothing to draw
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from rich.console import Group, RenderableType
from rich.filesize import decimal

from p2pl import regular
from p2pl.errors import RunDirError, visible, wrong
from p2pl.metric import ACCURACY, Metric, figure
from p2pl.report import plots
from p2pl.report.classes import ClassScore, class_scores, macro_score
from p2pl.report.folder import PAGE_FILE, make_folder, write_pictures, write_text
from p2pl.report.numbers import rejected_when_last_met, trust_when_last_met
from p2pl.report.plots import Matrix
from p2pl.report.run import kind_of
from p2pl.report.tables import Rows, class_rows, markdown_table, markdown_text, terminal_table
from p2pl.run.log import MAX_RECORD_BYTES, LoggedRun, read_run

SIMULATION_FILE = "simulation.json"
MAX_TRUST_PEERS = 100  # a side of the trust picture; more cells than that cannot be seen
CURVES = (
    "By round, mean over the honest peers and the seeds, on what the table says it was judged on. "
    "The band is one standard deviation over the seeds, where there are several. *Mean model*: of "
    "the mean of all peers' parameters."
)
HEADINGS = {
    "accuracy": "Accuracy",
    "score": "Score",
    "peers": "Peers",
    "consensus": "Consensus distance",
    "bad": "Bad peers",
    "trust": "Trust",
    "confusion": "Confusion",
}
CAPTIONS = {
    "accuracy": CURVES,
    "score": CURVES,
    "peers": "Each peer after the last mix; a dot is one seed, the line their mean.",
    "consensus": "How far the peers' parameters are from their mean, squared, relative to it.",
    "bad": "The bad peers' share in an honest peer's mix, all of them together.",
    "trust": "The weight that a row's peer gave to a column's peer when it last asked for it, mean "
    "over the seeds. A cross: it was turned down then, in most seeds. Grey: the two never met. "
    "Where all weigh alike, that is as it should be: nobody loses weight without doing harm.",
    "confusion": "What the models took for what, summed over peers and seeds.",
}


class Score(msgspec.Struct, frozen=True):
    """A metric of the peers after the last mix, in its unit."""

    mean: float | None  # over the honest peers and the seeds; None: not finite, like the next ones
    std_over_seeds: float | None  # of the seeds' means
    std_over_peers: float | None  # within a seed, mean over the seeds
    worst_peer: float | None  # likewise
    per_seed: tuple[float | None, ...]  # mean over the honest peers
    metric: str = ACCURACY.name
    unit: str = ACCURACY.unit
    higher_is_better: bool = True

    @property
    def measured(self) -> Metric:
        """What was measured."""
        return Metric(self.metric, self.unit, self.higher_is_better)


class Point(msgspec.Struct, frozen=True):
    """One round, mean over peers and seeds."""

    round: int
    accuracy: float | None = None  # after mixing, percent, like the next three; of older versions
    accuracy_std_over_seeds: float = 0.0
    accuracy_before_mix: float | None = None
    accuracy_of_mean_model: float | None = None  # of the mean of all peers' parameters
    primary: float | None = None  # after mixing, by the primary metric, like the next three
    primary_std_over_seeds: float = 0.0
    primary_before_mix: float | None = None
    primary_of_mean_model: float | None = None
    consensus_distance: float | None = None  # squared, relative to the mean of the parameters
    bad_weight: float | None = None  # of all bad peers in an honest peer's mix, percent

    def scores(self) -> tuple[float | None, float, float | None, float | None]:
        """Returns the primary metric, its std over the seeds, before the mix, of the mean model."""
        if self.primary is None:
            spread, mean = self.accuracy_std_over_seeds, self.accuracy_of_mean_model
            return self.accuracy, spread, self.accuracy_before_mix, mean
        spread, mean = self.primary_std_over_seeds, self.primary_of_mean_model
        return self.primary, spread, self.primary_before_mix, mean


class LoggedSimulation(msgspec.Struct, frozen=True):
    """What `simulation.json` holds, as far as a report shows it; the rest is passed over."""

    peers: Annotated[int, Meta(ge=1)]
    rounds: int
    partition: str
    mixing: str
    by_round: tuple[Point, ...]
    accuracy: Score | None = None  # None: it is another metric that is primary
    primary: Score | None = None  # None: written by an older version, and the accuracy is
    metrics: dict[str, Score] = {}
    name: str = ""
    data: str = ""
    model: str = ""
    cohort: int = 0
    local_epochs: int = 1
    baseline: str | None = None
    attack: str | None = None
    bad_peers: int = 0
    held_out: int | None = None
    first_seed: int = 0
    engine: str = ""
    bytes_per_peer_round: int = 0
    seconds: float = 0.0
    consensus_distance: float | None = None
    confusion: tuple[tuple[int, ...], ...] = ()
    participation: float = 1.0  # as asked for, like the next two
    lost_links: float = 0.0
    delay_rounds: int = 0
    took_part: float = 100.0  # of all peers in a round, percent
    pulls_failed: float | None = None  # percent; of older versions, and where nobody pulled

    @property
    def score(self) -> Score:
        """The primary metric; `read_figures` has seen to it that there is one."""
        score = self.primary or self.accuracy
        assert score is not None
        return score


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What `write_simulation_report` wrote, and the numbers."""

    page: Path
    pictures: Mapping[str, Path]  # by kind: those of HEADINGS
    simulation: LoggedSimulation
    by_peer: Matrix  # [seeds, peers], primary metric of the model that each peer ended with
    classes: tuple[ClassScore, ...]  # () when the simulation has no confusion matrix


def is_simulation(directory: Path) -> bool:
    """Returns whether the directory is one that `p2pl simulate --out` wrote."""
    return (directory / SIMULATION_FILE).is_file()


def check_is_over(directory: Path) -> None:
    """Raises RunDirError for a directory of a simulation that was cut off, or of one of its seeds.

    Args:
        directory: that is no finished simulation.
    """
    run = next((run for name in ("seed-*/peer-*", "peer-*") for run in directory.glob(name)), None)
    if run is None:
        return
    is_whole = run.parent != directory
    raise RunDirError(
        wrong(
            str(directory),
            got="a simulation that is not over" if is_whole else "one seed of a simulation",
            allowed=f"the folder of p2pl simulate --out, with a file {SIMULATION_FILE} in it",
            hint=f"p2pl report {run.parent}/peer-* shows its peers by themselves",
        )
    )


def write_simulation_report(directory: Path, out: Path) -> SimulationReport:
    """Returns the report on a simulation, written into the directory `out`.

    Args:
        directory: that `p2pl simulate --out` wrote.
        out: a directory, made where there is none; what an earlier report left there is replaced.

    Raises:
        RunDirError: the simulation's directory is damaged or not complete.
        InputError: `out` cannot be written.
    """
    simulation, raw = read_figures(directory)
    runs = _runs(directory, simulation)
    metric = simulation.score.measured
    by_peer = np.array([[_final(run, metric) for run in seed] for seed in runs])
    labels = _labels(runs, len(simulation.confusion))
    confusion = np.asarray(simulation.confusion, dtype=np.float64)
    drawn = _draw(simulation, runs, by_peer, labels)
    make_folder(out)
    written = SimulationReport(
        page=out / PAGE_FILE,
        pictures=write_pictures(out, drawn, HEADINGS),
        simulation=simulation,
        by_peer=by_peer,
        classes=class_scores(confusion, labels) if len(confusion) else (),
    )
    name = "accuracy_by_peer" if metric == ACCURACY else "score_by_peer"
    write_text(out, _page(written), {**raw, name: by_peer.tolist()})
    return written


def simulation_tables(report: SimulationReport) -> RenderableType:
    """Returns the report's tables for a terminal: scores by seed, of all metrics, and by class."""
    parts: list[RenderableType] = [
        terminal_table(visible(_title(report.simulation)), *_seed_rows(report))
    ]
    if len(report.simulation.metrics) > 1:
        parts.append(terminal_table("Metrics", *_metric_rows(report.simulation)))
    if report.classes:
        rows = class_rows(report.classes, macro_score(report.classes))
        parts.append(terminal_table("By class", *rows))
    return Group(*parts)


def read_figures(directory: Path) -> tuple[LoggedSimulation, dict[str, Any]]:
    """Returns a simulation's figures, and the same as they stand in its file.

    Args:
        directory: that `p2pl simulate --out` wrote.

    Raises:
        RunDirError: the file is missing or damaged.
    """
    path = directory / SIMULATION_FILE
    try:
        with regular.opened(path) as file:
            raw = file.read(MAX_RECORD_BYTES)
        read = (
            msgspec.json.decode(raw, type=LoggedSimulation),
            msgspec.json.decode(raw, type=dict),
        )
    except OSError as fault:
        raise RunDirError(f"{path}: cannot be read: {fault.strerror}") from fault
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise RunDirError(
            wrong(str(path), got=str(fault), allowed="figures as p2pl simulate writes them")
        ) from fault
    if read[0].primary is None and read[0].accuracy is None:
        allowed = "figures as p2pl simulate writes them"
        raise RunDirError(wrong(str(path), got="neither accuracy nor primary", allowed=allowed))
    return read


def _runs(directory: Path, simulation: LoggedSimulation) -> list[list[LoggedRun]]:
    """Returns the runs by seed and peer; the honest peers are the first ones."""
    seeds = sorted(
        (path for path in directory.glob("seed-*") if path.name[5:].isdecimal()),
        key=lambda path: int(path.name[5:]),
    )
    runs = [[read_run(run) for run in sorted(seed.glob("peer-*"))] for seed in seeds]
    expected = (len(simulation.score.per_seed), {len(runs[0])} if runs else set())
    if (len(runs), {len(seed) for seed in runs}) != expected or not runs or not runs[0]:
        raise RunDirError(
            wrong(
                str(directory),
                got=f"{len(runs)} seeds of {sorted({len(seed) for seed in runs})} peers",
                allowed=f"{expected[0]} seeds of the same number of peers",
                hint="let the simulation finish, or run it again",
            )
        )
    return runs


def _final(run: LoggedRun, metric: Metric) -> float:
    """Returns a metric of the model that a peer ended with."""
    if run.summary is None:
        raise RunDirError(
            wrong(str(run.directory), got="no final score", allowed="a run that has finished")
        )
    value = run.summary.value(metric)
    return math.nan if value is None else value  # it was not finite, or had nothing to measure


def _labels(runs: Sequence[Sequence[LoggedRun]], classes: int) -> tuple[str, ...]:
    summary = runs[0][0].summary
    known = summary.labels if summary else ()
    return known if len(known) == classes else tuple(map(str, range(classes)))


def _draw(
    simulation: LoggedSimulation,
    runs: Sequence[Sequence[LoggedRun]],
    by_peer: Matrix,
    labels: Sequence[str],
) -> dict[str, bytes]:
    """Returns the pictures, by kind."""
    points, metric = simulation.by_round, simulation.score.measured
    drawn: dict[str, bytes] = {}
    scores = [(point.round, *point.scores()) for point in points]
    if any(after is not None for _, after, *_ in scores):
        drawn[kind_of(metric)] = plots.draw_bands(
            {
                "after mixing": [(place, after, std) for place, after, std, _, _ in scores],
                "before mixing": [(place, before, 0.0) for place, _, _, before, _ in scores],
                "mean model": [(place, mean, 0.0) for place, _, _, _, mean in scores],
            },
            title=f"{metric.title}, mean over peers and seeds",
            unit=metric.axis,
        )
    if np.isfinite(by_peer).any():
        drawn["peers"] = plots.draw_by_peer(by_peer, metric, bad=simulation.bad_peers)
    distances = [(p.round, p.consensus_distance, 0.0) for p in points]
    if any(distance for _, distance, _ in distances):
        drawn["consensus"] = plots.draw_bands(
            {"all peers": distances},
            title="Consensus distance after mixing",
            unit="relative squared distance",
            logarithmic="y",
        )
    weights = [(p.round, p.bad_weight, 0.0) for p in points]
    if any(weight is not None for _, weight, _ in weights):
        drawn["bad"] = plots.draw_bands(
            {"bad peers": weights}, title="Weight of the bad peers", unit="share of the mix (%)"
        )
    if len(runs[0]) <= MAX_TRUST_PEERS and simulation.baseline is None:
        drawn["trust"] = _draw_trust(runs, simulation.bad_peers)
    confusion = np.asarray(simulation.confusion, dtype=np.float64)
    if len(confusion):
        drawn["confusion"] = plots.draw_confusion(
            confusion, [visible(label) for label in labels], title="Confusion, all peers and seeds"
        )
    return drawn


def _draw_trust(runs: Sequence[Sequence[LoggedRun]], bad: int) -> bytes:
    """Returns the trust that honest peers give, mean over those seeds in which the two met.

    Args:
        runs: by seed and peer, the honest peers first.
        bad: how many of the last peers are bad ones.
    """
    ids = [run.peer_id for run in runs[0]]
    honest = len(ids) - bad or len(ids)
    names = [str(number) for number in range(honest)]
    names += [f"{number} (bad)" for number in range(honest, len(ids))]
    seen = np.zeros((honest, len(ids)))
    total, refused = np.zeros_like(seen), np.zeros_like(seen)
    column = {peer_id: number for number, peer_id in enumerate(ids)}
    for seed in runs:
        for row, run in enumerate(seed[:honest]):
            for peer_id, weight in trust_when_last_met(run.rounds).items():
                seen[row, column[peer_id]] += 1
                total[row, column[peer_id]] += weight
            for peer_id in rejected_when_last_met(run.rounds):
                refused[row, column[peer_id]] += 1
    mean = np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
    in_most = refused > np.maximum(seen, 1) / 2
    return plots.draw_trust(
        names[:honest], names, mean, rejected=in_most, bad=names[honest:] if bad else ()
    )


def _title(simulation: LoggedSimulation) -> str:
    what = simulation.baseline or simulation.mixing
    name = simulation.name or "simulation"
    return f"{name}: {simulation.peers} peers, {simulation.partition}, {what}"


def _page(report: SimulationReport) -> str:
    """Returns the report as a Markdown page."""
    simulation, score = report.simulation, report.simulation.score
    metric = score.measured
    lower = "" if metric.higher_is_better else " Lower is better."
    parts = [
        f"# {visible(_title(simulation))}",
        f"**{markdown_text(metric.title)} {_mean(score)}**, the mean over the honest peers"
        f"{_over_seeds(score)}. Over the peers of one seed, the standard deviation is "
        f"{_fine(score.std_over_peers, metric)}, "
        f"and the worst peer has {markdown_text(metric.shown(score.worst_peer))}.{lower}",
        markdown_table(("setting", "value"), _settings(simulation)),
        "## Seeds",
        markdown_table(*_seed_rows(report)),
    ]
    if len(simulation.metrics) > 1:
        parts += ["## Metrics", markdown_table(*_metric_rows(simulation))]
    for kind in report.pictures:
        heading = markdown_text(metric.title) if kind == "score" else HEADINGS[kind]
        parts += [f"## {heading}", f"![{kind}]({kind}.png)", CAPTIONS[kind]]
        if kind == "confusion":
            rows = class_rows(report.classes, macro_score(report.classes))
            parts.append(markdown_table(*rows))
    return "\n\n".join(parts) + "\n"


def _mean(score: Score) -> str:
    """Returns the mean, with its spread where there are several seeds to have one."""
    metric = score.measured
    spread = f" ± {_fine(score.std_over_seeds, metric)}" if len(score.per_seed) > 1 else ""
    return markdown_text(f"{_fine(score.mean, metric)}{spread} {metric.unit}".rstrip())


def _over_seeds(score: Score) -> str:
    seeds = len(score.per_seed)
    return f" and {seeds} seeds, ± the standard deviation over the seeds" if seeds > 1 else ""


def _settings(simulation: LoggedSimulation) -> list[tuple[str, str]]:
    judged = "the test set"
    if simulation.held_out:
        judged = f"{simulation.held_out} held-out training examples"
    attack = f"{simulation.attack}, {simulation.bad_peers} bad" if simulation.attack else "none"
    return [
        ("data", simulation.data),
        ("model", simulation.model),
        ("judged on", judged),
        ("rounds x epochs", f"{simulation.rounds} x {simulation.local_epochs}"),
        ("cohort", str(simulation.cohort)),
        ("attack", attack),
        ("network", _network(simulation)),
        ("received a peer and round", decimal(simulation.bytes_per_peer_round)),
        ("trained", simulation.engine),
        ("seconds, all seeds", f"{simulation.seconds:.1f}"),
    ]


def _network(simulation: LoggedSimulation) -> str:
    """Returns who took part, what was lost and what came late."""
    missed, late = simulation.pulls_failed or 0.0, simulation.delay_rounds
    if simulation.participation == 1 and not simulation.lost_links and not late:
        return "everybody takes part, no link is lost, nothing is late"
    return (
        f"{simulation.took_part:.1f} % take part in a round, {missed:.1f} % of the pulls fail, "
        f"models are up to {late} rounds old"
    )


def _fine(value: float | None, metric: Metric) -> str:
    """Returns a number with one digit more than one peer's, without a unit."""
    if value is None:
        return "-"
    return f"{value:.2f}" if metric.unit == "%" else figure(value)


def _metric_rows(simulation: LoggedSimulation) -> Rows:
    """Returns what the peers reached by every metric, the primary one first."""
    rows: list[tuple[str, ...]] = [
        (
            visible(score.metric),
            visible(f"{_fine(score.mean, score.measured)} {score.unit}".rstrip()),
            _fine(score.std_over_seeds, score.measured),
            _fine(score.std_over_peers, score.measured),
            visible(score.measured.shown(score.worst_peer)),
            "higher" if score.higher_is_better else "lower",
        )
        for score in simulation.metrics.values()
    ]
    head = ("metric", "mean", "std over seeds", "std over peers", "worst peer", "better is")
    return head, rows


def _seed_rows(report: SimulationReport) -> Rows:
    simulation, metric = report.simulation, report.simulation.score.measured
    honest = report.by_peer[:, : simulation.peers - simulation.bad_peers]
    rows: list[tuple[str, ...]] = [
        (
            str(simulation.first_seed + number),
            _fine(float(seed.mean()), metric),
            _fine(float(seed.std()), metric),
            _fine(metric.worst(seed.tolist()), metric),
            _fine(metric.best(seed.tolist()), metric),
        )
        for number, seed in enumerate(honest)
    ]
    head = ("seed", visible(metric.name), "std over peers", "worst peer", "best peer")
    return head, rows
