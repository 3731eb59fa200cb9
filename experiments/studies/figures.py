"""What the founding document promised and never showed: peers, rounds, cohorts, bytes, skew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from experiments.compare import paired
from experiments.grid import (
    CIFAR,
    FASHION,
    MNIST,
    NAMES,
    SESSIONS,
    Cell,
    Figures,
    NotRun,
    Results,
    Study,
)
from experiments.page import accuracy, part, table
from experiments.studies import tables
from p2pl.report import plots as pictures
from p2pl.report.classes import class_scores, macro_score
from p2pl.report.tables import class_rows

_Point: TypeAlias = tuple[float, float, float]  # place, mean, std over seeds
UNIT = "accuracy on the test set (%)"
LOGREG, MLP, MLP_CIFAR, CNN, CNN_CIFAR = (
    str(SESSIONS / f"{name}.toml") for name in ("logreg", "mlp", "mlp-cifar", "cnn", "cnn-cifar")
)
SEEDS = ("--seeds", "5")
CLOTHES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]

# --- how many peers ------------------------------------------------------------------------------

PEERS = (2, 3, 6, 10, 20, 50, 100)
PEER_SPLITS = {"iid": "iid", "Dirichlet 0.5": "dirichlet:0.5"}


def by_peers(peers: int, split: str, *, alone: bool) -> Cell:
    """Returns MNIST divided among so many peers, cohorts of at most 4."""
    how = ("--baseline", "isolated") if alone else ("--cohort", str(min(4, peers - 1)))
    return Cell(
        f"peers-{peers}-{_slug(split)}-{'alone' if alone else 'learned'}",
        (
            LOGREG,
            *("--data", MNIST, "--peers", str(peers), "--partition", PEER_SPLITS[split]),
            *("--rounds", "20", "--no-curves", *how, *SEEDS),
        ),
        0.5,
    )


def show_peers(results: Results) -> str:
    """Returns accuracy against the number of peers."""
    lines = {}
    for split in PEER_SPLITS:
        for alone in (False, True):
            name = f"{split}, {'alone' if alone else 'learned sharing'}"
            lines[name] = _points(
                results, {peers: by_peers(peers, split, alone=alone) for peers in PEERS}
            )
    bands, lacking = _drawn(lines)
    png = pictures.draw_bands(
        bands,
        title="MNIST divided among more and more peers",
        unit=UNIT,
        along="peers",
        logarithmic="x",
    )
    said = [
        f"{name}: from {points[0][1]:.1f} with {points[0][0]} to {points[-1][1]:.1f} with "
        f"{points[-1][0]}"
        for name, points in bands.items()
    ]
    return "\n\n".join(
        [
            results.picture("peers", png),
            "MNIST, logistic regression, 20 rounds, cohorts of 4 (fewer where there are fewer). "
            "All peers together hold the same 60,000 examples, so each of a hundred has 480 to "
            f"train on. {'; '.join(said)}. The band is one standard deviation over 5 seeds. "
            f"{lacking}",
        ]
    )


# --- rounds --------------------------------------------------------------------------------------


def show_rounds(results: Results) -> str:
    """Returns accuracy against rounds, of the tables' cells."""
    bands = {
        f"{NAMES[data]} {split}": [
            (p["round"], p["accuracy"], p["accuracy_std_over_seeds"])
            for p in results.figures[tables.cell(data, split, "learned").name]["by_round"]
        ]
        for data in (MNIST, FASHION)
        for split in tables.SPLITS
    }
    png = pictures.draw_bands(bands, title="Learned sharing, round by round", unit=UNIT)
    return "\n\n".join(
        [
            results.picture("rounds", png),
            "The cells *learned* of Tables 1 and 2. With a rate that falls along a cosine the "
            "peers come to rest together, which matters most where labels are skewed.",
        ]
    )


# --- cohorts, local epochs, bytes ----------------------------------------------------------------

COHORTS = (1, 2, 4, 8, 19)
WORK = {"40 rounds x 1 epoch": (40, 1), "10 rounds x 4 epochs": (10, 4)}


def by_cohort(cohort: int, work: str, *changes: str) -> Cell:
    """Returns 20 peers with skewed labels and cohorts of this size."""
    rounds, epochs = WORK[work]
    kind = "-".join((str(cohort), _slug(work), *map(_slug, changes)))
    return Cell(
        f"cohort-{kind}",
        (
            LOGREG,
            *("--data", MNIST, "--peers", "20", "--partition", "dirichlet:0.5", "--no-curves"),
            *("--cohort", str(cohort), "--rounds", str(rounds), "--local-epochs", str(epochs)),
            *(word for change in changes for word in ("--set", change)),
            *SEEDS,
        ),
        1.0,
    )


HALF = 'wire.dtype="float16"'


def show_cohorts(results: Results) -> str:
    """Returns accuracy against cohort size and local epochs, and against the bytes they cost."""
    bands, lacking = _drawn(
        {
            work: _points(results, {cohort: by_cohort(cohort, work) for cohort in COHORTS})
            for work in WORK
        }
    )
    sizes = pictures.draw_bands(
        bands,
        title="20 peers, MNIST, Dirichlet 0.5: how many to ask",
        unit=UNIT,
        along="cohort size",
        logarithmic="x",
    )
    ways: dict[str, tuple[str, tuple[str, ...]]] = {work: (work, ()) for work in WORK}
    ways["40 rounds x 1 epoch, float16"] = ("40 rounds x 1 epoch", (HALF,))
    costs = {}
    for name, (work, changes) in ways.items():
        cells = [by_cohort(cohort, work, *changes).name for cohort in COHORTS]
        costs[name] = [_cost(results.figures[each]) for each in cells if each in results.figures]
    spent = pictures.draw_bands(
        _drawn(costs)[0],
        title="The same against the bytes that a peer receives",
        unit=UNIT,
        along="bytes received by a peer in the whole session",
        logarithmic="x",
    )
    return "\n\n".join(
        [
            results.picture("cohorts", sizes),
            results.picture("bytes", spent),
            "20 peers, logistic regression, learned sharing. The same 40 epochs of local work in "
            "all: in 40 rounds or in 10. *float16*: parameters travel as half-precision numbers. "
            f"{lacking}",
        ]
    )


def _cost(figures: Figures) -> _Point:
    bytes_in = figures["bytes_per_peer_round"] * figures["rounds"]
    return _point(bytes_in, figures)


# --- by class ------------------------------------------------------------------------------------


def show_classes(results: Results) -> str:
    """Returns precision, recall, F1 and confusion of the hardest cell of Table 2."""
    cell = tables.cell(FASHION, "non-iid", "learned")
    confusion = np.array(results.figures[cell.name]["confusion"], dtype=np.float64)
    classes = class_scores(confusion, CLOTHES)
    head, rows = class_rows(classes, macro_score(classes))
    png = pictures.draw_confusion(
        confusion, CLOTHES, title="Fashion-MNIST, non-iid, learned sharing"
    )
    return "\n\n".join(
        [
            results.picture("confusion", png),
            "Fashion-MNIST, non-iid balanced, learned sharing (Table 2), summed over 6 peers and 5 "
            "seeds.",
            table(head, rows),
        ]
    )


# --- skew, with an MLP and a CNN -----------------------------------------------------------------

SKEWS = {
    "iid": "iid",
    "Dirichlet 1": "dirichlet:1",
    "Dirichlet 0.5": "dirichlet:0.5",
    "Dirichlet 0.1": "dirichlet:0.1",
    "2 classes a peer": "classes:2",
}
ARMS = {
    "learned": ("--mixing", "degroot"),
    "isolated": ("--baseline", "isolated"),
}
SMALL_CNN = (
    *("--set", "model.arguments={width=8, hidden=32}", "--rounds", "10", "--cohort", "4"),
    *("--precision", "bfloat16"),
)


@dataclass(frozen=True, slots=True)
class Network:
    """What ten peers train on one data set."""

    spec: str
    seeds: int
    minutes: float
    options: tuple[str, ...] = ()


NETWORKS = {
    ("mlp", MNIST): Network(MLP, 5, 0.6),
    ("mlp", FASHION): Network(MLP, 5, 0.6),
    ("mlp", CIFAR): Network(MLP_CIFAR, 5, 1.6),
    ("cnn", MNIST): Network(CNN, 3, 1.5, SMALL_CNN),
    ("cnn", FASHION): Network(CNN, 3, 1.5, SMALL_CNN),
    ("cnn", CIFAR): Network(CNN_CIFAR, 3, 3.0, SMALL_CNN),
}


def by_skew(kind: str, data: str, skew: str, arm: str) -> Cell:
    """Returns ten peers and one of the networks."""
    network = NETWORKS[kind, data]
    how = ARMS.get(arm, ("--baseline", "centralised"))
    return Cell(
        f"{kind}-{_slug(NAMES[data])}-{_slug(skew)}-{arm}",
        (
            *(network.spec, "--data", data, "--peers", "10"),
            *("--partition", SKEWS.get(skew, "iid"), *network.options),
            *("--no-curves", *how, "--seeds", str(network.seeds)),
        ),
        network.minutes,
    )


WIDE = 5.0  # points of standard deviation over seeds, from which a mean alone says little


def show_skews(kind: str, results: Results) -> str:
    """Returns what skewed labels cost, beside all data in one place and each peer alone."""
    parts = [
        part
        for one, data in NETWORKS
        if one == kind
        for part in _skews_of(kind, data, results.figures)
    ]
    return "\n\n".join([*parts, SAID_OF[kind]])


def _skews_of(kind: str, data: str, figures: Mapping[str, Figures]) -> list[str]:
    """Returns a heading, a table, and the seeds one by one where they are far apart."""
    if not any(name.startswith(_slug(f"{kind} {NAMES[data]} ")) for name in figures):
        return [f"{NAMES[data]}: not run yet."]
    rows, wide = [], []
    for skew in SKEWS:
        arms = [figures.get(by_skew(kind, data, skew, arm).name) for arm in ARMS]
        learned, alone = arms
        worst = f"{learned['accuracy']['worst_peer']:.2f}" if learned else ""
        gain = ""
        if learned and alone:
            gain = str(paired(*(one["accuracy"]["per_seed"] for one in (learned, alone))))
        rows.append([skew, *map(accuracy, arms), worst, gain])
        if learned and learned["accuracy"]["std_over_seeds"] > WIDE:
            seeds = ", ".join(f"{seed:.1f}" for seed in learned["accuracy"]["per_seed"])
            wide.append(f"{skew}, learned, seed by seed: {seeds}.")
    whole = accuracy(figures.get(by_skew(kind, data, "all", "centralised").name))
    head = [NAMES[data], *ARMS, "learned: worst peer", "learned - isolated"]
    heading = f"{NAMES[data]}, {NETWORKS[kind, data].seeds} seeds; centralised {whole}."
    return [heading, table(head, rows), *wide]


SAID_OF = {
    "mlp": (
        "A hidden layer of 64, cohorts of 4 of 10 peers, 20 rounds of one epoch. "
        "Isolated peers are judged on all classes, so who holds two of ten cannot be right in more "
        "than a fifth."
    ),
    "cnn": (
        "Two convolutions of 8 and 16 channels, cohorts of 4 of 10 peers, 10 rounds of one epoch, "
        "layers in bfloat16. Small and short, to show what skew does; what a "
        "wider one reaches in 30 rounds: *Convolutional networks, ten peers*.\n\n"
        "The rate of 0.05 is the same everywhere and not tuned. With two classes a peer it is too "
        "high: some seeds never leave chance, on MNIST the first with equal sharing (10.5). On "
        "Fashion-MNIST examples held out of training, seeds 100 and 101 end at 59.0 and 9.8 with "
        "it, and at 58.3 and 44.0 with 0.01 (`--set training.learning_rate=0.01 --held-out 10000 "
        "--first-seed 100 --seeds 2`), so choose a lower one where labels are so skewed."
    ),
}


# --- quasi-global momentum and polish rounds -----------------------------------------------------

CONSTANT = 'training.schedule="constant"'
QUASI, POLISH = "training.quasi_global=true", "exchange.polish_rounds=2"
HELPS = {
    "constant rate": (CONSTANT,),
    "constant rate, 2 polish rounds": (CONSTANT, POLISH),
    "constant rate, quasi-global": (CONSTANT, QUASI),
    "constant rate, quasi-global, 2 polish rounds": (CONSTANT, QUASI, POLISH),
    "cosine": (),
    "cosine, 2 polish rounds": (POLISH,),
    "cosine, quasi-global": (QUASI,),
    "cosine, quasi-global, 2 polish rounds": (QUASI, POLISH),
}


def by_help(name: str) -> Cell:
    """Returns ten peers with very skewed labels and small cohorts."""
    return Cell(
        f"help-{_slug(name)}",
        (
            *(MLP, "--data", FASHION, "--peers", "10", "--partition", "dirichlet:0.1"),
            *("--mixing", "uniform", "--cohort", "2"),
            *(word for change in HELPS[name] for word in ("--set", change)),
            *SEEDS,
        ),
        1.6,
    )


def show_helps(results: Results) -> str:
    """Returns what quasi-global momentum and polish rounds buy."""
    plain = results.figures[by_help("constant rate").name]["accuracy"]
    rows = []
    for name in HELPS:
        figures = results.figures[by_help(name).name]
        ours = figures["accuracy"]
        rows.append(
            [
                name,
                accuracy(figures),
                f"{ours['std_over_peers']:.2f}",
                f"{ours['worst_peer']:.2f}",
                f"{figures['consensus_distance']:.1e}",
                "" if name == "constant rate" else str(paired(ours["per_seed"], plain["per_seed"])),
            ]
        )
    bands = {
        name: [
            (p["round"], p["accuracy"], p["accuracy_std_over_seeds"])
            for p in results.figures[by_help(name).name]["by_round"]
        ]
        for name in HELPS
        if "polish" not in name
    }
    png = pictures.draw_bands(bands, title="Fashion-MNIST, Dirichlet 0.1, cohorts of 2", unit=UNIT)
    head = ["", "accuracy", "over peers", "worst peer", "consensus", "against the first"]
    return "\n\n".join(
        [
            results.picture("skew", png),
            table(head, rows),
            "Ten peers, a hidden layer of 64, equal sharing with cohorts of 2, 20 rounds, of which "
            "the polish rounds are the last. *Quasi-global*: `training.quasi_global` (Lin et al. "
            "2021). *Polish*: `exchange.polish_rounds`, rounds that mix and do not train.",
        ]
    )


# --- time with the tracker -----------------------------------------------------------------------

SWARMS = (3, 6, 12)


def by_swarm(peers: int) -> Cell:
    """Returns a swarm of real processes on this machine."""
    return Cell(f"swarm-{peers}", (str(peers),), 0.5, script="scripts/swarm.py", timed=True)


def show_tracker(results: Results) -> str:
    """Returns what a networked swarm spends on its tracker."""
    rows = []
    for peers in SWARMS:
        figures = results.figures[by_swarm(peers).name]
        rows.append(
            [
                str(peers),
                f"{figures['tracker_ms_median']:.1f} ms",
                f"{figures['tracker_ms_p95']:.1f} ms",
                f"{figures['round_ms_median']:.0f} ms",
                f"{100 * figures['tracker_share_of_time']:.1f} %",
                f"{figures['tracker_bytes']:.0f}",
                f"{figures['peer_bytes']:.0f}",
            ]
        )
    head = [
        "peers",
        "tracker, median",
        "95 %",
        "a whole round",
        "share of the time",
        "bytes with the tracker",
        "bytes from peers",
    ]
    return "\n\n".join(
        [
            table(head, rows),
            "Real processes on one machine, the session `digits` (cohorts of 3, a model of 19 kB), "
            "per peer and round. A round waits for the tracker once; what it answers does not grow "
            "with the model.",
        ]
    )


# --- all of it -----------------------------------------------------------------------------------


def _slug(text: str) -> str:
    kept = [char if char.isalnum() or char == "." else "-" for char in text.lower()]
    return "-".join(part for part in "".join(kept).split("-") if part)


def _point(place: float, figures: Figures) -> _Point:
    ours = figures["accuracy"]
    return place, ours["mean"], ours["std_over_seeds"]


def _points(results: Results, cells: Mapping[int, Cell]) -> list[_Point]:
    """Returns the points of a line, of the cells that have been run."""
    return [
        _point(place, results.figures[cell.name])
        for place, cell in cells.items()
        if cell.name in results.figures
    ]


def _drawn(bands: Mapping[str, Sequence[_Point]]) -> tuple[dict[str, Sequence[_Point]], str]:
    """Returns the lines that have a point, and which have none, in a sentence."""
    there = {name: points for name, points in bands.items() if points}
    if not there:
        raise NotRun(next(iter(bands)))
    empty = [name for name in bands if name not in there]
    return there, f"Not run yet: {'; '.join(empty)}." if empty else ""


def cells() -> Sequence[Cell]:
    """Returns all cells, those of the tables among them."""
    return [
        *(replace(one, home="tables") for one in tables.cells()),
        *(
            by_peers(n, split, alone=a)
            for n in PEERS
            for split in PEER_SPLITS
            for a in (False, True)
        ),
        *(by_cohort(cohort, work) for work in WORK for cohort in COHORTS),
        *(by_cohort(cohort, "40 rounds x 1 epoch", HALF) for cohort in COHORTS),
        *(by_help(name) for name in HELPS),
        *(by_skew(*network, skew, arm) for network in NETWORKS for skew in SKEWS for arm in ARMS),
        *(by_skew(*network, "all", "centralised") for network in NETWORKS),
        *(by_swarm(peers) for peers in SWARMS),
    ]


def section(results: Results) -> str:
    """Returns the pictures and what is to be seen in them."""
    parts: Mapping[str, Callable[[Results], str]] = {
        "Accuracy against the number of peers": show_peers,
        "Accuracy against rounds": show_rounds,
        "Accuracy against cohort size, local epochs and bytes": show_cohorts,
        "Precision, recall, F1 and confusion": show_classes,
        "One hidden layer, ten peers: what skewed labels cost": partial(show_skews, "mlp"),
        "A small convolutional network, ten peers: what skewed labels cost": partial(
            show_skews, "cnn"
        ),
        "Training for skewed data: schedule, quasi-global momentum, polish rounds": show_helps,
        "Time and bytes spent with the tracker": show_tracker,
    }
    return "\n\n".join(
        [
            "# What the founding document promised to show",
            *(part(title, show, results) for title, show in parts.items()),
        ]
    )


STUDY = Study(
    "figures", "Peers, rounds, cohorts, bytes, classes, skew, the tracker", tuple(cells()), section
)
