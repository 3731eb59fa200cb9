"""The report on a simulation shows its seeds side by side, and what the peers made of them."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from p2pl.errors import RunDirError
from p2pl.report.simulation import (
    SIMULATION_FILE,
    is_simulation,
    simulation_tables,
    write_simulation_report,
)
from p2pl.run.log import Marker, RoundEntry, RunLog, Summary

IDS = ("a1" * 32, "b2" * 32, "c3" * 32)
ACCURACIES = {0: (80.0, 90.0, 10.0), 1: (84.0, 94.0, 30.0)}  # by seed; the last peer is bad


def write_simulation(folder: Path, **changes: object) -> Path:
    """Returns a simulation of two honest peers and a bad one, with two seeds of one round."""
    for seed, accuracies in ACCURACIES.items():
        for number, accuracy in enumerate(accuracies):
            run_dir = folder / f"seed-{seed}" / f"peer-{number}"
            marker = Marker(session_id=f"{seed}" * 64, peer_id=IDS[number], name="small")
            weights = {IDS[number]: 0.5, IDS[(number + 1) % 3]: 0.1 + 0.2 * seed}
            with RunLog(run_dir, marker) as log:
                log.append(RoundEntry(round=1, accuracy=accuracy, trust=weights))
                log.finish(Summary(accuracy=accuracy, rounds=1, peer_id=IDS[number]))
    figures = {
        "name": "small",
        "peers": 3,
        "rounds": 1,
        "partition": "iid",
        "mixing": "degroot",
        "bad_peers": 1,
        "attack": "nan",
        "accuracy": {
            "mean": 87.0,
            "std_over_seeds": 2.83,
            "std_over_peers": 5.0,
            "worst_peer": 82.0,
            "per_seed": [85.0, 89.0],
        },
        "by_round": [{"round": 1, "accuracy": 87.0, "consensus_distance": 0.1, "bad_weight": 3.0}],
        "confusion": [[8, 2], [1, 9]],
        "of_a_newer_version": True,
        **changes,
    }
    (folder / SIMULATION_FILE).write_text(json.dumps(figures))
    return folder


def test_a_page_shows_the_seeds_and_all_pictures(tmp_path: Path) -> None:
    folder = write_simulation(tmp_path / "sim")
    assert is_simulation(folder)
    report = write_simulation_report(folder, tmp_path / "out")
    page = report.page.read_text()
    for words in (
        "**Accuracy 87.00 ± 2.83 %**",
        "| 0 | 85.00 | 5.00 | 80.00 | 90.00 |",
        "| 1 | 89.00 | 5.00 | 84.00 | 94.00 |",
        "| macro mean | 0.854 | 0.850 | 0.850 | 20 |",
        "nan, 1 bad",
        "| network | everybody takes part, no link is lost, nothing is late |",
    ):
        assert words in page
    assert list(report.pictures) == ["accuracy", "peers", "consensus", "bad", "trust", "confusion"]
    for kind, path in report.pictures.items():
        assert f"]({kind}.png)" in page
        with Image.open(path) as image:
            assert min(image.size) > 100
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["accuracy_by_peer"] == [list(values) for values in ACCURACIES.values()]
    assert numbers["of_a_newer_version"] is True


def test_a_page_says_what_the_network_was(tmp_path: Path) -> None:
    drawn = {"participation": 0.8, "delay_rounds": 3, "took_part": 79.5, "pulls_failed": 28.25}
    folder = write_simulation(tmp_path / "sim", **drawn)
    page = write_simulation_report(folder, tmp_path / "out").page.read_text()
    row = "79.5 % take part in a round, 28.2 % of the pulls fail, models are up to 3 rounds old"
    assert f"| network | {row} |" in page


def test_a_metric_of_which_less_is_better_has_its_worst_peer_at_the_top(tmp_path: Path) -> None:
    about = {"metric": "accuracy", "unit": "mm", "higher_is_better": False}
    score = {"mean": 87.0, "std_over_seeds": 2.5, "std_over_peers": 5.0, "worst_peer": 92.0}
    primary = {**about, **score, "per_seed": [85.0, 89.0]}
    points = [{"round": 1, "primary": 87.0}]
    folder = write_simulation(
        tmp_path / "sim",
        accuracy=None,
        primary=primary,
        metrics={"accuracy": primary, "R2": {**primary, "metric": "R2", "unit": ""}},
        by_round=points,
    )
    report = write_simulation_report(folder, tmp_path / "out")
    page = report.page.read_text()
    for words in (
        "87.000 ± 2.500 mm**",
        "the worst peer has 92.000 mm. Lower is better.",
        "| 0 | 85.000 | 5.000 | 90.000 | 80.000 |",
        "| R2 | 87.000 | 2.500 | 5.000 | 92.000 | lower |",
    ):
        assert words in page
    assert "score" in report.pictures


def test_one_seed_has_no_spread_over_seeds(tmp_path: Path) -> None:
    one = {"mean": 87.0, "std_over_seeds": 0.0, "std_over_peers": 5.0, "worst_peer": 82.0}
    folder = write_simulation(tmp_path / "sim", accuracy={**one, "per_seed": [87.0]})
    shutil.rmtree(folder / "seed-1")
    page = write_simulation_report(folder, tmp_path / "out").page.read_text()
    assert "**Accuracy 87.00 %**, the mean over the honest peers. Over" in page
    assert "±" not in page


def test_nothing_is_drawn_where_there_is_nothing_to_see(tmp_path: Path) -> None:
    points = [{"round": 1, "accuracy": 50.0, "consensus_distance": 0.0}]
    folder = write_simulation(
        tmp_path / "sim", baseline="isolated", by_round=points, confusion=[], bad_peers=0
    )
    report = write_simulation_report(folder, tmp_path / "out")
    assert list(report.pictures) == ["accuracy", "peers"]
    assert report.classes == ()
    assert simulation_tables(report)


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write_simulation_report(write_simulation(tmp_path / "sim"), tmp_path / "out")
    bare = write_simulation(tmp_path / "bare", baseline="isolated", confusion=[])
    report = write_simulation_report(bare, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        path.name for path in report.pictures.values()
    }


def test_a_folder_that_is_no_seed_is_passed_over(tmp_path: Path) -> None:
    folder = write_simulation(tmp_path / "sim")
    (folder / "seed-old").mkdir()
    assert len(write_simulation_report(folder, tmp_path / "out").by_peer) == len(ACCURACIES)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("figures", "simulation.json"),
        ("deep", "simulation.json"),
        ("seed", "1 seeds"),
        ("peer", r"of \[2, 3\] peers"),
        ("summary", "no final score"),
    ],
)
def test_a_simulation_that_is_not_whole_is_refused(tmp_path: Path, damage: str, words: str) -> None:
    folder = write_simulation(tmp_path / "sim")
    if damage == "figures":
        (folder / SIMULATION_FILE).write_text('{"peers": "many"}')
    elif damage == "deep":
        (folder / SIMULATION_FILE).write_text('{"more":' + "[" * 5_000)
    elif damage == "seed":
        (folder / "seed-1").rename(tmp_path / "elsewhere")
    elif damage == "peer":
        (folder / "seed-1" / "peer-2").rename(tmp_path / "elsewhere")
    else:
        (folder / "seed-1" / "peer-2" / "summary.json").unlink()
    with pytest.raises(RunDirError, match=words):
        write_simulation_report(folder, tmp_path / "out")
