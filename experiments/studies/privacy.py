"""Private training together, alone, and with all data in one place: what does mixing buy?

Each arm has the best setting of its own, by `scripts/reproduce privacy_tuning`. Noise is new every
time and comes from no seed, so a second run gives other figures, within the spread that is shown.
"""

from experiments.compare import paired
from experiments.grid import FASHION, MNIST, NAMES, SESSIONS, Cell, Results, Study
from experiments.page import accuracy, table
from experiments.studies.privacy_tuning import (
    ARMS,
    arm_words,
    arms,
    chosen,
    is_tuned,
    private_words,
)

EPSILONS = (1, 2, 3, 8)
PEERS = (6, 20)
DATA = (MNIST, FASHION)
SEEDS = 5
TRUSTED = "degroot"
BAD = 2  # of six, with the sign flipped
HEAD = ["data, peers", "epsilon", "alone", "mixed", "gain", "one place"]


def cell(arm: str, epsilon: int, data: str, peers: int) -> Cell:
    """Returns one arm with one budget."""
    return Cell(
        f"{arm}-{NAMES[data]}-{peers}-{epsilon}".lower(),
        (
            *(str(SESSIONS / "logreg.toml"), "--data", data, *arm_words(arm, peers)),
            *("--seeds", str(SEEDS), *private_words(epsilon)),
            *chosen(arm, data, peers, epsilon).words,
        ),
        minutes=0.4,
    )


def trusting(epsilon: int, bad: int) -> Cell:
    """Returns a mix by learned trust, with so many peers that flip their sign."""
    attack = ("--attack", f"sign-flip:{bad}") if bad else ()
    return Cell(
        f"degroot-{epsilon}-{bad}-bad",
        (
            *(str(SESSIONS / "logreg.toml"), "--data", MNIST, "--peers", "6", "--cohort", "5"),
            *("--mixing", TRUSTED, *attack, "--seeds", str(SEEDS)),
            *(*private_words(epsilon), *chosen("mixed", MNIST, PEERS[0], epsilon).words),
        ),
        minutes=0.6,
    )


def cells() -> tuple[Cell, ...]:
    """Returns every arm, budget, data set and number of peers, and trust at epsilon 1."""
    compared = [
        cell(arm, epsilon, data, peers)
        for data in DATA
        for peers in PEERS
        for epsilon in EPSILONS
        for arm in arms(peers)
    ]
    return (*compared, *(trusting(1, bad) for bad in (0, BAD)))


def section(results: Results) -> str:
    """Returns the comparison, as far as it was run, and what trust costs and finds."""
    rows = [
        comparison(results, data, peers, epsilon)
        for data in DATA
        for peers in PEERS
        for epsilon in EPSILONS
        if all(compared(arm, epsilon, data, peers) in results.figures for arm in ARMS)
    ]
    told = all(trusting(1, bad).name in results.figures for bad in (0, BAD))
    return (
        "# Privacy: together, alone, in one place\n\n"
        "Logistic regression, iid, everybody pulls from up to five others and shares equally; "
        "delta 1e-5, gradients clipped to 1. Each arm at its own best setting for these data and "
        f"so many peers, found at epsilon 1 and 3; 2 takes that of 1, and 8 that of 3.{untuned()} "
        "`gain`: mixed less alone, paired by seed, with its 95 % confidence interval.\n\n"
        f"{table(HEAD, rows)}\n\n{trust(results) if told else ''}"
    )


def untuned() -> str:
    """Returns what does not have settings of its own yet, in words."""
    without = [
        f"{NAMES[data]} among {peers}"
        for data in DATA
        for peers in PEERS
        if not is_tuned(data, peers)
    ]
    if not without:
        return ""
    return f" **Not tuned yet**: {', '.join(without)}, with the settings of MNIST among six."


def compared(arm: str, epsilon: int, data: str, peers: int) -> str:
    """Returns the name of an arm's cell; in one place it is the same among however many."""
    return cell(arm, epsilon, data, PEERS[0] if arm == "centralised" else peers).name


def comparison(results: Results, data: str, peers: int, epsilon: int) -> list[str]:
    """Returns one line of the comparison."""
    figures = {arm: results.figures[compared(arm, epsilon, data, peers)] for arm in ARMS}
    mixed, alone = (figures[arm]["accuracy"]["per_seed"] for arm in ("mixed", "isolated"))
    spent = max(figures[arm]["epsilon"] for arm in ARMS)
    assert spent <= epsilon, f"{spent} of {epsilon} spent"
    return [
        f"{NAMES[data]}, {peers}",
        str(epsilon),
        accuracy(figures["isolated"]),
        accuracy(figures["mixed"]),
        str(paired(mixed, alone)),
        accuracy(figures["centralised"]),
    ]


def trust(results: Results) -> str:
    """Returns what learned trust does with a budget of 1."""
    calm, attacked = (results.figures[trusting(1, bad).name] for bad in (0, BAD))
    return (
        f"With learned trust at epsilon 1 (MNIST, six peers): {accuracy(calm)} with nobody lying; "
        f"with {BAD} peers that flip their sign {accuracy(attacked)}, their weight in the last mix "
        f"{attacked['bad_weight']:.1f} %. Training spends epsilon {attacked['epsilon']:.3f} of the "
        f"examples that are trained on, trust {attacked['trust_epsilon']:.3f} of those held back: "
        "no example pays for both, so trust adds nothing to the larger."
    )


def headline(results: Results) -> str:
    """Returns the comparison on MNIST among six."""
    rows = [comparison(results, MNIST, PEERS[0], epsilon) for epsilon in EPSILONS]
    return table(HEAD, rows)


STUDY = Study("privacy", "Privacy: together, alone, in one place", cells(), section, headline)
