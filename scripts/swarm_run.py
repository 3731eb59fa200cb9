"""One swarm of real processes on loopback, and what happens to it: prints one JSON object.

A tracker and N peers join a session; in the middle of it somebody dies (where one leads, that one),
or the tracker does, or one of the peers lies from the start. The figures are of those who are
honest and alive at the end: their accuracy, what they pulled and sent in their rounds, and how long
all of it took.

    scripts/swarm_run.py SPEC.toml --data REF [--partition P] [--set FIELD=VALUE]… [--event EVENT]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo import free_port

BIN = Path(sys.executable).parent
EVENTS = ("none", "peer", "tracker", "liar")
LIE = "sign-flip:-3"
READY_S = 60.0
POLL_S = 0.1
BAD_EXITS = (1, 2)  # a peer could not do what it was asked; a raft without a quorum is no bug


def main() -> None:
    """Prints what came of one swarm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--partition", default="iid")
    parser.add_argument("--partition-seed", type=int, default=0)
    parser.add_argument("--peers", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE, as in the TOML")
    parser.add_argument("--event", choices=EVENTS, default="none")
    parser.add_argument("--at", type=int, default=5, help="the round in which it happens")
    parser.add_argument("--deadline", type=float, default=240.0, help="of the whole, in seconds")
    parser.add_argument("--fast", action="store_true", help="two rounds: does it run?")
    options = parser.parse_args()
    if options.fast:
        options.set.append("exchange.rounds=2")
        options.at = 1
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(Run(options, Path(folder)).measure()))


class Run:
    """One swarm in one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.torrent = folder / "session.torrent"

    def measure(self) -> dict[str, Any]:
        """Returns the figures."""
        options = self.options
        lying = [options.peers - 1] if options.event == "liar" else []
        with self.processes() as started:
            tracker = started[0]
            self.create()
            begun = time.monotonic()
            peers = [self.join(index, index in lying) for index in range(options.peers)]
            started += peers
            dead = self.happen(tracker, peers)
            late = self.wait_for_all(begun, [one for one in peers if one not in dead])
            seconds = time.monotonic() - begun
        left = [i for i, one in enumerate(peers) if one not in dead and i not in lying]
        figures = [self.figures(index) for index in left]
        wrong = [i for i in left if peers[i].returncode in BAD_EXITS]
        if wrong:
            sys.exit(f"peer {wrong[0]} failed:\n{(self.folder / f'{wrong[0]}.log').read_text()}")
        return {
            "event": options.event,
            "peers_left": len(left),
            "late": late,  # how many had to be ended at the deadline
            "liar_led": any("leader" in self.roles(index) for index in lying),
            "accuracy": statistics.fmean(one["accuracy"] for one in figures),
            "worst_peer": min(one["accuracy"] for one in figures),
            "rounds": min(one["rounds"] for one in figures),
            "bytes_in_per_peer": statistics.fmean(one["bytes_in"] for one in figures),
            "messages_per_peer": statistics.fmean(one["messages"] for one in figures),
            "tracker_bytes_per_peer": statistics.fmean(one["tracker_bytes"] for one in figures),
            "seconds_in_rounds": statistics.fmean(one["seconds"] for one in figures),
            "slowest_round_s": max(one["slowest"] for one in figures),
            "seconds": seconds,
        }

    @contextmanager
    def processes(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Yields a list that begins with a tracker; what is in it at the end is gone then."""
        host, port = self.url.removeprefix("http://").split(":")
        command = [BIN / "p2pl-tracker", "serve", "--host", host, "--port", port]
        started = [self.start("tracker", [*map(str, command)])]
        try:
            self.wait_until(lambda: "listening" in (self.folder / "tracker.log").read_text())
            yield started
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Returns a process whose output goes into a file."""
        with (self.folder / f"{name}.log").open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def create(self) -> None:
        """Makes the session file, with the fields that were asked for."""
        spec = tomllib.loads(self.options.spec.read_text())
        for field, _, value in (one.partition("=") for one in self.options.set):
            *tables, key = field.split(".")
            at = spec
            for table in tables:
                at = at.setdefault(table, {})
            at[key] = tomllib.loads(f"value = {value}")["value"]
        toml = self.folder / "session.toml"
        toml.write_text(as_toml(spec))
        command = [str(BIN / "p2pl"), "create", str(toml), "--out", str(self.torrent)]
        command += ["--tracker", self.url]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def join(self, index: int, lies: bool) -> subprocess.Popen[bytes]:
        """Returns the process of one peer."""
        options = self.options
        shard = ["--partition", options.partition, "--shard", f"{index}/{options.peers}"]
        shard += ["--partition-seed", str(options.partition_seed), "--data", options.data]
        where = ["--listen", "127.0.0.1:0", "--run-dir", str(self.folder / str(index))]
        lie = ["--attack", LIE] if lies else []
        command = [str(BIN / "p2pl"), "join", str(self.torrent), *shard, *where, *lie]
        return self.start(str(index), command)

    def happen(
        self, tracker: subprocess.Popen[bytes], peers: list[subprocess.Popen[bytes]]
    ) -> list[subprocess.Popen[bytes]]:
        """Returns who is dead, once the event has happened."""
        event = self.options.event
        if event not in ("peer", "tracker"):
            return []
        self.wait_until(lambda: len(self.rounds(0)) >= self.options.at)
        dying = tracker if event == "tracker" else peers[self.leader()]
        dying.send_signal(signal.SIGKILL)
        dying.wait()
        return [dying]

    def wait_for_all(self, begun: float, peers: list[subprocess.Popen[bytes]]) -> int:
        """Returns how many peers were not done at the deadline; they are ended properly."""
        until = begun + self.options.deadline
        while any(one.poll() is None for one in peers) and time.monotonic() < until:
            time.sleep(POLL_S)
        late = [one for one in peers if one.poll() is None]
        for one in late:
            one.send_signal(signal.SIGINT)
        for one in late:
            one.wait(READY_S)
        return len(late)

    def wait_until(self, reached: Any) -> None:  # noqa: ANN401  # a function without arguments
        """Returns when `reached()` is true."""
        until = time.monotonic() + READY_S + self.options.deadline
        while not reached():
            if time.monotonic() > until:
                logs = [path.read_text()[-500:] for path in sorted(self.folder.glob("*.log"))]
                sys.exit("nothing happens:\n" + "\n".join(logs))
            time.sleep(POLL_S)

    def leader(self) -> int:
        """Returns the number of the peer that leads; of the last peer where nobody does."""
        now = [self.roles(index)[-1:] for index in range(self.options.peers)]
        return now.index(["leader"]) if ["leader"] in now else self.options.peers - 1

    def roles(self, index: int) -> list[str]:
        """Returns which roles a peer has had in elections; none where there are none."""
        return [one["role"] for one in self.logged(index, "raft") if one["event"] == "role"]

    def rounds(self, index: int) -> list[dict[str, Any]]:
        """Returns a peer's rounds so far."""
        return self.logged(index, "rounds")

    def logged(self, index: int, name: str) -> list[dict[str, Any]]:
        """Returns what a peer has written to a log so far; a line in the making is left out."""
        log = self.folder / str(index) / f"{name}.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return [json.loads(line) for line in lines]

    def figures(self, index: int) -> dict[str, float]:
        """Returns one peer's figures."""
        rounds = self.rounds(index)
        summary = self.folder / str(index) / "summary.json"
        told = json.loads(summary.read_text()) if summary.exists() else {}
        accuracy = told.get("accuracy") or (rounds[-1]["accuracy"] if rounds else 0.0)
        return {
            "accuracy": accuracy,
            "rounds": rounds[-1]["round"] if rounds else 0,
            "bytes_in": sum(one["bytes_in"] for one in rounds),
            "messages": sum(one["messages_out"] for one in rounds),
            "tracker_bytes": sum(one["tracker_bytes"] for one in rounds),
            "seconds": sum(one["seconds"] for one in rounds),
            "slowest": max((one["seconds"] for one in rounds), default=0.0),
        }


def as_toml(spec: dict[str, Any]) -> str:
    """Returns a spec of tables and plain values as TOML."""
    plain = {key: value for key, value in spec.items() if not isinstance(value, dict)}
    lines = [f"{key} = {inline(value)}" for key, value in plain.items()]
    for name, table in spec.items():
        if isinstance(table, dict):
            lines.append(f"{name} = {inline(table)}")
    return "\n".join(lines) + "\n"


def inline(value: object) -> str:
    """Returns a value as TOML, in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
