"""Six peers, four of them behind two NATs, of which one lets out nothing but port 443.

A tracker and a relay are in public. All machines are network namespaces; the peers are threads of
this process, each on a machine of its own.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import namespaces
from support.joins import SPEC, Watching, run_with
from support.namespaces import Host, Network
from support.processes import BIN, PATIENCE_S, Running, Swarm, wait_until
from support.relays import Certificate, certificate

from p2pl.data.load import Shard, load
from p2pl.learning.checkpoint import build
from p2pl.network.known import BACK_OFF
from p2pl.network.version import Version
from p2pl.network.wire import CurveWire
from p2pl.protocol import session
from p2pl.protocol.relay import PREFACE
from p2pl.protocol.session import SessionFile
from p2pl.run.log import LoggedRun, read_run

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

PEERS = 6
ROUNDS = 4
METRICS_PORT = 9_101
ALL_ETHERNET = 0x0003
RCVBUFFORCE = 33  # SO_RCVBUFFORCE of Linux
WINDOW_BYTES = 16  # of a model, looked for in the capture: four parameters


@pytest.fixture(autouse=True)
def _needed() -> None:
    namespaces.needed()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Returns every model that any peer serves from now on, as it travels inside CURVE."""
    kept: list[bytes] = []
    publish = CurveWire.publish

    async def keep(wire: CurveWire, version: Version, *, keep_last: bool = False) -> bytes:
        kept.append(bytes(version.payload))
        return await publish(wire, version, keep_last=keep_last)

    monkeypatch.setattr(CurveWire, "publish", keep)
    return kept


def windows(data: bytes) -> list[bytes]:
    """Returns parts of a model that are found nowhere by chance."""
    starts = range(0, len(data) - WINDOW_BYTES, max(4, len(data) // 64 // 4 * 4))
    found = [data[at : at + WINDOW_BYTES] for at in starts]
    return [one for one in found if len(set(one)) > WINDOW_BYTES // 2]


class Capture:
    """Everything that passes a machine's network interface, as a program beside it sees it."""

    def __init__(self, host: Host) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.bind(("eth0", ALL_ETHERNET))
        self._socket.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 64 << 20)
        self._socket.settimeout(0.1)
        self._is_over = threading.Event()
        self.data = bytearray()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._is_over.is_set():
            try:
                self.data += self._socket.recv(1 << 17)
            except TimeoutError:
                continue

    def __enter__(self) -> "Capture":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()


@dataclass
class Internet:
    """A tracker and a relay in public, and six machines for peers."""

    folder: Path
    swarm: Swarm
    net: Network
    paper: Certificate
    tracker: Host
    relay: Host
    peers: list[Host]
    relay_key: str = ""
    running: Running | None = None
    relays_started: int = 0
    said: dict[int, str] = field(default_factory=dict)  # by peer, in the last run

    @property
    def url(self) -> str:
        return f"https://{self.tracker.address}:443"

    def start_tracker(self) -> None:
        at = self.relay.address
        relays = ["--relay-url", f"relay://{at}:4001", "--relay-url", f"relays://{at}:443"]
        files = ["--tls-cert", str(self.paper.chain), "--tls-key", str(self.paper.key)]
        words = ["serve", "--host", self.tracker.address, "--port", "443", *relays, *files]
        words += ["--relay-key", str(self.folder / "tickets.pem"), "--interval", "5"]
        tracker = self._program("tracker", self.tracker, words, "listening on")
        self.relay_key = tracker.text().partition("issuer ")[2].split()[0]

    def start_relay(self) -> None:
        files = ["--tls-cert", str(self.paper.chain), "--tls-key", str(self.paper.key)]
        words = ["relay", "--host", self.relay.address, "--issuer", self.relay_key, *files]
        words += ["--metrics", str(METRICS_PORT)]
        name = f"relay-{self.relays_started}"
        self.relays_started += 1
        self.running = self._program(name, self.relay, words, "relaying on")

    def listeners(self) -> int:
        """Returns how many peers take calls at the relay."""
        with self.relay.entered():
            told = httpx.get(f"http://127.0.0.1:{METRICS_PORT}/metrics").text
        return int(float(told.partition("\np2pl_relay_listeners ")[2].split()[0]))

    def _program(self, name: str, host: Host, words: Sequence[str], ready: str) -> Running:
        command = host.command(str(BIN / "p2pl-tracker"), *words)
        running = self.swarm.start(name, command)
        wait_until(lambda: ready in running.text() or running.is_over, PATIENCE_S, name)
        assert not running.is_over, running.text()
        return running

    def file(self, **exchange: object) -> SessionFile:
        wanted = session.read_spec(SPEC).session()
        changes = {"rounds": ROUNDS, "cohort": PEERS - 1, "min_peers": PEERS, **exchange}
        changes = {"start_deadline_s": 120.0, "lockstep": True, "wait_s": 30.0, **changes}
        wanted = msgspec.structs.replace(
            wanted, exchange=msgspec.structs.replace(wanted.exchange, **changes)
        )
        return SessionFile("digits", wanted, build(wanted)[1], trackers=((self.url,),))

    def run(
        self, hosts: Sequence[Host], file: SessionFile, name: str, watch: Callable[[], Watching]
    ) -> list[LoggedRun]:
        """Returns what peers on these machines have logged, once all are done."""
        faults: list[BaseException] = []
        shards = [Shard(number, PEERS, "iid") for number in range(PEERS)]
        data = [load("digits", file.session.task, shard=shard) for shard in shards]

        def take_part(number: int, host: Host) -> None:
            run_dir = self.folder / f"{name}-{number}"
            run_dir.mkdir()
            view = watch()
            options = {
                "listen": f"{host.address}:0",
                "authorities": self.paper.chain,
                "identity": self.folder / f"{number}.pem",  # the same peers in all runs
                "on_signals": False,
            }
            try:
                with host.entered():
                    asyncio.run(run_with(file, run_dir, data[number], view, **options))
            except BaseException as fault:  # noqa: BLE001  # a thread's is nobody's, else
                faults.append(fault)
            self.said[number] = view.text.getvalue()

        threads = [
            threading.Thread(target=take_part, args=(number, host), daemon=True)
            for number, host in enumerate(hosts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
        assert faults == []
        return [read_run(self.folder / f"{name}-{number}") for number in range(len(hosts))]


@contextmanager
def internet(folder: Path) -> Iterator[Internet]:
    """Yields machines on which a tracker and a relay run."""
    with namespaces.internet() as net, Swarm(folder) as swarm:
        tracker, relay, one, two = (net.host() for _ in range(4))
        home, office = net.nat(), net.nat(only_port=443)
        peers = [one, two, home.host(), home.host(), office.host(), office.host()]
        paper = certificate(folder, tracker.address, relay.address)
        there = Internet(folder, swarm, net, paper, tracker, relay, peers)
        there.start_tracker()
        there.start_relay()
        yield there


def received(run: LoggedRun) -> list[int]:
    return [len(entry.received) for entry in run.rounds]


def why(run: LoggedRun) -> str:
    """Returns whom a peer asked in each round, and why others gave nothing; and what it said."""
    rounds = [f"{[one[:8] for one in entry.cohort]} {entry.rejected}" for entry in run.rounds]
    return "\n".join([f"{run.directory.name} {run.summary and run.summary.peer_id[:8]}", *rounds])


def test_everybody_learns_as_without_nat_and_the_relay_reads_nothing(
    folder: Path, served: list[bytes]
) -> None:
    with internet(folder) as there:
        file = there.file()
        with Capture(there.relay) as capture:
            runs = there.run(there.peers, file, "nat", Watching)
        seen, travelled = bytes(capture.data), list(served)
        public = [there.net.host() for _ in range(PEERS)]
        plain = there.run(public, file, "public", Watching)

    for run in (*runs, *plain):
        assert received(run) == [PEERS - 1] * ROUNDS, why(run)
    for run, same in zip(runs, plain, strict=True):
        assert run.summary is not None
        assert same.summary is not None
        assert run.summary.accuracy == pytest.approx(same.summary.accuracy, abs=0.3)

    relayed = [run.summary.bytes_relayed for run in runs if run.summary]
    assert min(relayed[2:]) > 0
    assert len(seen) > sum(relayed) / 2
    assert PREFACE in seen  # what is said in the clear is found
    assert len(travelled) >= PEERS * ROUNDS
    assert all(len(windows(model)) > 30 for model in travelled)
    assert not any(one in seen for model in travelled for one in windows(model))
    for number in range(PEERS):
        for tensor in load_file(folder / f"nat-{number}" / "model.safetensors").values():
            data = np.ascontiguousarray(tensor).tobytes()
            assert not any(one in seen for one in windows(data))


class Holding(Watching):
    """Holds up training in one round until it may go on; says once that it is there."""

    def __init__(self, round_index: int, reached: threading.Semaphore, go: threading.Event) -> None:
        super().__init__()
        self._round, self._reached, self._go = round_index, reached, go
        self._is_there = False

    def training(self, round_index: int, step: int, steps: int, loss: float) -> None:
        super().training(round_index, step, steps, loss)
        if round_index == self._round and not self._is_there:
            self._is_there = True
            self._reached.release()
            self._go.wait(PATIENCE_S)


def test_a_relay_that_is_killed_and_started_again_costs_at_most_one_round(folder: Path) -> None:
    reached, go = threading.Semaphore(0), threading.Event()
    faults: list[BaseException] = []

    with internet(folder) as there:

        def mend() -> None:
            """Kills the relay, and lets training go on once all peers listen at the next one.

            The first peer that trains is told of; others may still be pulling in the round before.
            What fails of that may fail late, and rests from then on.
            """
            try:
                assert reached.acquire(timeout=PATIENCE_S)
                assert there.running is not None
                there.running.kill()
                there.start_relay()
                wait_until(lambda: there.listeners() == PEERS, PATIENCE_S, "all listen again")
                for _ in range(PEERS - 1):
                    assert reached.acquire(timeout=PATIENCE_S)
                time.sleep(BACK_OFF.first_s)  # whoever was called in vain has rested
            except BaseException as fault:  # noqa: BLE001  # a thread's is nobody's, else
                faults.append(fault)
            finally:
                go.set()

        mending = threading.Thread(target=mend)
        mending.start()
        runs = there.run(there.peers, there.file(), "peer", lambda: Holding(3, reached, go))
        mending.join()

    assert faults == []
    for run in runs:
        assert sum(count < PEERS - 1 for count in received(run)) <= 1, why(run)
        assert received(run)[-1] == PEERS - 1, why(run)
