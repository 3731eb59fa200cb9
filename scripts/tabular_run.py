"""Six holders of a table, together, each alone, and with all rows in one place; prints JSON.

    scripts/tabular_run.py cancer|diabetes PARTITION [--seeds N] [--rounds N] [--fast]
    scripts/tabular_run.py files cancer|diabetes FOLDER [--seed N]

The tables are those that scikit-learn brings, made into what people have: text for categories, gaps
written in several ways, a column of names that no model is to see. A fifth of the rows, drawn by
the seed, is the test set, test.csv; the others are train.csv. The first holder's rows, author.csv,
are what the session's means, deviations and categories are read off.

Beside it stands what scikit-learn's own models make of all rows in one place: logistic regression,
and ridge regression, whose penalties it chooses by cross-validation.

`files` writes a holder's rows into a file each, for real processes.
"""

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState

import p2pl
from p2pl.api.simulate import simulate
from p2pl.data import partition
from p2pl.data.load import load
from p2pl.protocol.session import SessionFile

ROOT = Path(__file__).parents[1]
HOLDERS = 6
TEST_SHARE = 0.2
GAPS = ("", "NA", "null")
Row = list[str]
Results = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One table, and what is to be predicted."""

    spec: Path
    target: str
    metric: str
    rows: Callable[[RandomState], list[Row]]  # the header first
    yardstick: Callable[["p2pl.Data"], float]


def cancer(random: RandomState) -> list[Row]:
    """Returns scikit-learn's breast-cancer table with names, categories and gaps."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names = [name.replace(" ", "_") for name in found.feature_names]
    columns = {name: [f"{v:g}" for v in found.data[:, at]] for at, name in enumerate(names)}
    size = _terciles(found.data[:, names.index("mean_area")], ("small", "medium", "large"))
    texture = _terciles(found.data[:, names.index("worst_texture")], ("fine", "mixed", "coarse"))
    columns |= {"mean_area": size, "worst_texture": texture}
    with_gaps = ("mean_area", "mean_radius", "mean_concavity", "worst_symmetry", "worst_area")
    return _rows(columns, with_gaps, "diagnosis", found.target_names[found.target], random)


def diabetes(random: RandomState) -> list[Row]:
    """Returns scikit-learn's diabetes table with names, a category and gaps."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    columns = {
        name: [f"{v:g}" for v in found.data[:, i]] for i, name in enumerate(found.feature_names)
    }
    columns["sex"] = ["f" if value == 1 else "m" for value in found.data[:, 1]]
    return _rows(
        columns, ("bp", "s1", "s6"), "progression", [f"{y:g}" for y in found.target], random
    )


def _terciles(values: Any, names: Sequence[str]) -> list[str]:  # noqa: ANN401  # [N]
    return [names[place] for place in np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values)]


def _rows(
    columns: Mapping[str, Sequence[str]],
    with_gaps: Sequence[str],
    target: str,
    targets: Sequence[str],
    random: RandomState,
) -> list[Row]:
    """Returns a table as rows: one value in twenty of some columns is missing."""
    made = {name: list(values) for name, values in columns.items()}
    for name in with_gaps:
        for at in np.flatnonzero(random.random_sample(len(targets)) < 0.05):
            made[name][at] = GAPS[random.randint(len(GAPS))]
    people = [f"patient {number}" for number in range(len(targets))]
    whole = {"name": people, **made, target: list(targets)}
    return [list(whole), *map(list, zip(*whole.values(), strict=True))]


def auroc(data: "p2pl.Data") -> float:
    """Returns the AUROC, percent, of scikit-learn's logistic regression on all training rows."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import roc_auc_score

    assert data.test is not None
    model = LogisticRegressionCV(
        Cs=10, cv=5, max_iter=5_000, scoring="roc_auc", l1_ratios=(0,), use_legacy_attributes=False
    )
    model.fit(data.train.x.numpy(), data.train.y.numpy())
    shares = model.predict_proba(data.test.x.numpy())[:, 1]
    return 100 * float(roc_auc_score(data.test.y.numpy(), shares))


def rmse(data: "p2pl.Data") -> float:
    """Returns the RMSE of scikit-learn's ridge regression on all training rows."""
    from sklearn.linear_model import RidgeCV

    assert data.test is not None
    model = RidgeCV(alphas=np.logspace(-2, 3, 30))
    model.fit(data.train.x.numpy(), data.train.y[:, 0].numpy())
    error = model.predict(data.test.x.numpy()) - data.test.y[:, 0].numpy()
    return float(np.sqrt((error**2).mean()))


SESSIONS = ROOT / "experiments" / "sessions"
CASES = {
    "cancer": Case(SESSIONS / "cancer.toml", "diagnosis", "AUROC", cancer, auroc),
    "diabetes": Case(SESSIONS / "diabetes.toml", "progression", "RMSE", diabetes, rmse),
}


def write(folder: Path, case: Case, how: str, seed: int) -> list[Path]:
    """Returns the files of the holders: train.csv and test.csv, and a file each, are written."""
    header, *rows = case.rows(RandomState(seed))
    order = RandomState(seed).permutation(len(rows))
    held = round(TEST_SHARE * len(rows))
    test, train = [rows[at] for at in order[:held]], [rows[at] for at in order[held:]]
    shares = partition.parse(how)(_kinds([row[-1] for row in train]), HOLDERS, seed)
    files = {"test": test, "train": train}
    files |= {f"holder-{i}": [train[at] for at in share] for i, share in enumerate(shares)}
    for name, some in files.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *some])
    return [folder / f"holder-{number}.csv" for number in range(HOLDERS)]


def _kinds(targets: Sequence[str]) -> "partition.Indices":
    """Returns what a partition goes by: the class, or in which tenth of all a number is."""
    try:
        place = np.array(targets, dtype=np.float32).argsort(kind="stable").argsort()
    except ValueError:
        return np.unique(targets, return_inverse=True)[1].astype(np.int64)
    return (place * 10 // len(targets)).astype(np.int64)


def session(folder: Path, case: Case, author: Path) -> SessionFile:
    """Returns the session that the first holder makes of its own file."""
    out = folder / f"{case.spec.stem}.torrent"
    return p2pl.create(case.spec, out, schema_from=author, target=case.target, leave_out=["name"])


def run(case: Case, how: str, seed: int, rounds: int | None) -> Results:
    """Returns the primary metric of one seed: together, each alone, and all rows in one place."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        holders = write(place, case, how, seed)
        file = session(place, case, holders[0])
        data = place / "data"
        data.mkdir()
        for split in ("train", "test"):
            (place / f"{split}.csv").rename(data / f"{split}.csv")
        changes = {"exchange.rounds": rounds} if rounds else {}
        found: Results = {"seed": seed}
        arms = {"together": {}, "equal": {"mixing.rule": "uniform"}, "alone": {}, "pooled": {}}
        baselines = {"alone": "isolated", "pooled": "centralised"}
        for arm, more in arms.items():
            made = simulate(
                file,
                data,
                HOLDERS,
                partition=how,
                partition_seed=0,
                first_seed=seed,
                changes={**changes, **more},
                baseline=baselines.get(arm),
                curves=False,
            )
            primary = made.figures["primary"]
            assert primary["metric"] == case.metric
            found |= {arm: primary["mean"], f"{arm}_worst": primary["worst_peer"]}
        known = load(str(data), file.session.task, form=file.session.table)
        return {**found, "scikit_learn": case.yardstick(known), "rows": len(known.train)}


def main() -> None:
    """Reads the command line, and prints the figures or writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=[*CASES, "files"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args()
    if asked.case == "files":
        name, folder = asked.words
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path in write(Path(folder), CASES[name], "iid", asked.first_seed):
            print(path)
        return
    case, (how,) = CASES[asked.case], asked.words
    seeds = range(asked.first_seed, asked.first_seed + (2 if asked.fast else asked.seeds))
    per_seed = [run(case, how, seed, 2 if asked.fast else asked.rounds) for seed in seeds]
    names = ("together", "equal", "alone", "pooled", "scikit_learn")
    mean = {name: statistics.fmean(one[name] for one in per_seed) for name in names}
    print(json.dumps({"metric": case.metric, "partition": how, "mean": mean, "per_seed": per_seed}))


if __name__ == "__main__":
    main()
