"""Holders of a table, each with a CSV file of its own, as real processes by the command line."""

from pathlib import Path

import pytest
import tabular_run
from support.commands import p2pl
from support.processes import Swarm

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]
PEERS = 3
CANCER = tabular_run.CASES["cancer"]


def test_three_clinics_with_a_csv_file_each_learn_together(swarm: Swarm, tmp_path: Path) -> None:
    swarm.tracker()
    holders = tabular_run.write(tmp_path, CANCER, "iid", 7)[:PEERS]
    spec = tmp_path / "cancer.toml"
    changes = (
        ("rounds = 30", "rounds = 12"),
        ("min_peers = 6", "min_peers = 3"),
        ("cohort = 5", "cohort = 2"),
    )
    text = CANCER.spec.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    spec.write_text(text)
    torrent = tmp_path / "cancer.torrent"
    made = ("create", spec, "--out", torrent, "--tracker", swarm.url, "--schema-from", holders[0])
    done = p2pl(*made, "--target", "diagnosis", "--leave-out", "name")
    assert done.returncode == 0, done.stderr
    peers = []
    for number, file in enumerate(holders):
        folder = tmp_path / f"clinic-{number}"
        folder.mkdir()
        file.rename(folder / "train.csv")
        (folder / "test.csv").write_bytes((tmp_path / "test.csv").read_bytes())
        peers.append(swarm.peer(f"peer-{number}", torrent, "--data", str(folder)))
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    for peer in peers:
        summary = peer.summary()
        assert summary["metrics"]["AUROC"] > 97
        assert summary["labels"] == ["benign", "malignant"]
        assert summary["test_set"] == {"source": "given", "examples": 114, "share": None}
        assert len(summary["peers_met"]) == PEERS - 1


def test_a_clinic_with_another_table_is_told_all_that_is_wrong(tmp_path: Path) -> None:
    holder = tabular_run.write(tmp_path, CANCER, "iid", 7)[0]
    torrent = tmp_path / "cancer.torrent"
    options = ("--schema-from", holder, "--target", "diagnosis", "--leave-out", "name")
    done = p2pl(
        "create", CANCER.spec, "--out", torrent, "--tracker", "http://127.0.0.1:1", *options
    )
    assert done.returncode == 0, done.stderr
    text = holder.read_text().replace("large", "huge").replace("mean_texture", "texture")
    holder.write_text(text)
    done = p2pl("join", torrent, "--data", holder, cwd=tmp_path)
    assert done.returncode == 2
    assert "column 'mean_texture': missing" in done.stderr
    assert "got 'huge', allowed small, medium, large" in done.stderr
    assert not (tmp_path / "runs").exists()
