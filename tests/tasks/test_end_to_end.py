"""Every task is simulated and joined, and whatever a person sees speaks of its own metrics."""

import asyncio
import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.processes import Swarm
from torch import Tensor, nn

import p2pl
from p2pl.errors import DataError, InputError, ModelError
from p2pl.report.run import report_tables, write_report
from p2pl.report.simulation import simulation_tables, write_simulation_report
from p2pl.run.log import MARKER_FILE, Marker, RunLog, read_run
from p2pl.simulation.show import table
from p2pl.terminal import Screen

TRAIN, TEST, ROUNDS = 180, 60, 3
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """One kind of task, small.

    Attributes:
        task: of the session.
        x: inputs.
        y: targets.
        model: fit for them.
        rate: learning rate.
        shown: how the primary metric is written, up to the number.
    """

    task: Mapping[str, object]
    x: Tensor
    y: Tensor
    model: nn.Module
    rate: float
    shown: str

    @property
    def train(self) -> Pair:
        """What the peers hold."""
        return self.x[:TRAIN], self.y[:TRAIN]

    @property
    def test(self) -> Pair:
        """What all are scored on."""
        return self.x[TRAIN:], self.y[TRAIN:]

    def net(self) -> nn.Module:
        """Returns a module to be trained."""
        return copy.deepcopy(self.model)

    def session(self, folder: Path) -> Path:
        """Returns the session's file."""
        spec = {
            "name": "small",
            "task": self.task,
            "model": {"name": "arrays"},
            "training": {"learning_rate": self.rate, "batch_size": 16, "momentum": 0.9},
            "exchange": {"rounds": ROUNDS, "cohort": 2},
        }
        p2pl.create(spec, folder / "small.torrent", model=self.model)
        return folder / "small.torrent"


def cases() -> dict[str, Case]:
    """Returns a case for each kind of task, and classification with other metrics."""
    torch.manual_seed(3)
    n = TRAIN + TEST
    x, weights = torch.randn(n, 6), torch.randn(6, 3)
    images = torch.randn(n, 1, 8, 8)
    starts = torch.randint(7, (n, 1))
    tokens = (starts + torch.arange(6)) % 7
    gaps = torch.where(torch.rand(n, 5) < 0.1, -100, tokens[:, 1:])
    gaps[:, 0] = tokens[:, 1]
    return {
        "classification": Case(
            {"input": [6], "classes": 3, "metrics": ["AUROC", "macro F1", "accuracy"]},
            x,
            (x @ weights).argmax(1),
            nn.Linear(6, 3),
            0.05,
            "AUROC",
        ),
        "multilabel": Case(
            {"kind": "multilabel", "input": [6], "outputs": 3, "labels": ["a", "b", "c"]},
            x,
            (x @ weights > 0).long(),
            nn.Linear(6, 3),
            0.05,
            "AUROC",
        ),
        "regression": Case(
            {
                "kind": "regression",
                "input": [6],
                "outputs": 1,
                "unit": "kg",
                "target_mean": [5000.0],
                "target_std": [2000.0],
            },
            x,
            5000 + 2000 * (x @ weights)[:, 0],
            nn.Linear(6, 1),
            0.02,
            "RMSE",
        ),
        "segmentation": Case(
            {
                "kind": "segmentation",
                "input": [1, 8, 8],
                "classes": 2,
                "arguments": {"background": 0},
            },
            images,
            (images[:, 0] > 0.3).long(),
            nn.Conv2d(1, 2, 3, padding=1),
            0.05,
            "Dice",
        ),
        "language": Case(
            {"kind": "language", "input": [5], "classes": 7},
            tokens[:, :5],
            gaps,
            nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)),
            0.2,
            "perplexity",
        ),
    }


CASES = cases()
EVERY = pytest.mark.parametrize("kind", CASES)


def printed(*parts: object) -> str:
    """Returns what a terminal would show."""
    console = Console(file=io.StringIO(), width=150)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(kind: str, text: str) -> str:
    """Returns the text, which speaks of the task's metrics and not of other ones."""
    assert CASES[kind].shown in text
    assert kind == "classification" or "ccuracy" not in text, text
    return text


@EVERY
def test_a_simulation_learns_it_and_shows_its_metrics(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    done = p2pl.simulate(
        case.session(tmp_path),
        (case.train, case.test),
        4,
        model=case.net(),
        seeds=2,
        out=tmp_path / "out",
    )
    figures = done.figures
    primary = figures["primary"]
    assert primary["metric"] == case.shown
    assert figures["accuracy"] is None
    trainer = done.results[0].learners[0].trainer
    assert list(figures["metrics"]) == [one.name for one in trainer.metrics]
    first, last = figures["by_round"][0], figures["by_round"][-1]
    better = 1 if primary["higher_is_better"] else -1
    assert better * last["primary"] > better * first["primary_before_mix"]
    assert better * primary["mean"] >= better * primary["worst_peer"]
    words(kind, printed(table(dict(figures))))

    report = write_simulation_report(tmp_path / "out", tmp_path / "report")
    words(kind, report.page.read_text())
    words(kind, printed(simulation_tables(report)))
    assert list(report.pictures)[:2] == ["score", "peers"]
    run = read_run(tmp_path / "out" / "seed-0" / "peer-0")
    assert run.metric.name == case.shown
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["score_by_peer"][0][0] == run.summary.value(run.metric)  # type: ignore[union-attr]


@EVERY
def test_a_peer_joins_with_tensors_and_sees_its_metrics(kind: str, tmp_path: Path) -> None:
    case, console = CASES[kind], Console(file=io.StringIO(), width=200)
    with Screen(console) as screen:
        run = p2pl.join(
            case.session(tmp_path),
            case.net(),
            case.train,
            test=case.test,
            alone=True,
            on_event=screen,
            run_dir=tmp_path / "run",
        )
    assert run.summary is not None
    assert isinstance(console.file, io.StringIO)
    *rounds, _ = words(kind, console.file.getvalue()).splitlines()[1:]
    assert all(case.shown in line for line in rounds)
    logged = read_run(tmp_path / "run")
    metric = logged.metric
    assert metric.name == case.shown
    curve = [entry.value(metric) for entry in logged.rounds]
    assert curve[-1] not in (None, curve[0])
    assert run.summary.value(metric) == pytest.approx(curve[-1])
    assert (run.summary.accuracy is None) == (kind != "classification")

    report = write_report([tmp_path / "run"], tmp_path / "report")
    words(kind, report.page.read_text())
    words(kind, printed(report_tables(report)))
    assert "score" in report.pictures
    (peer,) = report.numbers.peers
    best = metric.best(curve)
    assert peer.best_score == best == curve[(peer.best_round or 0) - 1]
    others = [value for value in curve if value is not None and best is not None]
    assert all(metric.gain(value, best or 0.0) >= 0 for value in others)
    assert (peer.accuracy, peer.best_accuracy) == (None, None)


def test_a_regression_is_told_in_its_unit_and_its_loss_in_none(tmp_path: Path) -> None:
    case, console = CASES["regression"], Console(file=io.StringIO(), width=200)
    with Screen(console) as screen:
        p2pl.join(
            case.session(tmp_path),
            case.net(),
            case.train,
            alone=True,
            on_event=screen,
            run_dir=tmp_path / "run",
            personal=True,
        )
    assert isinstance(console.file, io.StringIO)
    assert " kg  cohort" in console.file.getvalue()
    marker = json.loads((tmp_path / "run" / MARKER_FILE).read_text())
    assert marker["metrics"][0] == {"name": "RMSE", "unit": "kg", "higher_is_better": False}
    assert marker["loss_unit"] == ""
    report = write_report([tmp_path / "run"], tmp_path / "report")
    page, shown = report.page.read_text(), printed(report_tables(report))
    assert " kg " in shown
    assert "%" not in page + shown
    assert "kg**, the mean over 1 peer" in page
    assert "lower is better)" in page
    last = read_run(tmp_path / "run").rounds[-1]
    assert last.value(read_run(tmp_path / "run").metric) > 10  # type: ignore[operator]  # kg


def test_a_personal_model_is_scored_in_the_tasks_metric(tmp_path: Path) -> None:
    case = CASES["regression"]
    done = p2pl.simulate(
        case.session(tmp_path), (case.train, case.test), 3, model=case.net(), personal=True
    )
    own = done.figures["personal"]
    assert own["mean"] > 100
    assert own["worst_peer"] >= own["mean"]
    entry = done.results[0].rounds[-1].entries[0]
    assert entry.personal_accuracy is None
    assert entry.personal_score is not None
    assert "kg" in printed(table(dict(done.figures)))


@pytest.mark.parametrize("kind", ["multilabel", "regression", "segmentation", "language"])
@pytest.mark.parametrize("partition", ["dirichlet:0.5", "classes:3"])
def test_data_are_divided_where_their_targets_allow_it(
    kind: str, partition: str, tmp_path: Path
) -> None:
    case = CASES[kind]

    def run() -> p2pl.Simulation:
        return p2pl.simulate(
            case.session(tmp_path),
            (case.train, case.test),
            4,
            model=case.net(),
            partition=partition,
            changes={"exchange.rounds": 1},
        )

    by_class = ":" in partition
    if kind == "language" and by_class:
        with pytest.raises(DataError, match="--partition"):
            run()
    elif kind == "segmentation" and partition == "classes:3":
        with pytest.raises(InputError):
            run()  # there is one class beside the background
    else:
        assert sum(run().results[0].samples) == pytest.approx(0.8 * TRAIN, abs=4)


@EVERY
def test_targets_of_another_task_are_refused_before_anything_is_trained(
    kind: str, tmp_path: Path
) -> None:
    case = CASES[kind]
    wrong = 1000.5 + torch.arange(len(case.y)).float() * torch.nan
    with pytest.raises(DataError, match=r"targets of the data: got .*, allowed"):
        p2pl.join(
            case.session(tmp_path),
            case.net(),
            (case.x, wrong),
            alone=True,
            run_dir=tmp_path / "run",
        )
    with pytest.raises(DataError, match=r"targets of the (data|test set): got .*, allowed"):
        p2pl.simulate(case.session(tmp_path), (case.train, (case.x, wrong)), 3, model=case.net())


def test_runs_of_before_there_were_metrics_stay_readable(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text(
        '{"round": 1, "accuracy": 50.0}\n{"round": 2, "accuracy": 60.0}\n'
    )
    (tmp_path / MARKER_FILE).write_text('{"session_id": "5", "peer_id": "a"}')
    (tmp_path / "summary.json").write_text('{"accuracy": 61.0, "rounds": 2}')
    run = read_run(tmp_path)
    assert (run.metric.name, run.metric.unit, run.loss_unit) == ("accuracy", "%", "nats")
    assert [entry.value(run.metric) for entry in run.rounds] == [50.0, 60.0]
    assert write_report([tmp_path], tmp_path / "out").numbers.peers[0].accuracy == 61.0


def test_runs_that_do_not_say_what_they_measure_show_what_they_told(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "metrics": {"MAE": 2.5}}\n')
    (tmp_path / MARKER_FILE).write_text('{"session_id": "5", "peer_id": "a"}')
    report = write_report([tmp_path], tmp_path / "out")
    assert report.numbers.metric == p2pl.Metric("MAE")
    assert report.numbers.peers[0].score == 2.5
    assert "accuracy" not in printed(report_tables(report))


def test_a_run_that_goes_on_says_what_it_measures(tmp_path: Path) -> None:
    (tmp_path / MARKER_FILE).write_text('{"session_id": "5", "peer_id": "a"}')
    (tmp_path / "rounds.jsonl").write_text("")
    metric = p2pl.Metric("IoU", "%")
    with RunLog(tmp_path, Marker(session_id="5", peer_id="a")) as log:
        log.describe((metric,), "nats")
    assert read_run(tmp_path).metrics == (metric,)
    with RunLog(tmp_path, Marker(session_id="5", peer_id="a")) as log:
        assert log.last is None
    assert read_run(tmp_path).metrics == (metric,)


@pytest.mark.parametrize("engine", ["stacked", "sequential"])
def test_a_model_with_more_outputs_than_classes_is_refused(engine: str, tmp_path: Path) -> None:
    case = CASES["classification"]
    task = {"input": [6], "classes": 3}
    wide = replace(case, task=task, model=nn.Linear(6, 4))
    said = r"outputs of Linear: got \[\d+, 4\], allowed \[\d+, 3\], the task Classification's"
    file = wide.session(tmp_path)
    with pytest.raises(ModelError, match=said):
        p2pl.simulate(file, (case.train, case.test), 3, model=wide.net(), engine=engine)
    with pytest.raises(ModelError, match=said):
        p2pl.join(file, wide.net(), case.train, alone=True, run_dir=tmp_path / "run")


@pytest.mark.swarm
def test_two_peers_learn_a_language_from_each_other(tmp_path: Path) -> None:
    case = CASES["language"]
    file, swarm = case.session(tmp_path), Swarm(tmp_path)
    swarm.tracker()

    async def both() -> list[p2pl.Run]:
        peers = [
            p2pl.join_async(
                file,
                case.net(),
                (case.train[0][me::2], case.train[1][me::2]),
                test=case.test,
                trackers=[swarm.url],
                run_dir=tmp_path / f"run-{me}",
                listen="127.0.0.1:0",
            )
            for me in (0, 1)
        ]
        return list(await asyncio.gather(*peers))

    try:
        runs = asyncio.run(both())
    finally:
        swarm.end()
    for run in runs:
        assert len(run.summary.peers_met) == 1  # type: ignore[union-attr]
        first, last = run.rounds[0], run.rounds[-1]
        assert last.metrics["perplexity"] < first.metrics_before_mix["perplexity"]
    report = write_report([run.directory for run in runs], tmp_path / "report")
    assert report.numbers.score is not None
    assert report.numbers.score.worst >= report.numbers.score.mean >= report.numbers.score.best
    assert words("language", report.page.read_text())


def test_a_metric_that_cannot_be_measured_is_left_open(tmp_path: Path) -> None:
    case = CASES["classification"]
    x, y = case.test
    done = p2pl.simulate(
        case.session(tmp_path),
        (case.train, (x[y == 0], y[y == 0])),  # of one class: there is nothing to rank
        3,
        model=case.net(),
        seeds=2,
        personal=True,
        out=tmp_path / "out",
    )
    assert done.figures["primary"]["mean"] is None
    assert done.figures["metrics"]["AUROC"]["std_over_peers"] is None
    assert done.figures["metrics"]["accuracy"]["mean"] > 0
    assert "not finite" in printed(table(dict(done.figures)))
    page = write_simulation_report(tmp_path / "out", tmp_path / "report").page.read_text()
    assert "**AUROC - ± - %**" in page
    run = tmp_path / "out" / "seed-0" / "peer-0"
    assert read_run(run).rounds[-1].value(read_run(run).metric) is None
    assert write_report([run], tmp_path / "one").numbers.score is None
