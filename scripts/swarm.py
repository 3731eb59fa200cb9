"""A tracker and some peers on this machine, as real processes; prints what the network cost.

swarm.py PEERS [--rounds R]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from demo import BIN, SPEC, free_port, run, start_tracker

DEADLINE_S = 600.0


def main() -> None:
    """Runs a swarm on the digits and prints its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peers", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--fast", action="store_true", help="two rounds")
    options = parser.parse_args()
    rounds = 2 if options.fast else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(figures(Path(folder), options.peers, rounds)))


def figures(folder: Path, peers: int, rounds: int) -> dict[str, object]:
    """Returns what a swarm spent on its tracker and on each other."""
    url = f"http://127.0.0.1:{free_port()}"
    tracker = start_tracker(folder, url)
    try:
        spec = SPEC.read_text()
        for old, new in (
            ("rounds = 20", f"rounds = {rounds}"),
            ("min_peers = 6", f"min_peers = {peers}"),
            ("start_deadline_s = 60.0", "start_deadline_s = 300.0"),
        ):
            assert old in spec, old
            spec = spec.replace(old, new)
        toml, torrent = folder / "swarm.toml", folder / "swarm.torrent"
        toml.write_text(spec)
        run("p2pl", "create", toml, "--out", torrent, "--tracker", url)
        running = [start(folder, torrent, number, peers) for number in range(peers)]
        for number, process in enumerate(running):
            if process.wait(DEADLINE_S):
                sys.exit(f"peer {number} failed:\n{(folder / f'{number}.log').read_text()}")
    finally:
        tracker.terminate()
        tracker.wait(20)
    logs = [(folder / f"peer-{number}" / "rounds.jsonl").read_text() for number in range(peers)]
    entries = [json.loads(line) for log in logs for line in log.splitlines()]
    waited = [1_000 * entry["tracker_seconds"] for entry in entries if entry["tracker_seconds"]]
    summaries = [
        json.loads((folder / f"peer-{number}" / "summary.json").read_bytes())
        for number in range(peers)
    ]
    return {
        "peers": peers,
        "rounds": rounds,
        "tracker_ms_median": statistics.median(waited),
        "tracker_ms_p95": statistics.quantiles(waited, n=20)[-1],
        "round_ms_median": 1_000 * statistics.median(entry["seconds"] for entry in entries),
        "tracker_share_of_time": sum(waited) / sum(1_000 * entry["seconds"] for entry in entries),
        "tracker_bytes": sum(entry["tracker_bytes"] for entry in entries) / len(entries),
        "peer_bytes": sum(entry["bytes_in"] for entry in entries) / len(entries),
        "accuracy": statistics.fmean(summary["accuracy"] for summary in summaries),
    }


def start(folder: Path, torrent: Path, number: int, peers: int) -> subprocess.Popen[bytes]:
    """Returns the process of one peer with its shard of the digits."""
    command = [str(BIN / "p2pl"), "join", str(torrent), "--data", "digits"]
    command += ["--shard", f"{number}/{peers}", "--listen", "127.0.0.1:0"]
    command += ["--run-dir", str(folder / f"peer-{number}")]
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    main()
