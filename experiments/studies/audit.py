"""Attacks on private training: is the claim ever contradicted, and are broken ones found out?

One peer of six, MNIST, logistic regression, 100 rounds. A seed sets the coins that decide which
canaries are in; noise comes from no seed.
"""

from collections.abc import Iterator

from experiments.grid import MNIST, SESSIONS, Cell, Figures, Results, Study
from experiments.page import table

EPSILONS = (1, 3)
SEEDS = 5
MODELS = 16  # for the attacks on membership: in one run of each budget, they take longest
FAULTS = {
    "no-noise": "noise is left out",
    "fresh-accountant": "the accountant starts anew every round",
    "seeded-noise": "noise comes from the number of the round",
}
MEMBERSHIP = ("loss threshold", "LiRA")


def cell(epsilon: int | None, fault: str, seed: int, models: int = 0) -> Cell:
    """Returns one audit; without an epsilon, of training that promises nothing."""
    budget = ("--dp-epsilon", str(epsilon), "--dp-delta", "1e-5") if epsilon else ()
    name = f"{epsilon or 'none'}-{fault}-{seed}" if not models else f"{epsilon or 'none'}-members"
    faulty = ("--fault", fault) if fault != "none" else ()
    return Cell(
        name,
        (
            *(str(SESSIONS / "private.toml"), "--data", MNIST, "--shard", "0/6", *budget),
            *(*faulty, "--seed", str(seed), "--models", str(models)),
        ),
        minutes=0.1 + models / 20,
        verb="audit",
    )


def cells() -> Iterator[Cell]:
    """Yields the honest audits, those with something broken, and those of membership."""
    for epsilon in EPSILONS:
        for fault in ("none", *FAULTS):
            yield from (cell(epsilon, fault, seed) for seed in range(SEEDS))
    yield from (cell(epsilon, "none", SEEDS, MODELS) for epsilon in (*EPSILONS, None))


def section(results: Results) -> str:
    """Returns what the audits found, as far as they were run, and how often they were right."""
    rows = [row(results, epsilon, fault) for epsilon in EPSILONS for fault in ("none", *FAULTS)]
    head = ["training", "claimed", "bounds found", "could have found", "verdict: broken"]
    members = [
        [f"epsilon {epsilon}" if epsilon else "without privacy", attack, *rates(figures, attack)]
        for epsilon in (*EPSILONS, None)
        if (figures := results.figures.get(cell(epsilon, "none", SEEDS, MODELS).name))
        for attack in MEMBERSHIP
    ]
    membership = table(["training", "attack", "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR"], members)
    return "\n\n".join(
        [
            "# Audit: is training as private as it claims?",
            _ONE_RUN,
            table(head, [one for one in rows if one]),
            *((_MEMBERSHIP, membership) if members else ()),
        ]
    )


def row(results: Results, epsilon: int, fault: str) -> list[str]:
    """Returns one line of the table: all seeds of a budget and a fault; nothing if none was run."""
    names = [cell(epsilon, fault, seed).name for seed in range(SEEDS)]
    found = [results.figures[name] for name in names if name in results.figures]
    if not found:
        return []
    broken = sum(figures["verdict"] == "broken" for figures in found)
    bounds = sorted(figures["bound"] for figures in found)
    return [
        FAULTS.get(fault, "honest"),
        f"{max(figures['claimed'] for figures in found):.3f}",
        ", ".join(f"{bound:.2f}" for bound in bounds),
        f"{min(figures['most'] for figures in found):.1f}",
        f"{broken} of {len(found)}",
    ]


def rates(figures: Figures, attack: str) -> list[str]:
    """Returns how well an attack on the final model tells members from others."""
    one = figures["membership"][attack]
    shares = [
        f"{100 * rate:.2f} % ({100 * low:.2f}..{100 * high:.2f})"
        for rate, (low, high) in zip(
            one["true_positives"].values(),
            ((interval["low"], interval["high"]) for interval in one["intervals"]),
            strict=True,
        )
    ]
    return [f"{one['area']:.3f}", *shares]


_ONE_RUN = f"""One run each with 1,000 canaries among the 8,000 examples that a peer trains on for
100 rounds of 16 steps (Steinke, Nasr and Jagielski 2023), at most {SEEDS} seeds, 95 % confidence.
The attacker sees every version, and has trained the same without canaries. A bound above the claim
contradicts it; one below it proves nothing, for it says what is leaked at least."""

_MEMBERSHIP = f"""Who was in the training data, guessed from the final model with {MODELS} models
trained on random halves of the peer's own examples: AUC, and how many members are found while 1 %
and 0.1 % of the others are wrongly accused (95 % confidence intervals, as if all examples were
independent)."""

STUDY = Study("audit", "Audits: is training as private as it claims?", tuple(cells()), section)
