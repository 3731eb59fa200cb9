"""One swarm of real processes on loopback, and what happens to it: prints one JSON object.

A tracker and N peers join a session; in the middle of it somebody dies (where one leads, that one),
or the tracker does, or one of the peers lies from the start. The figures are of those who are
honest and alive at the end: their accuracy, what they pulled and sent in their rounds, and how long
all of it took.

    scripts/swarm_run.py SPEC.toml --data REF [--partition P] [--set FIELD=VALUE]… [--event EVENT]
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import POLL_S, Fault, Peer, Running, Swarm, wait_until

EVENTS = ("none", "peer", "tracker", "liar")
LIE = "sign-flip:-3"
READY_S = 60.0
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
        try:
            print(json.dumps(Run(options, Path(folder)).measure()))
        except Fault as fault:
            logs = [path.read_text()[-500:] for path in sorted(Path(folder).glob("*.log"))]
            sys.exit("\n".join([str(fault), *logs]))


class Run:
    """One swarm in one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.swarm = Swarm(folder, environment={"OMP_NUM_THREADS": "1"})
        self.peers: list[Peer] = []

    def measure(self) -> dict[str, Any]:
        """Returns the figures."""
        options = self.options
        lying = [options.peers - 1] if options.event == "liar" else []
        with self.swarm:
            tracker = self.swarm.tracker()
            torrent = self.swarm.create(as_toml(spec_with(options.spec, options.set)), "session")
            begun = time.monotonic()
            peers = [self.join(torrent, index, index in lying) for index in range(options.peers)]
            self.peers = peers
            dead = self.happen(tracker)
            late = self.wait_for_all(begun, [one for one in peers if one is not dead])
            seconds = time.monotonic() - begun
        left = [i for i, one in enumerate(peers) if one is not dead and i not in lying]
        figures = [self.figures(index) for index in left]
        wrong = [i for i in left if peers[i].process.returncode in BAD_EXITS]
        if wrong:
            sys.exit(f"peer {wrong[0]} failed:\n{peers[wrong[0]].text()}")
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

    def join(self, torrent: Path, index: int, lies: bool) -> Peer:
        """Returns one peer, started."""
        options = self.options
        shard = ["--partition", options.partition, "--shard", f"{index}/{options.peers}"]
        shard += ["--partition-seed", str(options.partition_seed), "--data", options.data]
        lie = ["--attack", LIE] if lies else []
        return self.swarm.peer(str(index), torrent, *shard, *lie)

    def happen(self, tracker: Running) -> Running | None:
        """Returns who is dead, once the event has happened."""
        event = self.options.event
        if event not in ("peer", "tracker"):
            return None
        wait_until(
            lambda: len(self.peers[0].rounds()) >= self.options.at,
            READY_S + self.options.deadline,
            f"round {self.options.at}",
        )
        dying = tracker if event == "tracker" else self.peers[self.leader()]
        dying.kill()
        return dying

    def wait_for_all(self, begun: float, peers: list[Peer]) -> int:
        """Returns how many peers were not done at the deadline; they are ended properly."""
        until = begun + self.options.deadline
        while not all(one.is_over for one in peers) and time.monotonic() < until:
            time.sleep(POLL_S)
        late = [one for one in peers if not one.is_over]
        for one in late:
            one.process.send_signal(signal.SIGINT)
        for one in late:
            one.wait(READY_S)
        return len(late)

    def leader(self) -> int:
        """Returns the number of the peer that leads; of the last peer where nobody does."""
        now = [self.roles(index)[-1:] for index in range(self.options.peers)]
        return now.index(["leader"]) if ["leader"] in now else self.options.peers - 1

    def roles(self, index: int) -> list[str]:
        """Returns which roles a peer has had in elections; none where there are none."""
        return [one["role"] for one in self.peers[index].roles()]

    def figures(self, index: int) -> dict[str, float]:
        """Returns one peer's figures."""
        rounds = self.peers[index].rounds()
        ended = (self.peers[index].run_dir / "summary.json").exists()
        told = self.peers[index].summary() if ended else {}
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


def spec_with(file: Path, fields: Sequence[str]) -> dict[str, Any]:
    """Returns a session's spec with other fields.

    Args:
        file: TOML.
        fields: TABLE.FIELD=VALUE or FIELD=VALUE, the value as in the TOML.
    """
    spec = tomllib.loads(file.read_text())
    for field, _, value in (one.partition("=") for one in fields):
        *tables, key = field.split(".")
        at = spec
        for table in tables:
            at = at.setdefault(table, {})
        at[key] = tomllib.loads(f"value = {value}")["value"]
    return spec


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
