"""The main job on one machine: a tracker, a session file, six peers with private shards of digits.

Every process is a real one and talks over real sockets; only the machine is shared. What each peer
would have reached alone is measured afterwards, with the same session and the same shard.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import ROOT, Fault, Peer, Swarm, wait_until
from rich.console import Console
from rich.live import Live
from rich.table import Table

import p2pl

SPEC = ROOT / "torrentfiles" / "digits.toml"
PEERS = 6
PARTITION = "dirichlet:0.5"
DEADLINE_S = 150.0
console = Console()


def main() -> None:
    """Runs the demo and writes everything into the folder given on the command line."""
    out = Path(sys.argv[1]).resolve()
    if (out / "digits.torrent").exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with Swarm(out) as swarm:
            torrent = train_together(swarm)
    except Fault as fault:
        sys.exit(str(fault))
    console.print("\n4. the same shards, each alone     p2pl.join(…, alone=True)")
    show(out, torrent)
    console.print(f"{time.monotonic() - began:.0f} s in all; run directories and logs in {out}")


def train_together(swarm: Swarm) -> Path:
    """Returns the session file, once every peer has finished."""
    console.print(f"1. a tracker                       p2pl-tracker serve   {swarm.url}")
    swarm.tracker()
    torrent = swarm.folder / "digits.torrent"
    console.print(f"2. a session file                  p2pl.create          {torrent.name}")
    p2pl.create(SPEC, torrent, trackers=[swarm.url])
    console.print(f"3. {PEERS} peers, each with its own shard p2pl join            {PARTITION}")
    shards = [("--partition", PARTITION, "--shard", f"{index}/{PEERS}") for index in range(PEERS)]
    watch(
        [
            swarm.peer(f"peer-{index}", torrent, "--data", "digits", *shard)
            for index, shard in enumerate(shards)
        ]
    )
    return torrent


def watch(peers: Sequence[Peer]) -> None:
    """Shows the rounds of all peers until every one has finished."""

    def over() -> bool:
        done = all(peer.is_over for peer in peers)
        live.update(progress(peers))
        return done

    with Live(console=console, refresh_per_second=4) as live:
        wait_until(over, DEADLINE_S, f"all peers finished; logs are in {peers[0].run_dir.parent}")
    for peer in peers:
        peer.succeed()


def progress(peers: Sequence[Peer]) -> Table:
    """Returns one line a peer: round, accuracy, whom it trusts how much."""
    table = Table(box=None, pad_edge=False)
    for heading in ("peer", "round", "loss", "accuracy", "cohort (trust)"):
        table.add_column(heading)
    for index, peer in enumerate(peers):
        rounds = peer.rounds()
        if not rounds:
            table.add_row(str(index), "starting")
            continue
        last = rounds[-1]
        cohort = "  ".join(f"{one[:6]} {last['trust'].get(one, 0):.2f}" for one in last["cohort"])
        accuracy = f"{last['accuracy']:.1f} %"
        table.add_row(str(index), str(last["round"]), f"{last['train_loss']:.3f}", accuracy, cohort)
    return table


def show(out: Path, torrent: Path) -> None:
    """Trains each shard alone with the same budget, and draws both side by side."""
    from p2pl.report.comparison import comparison_table, draw_alone_versus_together
    from p2pl.report.run import write_report

    together, alone = {}, {}
    for index in range(PEERS):
        summary = json.loads((out / f"peer-{index}" / "summary.json").read_text())
        together[f"peer {index}"] = summary["accuracy"]
        alone[f"peer {index}"] = train_alone(torrent, out / f"alone-{index}", index)
    report = out / "report"
    write_report([out / f"peer-{index}" for index in range(PEERS)], report)
    picture = report / "alone-versus-together.png"
    draw_alone_versus_together(alone, together, picture)
    console.print(comparison_table(alone, together))
    console.print(f"picture {picture}")
    console.print(f"report  {report / 'report.md'}")
    worse = [name for name in together if together[name] <= alone[name]]
    if worse:
        sys.exit(f"joining did not pay for {', '.join(worse)}")


def train_alone(torrent: Path, run_dir: Path, index: int) -> float:
    """Returns the accuracy in percent that one shard reaches alone, with the same rounds."""
    shard = p2pl.Shard(index, PEERS, PARTITION)
    run = p2pl.join(torrent, data="digits", shard=shard, alone=True, run_dir=run_dir)
    return (run.summary and run.summary.accuracy) or 0.0


if __name__ == "__main__":
    main()
