"""What update logs cost: a round with them and without, on disk, in a pull, and to be verified.

A round is that of three peers of one process with a shard of the digits each, over a network in
memory, with logs and without in turn: their processor time, so that a busy machine changes little.
Hashes are given beside the time that a line of 1 Gbit/s needs for the same bytes.

    scripts/bench ledger                     5 pairs of runs of 10 rounds; 100 logs of 1,000 entries
    scripts/bench ledger --pairs 1 --logs 10
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

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
from p2pl.protocol.session import SessionFile, read_spec
from p2pl.run.state import PeerState
from p2pl.updates.file import LOG_FILE
from p2pl.updates.keeper import Keeper
from p2pl.updates.log import UpdateLog, Version

ROOT = Path(__file__).parents[1]
PEERS = 3
PARTS = 5  # models in a mix of the logs that are verified
GBIT_S = (1 << 30) / 125e6  # that a line of 1 Gbit/s needs for a GiB
SESSION = "5e" * 32


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


def session(rounds: int, *, ledger: bool) -> SessionFile:
    """Returns a session of three peers."""
    digits = read_spec((ROOT / "torrentfiles" / "digits.toml").read_text()).session()
    exchange = msgspec.structs.replace(
        digits.exchange, rounds=rounds, cohort=PEERS - 1, min_peers=PEERS, wait_s=60.0
    )
    wanted = msgspec.structs.replace(digits, exchange=exchange, ledger=ledger)
    return SessionFile("digits", wanted, build(wanted)[1], trackers=())


async def one_peer(file: SessionFile, network: MemoryNetwork, folder: Path, number: int) -> None:
    """Returns when one peer has done all rounds."""
    identity = Identity.generate()
    data = load("digits", file.session.task, shard=Shard(number, PEERS, "iid"))
    transport, directory = network.join(identity)
    model, where = models.build(file.session), folder / str(number)
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
    with ExitStack() as stack:
        stack.enter_context(closing(node.worker))
        if file.session.ledger:
            log = UpdateLog.open(where, file.id, identity.private_key)
            knows = directory.known.__contains__
            node.keeper = stack.enter_context(
                closing(Keeper(log, where, identity, time.time, knows))
            )
        await run(node, EXCHANGES.find("cohort")(), begin)
        await directory.leave()


def rounds_of(rounds: int, *, ledger: bool) -> tuple[float, float]:
    """Returns processor time a round and peer, ms, and bytes of log a round and peer."""
    file = session(rounds, ledger=ledger)
    with tempfile.TemporaryDirectory() as temporary:
        folder, network = Path(temporary), MemoryNetwork(committed=ledger)

        async def all_of() -> None:
            await asyncio.gather(*(one_peer(file, network, folder, at) for at in range(PEERS)))

        begun_s = time.process_time()
        asyncio.run(all_of())
        took_s = time.process_time() - begun_s
        size = sum(path.stat().st_size for path in folder.glob(f"*/{LOG_FILE}"))
    return 1_000 * took_s / rounds / PEERS, size / rounds / PEERS


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


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--logs", type=int, default=100)
    parser.add_argument("--entries", type=int, default=1_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rounds_of(1, ledger=True)  # whatever is loaded once
    pairs = [
        (rounds_of(asked.rounds, ledger=False), rounds_of(asked.rounds, ledger=True))
        for _ in range(asked.pairs)
    ]
    extra = [with_logs[0] - without[0] for without, with_logs in pairs]
    sha, xxh = seconds_a_gib(hashlib.sha256()), seconds_a_gib(xxh3_128())
    told = {
        "round_ms": round(statistics.mean(without[0] for without, _ in pairs), 2),
        "logs_add_ms": round(statistics.mean(extra), 2),
        "logs_add_ms_spread": [round(min(extra), 2), round(max(extra), 2)],
        "log_bytes_a_round": round(statistics.mean(with_logs[1] for _, with_logs in pairs)),
        "sha256_s_a_gib": round(sha, 3),
        "xxh3_s_a_gib": round(xxh, 3),
        "line_1_gbit_s_a_gib": round(GBIT_S, 2),
        "verify_s": round(verification(asked.logs, asked.entries), 2),
        "logs": asked.logs,
        "entries": asked.entries,
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
