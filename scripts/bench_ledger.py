"""What update logs cost: a round with them and without, a pull, and to be verified.

A round is that of three peers of one process over a network in memory, with logs and without in
turn: on shards of the digits, and of MNIST with a convolutional network where that data is there. A
pull is that of a model by another process, over loopback, and over a line of 1 Gbit/s where this
process may make one.

    scripts/bench ledger                     some minutes: 8 pairs of runs of 20 rounds, and so on
    scripts/bench ledger --pairs 1 --logs 10 --repeats 1
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_wire
import msgspec
import torch
from xxhash import xxh3_128

from p2pl.api.ledger import verified
from p2pl.data.load import Shard, load
from p2pl.events import Events
from p2pl.exchange.base import EXCHANGES
from p2pl.exchange.node import Node
from p2pl.exchange.round import run
from p2pl.learner import Learner
from p2pl.learning import models
from p2pl.learning.checkpoint import build
from p2pl.learning.weights import flatten
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import Identity
from p2pl.protocol.session import Model, SessionFile, read_spec
from p2pl.protocol.updates.entry import SignedEntry
from p2pl.run.state import PeerState
from p2pl.updates.file import LOG_FILE
from p2pl.updates.keeper import Answer, Asked, Keeper
from p2pl.updates.log import UpdateLog, Version

ROOT = Path(__file__).parents[1]
PEERS = 3
PARTS = 5  # models in a mix of the logs that are verified
SESSION = "5e" * 32
LINE = "ip link set lo up && tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 50ms"


class Untold:
    """A file that is not waited for: what is measured is reading it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, data: memoryview) -> int:
        """Returns how many bytes were written."""
        return self._file.write(data)

    def sync(self) -> None:
        """Returns at once."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@dataclass(frozen=True)
class Setting:
    """Who trains on what."""

    file: SessionFile
    data: str
    shards: int  # that the examples are cut into; three are taken


def setting(name: str, rounds: int, *, ledger: bool) -> Setting:
    """Returns `digits`, the smallest session there is, or `mnist`, a small network of layers."""
    asked = read_spec((ROOT / "torrentfiles" / "digits.toml").read_text()).session()
    data, shards = "digits", PEERS
    if name == "mnist":
        asked = read_spec((ROOT / "torrentfiles" / "mnist-iid.toml").read_text()).session()
        asked = msgspec.structs.replace(asked, model=Model("cnn"))
        data, shards = str(mnist()), 20
    exchange = msgspec.structs.replace(
        asked.exchange, rounds=rounds, cohort=PEERS - 1, min_peers=PEERS, wait_s=60.0
    )
    asked = msgspec.structs.replace(asked, exchange=exchange, ledger=ledger)
    return Setting(SessionFile(name, asked, build(asked)[1], trackers=()), data, shards)


def mnist() -> Path:
    """Returns where MNIST is."""
    return Path(os.environ.get("P2PL_DATA_DIR", "nowhere")) / "ylecun" / "mnist"


class Timed(Keeper):
    """A keeper that counts the processor time of all that a round asks of it."""

    used_s = 0.0  # of all keepers; one event loop, and one append at a time of each

    async def mixed(
        self,
        round: int,
        row: Mapping[str, float],
        digests: Mapping[str, bytes],
        why: Mapping[str, str],
    ) -> None:
        """Counts that of keeping a mix; nothing in it waits."""
        with counted():
            await super().mixed(round, row, digests, why)

    def answer_for(self, signed: SignedEntry) -> Answer:
        """Returns an answer whose time is counted."""
        answer = super().answer_for(signed)

        def timed(peer_id: str, said: bytes) -> bytes:
            with counted():
                return answer(peer_id, said)

        return timed

    def question(self, peer_id: str) -> Asked:
        """Counts that of a question."""
        with counted():
            return super().question(peer_id)

    def take(self, peer_id: str, asked: Asked, commitment: bytes, digest: bytes) -> None:
        """Counts that of checking what came."""
        with counted():
            super().take(peer_id, asked, commitment, digest)

    def save_sometimes(self) -> None:
        """Counts that of saving."""
        with counted():
            super().save_sometimes()


class TimedLog(UpdateLog):
    """A log that counts the processor time of signing and writing."""

    def append(self, version: Version, time_s: float) -> SignedEntry:
        """Counts that of an entry."""
        with counted():
            return super().append(version, time_s)


@contextmanager
def counted() -> Iterator[None]:
    """Adds the processor time of this thread to `Timed.used_s`."""
    begun_s = time.thread_time()
    try:
        yield
    finally:
        Timed.used_s += time.thread_time() - begun_s


@dataclass(frozen=True)
class Run:
    """What a round of one peer took, in ms; the last two: of update logs alone."""

    cpu_ms: float
    wall_ms: float
    log_bytes: float
    counted_ms: float


def a_node(
    setting: Setting, network: MemoryNetwork, folder: Path, number: int
) -> tuple[Node, PeerState]:
    """Returns a peer that is ready to begin, and with what."""
    file, identity, where = setting.file, Identity.generate(), folder / str(number)
    shard = Shard(number, setting.shards, "iid")
    data = load(setting.data, file.session.task, shard=shard)
    transport, directory = network.join(identity)
    model = models.build(file.session)
    begin = PeerState(round=0, weights=flatten(model))
    names = (file.id, identity.peer_id)
    learner = Learner.of(file.session, names, model, data.train, data.test)
    where.mkdir()
    node = Node(
        file=file,
        learner=learner.beginning(begin.weights),
        transport=transport,
        directory=directory,
        events=Events(),
        run_dir=where,
        rounds=file.session.exchange.rounds,
        seeding_s=60.0,
    )
    if file.session.ledger:
        log = TimedLog.open(where, file.id, identity.private_key)
        knows = directory.known.__contains__
        node.keeper = Timed(log, where, identity, time.time, knows)
    return node, begin


async def one_peer(node: Node, begin: PeerState) -> None:
    """Returns when one peer has done all rounds."""
    await run(node, EXCHANGES.find("cohort")(), begin)
    await node.directory.leave()


def rounds_of(setting: Setting) -> Run:
    """Returns what the rounds of three peers took; what they load before is not counted."""
    file, rounds = setting.file, setting.file.session.exchange.rounds
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder, network = Path(temporary), MemoryNetwork(committed=file.session.ledger)
        nodes = [a_node(setting, network, folder, at) for at in range(PEERS)]
        for node, _ in nodes:
            stack.enter_context(closing(node.worker))
            if node.keeper:
                stack.enter_context(closing(node.keeper))

        async def all_of() -> None:
            await asyncio.gather(*(one_peer(*one) for one in nodes))

        Timed.used_s = 0.0
        begun_s, begun_wall_s = time.process_time(), time.perf_counter()
        asyncio.run(all_of())
        wall_s, took_s = time.perf_counter() - begun_wall_s, time.process_time() - begun_s
        size = sum(path.stat().st_size for path in folder.glob(f"*/{LOG_FILE}"))
    # All three share the processor, and wait for each other: a round of the wall's clock is theirs.
    each = rounds * PEERS
    return Run(
        1_000 * took_s / each, 1_000 * wall_s / rounds, size / each, 1_000 * Timed.used_s / each
    )


def seconds_a_gib(hashed: Any) -> float:  # noqa: ANN401  # a hash
    """Returns the processor time that a hash takes for a GiB."""
    block, count = bytes(1 << 20), 256
    begun_s = time.process_time()
    for _ in range(count):
        hashed.update(block)
    return (time.process_time() - begun_s) * 1_024 / count


def verification(logs: int, entries: int) -> float:
    """Returns the seconds of processor time to verify so many logs of so many entries."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peers = [Identity.generate() for _ in range(logs)]
        for number, peer in enumerate(peers):
            where = folder / f"peer-{number}"
            where.mkdir()
            UpdateLog.open(where, SESSION, peer.private_key).close()
            owner = (where / LOG_FILE).read_bytes()
            medium = Untold(where / LOG_FILE)
            medium.write(memoryview(owner))
            log = UpdateLog(SESSION, peer.private_key, medium=medium)
            mixed = [peers[(number + step) % logs].peer_id for step in range(PARTS)]
            for index in range(entries):
                log.mixed(index, dict.fromkeys(mixed, 1 / PARTS), {}, {})
                log.append(Version("trained", index, os.urandom(32)), 1.0)
            log.close()
        begun_s = time.process_time()
        findings = verified([folder])
        took_s = time.process_time() - begun_s
    if len(findings) != logs or not all(one.holds for one in findings):
        sys.exit("bench: logs that are well do not hold")
    return took_s


def compared(name: str, rounds: int, pairs: int) -> dict[str, Any]:
    """Returns what update logs add to a round, by runs with them and without in turn.

    The difference of two runs is as large as what other programs do meanwhile; `counted` is not:
    the processor time of all that is done for the log, without the hash and the trip to a thread.
    """
    plain, logged = (setting(name, rounds, ledger=ledger) for ledger in (False, True))
    runs: list[tuple[Run, Run]] = []
    for pair in range(pairs):
        first, second = (plain, logged) if pair % 2 else (logged, plain)
        one, other = rounds_of(first), rounds_of(second)
        runs.append((one, other) if pair % 2 else (other, one))
    added = [b.cpu_ms - a.cpu_ms for a, b in runs]
    longer = [b.wall_ms - a.wall_ms for a, b in runs]
    round_ms = statistics.median(a.cpu_ms for a, _ in runs)
    wall_ms = statistics.median(a.wall_ms for a, _ in runs)
    counted_ms = statistics.median(b.counted_ms for _, b in runs)
    return {
        "pairs": pairs,
        "rounds": rounds,
        "cpu_ms": round(round_ms, 2),
        "counted_cpu_ms": round(counted_ms, 2),
        "counted_percent": round(100 * counted_ms / round_ms, 2),
        "added_cpu_ms": middle(added),
        "added_cpu_percent": round(100 * statistics.median(added) / round_ms, 2),
        "wall_ms": round(wall_ms, 2),
        "added_wall_ms": middle(longer),
        "log_bytes": round(statistics.mean(b.log_bytes for _, b in runs)),
    }


def middle(each: list[float]) -> list[float]:
    """Returns the least, the median and the most of some figures."""
    return [round(one, 3) for one in (min(each), statistics.median(each), max(each))]


def fsync_ms(folder: Path) -> float:
    """Returns the median time until an entry of 300 bytes is on disk, by the wall's clock."""
    took: list[float] = []
    with (folder / "log").open("ab", buffering=0) as file:
        for _ in range(50):
            file.write(bytes(300))
            begun_s = time.perf_counter()
            os.fsync(file.fileno())
            took.append(1_000 * (time.perf_counter() - begun_s))
    return statistics.median(took)


def pulls(mib: int, repeats: int) -> dict[str, Any]:
    """Returns how long a pull over loopback takes without update logs and with them, in turn."""
    runs: dict[str, list[bench_wire.Run]] = {"wire": [], "logs": []}
    for number in range(repeats):
        for kind in sorted(runs, reverse=bool(number % 2)):
            runs[kind].append(bench_wire.measure(kind, mib << 20, 1 << 20, "new"))
    seconds = {kind: middle([run.seconds for run in each]) for kind, each in runs.items()}
    cpu_s = {kind: statistics.median(run.cpu_s for run in each) for kind, each in runs.items()}
    return {
        "mib": mib,
        "repeats": repeats,
        "without_s": seconds["wire"],
        "with_s": seconds["logs"],
        "longer_percent": round(100 * (seconds["logs"][1] / seconds["wire"][1] - 1), 2),
        "both_ends_cpu_s": [round(cpu_s[kind], 3) for kind in ("wire", "logs")],
        "receiver_grew_mib": [
            round(max(run.grown_mib for run in runs[kind]), 1) for kind in ("wire", "logs")
        ],
    }


def pulls_apart(mib: int, repeats: int, *, by_line: bool) -> dict[str, Any] | str:
    """Returns the same, measured by a process that has used no memory yet.

    Args:
        mib: of the model.
        repeats: of each.
        by_line: whether over a line of 1 Gbit/s, in a network of its own; where that cannot be
            had, what is returned says why.
    """
    asked = [sys.executable, __file__, "--pulls", str(repeats), "--mib", str(mib)]
    if by_line:
        asked = ["unshare", "-n", "sh", "-c", f'{LINE} && exec "$@"', "sh", *asked]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as fault:
        return f"not measured: needs root, unshare and tc with tbf ({fault})"
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--logs", type=int, default=100)
    parser.add_argument("--entries", type=int, default=1_000)
    parser.add_argument("--mib", type=int, default=100, help="of the model that is pulled")
    parser.add_argument("--repeats", type=int, default=7, help="of each pull")
    parser.add_argument("--pulls", type=int, help="pull so many times, and nothing else")
    asked = parser.parse_args()
    if asked.pulls:
        print(json.dumps(pulls(asked.mib, asked.pulls)))
        return
    torch.set_num_threads(1)
    rounds_of(setting("digits", 1, ledger=True))  # whatever is loaded once
    with tempfile.TemporaryDirectory() as temporary:
        waited_ms = fsync_ms(Path(temporary))
    told = {
        "digits": compared("digits", asked.rounds, asked.pairs),
        "mnist": compared("mnist", 2, 2) if mnist().is_dir() else "not there: P2PL_DATA_DIR",
        "fsync_wall_ms": round(waited_ms, 2),
        "pull": pulls_apart(asked.mib, asked.repeats, by_line=False),
        "pull_1_gbit_s": pulls_apart(asked.mib, asked.repeats, by_line=True),
        "sha256_s_a_gib": round(seconds_a_gib(hashlib.sha256()), 3),
        "xxh3_s_a_gib": round(seconds_a_gib(xxh3_128()), 3),
        "verify_s": round(verification(asked.logs, asked.entries), 2),
        "logs": asked.logs,
        "entries": asked.entries,
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
