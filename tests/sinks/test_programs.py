"""The programs that runs are logged to, by their own libraries, offline, and read back by them."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import p2pl

SPEC = {
    "name": "points",
    "task": {"input": [2], "classes": 2},
    "model": {"name": "logreg"},
    "training": {"learning_rate": 0.1, "batch_size": 8},
    "exchange": {"rounds": 3, "cohort": 1},
}
NAMES = {"accuracy_percent", "train_loss_nats", "round_seconds", "received_bytes"}


@pytest.fixture(autouse=True)
def unlogged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lets no program ask anything of anybody, and write only into the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("p2pl.sinks.base.END_S", 250.0)  # a busy machine is no finding


def joined(log: str, rounds: int = 3) -> p2pl.Run:
    """Returns a run of a peer by itself that was logged somewhere."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    data = (x, (x[:, 0] > 0).long())
    file = p2pl.create(SPEC, "points.torrent")
    return p2pl.join(file, data=data, alone=True, run_dir="run", log=log, rounds=rounds)


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = joined("tensorboard:tb", rounds=2)
    run = joined("tensorboard:tb")  # goes on beside it
    folder = tmp_path / "tb" / f"points-{run.peer_id[:8]}"
    read = EventAccumulator(str(folder))
    read.Reload()
    assert set(read.Tags()["scalars"]) >= NAMES
    told = [(one.step, one.value) for one in read.Scalars("accuracy_percent")]
    assert [step for step, _ in told] == [1, 2, 3]
    assert [value for _, value in told] == pytest.approx([one.accuracy for one in run.rounds])
    settings = read.Tensors("session/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| training.learning_rate | 0.1 |" in settings
    assert first.peer_id == run.peer_id


@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of other libraries
def test_mlflow_reads_what_was_logged(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = joined(f"mlflow:{uri}")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("points")
    [kept] = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == f"points-{run.peer_id[:8]}"
    assert kept.data.params["training.learning_rate"] == "0.1"
    assert set(kept.data.metrics) >= NAMES
    told = client.get_metric_history(kept.info.run_id, "accuracy_percent")
    assert [one.step for one in told] == [1, 2, 3]
    assert [one.value for one in told] == pytest.approx([one.accuracy for one in run.rounds])


def records(kept: bytes) -> Iterator[bytes]:
    """Yields what is in a file of wandb, which is a log as LevelDB writes it: parts in blocks."""
    at, parts = 7, b""  # after the mark of the file
    while at + 7 <= len(kept):
        if 32_768 - at % 32_768 < 7:  # no room for the head of a part: the next block
            at += 32_768 - at % 32_768
            continue
        size, kind = int.from_bytes(kept[at + 4 : at + 6], "little"), kept[at + 6]
        parts += kept[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of it, or the last part
            yield parts
            parts = b""


def test_wandb_keeps_what_was_logged_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    wandb_internal_pb2 = importlib.import_module("wandb.proto.wandb_internal_pb2")

    run = joined("wandb:trials")
    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    rows: list[dict[str, float]] = []
    settings: dict[str, str] = {}
    project = ""
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.run.project:
            project = record.run.project
            settings |= {one.key: one.value_json for one in record.run.config.update}
        items = {one.key or one.nested_key[0]: one.value_json for one in record.history.item}
        if items:
            rows.append({key: json.loads(value) for key, value in items.items()})
    assert project == "trials"
    assert settings["training.learning_rate"] == "0.1"
    assert [row["round"] for row in rows] == [1, 2, 3]
    told = [row["accuracy_percent"] for row in rows]
    assert told == pytest.approx([one.accuracy for one in run.rounds])


def test_a_simulation_is_logged_as_the_mean_over_its_honest_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from p2pl.events import Started
    from p2pl.sinks.base import SINKS

    told: list[tuple[str, object]] = []

    class Notes:
        def begin(self, run: Started) -> None:
            told.append((run.peer_id, run.settings["mixing.rule"]))

        def round(self, index: int, figures: dict[str, float]) -> None:
            told.append((f"round {index}", figures["accuracy_percent"]))

        def end(self, state: str, figures: dict[str, float]) -> None:
            told.append((state, figures["final_accuracy_percent"]))

    monkeypatch.setitem(SINKS._registered, "notes", lambda place: Notes())
    x = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    data = ((x, (x[:, 0] > 0).long()), (x, (x[:, 0] > 0).long()))
    one_seed = {"log": "notes:here", "attack": "sign-flip:1", "changes": {"exchange.rounds": 2}}
    found = p2pl.simulate(SPEC, data, peers=3, **one_seed)  # type: ignore[arg-type]
    [result] = found.results
    means = [sum(entry.accuracy or 0.0 for entry in one.entries[:2]) / 2 for one in result.rounds]
    assert told == [
        ("seed-0", "degroot"),
        ("round 1", pytest.approx(means[0])),
        ("round 2", pytest.approx(means[1])),
        ("finished", pytest.approx(found.figures["accuracy"]["mean"])),
    ]


def test_the_log_of_ones_own_in_the_docs_writes_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from p2pl.sinks.base import SINKS

    page = (Path(__file__).parents[2] / "docs" / "log.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setattr(SINKS, "_registered", {})
    done: dict[str, object] = {}
    exec(compile(program, "own_log.py", "exec"), done)  # noqa: S102  # of these docs
    first, *rounds, last = (tmp_path / "lines.txt").read_text().splitlines()
    assert first == "digits 0.1"
    assert [line.split()[0] for line in rounds] == ["1", "2", "3"]
    assert last == "finished"
