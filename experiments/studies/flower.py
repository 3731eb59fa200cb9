"""The same Flower clients under Flower's own FedAvg simulation and under p2pl, in one run."""

import statistics

from experiments.grid import Cell, Figures, Results, Study
from experiments.page import part, table

NAMES = {
    "fedavg": "Flower's own simulation, FedAvg",
    "all_to_all": "p2pl, all to all, by sample counts",
    "gossip": "p2pl, gossip with random neighbours, no server",
}
CELL = Cell(
    "hundred-peers",
    ("flower", "--peers", "100", "--rounds", "20", "--neighbours", "2", "--seeds", "5"),
    8.0,
    script="scripts/bench",
    timed=True,
)


def section(results: Results) -> str:
    """Returns the comparison."""
    return f"# Clients of Flower\n\n{part('FedAvg and gossip', show, results)}"


def show(results: Results) -> str:
    """Returns the accuracies, and by how much the models differ."""
    figures = results.figures[CELL.name]
    apart = [one["gossip_accuracy"] - one["fedavg_accuracy"] for one in figures["per_seed"]]
    return "\n\n".join(
        [
            f"An unmodified `flwr` NumPyClient: logistic regression on MNIST, divided at random "
            f"among {figures['peers']} clients, {figures['rounds']} rounds of one epoch, "
            f"{figures['seeds']} seeds. Gossip is push-pull with {figures['neighbours']} "
            "neighbours drawn anew in each round, by age; its accuracy is the mean over all peers.",
            comparison(results),
            "All to all, no parameter of any peer differs from FedAvg's by more than "
            f"{figures['largest_difference']:.1g}. Gossip is {statistics.fmean(apart):+.2f} points "
            f"from FedAvg, {min(apart):+.2f} to {max(apart):+.2f}.",
        ]
    )


def comparison(results: Results) -> str:
    """Returns accuracies and seconds, side by side."""
    figures = results.figures[CELL.name]
    rows = [[title, spread(figures, name), seconds(figures, name)] for name, title in NAMES.items()]
    return table(["", "accuracy", "seconds a seed"], rows)


def spread(figures: Figures, name: str) -> str:
    """Returns mean ± standard deviation over the seeds."""
    values = [one[f"{name}_accuracy"] for one in figures["per_seed"]]
    apart = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {apart:.2f}"


def seconds(figures: Figures, name: str) -> str:
    """Returns how long a seed took."""
    return f"{figures[f'{name}_seconds']:.0f}"


STUDY = Study(
    "flower",
    "Speed: a hundred clients of Flower, beside Flower's own simulation",
    (CELL,),
    section,
    comparison,
)
