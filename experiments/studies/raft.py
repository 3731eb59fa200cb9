"""An elected aggregator: what Behera et al. 2021 show, and what is measured here.

`rates`: loss and accuracy against the learning rate of Adam (their figures 5 and 6). `table`: their
table I. `processes`: table I once more, from five real processes. `elections`: their table II, and
`failover`: how long a dead leader is missed, both from five real processes. `keys`: what it costs
that no key is used twice. `scripts/raft_run.py` measures all of them.
"""

import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.grid import Cell, Figures, Results, Study
from experiments.page import table

PEERS = 5
HELD_OUT = 10_000  # training examples that the rate is chosen on


def show_rates(results: Figures, picture: str) -> str:
    """Returns figures 5 and 6 as a picture and a table."""
    points = results["points"]
    lines = [
        "## Learning rate",
        "",
        f"Loss and accuracy against the learning rate of Adam, after {results['rounds']} rounds of "
        f"{PEERS} peers (their figures 5 and 6); {HELD_OUT:,} held-out training examples, mean of "
        f"{len(points[0]['rows'])} seeds.",
        "",
        picture,
        "",
        "| rate | aggregated: accuracy | loss | participants: accuracy | loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for point in points:
        rows = point["rows"]
        cells = [
            f"{mean(row['aggregated'][0] for row in rows):.2f}",
            f"{mean(row['aggregated'][1] for row in rows):.3f}",
            f"{mean(p[0] for row in rows for p in row['participants']):.2f}",
            f"{mean(p[1] for row in rows for p in row['participants']):.3f}",
        ]
        lines.append(f"| {point['rate']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_rates(results: Figures) -> bytes:
    """Returns figures 5 and 6 as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    rates = [point["rate"] for point in results["points"]]
    for place, (axis, name) in enumerate(zip(axes, ("accuracy, %", "loss, nats"), strict=True)):
        shared = [mean(r["aggregated"][place] for r in p["rows"]) for p in results["points"]]
        own = [
            mean(one[place] for row in p["rows"] for one in row["participants"])
            for p in results["points"]
        ]
        axis.semilogx(rates, shared, marker="o", label="aggregated")
        axis.semilogx(rates, own, marker="s", linestyle="--", label="participants, mean")
        axis.set_xlabel("learning rate of Adam")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return drawn.getvalue()


def show_table(results: Figures) -> str:
    """Returns table I: one seed in full, and all seeds together."""
    rows = results["rows"]
    first = rows[0]
    lines = [
        "## Global model and participants",
        "",
        f"Their table I: MNIST test set, the last of {results['rounds']} rounds, Adam at a rate "
        f"of {results['rate']:g}; seed 0, and mean ± standard deviation of {len(rows)} seeds. The "
        "initial model is the one that this round began with.",
        "",
        "| node | loss | accuracy | accuracy, all seeds | published |",
        "|---|---:|---:|---:|---:|",
    ]

    def line(name: str, one: Sequence[float], every: Sequence[float], published: str) -> str:
        spread = plus_minus(every)
        return f"| {name} | {one[1]:.4f} | {one[0]:.2f} | {spread} | {published} |"

    said = ("94.74", "94.89", "94.23", "94.41", "94.58")
    lines.append(
        line("global model, initial", first["initial"], [r["initial"][0] for r in rows], "91.03")
    )
    for number in range(PEERS):
        every = [row["participants"][number][0] for row in rows]
        lines.append(
            line(f"participant {number + 1}", first["participants"][number], every, said[number])
        )
    lines.append(
        line(
            "global model, aggregated",
            first["aggregated"],
            [r["aggregated"][0] for r in rows],
            "96.04",
        )
    )
    gains = [row["aggregated"][0] - mean(p[0] for p in row["participants"]) for row in rows]
    lines += [
        "",
        f"Aggregated above the participants' mean: {plus_minus(gains)} points, at least "
        f"{min(gains):.2f} (published: 1.47).",
    ]
    return "\n".join(lines)


LETTERS = {"follower": "F", "pre-candidate": "F", "candidate": "C", "leader": "L"}


@dataclass(frozen=True)
class Turn:
    """A node became something else."""

    at_s: float  # since the first of all
    node: int
    was: str  # F, C or L
    now: str
    term: int

    @property
    def words(self) -> str:
        """What happened."""
        if self.now == "L":
            return f"elected in term {self.term}"
        if self.now == "C":
            return f"node {self.node} stands in term {self.term}"
        return "the term ends" if self.was == "L" else f"node {self.node} stands no longer"


def elections_of(roles: Sequence[tuple[float, int, str, int]]) -> list[list[Turn]]:
    """Returns what happened from one leader's resignation to the next one's, election by election.

    Args:
        roles: when which node took which role in which term, in order.
    """
    now = dict.fromkeys(range(PEERS), "F")
    found: list[list[Turn]] = [[]]
    for at_s, node, role, term in roles:
        was, letter = now[node], LETTERS[role]
        now[node] = letter
        if was == letter:
            continue
        if was == "L":
            found.append([])
        found[-1].append(Turn(at_s - roles[0][0], node, was, letter, term))
    return [one for one in found if any(turn.now == "L" for turn in one)]


def rivals(election: Sequence[Turn]) -> int:
    """Returns how many stood in one term, at most."""
    stood = [turn.term for turn in election if turn.now == "C"]
    return max(map(stood.count, stood), default=0)


def show_elections(results: Figures) -> str:
    """Returns table II: elections in which two stood, and who led."""
    elections = elections_of([tuple(role) for role in results["roles"]])
    contested = [one for one in elections if rivals(one) > 1]
    rows = [row for one in sorted(contested, key=rivals)[:2] for row in rows_of(one)]
    leaders = [turn.node for one in elections for turn in one if turn.now == "L"]
    first = leaders[:7]
    return "\n\n".join(
        [
            "## Elections",
            "Their table II: follower, candidate or leader over time, from the logs of five "
            "processes with terms of 4 s and timeouts that lie close together; two elections in "
            "which two stood.",
            table(["seconds", *(f"node {node}" for node in range(PEERS)), ""], rows),
            f"{len(contested)} of {len(elections)} elections had two candidates or more in one "
            "term, and each one leader. Leaders of seven terms in a row: "
            + ", ".join(f"node {node}" for node in first)
            + f"; nobody more than {max(map(first.count, first))} times.",
        ]
    )


def rows_of(election: Sequence[Turn]) -> list[list[str]]:
    """Returns a row for each turn of an election."""
    now = dict.fromkeys(range(PEERS), "F")
    rows = []
    for turn in election:
        now[turn.node] = turn.now
        rows.append([f"{turn.at_s:.2f}", *now.values(), turn.words])
    return rows


def show_failover(results: Figures) -> str:
    """Returns how long a dead leader is missed, in a sentence."""
    missed = results["missed_s"]
    return (
        f"Leader killed {len(missed)} times (default settings): another leads after "
        f"{statistics.median(missed):.2f} s (median), {min(missed):.2f} to {max(missed):.2f} s "
        "(published: 20 s)."
    )


def show_processes(results: Figures) -> str:
    """Returns table I from real processes, in a sentence."""
    return (
        f"Five real processes: initial {results['initial']:.2f} %, participants "
        + ", ".join(f"{accuracy:.2f}" for accuracy in results["participants"])
        + f" %, aggregated {min(results['aggregated']):.2f} % at every peer; "
        f"{results['bytes_per_peer'] / 1e6:.1f} MB received a peer, {results['seconds']:.0f} s."
    )


def show_keys(results: Figures) -> str:
    """Returns what the keys of sealed messages cost."""
    names = {"hpke": "X25519 (`hpke`, default)", "rsa": "RSA, 3,072 bits (`rsa`)"}
    rows = [
        [
            names[one["suite"]],
            *(f"{one[field]:.2f}" for field in ("key_ms", "key_p95_ms", "seal_ms", "open_ms")),
            f"{one['request_bytes']}",
        ]
        for one in results["suites"]
    ]
    speed = results["mib_per_s"]
    return "\n\n".join(
        [
            "## Fresh keys",
            "No key is used for two messages, so each costs the making of a key, a sealing and an "
            "opening: milliseconds on one core, medians, of "
            + " and ".join(f"{one['keys']} keys of `{one['suite']}`" for one in results["suites"])
            + ". Published is RSA; alone it cannot carry a model, so it wraps a key.",
            table(["suite", "key", "95th percentile", "seal", "open", "bytes of a request"], rows),
            f"For comparison, the Ed25519 signature of an announce takes "
            f"{results['ed25519_sign_ms']:.2f} ms. A model is locked under a key of its own, at "
            f"{speed['lock']:,} MiB/s, and unlocked at {speed['unlock']:,} MiB/s.",
        ]
    )


def mean(values: Iterable[float]) -> float:
    """Returns the mean."""
    return statistics.fmean(values)


def plus_minus(values: Sequence[float]) -> str:
    """Returns mean ± standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.2f} ± {spread:.2f}"


PARTS: Mapping[str, Callable[[Figures], str]] = {
    "table": show_table,
    "processes": show_processes,
    "elections": show_elections,
    "failover": show_failover,
    "keys": show_keys,
}
MINUTES = {"rates": 10.0, "table": 3.0, "processes": 2.0, "elections": 2.0}
CELLS = tuple(
    Cell(part, (part,), MINUTES.get(part, 1.0), script="scripts/raft_run.py", timed=True)
    for part in ("rates", *PARTS)
)


_INTRODUCTION = """Behera et al. 2021, with `torrentfiles/raft.toml`. On real processes as well:
`scripts/test tests/swarm/test_raft.py` holds that a minority which is cut off decides nothing, that
there is one leader once the network is whole again, and that a peer which was away fetches what it
missed."""


def section(results: Results) -> str:
    """Returns what was measured, part by part."""
    parts = ["# An elected aggregator", _INTRODUCTION]
    if "rates" in results.figures:
        rates = results.figures["rates"]
        parts.append(show_rates(rates, results.picture("raft-rates", draw_rates(rates))))
    else:
        parts.append(not_run("rates"))
    for part, show in PARTS.items():
        found = part in results.figures
        parts.append(show(results.figures[part]) if found else not_run(part))
    return "\n\n".join(parts)


def not_run(part: str) -> str:
    """Returns how to get a part that there is not."""
    return f"Not run yet: `scripts/reproduce raft --only {part}`."


STUDY = Study("raft", "An elected aggregator: accuracy, elections, a dead leader", CELLS, section)
