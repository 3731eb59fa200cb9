"""What trust is worth: with nobody lying, with poor peers, and under every attack, rule by rule."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from experiments.compare import paired
from experiments.grid import FASHION, MNIST, NAMES, SESSIONS, Cell, Figures, Results, Study
from experiments.page import accuracy, table

SKEWS = ("iid", "unbalanced", "dirichlet:0.5", "dirichlet:0.1", "classes:2")
ATTACKED_SKEWS = ("iid", "dirichlet:0.5", "dirichlet:0.1", "classes:2")
LEARNED = ("uniform", "degroot", "degroot-naive")
PUBLISHED = (
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "nnm-trimmed-mean",
    "clipped-gossip",
    "balance",
    "ubar",
)
# `absent`: what the same honest peers reach when the bad ones are not there.
ATTACKS = (
    "absent",
    "sign-flip",
    "sign-flip:-3",
    "gaussian",
    "label-flip",
    "alie",
    "ipm:0.1",
    "ipm:10",
    "dissensus",
    "stale",
    "nan",
    "huge",
    "free-rider",
    "sybil:label-flip",
    "ledger-liar:label-flip",
    "ledger-liar:sign-flip",
    "adaptive",
)
# Those by which rules, data sets and models differ: one of each sort.
TELLING = (
    "absent",
    "sign-flip:-3",
    "gaussian",
    "label-flip",
    "alie",
    "ipm:10",
    "dissensus",
    "adaptive",
)
BAD = {6: 2, 20: 4}  # of so many peers
ASSUMED: dict[str, tuple[str, ...]] = {
    # By the honest peers' validation loss of seeds 100 and 101, iid, with nobody lying,
    # sign-flip:-3, ALIE and flipped labels, of 0.15, 0.3, 0.6, 1 and 2.
    "balance": ("mixing.balance_gamma=1.0",),
    # With the 2 that a cohort of 4 tolerates it would be the median.
    "trimmed-mean": ("mixing.byzantine=1",),
}
MLP = ('model.name="mlp"', "model.arguments={ hidden = [64] }")


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything about a cell but its rule and its attack."""

    data: str
    model: str  # logreg, mlp
    split: str
    peers: int
    cohort: int

    @property
    def title(self) -> str:
        """In words."""
        cohort = "full cohort" if self.cohort == self.peers - 1 else f"cohort {self.cohort}"
        return f"{NAMES[self.data]}, {self.model}, {self.split}, {self.peers} peers, {cohort}"


def mnist(split: str, peers: int = 6, cohort: int = 4) -> Setting:
    """Returns the usual setting."""
    return Setting(MNIST, "logreg", split, peers, cohort)


def cell(setting: Setting, rule: str, attack: str = "") -> Cell:
    """Returns one cell of the tables; attack is KIND[:ARG], "" for nobody bad."""
    kind, colon, argument = attack.partition(":")
    counted = f"{kind}:{BAD[setting.peers]}{colon}{argument}"
    changes = (*(MLP if setting.model == "mlp" else ()), *ASSUMED.get(rule, ()))
    where = f"{NAMES[setting.data]}-{setting.model}-{setting.split}"
    name = f"{where}-{setting.cohort}-of-{setting.peers}-{rule}-{attack or 'clean'}"
    return Cell(
        name.lower().replace(":", "-"),
        (
            str(SESSIONS / "trust.toml"),
            *("--data", setting.data, "--peers", str(setting.peers)),
            *("--cohort", str(setting.cohort), "--partition", setting.split),
            *("--mixing", rule, "--seeds", "5", "--no-curves"),
            *(("--attack", counted) if attack else ()),
            *(word for change in changes for word in ("--set", change)),
        ),
        minutes=minutes(setting, rule, attack),
    )


def minutes(setting: Setting, rule: str, attack: str) -> float:
    """Returns roughly what a cell takes on one core."""
    own_tests = 0.1 if rule in ("degroot", "ubar") else 0.02
    asked = 40 / setting.peers if attack == "adaptive" else 1
    train = 0.3 if setting.model == "mlp" else 0.1
    return train + own_tests * setting.peers / 6 * asked


# --- which cells ---------------------------------------------------------------------------------

NOBODY_BAD = (
    *(mnist(skew) for skew in SKEWS),
    *(mnist(skew, cohort=5) for skew in SKEWS),
    *(mnist(skew, peers=20) for skew in SKEWS),
    *(Setting(FASHION, "logreg", skew, 6, 4) for skew in SKEWS),
    *(Setting(MNIST, "mlp", skew, 6, 4) for skew in ("iid", "dirichlet:0.5", "classes:2")),
)
POOR = tuple(
    Setting(data, "logreg", skew, 6, 4)
    for data in (MNIST, FASHION)
    for skew in ("iid", "dirichlet:0.5")
)
POOR_RULES = ("uniform", "degroot", "median", "nnm-trimmed-mean")

MIXED_SKEWS = ATTACKED_SKEWS[:2]  # peers hold most labels
OWN = tuple(
    Setting(data, "logreg", skew, 6, 4)
    for data in (MNIST, FASHION)
    for skew in ("classes:2", "dirichlet:0.1")
)

# Setting -> (rules, attacks). The published rules where all attacks are too many: the telling ones.
ATTACKED: dict[Setting, tuple[Sequence[str], Sequence[str]]] = {
    **{mnist(skew): (LEARNED[:2], ATTACKS) for skew in ATTACKED_SKEWS},
    **{
        Setting(data, model, skew, 6, 4): (LEARNED[:2], TELLING)
        for data, model in ((FASHION, "logreg"), (MNIST, "mlp"))
        for skew in MIXED_SKEWS
    },
    **{mnist(skew, peers=20): (LEARNED[:2], ATTACKS) for skew in MIXED_SKEWS},
    **{mnist(skew, peers=20): (LEARNED[:2], TELLING) for skew in ATTACKED_SKEWS[2:]},
    **{mnist(skew, cohort=5): (LEARNED[:2], TELLING) for skew in MIXED_SKEWS},
}
BEST_PUBLISHED = ("median", "nnm-trimmed-mean", "clipped-gossip")
COMPARED: dict[Setting, tuple[Sequence[str], Sequence[str]]] = {
    **{mnist(skew): (PUBLISHED, TELLING) for skew in MIXED_SKEWS},
    **{mnist(skew): (BEST_PUBLISHED, TELLING) for skew in ATTACKED_SKEWS[2:]},
    **{mnist(skew, peers=20): (BEST_PUBLISHED, TELLING) for skew in MIXED_SKEWS},
}


def personal(setting: Setting, way: str) -> Cell:
    """Returns a cell in which every peer keeps a personal model; way: learned, fixed, isolated."""
    how = {
        "learned": ("--mixing", "degroot"),
        "fixed": ("--mixing", "uniform"),
        "isolated": ("--baseline", "isolated"),
    }
    return Cell(
        f"personal-{NAMES[setting.data]}-{setting.split}-{way}".lower().replace(":", "-"),
        (
            str(SESSIONS / "trust.toml"),
            *("--data", setting.data, "--peers", str(setting.peers)),
            *("--cohort", str(setting.cohort), "--partition", setting.split),
            *("--seeds", "5", "--personal", *how[way]),
        ),
        minutes=0.4,
    )


def cells() -> Iterator[Cell]:
    """Yields every cell, the telling ones first; some more than once."""
    for setting, rule in product(NOBODY_BAD, LEARNED):
        yield cell(setting, rule)
    for setting, way in product(OWN, ("learned", "fixed", "isolated")):
        yield personal(setting, way)
    for setting, rule, attack in product(POOR, POOR_RULES, ("absent", "noisy-labels")):
        yield cell(setting, rule, attack)
    for setting, (rules, attacks) in (*ATTACKED.items(), *COMPARED.items()):
        for rule, attack in product(rules, attacks):
            yield cell(setting, rule, attack)


# --- what they say -------------------------------------------------------------------------------


def section(results: Results) -> str:
    """Returns the tables."""
    parts = [_INTRODUCTION, "## What was asked, and where it is not met", met(results)]
    parts += ["## Nobody is bad", clean_table(results)]
    parts += ["## Two of six have 60 % wrong labels", poor_table(results)]
    parts += ["## A model of my own distribution", _PERSONAL, personal_table(results)]
    for setting, (rules, attacks) in ATTACKED.items():
        if results.figures.get(cell(setting, "degroot", "absent").name):
            others, telling = COMPARED.get(setting, ((), ()))
            parts += [f"## {setting.title}, {BAD[setting.peers]} bad"]
            parts += [attack_table(results, setting, (*rules, *others), attacks, telling)]
    return "\n\n".join(parts)


_INTRODUCTION = """# Trust

Accuracies are means over the honest peers and 5 seeds, ± the standard deviation over the seeds; 12
rounds of one epoch. In brackets: the paired difference to the first column (where nobody lies) or
to the row *absent* (what the same honest peers reach, by the same rule, when the bad ones are not
there), with its 95 % interval. What has not been run is empty. Trust is learned from harm: an
attacker whose models do next to none (ALIE, `ipm:0.1`, a free rider) keeps its weight."""


WITHIN = {"iid": 0.1}  # points below equal sharing, with nobody bad
WITHIN_ELSE = 0.3
MOST_LOST = {"iid": 1.0, "dirichlet:0.5": 3.0}  # points, to an attack
MOST_WEIGHT = 2.0  # percent, of all bad peers together after round 5


def met(results: Results) -> str:
    """Returns: in how many cells the rule does what it should, and the names of the others."""
    return "\n".join(
        [
            "Of the cells that have been run, means over 5 seeds:\n",
            f"- With nobody bad, at most {WITHIN_ELSE:g} points below equal sharing "
            f"({WITHIN['iid']:g} iid): {verdict(selfishness(results))}",
            "- Under an attack, at most 1 point (iid) and 3 points (Dirichlet 0.5) below the same "
            f"honest peers by themselves: {verdict(losses(results))}",
            f"- Bad peers hold at most {MOST_WEIGHT:g} % of the weight after round 5: "
            f"{verdict(weights(results))}",
        ]
    )


def verdict(checks: Sequence[tuple[str, float, float]]) -> str:
    """Returns how many of the checks hold, each (name, got, allowed), and names the others."""
    failed = [f"{name} ({got:.2f})" for name, got, allowed in checks if got > allowed]
    held = count(checks)
    return f"{held}; not {', '.join(failed)}." if failed else f"{held}."


def count(checks: Sequence[tuple[str, float, float]]) -> str:
    """Returns how many of the checks hold."""
    return f"{sum(got <= allowed for _, got, allowed in checks)} of {len(checks)}"


def selfishness(results: Results) -> list[tuple[str, float, float]]:
    """Returns by how much learned trust is below equal sharing where nobody is bad."""
    found = []
    for setting in NOBODY_BAD:
        learned, fixed = (
            results.figures.get(cell(setting, rule).name) for rule in ("degroot", "uniform")
        )
        if learned and fixed:
            below = fixed["accuracy"]["mean"] - learned["accuracy"]["mean"]
            found.append((setting.title, below, WITHIN.get(setting.split, WITHIN_ELSE)))
    return found


def attacked(results: Results) -> Iterator[tuple[Setting, str, Figures]]:
    """Yields what was run of learned trust under attack."""
    for setting, (_, attacks) in ATTACKED.items():
        for attack in attacks:
            figures = results.figures.get(cell(setting, "degroot", attack).name)
            if figures and attack != "absent":
                yield setting, attack, figures


def losses(results: Results) -> list[tuple[str, float, float]]:
    """Returns what attacks cost, where labels are mixed well enough for a bound to be asked."""
    found = []
    for setting, attack, figures in attacked(results):
        alone = results.figures.get(cell(setting, "degroot", "absent").name)
        if alone and setting.split in MOST_LOST:
            lost = alone["accuracy"]["mean"] - figures["accuracy"]["mean"]
            found.append((f"{attack} in {setting.title}", lost, MOST_LOST[setting.split]))
    return found


def weights(results: Results) -> list[tuple[str, float, float]]:
    """Returns what bad peers weigh after round 5."""
    return [
        (f"{attack} in {setting.title}", figures["bad_weight_after_5"], MOST_WEIGHT)
        for setting, attack, figures in attacked(results)
        if figures["bad_weight_after_5"] is not None
    ]


def clean_table(results: Results) -> str:
    """Returns: nobody lies."""
    rows = []
    for setting in NOBODY_BAD:
        figures = [results.figures.get(cell(setting, rule).name) for rule in LEARNED]
        rows.append([setting.title, *(beside(one, figures[0]) for one in figures)])
    return table(["", *LEARNED], rows)


def poor_table(results: Results) -> str:
    """Returns: some peers are no liars but poor."""
    rows = []
    for setting in POOR:
        figures = [results.figures.get(cell(setting, r, "noisy-labels").name) for r in POOR_RULES]
        rows.append([setting.title, *(beside(one, figures[0]) for one in figures)])
    return table(["", *POOR_RULES], rows)


_PERSONAL = """Accuracy on each peer's *own* label distribution, mean over the peers and 5 seeds.
*personal*: the model that never leaves. *fine-tuned*: what a peer has after its local epoch, before
it mixes, with equal sharing; *isolated*: what it trains alone."""


def personal_table(results: Results) -> str:
    """Returns: how good models are where each peer is at home."""
    rows = []
    for setting in OWN:
        kept = {
            way: results.figures.get(personal(setting, way).name)
            for way in ("learned", "fixed", "isolated")
        }
        own = {way: figures["personal"] for way, figures in kept.items() if figures}
        shown = (
            ("learned", "mean"),
            ("isolated", "shared"),
            ("fixed", "fine_tuned"),
            ("fixed", "shared"),
            ("learned", "shared"),
        )
        values = [f"{own[way][name]:.2f}" if way in own else "" for way, name in shown]
        rows.append([setting.title, *values])
    head = ["", "personal", "isolated", "fine-tuned", "equal sharing", "learned, shared"]
    return table(head, rows)


def attack_table(
    results: Results,
    setting: Setting,
    rules: Sequence[str],
    attacks: Iterable[str],
    telling: Iterable[str],
) -> str:
    """Returns one split under its attacks; of learned trust also what weight the bad had."""
    clean = {rule: results.figures.get(cell(setting, rule, "absent").name) for rule in rules}
    rows = []
    for attack in attacks:
        shown = []
        for rule in rules:
            figures = results.figures.get(cell(setting, rule, attack).name)
            known = figures is not None and (rule in LEARNED or attack in telling)
            shown.append(beside(figures, clean[rule]) if known else "")
        own = results.figures.get(cell(setting, "degroot", attack).name)
        seen = ("bad_weight_after_5", "bad_rejected", "good_rejected")
        rows.append([attack, *shown, *(share(own[name]) if own else "" for name in seen)])
    head = ["attack", *rules, "weight of the bad", "bad rejected", "honest rejected"]
    return table(head, rows)


def beside(figures: Figures | None, other: Figures | None) -> str:
    """Returns an accuracy, and by how much it is above another."""
    if figures is None:
        return ""
    if figures is other or other is None:
        return accuracy(figures)
    apart = paired(figures["accuracy"]["per_seed"], other["accuracy"]["per_seed"])
    return f"{accuracy(figures)} ({apart.mean:+.2f} [{apart.low:+.2f}, {apart.high:+.2f}])"


def share(percent: float | None) -> str:
    """Returns a share in percent; nothing where nobody of the kind was there."""
    return "" if percent is None else f"{percent:.1f}"


def headline(results: Results) -> str:
    """Returns how often learned trust does what was asked, and the attacks of the usual setting."""
    usual = mnist("iid")
    rows = []
    for attack in TELLING:
        figures = [results.figures[cell(usual, rule, attack).name] for rule in LEARNED[:2]]
        rows.append([attack, *map(accuracy, figures), share(figures[1]["bad_weight_after_5"])])
    asked = {
        "nobody bad, learned trust at most 0.3 points below equal sharing": selfishness(results),
        "under attack, at most 1 point (iid), 3 (Dirichlet 0.5) below without the bad": (
            losses(results)
        ),
        "bad peers hold at most 2 % of the weight after round 5": weights(results),
    }
    held = [[what, count(checks)] for what, checks in asked.items()]
    return "\n\n".join(
        [
            table(["asked", "held in"], held),
            f"{usual.title}, {BAD[usual.peers]} bad, by attack:",
            table(["attack", *LEARNED[:2], "weight of the bad"], rows),
        ]
    )


STUDY = Study(
    "trust",
    "Trust: nobody bad, poor peers, and every attack",
    tuple(dict.fromkeys(cells())),
    section,
    headline,
)
