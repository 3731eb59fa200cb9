"""The kinds of exchange on equal terms: one session, four ways to swap, and what each survives.

Accuracies come from simulations, over seeds. What dies, and what it costs, comes from real
processes on loopback (`swarm_run.py`), one run each; those are kept in OUT/raw/swarms, one at a
time, because they are timed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import MNIST, ROOT, SESSIONS, Cell, Experiment, Results, accuracy, main, table

from p2pl.network.files import write_atomically

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
DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Swarm:
    """One run of real processes."""

    name: str
    arguments: tuple[str, ...]  # of swarm_run.py


def settings(way: tuple[str, str]) -> tuple[str, ...]:
    """Returns the options that make the session one of this kind and rule."""
    kind, rule = way
    return ("--set", f'exchange.kind="{kind}"', "--set", f'mixing.rule="{rule}"')


def named(split: str, way: tuple[str, str]) -> str:
    """Returns the name of a cell's file."""
    return "-".join((*way, split)).lower().replace(" ", "-")


def cell(split: str, way: tuple[str, str]) -> Cell:
    """Returns one cell: six peers, five seeds."""
    setup = ("--data", MNIST, "--peers", "6", "--partition", SPLITS[split], "--seeds", "5")
    return Cell(named(split, way), (str(SPEC), *setup, *settings(way)), 2.0)


def swarm(split: str, way: tuple[str, str], event: str) -> Swarm:
    """Returns one run of six processes."""
    setup = ("--data", MNIST, "--peers", "6", "--partition", SPLITS[split], "--event", event)
    return Swarm(f"{named(split, way)}-{event}", (str(SPEC), *setup, *settings(way)))


def run_swarm(wanted: Swarm, raw: Path) -> None:
    """Runs a swarm whose figures are not there yet, and keeps them."""
    kept = raw / f"{wanted.name}.json"
    if kept.exists() and json.loads(kept.read_bytes())["arguments"] == list(wanted.arguments):
        return
    print(f"swarm {wanted.name}", file=sys.stderr)
    command = [sys.executable, str(ROOT / "scripts" / "swarm_run.py"), *wanted.arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE_S
    )
    record = {"arguments": wanted.arguments, "figures": json.loads(done.stdout)}
    raw.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(record, indent=1).encode() + b"\n")


def section(results: Results) -> str:
    """Returns one table a split."""
    parts = ["## Kinds of exchange", _INTRODUCTION]
    for split in SPLITS:
        rows = [row(results, split, way) for way in WAYS]
        head = ["kind, mixing", "simulated", "kB in", "messages", "seconds", *EVENTS.values()]
        parts += [f"### MNIST, {split}", table(head, rows)]
    return "\n\n".join(parts)


def row(results: Results, split: str, way: tuple[str, str]) -> list[str]:
    """Returns one line of the table."""
    runs = {event: kept(results, swarm(split, way, event)) for event in EVENTS}
    plain = runs["none"]
    costs = [
        f"{plain['bytes_in_per_peer'] / 1_000:.0f}",
        f"{plain['messages_per_peer']:.0f}",
        f"{plain['seconds_in_rounds']:.1f}",
    ]
    simulated = accuracy(results.figures[cell(split, way).name])
    return [", ".join(way), simulated, *costs, *map(fate, runs.values())]


def kept(results: Results, wanted: Swarm) -> Mapping[str, Any]:
    """Returns the figures of a run of real processes."""
    path = results.folder / "raw" / "swarms" / f"{wanted.name}.json"
    figures: Mapping[str, Any] = json.loads(path.read_bytes())["figures"]
    return figures


def fate(figures: Mapping[str, Any]) -> str:
    """Returns what became of those who are left: accuracy, rounds, and the slowest round."""
    late = f", {figures['late']} not done" if figures["late"] else ""
    slowest = f"{figures['slowest_round_s']:.1f} s"
    return f"{figures['accuracy']:.1f} ({figures['rounds']} rounds, slowest {slowest}{late})"


_INTRODUCTION = """Six peers, logistic regression, 15 rounds of one epoch; the sessions differ in
`exchange.kind` and `mixing.rule` alone. *simulated* is the accuracy over 5 seeds. All else is from
**one** run of six real processes and a tracker on one machine, each column a run of its own: what
a peer pulled and how many messages it sent in its rounds, how long these took, and what the peers
that are honest and alive reached, the fewest rounds of any of them, and the slowest. A peer or the
tracker is killed in round 5; the liar serves -3 times its parameters from the start."""


EXPERIMENT = Experiment(
    "exchanges", tuple(cell(split, way) for split in SPLITS for way in WAYS), section
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="")
    asked, _ = parser.parse_known_args()
    out = asked.out or ROOT / ("runs/fast" if asked.fast else "results")
    if not (asked.list or asked.only):
        for one in (swarm(s, w, e) for s in SPLITS for w in WAYS for e in EVENTS):
            run_swarm(one, out / "raw" / "swarms")
    main(EXPERIMENT)
