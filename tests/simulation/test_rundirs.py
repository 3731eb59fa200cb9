"""The run directories of a simulation grow while it runs, so that it can be watched."""

from pathlib import Path

import pytest
import torch

import p2pl
from p2pl.run.log import read_run
from p2pl.simulation.engine import SimulatedRound

SPEC = {
    "name": "points",
    "task": {"input": [2], "classes": 2},
    "model": {"name": "logreg"},
    "training": {"learning_rate": 0.1, "batch_size": 8},
    "exchange": {"rounds": 2, "cohort": 1},
}


@pytest.mark.parametrize(("most", "meanwhile"), [(256, [1, 2]), (2, [None, None])])
def test_peers_are_written_while_they_run_unless_they_are_too_many(
    most: int, meanwhile: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pl.simulation.rundirs.MAX_LIVE", most)
    seen: list[int | None] = []
    folder = tmp_path / "seed-0" / "peer-2"

    def look(one: SimulatedRound) -> None:
        seen.append(len(read_run(folder).rounds) if folder.exists() else None)

    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    data = ((x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()))
    p2pl.simulate(SPEC, data, peers=3, attack="sign-flip:1", out=tmp_path, on_round=look)
    assert seen == meanwhile
    run = read_run(folder)
    assert (len(run.rounds), run.state) == (2, "finished")
    marker = (folder / "session.json").read_text()
    assert '"attack": "sign-flip"' in marker
    assert '"rounds": 2' in marker
