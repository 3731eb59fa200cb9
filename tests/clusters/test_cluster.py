"""Peers and studies on three local nodes of Ray, of which two die on the way.

The tests are in the order of what they leave of the cluster: three nodes, two, one.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from support.processes import PATIENCE_S, wait_until
from support.rows import row_of
from support.simulations import digits, small_setup

from experiments import runner, store, tasks
from experiments.grid import Cell
from p2pl.attacks import kinds as attacks
from p2pl.data.load import Data
from p2pl.errors import InputError, NetworkError, TrainingDiverged
from p2pl.mixing.base import MIXERS, Mixed, Mixer, Own, PeerModel
from p2pl.simulation import cluster, joined
from p2pl.simulation.cluster import Cluster
from p2pl.simulation.engine import Result, SimulatedRound, run
from p2pl.simulation.numbers import numbers
from p2pl.simulation.reality import Reality
from p2pl.simulation.setup import Setup
from p2pl.simulation.worker import stamp

ray: Any = pytest.importorskip("ray", reason="scripts/check_ray has an environment with Ray")

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.filterwarnings("default")]
CPU = torch.device("cpu")
PEERS = 5  # on three workers: unequal blocks
STORE_BYTES = 80 << 20  # the least that Ray takes is 75 MB


@dataclass(frozen=True, slots=True)
class Nodes:
    """A head, where the tests are, and two more, each with one CPU."""

    cluster: Any
    more: tuple[Any, Any]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Starts three nodes, and joins them as `--engine ray:ADDRESS` does."""
    joined.imported()
    from ray.cluster_utils import Cluster as LocalNodes

    each = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    made = LocalNodes(initialize_head=False)
    try:
        try:
            made.add_node(**each, include_dashboard=False)
            more = (made.add_node(**each), made.add_node(**each))
        except Exception as fault:
            # Written into Ray, and nothing that p2pl could wait longer for.
            if "timed out during startup" in str(fault):
                pytest.skip("a node of Ray did not start here within Ray's own 30 s")
            raise
        engine = f"ray:{made.address}"
        with joined.joined(engine, 1, environment=tasks.environment()):
            yield Nodes(made, more)
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def workers(nodes: Nodes) -> Iterator[Cluster]:
    """Starts a worker on each node."""
    made = cluster.start(ray, PEERS, "cpu", 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


def both(setup: Setup, data: Data, workers: Cluster) -> tuple[Result, Result]:
    """Returns what one process and the cluster make of a simulation."""
    one = run(replace(setup, engine="sequential"), data, CPU)
    there = replace(setup, engine="ray")
    return one, workers.spread([there], data, None)(there, data, CPU)


def apart(one: Result, other: Result) -> float:
    """Returns the largest difference of any parameter of any peer."""
    return float((torch.stack(one.vectors) - torch.stack(other.vectors)).abs().max())


def told(result: Result) -> dict[str, Any]:
    """Returns the figures that do not depend on how long something took."""
    figures = numbers([result])
    own = (
        "engine",
        "training_threads",
        "seconds",
        "cpu_seconds",
        "seconds_by_phase",
        "cpu_seconds_by_phase",
        "first_round",
        "by_round",
    )
    curve = [{k: v for k, v in one.items() if k != "seconds"} for one in figures["by_round"]]
    return {k: v for k, v in figures.items() if k not in own} | {"curve": curve}


def assert_alike(one: object, other: object, place: str = "") -> None:
    """Fails where figures differ by more than rounding; one wrong answer of 360 is more."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), place
        for name, value in one.items():
            assert_alike(value, other[name], f"{place}.{name}")
    elif isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other), place
        for n, value in enumerate(one):
            assert_alike(value, other[n], f"{place}[{n}]")
    else:
        same = pytest.approx(one, rel=1e-4, abs=1e-6) if isinstance(one, float) else one
        assert other == same, place


def test_there_is_a_worker_on_each_node(workers: Cluster) -> None:
    def node(worker: object) -> str:
        return str(ray.get_runtime_context().get_node_id())

    node.__module__ = "__main__"  # else a worker would import it, and has no tests
    where = ray.get([one.__ray_call__.remote(node) for one in workers._workers])
    assert len(set(where)) == 3


LARGE = ("model", "arguments", {"hidden": [512]})  # 150 kB: through the object store
SETUPS = {
    "learned trust, a liar, momentum": (
        LARGE,
        ("mixing", "rule", "degroot"),
    ),
    "gossip in 8 bits, adam": (
        ("exchange", "kind", "gossip"),
        ("wire", "compression", "int8"),
        ("training", "optimizer", "adam"),
        ("training", "momentum", 0.0),
        ("training", "learning_rate", 0.001),
    ),
    "peers away, pulls that fail, models that are late": (("exchange", "cohort", 3),),
    "a leader": (("exchange", "kind", "raft"), ("exchange", "min_peers", 3)),
}


@pytest.mark.parametrize("name", SETUPS)
def test_three_nodes_compute_what_one_process_does(name: str, data: Data, workers: Cluster) -> None:
    setup = small_setup(*SETUPS[name], peers=PEERS)
    if "liar" in name:
        made, bad = attacks.parse("sign-flip:1:-3")
        setup = replace(setup, attack=made, bad=bad, personal=True)
    if "late" in name:
        setup = replace(setup, reality=Reality(0.7, 0.2, 2))
    one, three = both(setup, data, workers)
    assert three.engine.kind == "ray"
    assert apart(one, three) < 1e-5
    assert_alike(told(one), told(three))


def test_a_rule_that_was_registered_here_goes_along(data: Data, workers: Cluster) -> None:
    class Half(Mixer):
        """A rule that no worker can import."""

        def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
            return Mixed(own.vector / 2, {self.peer_id: 1.0}, {}, memory)

    Half.__module__ = "__main__"  # as of a script or a notebook
    MIXERS.register("half")(Half)
    one, three = both(small_setup(("mixing", "rule", "half"), peers=PEERS), data, workers)
    assert apart(one, three) < 1e-5


def test_as_many_seeds_as_workers_are_simulated_one_a_worker(data: Data, workers: Cluster) -> None:
    setups = [replace(small_setup(peers=PEERS), seed=seed, engine="ray") for seed in range(4)]
    running, begun = workers.spread(setups, data, None), list[int]()
    for setup in setups:
        rounds = list[SimulatedRound]()
        one = run(replace(setup, engine="sequential"), data, CPU)
        there = running(
            setup, data, CPU, rounds.append, on_begin=lambda peers: begun.append(len(peers))
        )
        assert apart(one, there) < 1e-5
        assert_alike(told(one), told(there))
        assert [done.index for done in rounds] == [1, 2]
    assert begun == [PEERS] * 4


def test_what_goes_wrong_in_a_worker_is_said_as_in_one_process(
    data: Data, workers: Cluster
) -> None:
    setup = replace(
        small_setup(
            ("training", "learning_rate", 1e3), ("training", "weight_decay", 1.0), peers=PEERS
        ),
        engine="ray",
    )
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        workers.spread([setup], data, None)(setup, data, CPU)


def test_a_worker_with_other_code_is_refused(workers: Cluster) -> None:
    own = ray.get(workers._workers[0].stamp.remote())
    cluster.check_stamps([own], stamp())
    with pytest.raises(InputError, match="every machine of the cluster"):
        cluster.check_stamps([own, replace(own, code="0" * 16)], stamp())


def test_clients_of_flower_are_refused(workers: Cluster) -> None:
    setup = replace(small_setup(peers=PEERS), engine="ray")
    with pytest.raises(InputError, match="trained in this process"):
        workers.spread([setup], lambda number, of: None, None)  # type: ignore[arg-type,return-value]


def test_a_run_goes_on_without_a_node_that_is_killed(
    nodes: Nodes, workers: Cluster, data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    setup = small_setup(LARGE, ("mixing", "rule", "degroot"), peers=PEERS, rounds=4)
    one, there = run(replace(setup, engine="sequential"), data, CPU), replace(setup, engine="ray")

    def after(done: SimulatedRound) -> None:
        if done.index == 2:
            nodes.cluster.remove_node(nodes.more[0], allow_graceful=False)

    two = workers.spread([there], data, None)(there, data, CPU, after)
    assert "peers go to the other 2" in caplog.text
    assert apart(one, two) < 1e-5
    assert_alike(told(one), told(two))


def test_a_run_whose_last_worker_dies_says_so(data: Data, workers: Cluster) -> None:
    workers.close()
    setup = replace(small_setup(peers=PEERS), engine="ray")
    with pytest.raises(NetworkError, match="no other is left"):
        workers.spread([setup], data, None)(setup, data, CPU)


# Says in a file which worker has begun, waits until it may go on, and prints a figure.
CELL = 'echo $PPID >>"$0.begun"; until [ -e "$0.go" ]; do sleep 0.1; done; echo "{\\"x\\": $1}"'


def test_a_study_goes_on_without_a_node_that_is_killed(nodes: Nodes, tmp_path: Path) -> None:
    raw, files = tmp_path / "raw", [tmp_path / "one", tmp_path / "two"]
    store.add(store.path(raw, "small"), row_of("kept", {"x": 0}))
    cells = [
        Cell(file.name, ("-c", CELL, str(file), str(n)), script="sh")
        for n, file in enumerate(files, 1)
    ]

    def begun(file: Path) -> list[int]:
        there = file.with_suffix(".begun")
        return [int(line) for line in there.read_text().splitlines()] if there.exists() else []

    def kill() -> None:
        wait_until(lambda: all(map(begun, files)), PATIENCE_S, "both cells")
        raylet = nodes.more[1].all_processes["raylet"][0].process.pid
        there = [pid for file in files for pid in begun(file) if parent_of(pid) == raylet]
        nodes.cluster.remove_node(nodes.more[1], allow_graceful=False)
        for pid in there:  # which may go on for a moment by itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for file in files:
            file.with_suffix(".go").touch()

    killing = threading.Thread(target=kill)
    killing.start()
    failed = runner.run_cells(cells, raw, "small", None, partial(tasks.finished, ray))
    killing.join()
    assert failed == {}
    rows = store.read(store.path(raw, "small"))
    assert {name: row.figures["x"] for name, row in rows.items()} == {"kept": 0, "one": 1, "two": 2}
    assert rows["one"].commit == store.commit_now()
    assert sorted(len(begun(file)) for file in files) == [
        1,
        2,
    ]  # the one whose node was killed was begun again


def parent_of(pid: int) -> int:
    """Returns the process that started another one."""
    return psutil.Process(pid).ppid()


def test_a_cell_that_fails_says_why(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "RETRIES", 0)  # each takes a new worker's time
    kills_its_worker = Cell("kills", ("-c", "kill -9 $PPID; sleep 9"), script="sh")
    cells = [Cell("false", ("x",), script="false"), kills_its_worker]
    running = partial(tasks.finished, ray)
    failed = runner.run_cells(cells, tmp_path / "raw", "small", None, running)
    assert "returned non-zero exit status" in failed["false"]
    assert "WorkerCrashedError" in failed["kills"]


def test_a_cluster_that_is_not_there_is_said_in_time() -> None:
    """In a process of its own, where nothing is joined yet."""
    with socket.socket() as silent:
        silent.bind(("0.0.0.0", 0))  # Ray goes to the machine's own address
        silent.listen()
        code = (
            "import sys\nfrom p2pl.simulation.joined import joined\n"
            "for port in sys.argv[1:]:\n"
            "    try:\n"
            "        with joined('ray:127.0.0.1:' + port, 1, deadline_s=2): pass\n"
            "    except Exception as fault: print(type(fault).__name__, fault)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "1", str(silent.getsockname()[1])],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
    nobody, silence = done.stdout.splitlines()
    assert "NetworkError" in nobody
    assert "ray start --head" in nobody
    assert "no answer within 2 s" in silence
