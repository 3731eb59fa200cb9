"""The programs of docs/tasks.md, as they stand there, learn what they are said to."""

import re
import runpy
from pathlib import Path

import pytest
from support.processes import ROOT

from p2pl.learning.task import TASKS, task_of
from p2pl.protocol.session import Task

PAGE = (ROOT / "docs" / "tasks.md").read_text()
PROGRAMS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
MAX_LINES = 40
# What a program must print: a metric, and between what it may be.
REACHED: dict[str, dict[str, tuple[float, float]]] = {
    "tumours.py": {"AUROC": (97, 100)},
    "topics.py": {"AUROC": (75, 100), "macro F1": (50, 100)},
    "progression.py": {"RMSE": (40, 70), "MAE": (30, 60), "R2": (0.2, 1)},  # of the mean: 73, 0
    "discs.py": {"Dice": (80, 100), "IoU": (65, 100)},
    "bytes_of_text.py": {"perplexity": (2, 18)},  # of the frequencies of single bytes: 22
}


@pytest.mark.parametrize("name", REACHED)
def test_the_programs_learn(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / name
    program.write_text(PROGRAMS[name])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(program))
    told = re.findall(r"^(.+?) (-?[\d.]+)(?: \S+)?$", capsys.readouterr().out, re.M)
    found = {metric: float(value) for metric, value in told}
    assert found.keys() == REACHED[name].keys()
    for metric, (low, high) in REACHED[name].items():
        assert low < found[metric] < high, found


def test_every_kind_has_a_program_and_a_row_with_its_metrics() -> None:
    assert list(PROGRAMS) == list(REACHED)
    for text in PROGRAMS.values():
        assert len([line for line in text.splitlines() if line.strip()]) <= MAX_LINES
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.M))
    kinds = {
        "classification": Task(input=(1,), classes=2),
        "multilabel": Task(kind="multilabel", input=(1,), outputs=2),
        "regression": Task(kind="regression", input=(1,), outputs=2),
        "segmentation": Task(kind="segmentation", input=(1, 1, 1), classes=2),
        "language": Task(kind="language", input=(1,), classes=2),
    }
    assert set(rows) == set(kinds) <= set(TASKS.names())
    for kind, settings in kinds.items():
        usual = ", ".join(metric.name for metric in task_of(settings).metrics)
        assert rows[kind].split(" | ")[-1].startswith(usual), kind
