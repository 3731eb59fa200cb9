"""The main job on one machine: a tracker, a session file, six peers with private shards of digits.

Every process is a real one and talks over real sockets; only the machine is shared. One of the six
lies: it sends minus three times its parameters. What each honest peer would have reached alone is
measured afterwards, with the same session and the same shard; what all would have reached without
a liar, or with equal weights for everybody, is simulated.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import ROOT, Fault, Peer, Swarm, new_folder, wait_until
from rich.console import Console
from rich.live import Live
from rich.table import Table

import p2pl

SPEC = ROOT / "torrentfiles" / "digits.toml"
PEERS = 6
PARTITION = "dirichlet:0.5"
LIE = "sign-flip:{}:-3"
LIAR = PEERS - 1  # the last one, as in a simulation
DEADLINE_S = 600.0  # of a machine that is busy; alone, a few seconds
console = Console()


def main() -> None:
    """Runs the demo and writes everything into the folder given on the command line."""
    began = time.monotonic()
    try:
        out = new_folder(sys.argv[1:], ROOT / "runs" / "demo")
        with Swarm(out) as swarm:
            torrent = train_together(swarm)
    except Fault as fault:
        sys.exit(f"demo: {fault}")
    console.print("\n4. the honest ones, each alone      p2pl.join(…, alone=True)")
    show(out, torrent)
    console.print(f"{time.monotonic() - began:.0f} s in all; run directories and logs in {out}")


def train_together(swarm: Swarm) -> Path:
    """Returns the session file, once every peer has finished."""
    console.print(f"1. a tracker                       p2pl-tracker serve   {swarm.url}")
    swarm.tracker()
    torrent = swarm.folder / "digits.torrent"
    console.print(f"2. a session file                  p2pl.create          {torrent.name}")
    p2pl.create(SPEC, torrent, trackers=[swarm.url])
    console.print(f"3. {PEERS} peers, one of them a liar     p2pl join            {PARTITION}")
    shards = [("--partition", PARTITION, "--shard", f"{index}/{PEERS}") for index in range(PEERS)]
    lie = ("--attack", LIE.replace(":{}", ""))
    watch(
        [
            swarm.peer(f"peer-{index}", torrent, "--data", "digits", *shard, *lie * (index == LIAR))
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
        name = f"{index} (lies)" if index == LIAR else str(index)
        table.add_row(name, str(last["round"]), f"{last['train_loss']:.3f}", accuracy, cohort)
    return table


def show(out: Path, torrent: Path) -> None:
    """Trains each honest shard alone with the same budget, and draws what happened."""
    from p2pl.report.comparison import comparison_table, draw_alone_versus_together
    from p2pl.report.run import write_report

    runs = [out / f"peer-{index}" for index in range(PEERS)]
    ended = [json.loads((run / "summary.json").read_text()) for run in runs]
    honest = [index for index in range(PEERS) if index != LIAR]
    together = {f"peer {index}": ended[index]["accuracy"] for index in honest}
    alone = {
        f"peer {index}": train_alone(torrent, out / f"alone-{index}", index) for index in honest
    }
    called = {one["peer_id"]: f"peer {index}" for index, one in enumerate(ended)}
    called[ended[LIAR]["peer_id"]] += " (lies)"
    report = out / "report"
    written = write_report(runs, report, called=called, bad=[ended[LIAR]["peer_id"]])
    picture = report / "alone-versus-together.png"
    draw_alone_versus_together(alone, together, picture)
    console.print(comparison_table(alone, together))
    console.print(said_of_the_liar(written.numbers.trust, ended[LIAR]["peer_id"]))
    console.print(without(out, torrent, report))
    for name in ("alone-versus-together.png", "trust.png", "trust-nobody-lies.png", "report.md"):
        console.print(f"  {report / name}")
    worse = [name for name in together if together[name] <= alone[name]]
    if worse:
        sys.exit(f"joining did not pay for {', '.join(worse)}")


def said_of_the_liar(trust: dict[str, dict[str, float]], liar: str) -> str:
    """Returns in words how much weight the liar has with those who met it."""
    weights = [row[liar] for row in trust.values() if liar in row]
    if not weights:
        return f"peer {LIAR} lies, and nobody met it"
    met = f"{len(weights)} of {PEERS - 1} met it"
    return f"peer {LIAR} lies: {met}; at the end it weighs {max(weights):.2f} at most in a mix"


def without(out: Path, torrent: Path, report: Path) -> str:
    """Returns what the same peers reach with equal weights, and draws their trust with no liar."""
    from p2pl.report.simulation import write_simulation_report

    def simulated(**settings: Any) -> float:  # noqa: ANN401  # of p2pl.simulate
        found = p2pl.simulate(torrent, "digits", peers=PEERS, partition=PARTITION, **settings)
        return float(found.figures["accuracy"]["mean"])

    honest = simulated(out=out / "nobody-lies")
    drawn = write_simulation_report(out / "nobody-lies", out / "report-nobody-lies")
    (report / "trust-nobody-lies.png").write_bytes(drawn.pictures["trust"].read_bytes())
    equal = simulated(attack=LIE.format(1), changes={"mixing.rule": "uniform"}, curves=False)
    return f"simulated: nobody lies {honest:.1f} %; the liar with equal weights {equal:.1f} %"


def train_alone(torrent: Path, run_dir: Path, index: int) -> float:
    """Returns the accuracy in percent that one shard reaches alone, with the same rounds."""
    shard = p2pl.Shard(index, PEERS, PARTITION)
    run = p2pl.join(torrent, data="digits", shard=shard, alone=True, run_dir=run_dir)
    return (run.summary and run.summary.accuracy) or 0.0


if __name__ == "__main__":
    main()
