"""Which learning rate, schedule and length the tables are made with: chosen without the test set.

Every setting is tried on other seeds (100 and 101) than the tables' (0 to 4), trained on 50,000 of
the training examples and judged on the other 10,000.
"""

import statistics

from experiments.grid import FASHION, MNIST, NAMES, SESSIONS, Cell, Results, Study
from experiments.page import table

# Of the tables' splits: non-balanced peers hold the same labels as iid ones.
SPLITS = {"iid": "iid", "non-iid": "classes:5"}

USUAL = {
    "training.learning_rate": "0.05",
    "training.momentum": "0.9",
    "training.schedule": '"cosine"',
    "training.local_epochs": "1",
    "exchange.rounds": "40",
}
# Name, and what differs from the usual: all of it is in the command. The session file is not the
# tables', which takes the best of them and changes with it.
SETTINGS: dict[str, dict[str, str]] = {
    "rate 0.05": {},
    "rate 0.02": {"training.learning_rate": "0.02"},
    "rate 0.1": {"training.learning_rate": "0.1"},
    "rate 0.2, no momentum": {"training.learning_rate": "0.2", "training.momentum": "0.0"},
    "rate 0.05, constant": {"training.schedule": '"constant"'},
    "rate 0.02, constant": {
        "training.learning_rate": "0.02",
        "training.schedule": '"constant"',
    },
    "rate 0.05, 20 rounds": {"exchange.rounds": "20"},
    "rate 0.05, 20 rounds of 2 epochs": {"exchange.rounds": "20", "training.local_epochs": "2"},
    "rate 0.05, quasi-global": {"training.quasi_global": "true"},
}


def cell(setting: str, data: str, split: str) -> Cell:
    """Returns one setting on one split."""
    settings = {**USUAL, **SETTINGS[setting]}
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return Cell(
        f"{NAMES[data]}-{split}-{setting}".lower().replace(", ", "-").replace(" ", "-"),
        (
            str(SESSIONS / "tuning.toml"),
            *("--data", data, "--peers", "6", "--partition", SPLITS[split]),
            *("--mixing", "uniform", "--held-out", "10000", "--first-seed", "100", "--seeds", "2"),
            *("--no-curves", *changes),
        ),
        minutes=0.17,
    )


def cells() -> tuple[Cell, ...]:
    """Returns every setting on every split."""
    return tuple(
        cell(setting, data, split)
        for data in (MNIST, FASHION)
        for setting in SETTINGS
        for split in SPLITS
    )


def section(results: Results) -> str:
    """Returns what was tried, and which setting is best over all splits."""
    columns = [(data, split) for data in (MNIST, FASHION) for split in SPLITS]
    rows: list[tuple[float, list[str]]] = []
    for setting in SETTINGS:
        values = [
            results.figures[cell(setting, data, split).name]["accuracy"]["mean"]
            for data, split in columns
        ]
        mean = statistics.fmean(values)
        rows.append((mean, [setting, *(f"{value:.2f}" for value in values), f"{mean:.2f}"]))
    rows.sort(key=lambda row: -row[0])
    head = ["setting", *(f"{NAMES[data]} {split}" for data, split in columns), "mean"]
    return (
        "# Settings tried for the tables\n\n"
        "Six peers, logistic regression, everybody pulls from everybody and shares equally. "
        "Accuracy on 10,000 held-out training examples, mean of seeds 100 and 101. Where nothing "
        "else is said: cosine schedule, momentum 0.9, batches of 64, 40 rounds of one epoch. The "
        "tables are made with the setting of the first line, for all ways of sharing.\n\n"
        + table(head, [row for _, row in rows])
    )


STUDY = Study("tuning", "Settings tried for the tables", cells(), section)
