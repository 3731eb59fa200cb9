"""How the constants of learned trust were chosen: one at a time, without the test set.

Other seeds (100 to 102) than those of `scripts/reproduce trust` (0 to 4), trained on 50,000 of the
training examples and judged on the other 10,000.
"""

import statistics

from experiments.grid import MNIST, SESSIONS, Cell, Results, Study
from experiments.page import table

AS_IT_IS = "as it is"
CONSTANTS = (
    AS_IT_IS,
    "trust.FREE_HARM=0.006",
    "trust.FREE_HARM=0.024",
    "trust.MEMORY=0.5",
    "trust.MEMORY=0.9",
    "trust.SHUN_HARM=0.05",
    "trust.SHUN_HARM=0.2",
    "screening.MAX_AGAINST=0.5",
    "screening.MAX_AGAINST=0.9",
    "screening.CLIP_RADII=1.4",
    "screening.CLIP_RADII=4",
    "screening.JUDGED_RADII=2",
    "screening.JUDGED_RADII=5",
    "screening.FAR_RADII=6",
    "screening.FAR_RADII=20",
    "screening.LEAST_RADIUS=0",
)
# Two splits where nobody is bad, and attacks that harm and geometry tell by little.
TRIALS = (
    ("unbalanced", ""),
    ("classes:2", ""),
    ("iid", "label-flip:2"),
    ("iid", "sybil:2:label-flip"),
    ("dirichlet:0.5", "label-flip:2"),
    ("dirichlet:0.5", "dissensus:2"),
)


def cell(constant: str, split: str, attack: str) -> Cell:
    """Returns one value of one constant in one trial."""
    name = f"{constant}-{split}-{attack or 'clean'}".lower()
    for old in ":=. ":
        name = name.replace(old, "-")
    return Cell(
        name,
        (
            *(constant, "simulate", str(SESSIONS / "trust.toml"), "--data", MNIST),
            *("--peers", "6", "--cohort", "4", "--partition", split, "--mixing", "degroot"),
            *("--held-out", "10000", "--first-seed", "100", "--seeds", "3", "--no-curves"),
            *(("--attack", attack) if attack else ()),
            *("--threads", "1", "--json"),
        ),
        minutes=0.3,
        script="scripts/simulate_with.py",
    )


def section(results: Results) -> str:
    """Returns what was tried, and what each value did."""
    rows = []
    for constant in CONSTANTS:
        kept = [results.figures.get(cell(constant, *trial).name) for trial in TRIALS]
        values = [figures["accuracy"]["mean"] for figures in kept if figures]
        mean = f"{statistics.fmean(values):.2f}" if len(values) == len(TRIALS) else ""
        shown = (f"{figures['accuracy']['mean']:.2f}" if figures else "" for figures in kept)
        rows.append([constant, *shown, mean])
    head = ["constant", *(f"{split}, {attack or 'nobody bad'}" for split, attack in TRIALS), "mean"]
    return (
        "# Settings tried for trust\n\n"
        "MNIST, logistic regression, six peers, cohorts of 4. Accuracy of the honest on 10,000 "
        "held-out training examples, mean of seeds 100 to 102. One constant of "
        "`p2pl.mixing.trust.row` or `p2pl.mixing.trust.screening` is changed at a time.\n\n"
        + table(head, rows)
    )


STUDY = Study(
    "trust_tuning",
    "Settings tried for trust",
    tuple(cell(constant, *trial) for constant in CONSTANTS for trial in TRIALS),
    section,
)
