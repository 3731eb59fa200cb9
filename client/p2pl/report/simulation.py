"""What came out of a simulation: its seeds side by side, as pictures, a page, and the numbers.

`write_simulation_report` reads what `p2pl simulate --out DIR` wrote, and writes another directory:

    report.md      a page for people, with every picture and table
    report.json    what `p2pl simulate --json` printed, and every peer's accuracy
    *.png          the pictures; one is left out where there is nothing to draw
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from rich.console import Group, RenderableType
from rich.filesize import decimal

from p2pl.errors import RunDirError, wrong
from p2pl.report import plots
from p2pl.report.classes import ClassScore, class_scores, macro_score
from p2pl.report.folder import PAGE_FILE, make_folder, write_pictures, write_text
from p2pl.report.numbers import trust_when_last_met
from p2pl.report.plots import Matrix
from p2pl.report.tables import Rows, class_rows, markdown_table, terminal_table
from p2pl.run.log import MAX_RECORD_BYTES, LoggedRun, read_run
from p2pl.terminal import percent, visible

SIMULATION_FILE = "simulation.json"
MAX_TRUST_PEERS = 100  # a side of the trust picture; more cells than that cannot be seen
HEADINGS = {
    "accuracy": "Accuracy",
    "peers": "Peers",
    "consensus": "Consensus distance",
    "bad": "Bad peers",
    "trust": "Trust",
    "confusion": "Confusion",
}
CAPTIONS = {
    "accuracy": "Accuracy on the test set by round, mean over the peers and the seeds. The band is "
    "one standard deviation over the seeds. *Mean model*: of the mean of all peers' parameters.",
    "peers": "Accuracy of each peer after the last mix; a dot is one seed, the line their mean.",
    "consensus": "How far the peers' parameters are from their mean, squared, relative to it.",
    "bad": "The bad peers' share in an honest peer's mix, all of them together.",
    "trust": "The weight that a row's peer gave to a column's peer when it last asked for it, mean "
    "over the seeds; 0 where it was rejected. Grey: the two never met.",
    "confusion": "What the models took for what, summed over peers and seeds.",
}


class Accuracy(msgspec.Struct, frozen=True):
    """Of the peers after the last mix, in percent."""

    mean: float  # over the honest peers and the seeds
    std_over_seeds: float  # of the seeds' means
    std_over_peers: float  # within a seed, mean over the seeds
    worst_peer: float  # likewise
    per_seed: tuple[float, ...]  # mean over the honest peers


class Point(msgspec.Struct, frozen=True):
    """One round, mean over peers and seeds."""

    round: int
    accuracy: float | None = None  # after mixing, percent, like the next three
    accuracy_std_over_seeds: float = 0.0
    accuracy_before_mix: float | None = None
    accuracy_of_mean_model: float | None = None  # of the mean of all peers' parameters
    consensus_distance: float | None = None  # squared, relative to the mean of the parameters
    bad_weight: float | None = None  # of all bad peers in an honest peer's mix, percent


class LoggedSimulation(msgspec.Struct, frozen=True):
    """What `simulation.json` holds, as far as a report shows it; the rest is passed over."""

    peers: Annotated[int, Meta(ge=1)]
    rounds: int
    partition: str
    mixing: str
    accuracy: Accuracy
    by_round: tuple[Point, ...]
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


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What `write_simulation_report` wrote, and the numbers."""

    page: Path
    pictures: Mapping[str, Path]  # by kind: those of HEADINGS
    simulation: LoggedSimulation
    by_peer: Matrix  # [seeds, peers], percent, of the model that each peer ended with
    classes: tuple[ClassScore, ...]  # () when the simulation has no confusion matrix


def is_simulation(directory: Path) -> bool:
    """Returns whether the directory is one that `p2pl simulate --out` wrote."""
    return (directory / SIMULATION_FILE).is_file()


def write_simulation_report(directory: Path, out: Path) -> SimulationReport:
    """Returns the report on a simulation, written into the directory `out`.

    Args:
        directory: that `p2pl simulate --out` wrote.
        out: a directory, made where there is none; what an earlier report left there is replaced.

    Raises:
        RunDirError: the simulation's directory is damaged or not complete.
        InputError: `out` cannot be written.
    """
    simulation, raw = _read(directory)
    runs = _runs(directory, simulation)
    by_peer = np.array([[_accuracy(run) for run in seed] for seed in runs])
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
    write_text(out, _page(written), {**raw, "accuracy_by_peer": by_peer.tolist()})
    return written


def simulation_tables(report: SimulationReport) -> RenderableType:
    """Returns the report's tables for a terminal: accuracy by seed, and scores by class."""
    parts: list[RenderableType] = [
        terminal_table(visible(_title(report.simulation)), *_seed_rows(report))
    ]
    if report.classes:
        rows = class_rows(report.classes, macro_score(report.classes))
        parts.append(terminal_table("By class", *rows))
    return Group(*parts)


def _read(directory: Path) -> tuple[LoggedSimulation, dict[str, Any]]:
    """Returns the simulation's figures, and the same as they stand in the file."""
    path = directory / SIMULATION_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECORD_BYTES)
        return msgspec.json.decode(raw, type=LoggedSimulation), msgspec.json.decode(raw, type=dict)
    except OSError as fault:
        raise RunDirError(f"{path}: cannot be read: {fault.strerror}") from fault
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise RunDirError(
            wrong(str(path), got=str(fault), allowed="figures as p2pl simulate writes them")
        ) from fault


def _runs(directory: Path, simulation: LoggedSimulation) -> list[list[LoggedRun]]:
    """Returns the runs by seed and peer; the honest peers are the first ones."""
    seeds = sorted(directory.glob("seed-*"), key=lambda path: int(path.name.partition("-")[2]))
    runs = [[read_run(run) for run in sorted(seed.glob("peer-*"))] for seed in seeds]
    expected = (len(simulation.accuracy.per_seed), {len(runs[0])} if runs else set())
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


def _accuracy(run: LoggedRun) -> float:
    """Returns the accuracy of the model that a peer ended with, percent."""
    if run.summary is None or run.summary.accuracy is None:
        raise RunDirError(
            wrong(str(run.directory), got="no final accuracy", allowed="a run that has finished")
        )
    return run.summary.accuracy


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
    points = simulation.by_round
    drawn = {
        "accuracy": plots.draw_bands(
            {
                "after mixing": [(p.round, p.accuracy, p.accuracy_std_over_seeds) for p in points],
                "before mixing": [(p.round, p.accuracy_before_mix, 0.0) for p in points],
                "mean model": [(p.round, p.accuracy_of_mean_model, 0.0) for p in points],
            },
            title="Accuracy, mean over peers and seeds",
            unit="accuracy on the test set (%)",
        ),
        "peers": plots.draw_by_peer(by_peer, bad=simulation.bad_peers),
    }
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
        drawn["trust"] = _draw_trust(runs)
    confusion = np.asarray(simulation.confusion, dtype=np.float64)
    if len(confusion):
        drawn["confusion"] = plots.draw_confusion(
            confusion, [visible(label) for label in labels], title="Confusion, all peers and seeds"
        )
    return drawn


def _draw_trust(runs: Sequence[Sequence[LoggedRun]]) -> bytes:
    """Returns the trust matrix, mean over those seeds in which the two met."""
    ids = [run.peer_id for run in runs[0]]
    names = [str(number) for number in range(len(ids))]
    seen = np.zeros((len(ids), len(ids)))
    total = np.zeros_like(seen)
    column = {peer_id: number for number, peer_id in enumerate(ids)}
    for seed in runs:
        for row, run in enumerate(seed):
            for peer_id, weight in trust_when_last_met(run.rounds).items():
                seen[row, column[peer_id]] += 1
                total[row, column[peer_id]] += weight
    mean = np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
    return plots.draw_trust(names, names, mean)


def _title(simulation: LoggedSimulation) -> str:
    what = simulation.baseline or simulation.mixing
    name = simulation.name or "simulation"
    return f"{name}: {simulation.peers} peers, {simulation.partition}, {what}"


def _page(report: SimulationReport) -> str:
    """Returns the report as a Markdown page."""
    simulation, accuracy = report.simulation, report.simulation.accuracy
    parts = [
        f"# {visible(_title(simulation))}",
        f"**Accuracy {accuracy.mean:.2f} ± {accuracy.std_over_seeds:.2f} %**, the mean over the "
        f"honest peers and {len(accuracy.per_seed)} seeds, ± the standard deviation over the "
        f"seeds. Over the peers of one seed it is {accuracy.std_over_peers:.2f}, and the worst "
        f"peer has {percent(accuracy.worst_peer)}.",
        markdown_table(("setting", "value"), _settings(simulation)),
        "## Seeds",
        markdown_table(*_seed_rows(report)),
    ]
    for kind in report.pictures:
        parts += [f"## {HEADINGS[kind]}", f"![{kind}]({kind}.png)", CAPTIONS[kind]]
        if kind == "confusion":
            rows = class_rows(report.classes, macro_score(report.classes))
            parts.append(markdown_table(*rows))
    return "\n\n".join(parts) + "\n"


def _settings(simulation: LoggedSimulation) -> list[tuple[str, str]]:
    judged = "the test set"
    if simulation.held_out:
        judged = f"{simulation.held_out} held-out training examples"
    attack = f"{simulation.attack}, {simulation.bad_peers} peers" if simulation.attack else "none"
    return [
        ("data", simulation.data),
        ("model", simulation.model),
        ("judged on", judged),
        ("rounds x epochs", f"{simulation.rounds} x {simulation.local_epochs}"),
        ("cohort", str(simulation.cohort)),
        ("attack", attack),
        ("received a peer and round", decimal(simulation.bytes_per_peer_round)),
        ("trained", simulation.engine),
        ("seconds, all seeds", f"{simulation.seconds:.1f}"),
    ]


def _seed_rows(report: SimulationReport) -> Rows:
    simulation = report.simulation
    honest = report.by_peer[:, : simulation.peers - simulation.bad_peers]
    rows: list[tuple[str, ...]] = [
        (
            str(simulation.first_seed + number),
            f"{float(seed.mean()):.2f}",
            f"{float(seed.std()):.2f}",
            f"{float(seed.min()):.2f}",
            f"{float(seed.max()):.2f}",
        )
        for number, seed in enumerate(honest)
    ]
    return ("seed", "accuracy", "std over peers", "worst peer", "best peer"), rows
