"""The kinds of exchange on equal terms: one session, four ways to swap, and what each survives.

Accuracies come from simulations, over seeds. What it costs, and what becomes of the others when one
of them dies or lies, comes from real processes on loopback (`swarm_run.py`), one run each.
"""

from functools import partial

from experiments.grid import MNIST, SESSIONS, Cell, Figures, Results, Study
from experiments.page import accuracy, part, table
from p2pl.report import plots as pictures

SPEC = SESSIONS / "exchange.toml"
SPLITS = {"iid": "iid", "Dirichlet 0.5": "dirichlet:0.5"}
# Each kind with the same learned trust, and with the rule of its own paper.
WAYS = (
    ("cohort", "degroot"),
    ("gossip", "degroot"),
    ("gossip", "age"),
    ("braintorrent", "degroot"),
    ("braintorrent", "samples"),
    ("raft", "degroot"),
    ("raft", "samples"),
)
EVENTS = {
    "none": "nothing happens",
    "peer": "1 of 6 dies",
    "tracker": "the tracker dies",
    "liar": "1 of 6 lies",
}
# A death is the business of the kind of exchange, whatever the mixing rule: it is run with one.
NOT_RUN = "not run"


def settings(way: tuple[str, str]) -> tuple[str, ...]:
    """Returns the options that make the session one of this kind and rule."""
    kind, rule = way
    return ("--set", f'exchange.kind="{kind}"', "--set", f'mixing.rule="{rule}"')


def named(split: str, *words: str) -> str:
    """Returns the name of a cell."""
    return "-".join((*words, split)).lower().replace(" ", "-")


def cell(split: str, way: tuple[str, str]) -> Cell:
    """Returns one simulated cell: six peers, five seeds."""
    setup = ("--data", MNIST, "--peers", "6", "--partition", SPLITS[split], "--seeds", "5")
    return Cell(named(split, "simulated", *way), (str(SPEC), *setup, *settings(way)), 2.0)


# All the data in one place, with as many passes over them.
CENTRALISED = Cell(
    "simulated-centralised",
    (str(SPEC), "--data", MNIST, "--peers", "6", "--seeds", "5", "--baseline", "centralised"),
    2.0,
)


def swarm(split: str, way: tuple[str, str], event: str) -> Cell | None:
    """Returns one run of six processes; None where it is not run."""
    if event in ("peer", "tracker") and way[1] != "degroot":
        return None
    setup = ("--data", MNIST, "--peers", "6", "--partition", SPLITS[split], "--event", event)
    arguments = (str(SPEC), *setup, *settings(way))
    name = f"{named(split, *way)}-{event}"
    return Cell(name, arguments, 0.5, script="scripts/swarm_run.py", timed=True)


def section(results: Results) -> str:
    """Returns a table and a picture for each split."""
    parts = [f"# Kinds of exchange\n\n{_INTRODUCTION}"]
    for split in SPLITS:
        parts.append(part(f"MNIST, {split}", partial(show, split=split), results))
    return "\n\n".join(parts)


def show(results: Results, split: str) -> str:
    """Returns what there is to show of one split."""
    one = accuracy(results.figures[CENTRALISED.name])
    return "\n\n".join(
        [
            show_table(results, split),
            f"All data in one place, as many passes over them: {one}.",
            results.picture(named(split, "exchanges"), draw(results, split)),
        ]
    )


def headline(results: Results) -> str:
    """Returns the table of the plain split."""
    return show_table(results, "iid")


def show_table(results: Results, split: str) -> str:
    """Returns every way to swap, one a line."""
    head = ["kind, mixing", "simulated", "kB in", "messages", "seconds", *EVENTS.values()]
    return table(head, [row(results, split, way) for way in WAYS])


def draw(results: Results, split: str) -> bytes:
    """Returns accuracy by round of every way, and of all data in one place."""
    alike = ("raft", "samples")  # as braintorrent, samples
    cells = {", ".join(way): cell(split, way) for way in WAYS if way != alike}
    cells["centralised"] = CENTRALISED
    bands = {
        name: [
            (point["round"], point["accuracy"], point["accuracy_std_over_seeds"])
            for point in results.figures[one.name]["by_round"]
        ]
        for name, one in cells.items()
    }
    return pictures.draw_bands(
        bands,
        title=f"MNIST among six, {split}, by kind of exchange",
        unit="accuracy on the test set (%)",
    )


def row(results: Results, split: str, way: tuple[str, str]) -> list[str]:
    """Returns one line of the table."""
    runs = {event: swarm(split, way, event) for event in EVENTS}
    figures = {event: results.figures[one.name] if one else None for event, one in runs.items()}
    plain = figures["none"]
    assert plain
    costs = [
        f"{plain['bytes_in_per_peer'] / 1_000:.0f}",
        f"{plain['messages_per_peer']:.0f}",
        f"{plain['seconds_in_rounds']:.1f}",
    ]
    simulated = accuracy(results.figures[cell(split, way).name])
    return [", ".join(way), simulated, *costs, *map(fate, figures.values())]


def fate(figures: Figures | None) -> str:
    """Returns what became of those who are left: accuracy, rounds, and the slowest round."""
    if figures is None:
        return NOT_RUN
    late = f", {figures['late']} not done" if figures["late"] else ""
    led = ", led by the liar" if figures["liar_led"] else ""
    slowest = f"{figures['slowest_round_s']:.1f} s"
    return f"{figures['accuracy']:.1f} ({figures['rounds']} rounds, slowest {slowest}{late}{led})"


_INTRODUCTION = """Six peers, logistic regression, 15 rounds of one epoch; the sessions differ in
`exchange.kind` and `mixing.rule` alone. *simulated* is the accuracy over 5 seeds. In a simulation
all are equally fast, so everybody in `braintorrent` merges what the leader in `raft` would, and
with the rule `samples` both are federated averaging, to the last digit. Real peers are not in step:
in `braintorrent` each merges with the few that have moved meanwhile, as published, and where labels
are skewed that costs points that the simulation does not show.

All else is from **one** run of six real processes and a tracker on one machine of two cores, each
column a run of its own: what a peer pulled and how many messages it sent in its rounds, how long
these took, and what the peers that are honest and alive reached, the fewest rounds of any of them,
and the slowest of all their rounds. A peer (in `raft` the one that leads) or the tracker is killed
in round 5; the liar serves -3 times its parameters from the start. Only the runs in which nothing
happens were to have both cores to themselves, others shared one, so of the seconds only theirs are
to be compared, and roughly. A death is the business of the kind of exchange, so it is run with one
rule."""


def cells() -> tuple[Cell, ...]:
    """Returns all cells, what is quick to come by first."""
    simulated = [cell(split, way) for split in SPLITS for way in WAYS]
    runs = [swarm(split, way, event) for event in EVENTS for split in SPLITS for way in WAYS]
    return (*simulated, CENTRALISED, *(one for one in runs if one))


STUDY = Study(
    "exchanges",
    "Kinds of exchange: accuracy, cost, and what each survives",
    cells(),
    section,
    headline,
)
