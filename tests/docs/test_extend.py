"""The programs of docs/extend.md, as they stand there: real processes, a real tracker."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ROOT, Running, Swarm

PAGE = (ROOT / "docs" / "extend.md").read_text()
BLOCK = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.DOTALL)
PROGRAMS = dict(BLOCK.findall(PAGE))
MAX_LINES = 40
DEADLINE_S = 240.0


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start processes in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


def written(name: str, folder: Path) -> Path:
    """Returns the file of a program."""
    path = folder / name
    path.write_text(PROGRAMS[name])
    return path


def run(program: Path, *arguments: str) -> str:
    """Returns what a program prints, run in its own folder."""
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(swarm: Swarm, program: Path, number: int) -> Running:
    """Returns the process of one peer, in the folder of its program."""
    command = ["sh", "-c", f"cd {program.parent} && exec {sys.executable} {program} {number}"]
    return swarm.start(f"peer-{number}", command)


def test_there_are_five_programs_of_at_most_forty_lines() -> None:
    names = ["own_model.py", "own_loop.py", "own_task.py", "own_mixing.py", "own_sink.py"]
    assert list(PROGRAMS) == names
    for name, text in PROGRAMS.items():
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) <= MAX_LINES, (name, len(lines))


@pytest.mark.parametrize("name", ["own_model.py", "own_loop.py"])
def test_two_peers_train_what_they_brought(swarm: Swarm, name: str) -> None:
    swarm.tracker()
    program = written(name, swarm.folder)
    run(program, "make", swarm.url)
    for peer in [start(swarm, program, number) for number in (0, 1)]:
        assert peer.wait() == 0, peer.text()
        found = re.search(r"accuracy ([\d.]+) %, met 1 peers", peer.text())
        assert found, peer.text()
        assert float(found[1]) > 85


def test_a_task_of_ones_own_is_learned(tmp_path: Path) -> None:
    told = run(written("own_task.py", tmp_path))
    error = float(told.removeprefix("MAE ").removesuffix(" points\n"))
    assert 30 < error < 60  # guessing the mean: 66


def test_a_rule_of_ones_own_mixes_beside_those_there_are(tmp_path: Path) -> None:
    told = run(written("own_mixing.py", tmp_path))
    found = dict(re.findall(r"([\w-]+): ([\d.]+) %", told))
    assert float(found["nearest-half"]) > 10 + float(found["uniform"])


def test_a_sink_of_ones_own_writes_a_table_and_stops_the_run(swarm: Swarm) -> None:
    swarm.tracker()
    program = written("own_sink.py", swarm.folder)
    run(program, "make", swarm.url)
    peers = [start(swarm, program, number) for number in (0, 1)]
    for number, peer in enumerate(peers):
        assert peer.wait() == 0, peer.text()
        assert "interrupted after round" in peer.text()
        head, *rows = (swarm.folder / f"rounds-{number}.csv").read_text().splitlines()
        assert head == "round,accuracy,trust in others,bytes in"
        assert 0 < len(rows) < 30
        assert float(rows[-1].split(",")[1]) > 90
