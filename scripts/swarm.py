"""A tracker and some peers on this machine, as real processes; prints what the network cost.

swarm.py PEERS [--rounds R]
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from launcher import ROOT, Swarm

SPEC = ROOT / "torrentfiles" / "digits.toml"
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
    changes = (
        ("rounds = 20", f"rounds = {rounds}"),
        ("min_peers = 6", f"min_peers = {peers}"),
        ("start_deadline_s = 60.0", "start_deadline_s = 300.0"),
    )
    with Swarm(folder) as swarm:
        swarm.tracker()
        torrent = swarm.create(SPEC.read_text(), "swarm", *changes)
        shards = [("--data", "digits", "--shard", f"{index}/{peers}") for index in range(peers)]
        running = [
            swarm.peer(f"peer-{index}", torrent, *shard) for index, shard in enumerate(shards)
        ]
        for peer in running:
            peer.succeed(DEADLINE_S)
    entries = [entry for peer in running for entry in peer.rounds()]
    waited = [1_000 * entry["tracker_seconds"] for entry in entries if entry["tracker_seconds"]]
    summaries = [peer.summary() for peer in running]
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


if __name__ == "__main__":
    main()
