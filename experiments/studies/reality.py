"""A network as it is: peers that are away, links that fail, models that come late."""

from experiments.compare import paired
from experiments.grid import MNIST, SESSIONS, Cell, Results, Study
from experiments.page import accuracy, table

ARMS: dict[str, tuple[str, ...]] = {
    "everybody, always, at once": (),
    "80 % participation": ("--participation", "0.8"),
    "10 % of links lost": ("--lost-links", "0.1"),
    "up to 3 rounds late": ("--delay-rounds", "3"),
    "all three": ("--participation", "0.8", "--lost-links", "0.1", "--delay-rounds", "3"),
}
IDEAL = next(iter(ARMS))
RULES = {"uniform": "equal sharing", "degroot": "learned trust"}
SPLITS = ("dirichlet:0.1", "iid")
NETWORKS = {
    "good": "good lines",
    "line": "slow, lossy lines",
    "all": "the same, peers away and pairs apart",
}
GOOD = next(iter(NETWORKS))


def cell(split: str, rule: str, arm: str) -> Cell:
    """Returns one cell: five seeds of one rule in one kind of network."""
    name = f"{split}-{rule}-{arm}".replace(":", "-").replace(",", "").replace(" %", "")
    arguments = (
        *(str(SESSIONS / "trust.toml"), "--data", MNIST, "--peers", "20", "--rounds", "30"),
        *("--partition", split, "--mixing", rule, "--seeds", "5", "--no-curves", *ARMS[arm]),
    )
    return Cell(name.lower().replace(" ", "-"), arguments, 1.0)


def swarm(rule: str, network: str) -> Cell:
    """Returns one cell: five swarms of ten processes, of one rule, on one kind of network."""
    arguments = (
        *(str(SESSIONS / "trust.toml"), "--data", MNIST, "--partition", SPLITS[0]),
        *("--network", network, "--set", "exchange.rounds=30", "--set", f'mixing.rule="{rule}"'),
    )
    script = "scripts/reality_run.py"
    return Cell(f"swarm-{rule}-{network}", arguments, 12.0, script=script, timed=True)


def section(results: Results) -> str:
    """Returns a table a split: what each arm reaches, and what it costs in points."""
    parts = ["# A network as it is", _INTRODUCTION]
    for split in SPLITS:
        rows = [row(results, split, arm) for arm in ARMS]
        head = [""]
        for title in RULES.values():
            head += [title, "loses, points", "pulls failed"]
        parts.append(f"## MNIST, {split}\n\n{table(head, rows)}")
    return "\n\n".join([*parts, swarms(results), _LEFT])


def swarms(results: Results) -> str:
    """Returns what swarms of real processes reach, and what their networks cost in points."""
    head = ["", "", "accuracy", "loses, points", "pulls failed", "rounds late", "seconds a round"]
    rows = [
        [title, name, *swarm_row(results, rule, network)]
        for rule, title in RULES.items()
        for network, name in NETWORKS.items()
    ]
    return f"{_SWARMS}\n\n{table(head, rows)}"


def swarm_row(results: Results, rule: str, network: str) -> list[str]:
    """Returns what five swarms reach on one kind of network, beside the good one."""
    names = [swarm(rule, one).name for one in (network, GOOD)]
    figures, good = (results.figures.get(name) for name in names)
    if figures is None:
        return ["not run", "", "", "", ""]
    lost = ""
    if good is not None and network != GOOD:
        lost = str(paired(*(one["accuracy"]["per_seed"] for one in (good, figures))))
    late = f"{figures['rounds_late']:.2f}"
    seconds = f"{figures['seconds_per_round']:.1f}"
    return [accuracy(figures), lost, f"{figures['pulls_failed']:.1f} %", late, seconds]


def row(results: Results, split: str, arm: str) -> list[str]:
    """Returns what both rules reach in one kind of network, beside the ideal one."""
    found = [arm]
    for rule in RULES:
        figures, ideal = (results.figures.get(cell(split, rule, one).name) for one in (arm, IDEAL))
        if figures is None:
            found += ["not run", "", ""]
            continue
        lost = ""
        if ideal is not None and arm != IDEAL:
            lost = str(paired(*(one["accuracy"]["per_seed"] for one in (ideal, figures))))
        found += [accuracy(figures), lost, f"{figures['pulls_failed']:.1f} %"]
    return found


_INTRODUCTION = """`p2pl simulate --participation 0.8 --lost-links 0.1 --delay-rounds 3`: in each
round a peer takes part with a chance of 80 %; one that does not trains nothing, asks nobody and
answers nobody. A pull fails with a chance of 10 %, and always where the other peer is away. What is
pulled was trained 0 to 3 rounds ago, each equally likely. A peer that was drawn and gives nothing
is not replaced.

Twenty peers, logistic regression, plain SGD at a rate that never falls (what is late is then
furthest off), random cohorts of 4, 30 rounds of one epoch, **5** seeds; nothing was tuned. The
accuracy is the mean over all peers after the last round, including peers that were away in it.
*loses*: the ideal network minus this one, seed by seed, mean [95 % confidence interval].

Published, for another system and task: LFHE (2026) falls from 79.5 to 60.2 % on CIFAR-10 with four
convolutions, 30 peers, Dirichlet 0.1, with 80 % participation, 10 % of the links failing, and
delays (one seed). The two losses are not of the same experiment: what a convolutional network
learns in 300 rounds is another thing than logistic regression in 30."""

_SWARMS = f"""## Real processes, MNIST, {SPLITS[0]}

Ten `p2pl join` and a tracker, each at the end of a line of its own, the same session, 30 rounds, 5
seeds: on good lines; on lines with a delay of 50 ms each way, 1 % of the packets lost and 20
Mbit/s; and on such lines where each peer stands still a fifth of the time (2 s at a time in the
mean) and a tenth of all pairs can't reach each other, another tenth every 5 seconds. *rounds late*
is how much older than its reader's a pulled model was, mean over all pulls; *seconds a round* is
the mean over all rounds, on a machine of two cores on which other work went on.

Real peers are not what is simulated above. One that asks waits `exchange.wait_s` for whoever is a
round behind, so that a peer that stands still makes others slow where the simulation makes models
late; and one that stands still goes on in the round where it was, and does not miss it."""

_LEFT = """**What was not run**: CIFAR-10 with a convolutional network (a GPU's work)."""


STUDY = Study(
    "reality",
    "A network as it is: peers away, links lost, models late",
    (
        *(cell(split, rule, arm) for split in SPLITS for arm in ARMS for rule in RULES),
        *(swarm(rule, network) for rule in RULES for network in NETWORKS),
    ),
    section,
)
