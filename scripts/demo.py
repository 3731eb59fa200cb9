"""The main job on one machine: a tracker, a session file, six peers with private shards of digits.

Every process is a real one and talks over real sockets; only the machine is shared. What each peer
would have reached alone is measured afterwards, with the same session and the same shard.
"""

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SPEC = ROOT / "torrentfiles" / "digits.toml"
PEERS = 6
PARTITION = "dirichlet:0.5"
DEADLINE_S = 150.0
SERVER_PORTS = range(20_000, 32_768)  # below those that Linux, macOS and Windows hand out
console = Console()


def main() -> None:
    """Runs the demo and writes everything into the folder given on the command line."""
    out = Path(sys.argv[1]).resolve()
    if (out / "digits.torrent").exists():
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    url = f"http://127.0.0.1:{free_port()}"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        console.print(f"1. a tracker                       p2pl-tracker serve   {url}")
        processes.append(start_tracker(out, url))
        torrent = out / "digits.torrent"
        console.print(f"2. a session file                  p2pl create          {torrent.name}")
        run("p2pl", "create", SPEC, "--out", torrent, "--tracker", url)
        console.print(f"3. {PEERS} peers, each with its own shard p2pl join            {PARTITION}")
        peers = [start_peer(out, torrent, index) for index in range(PEERS)]
        processes += peers
        watch(out, peers)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)
    console.print("\n4. the same shards, each alone     p2pl join --alone")
    show(out, torrent)
    console.print(f"{time.monotonic() - began:.0f} s in all; run directories and logs in {out}")


def free_port() -> int:
    """Returns a loopback port that nothing has, and that no connection is given by itself."""
    while True:
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run(command: str, *arguments: object) -> None:
    """Runs one of our commands to its end; its output is shown if it fails."""
    done = subprocess.run(
        [BIN / command, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")


def start_tracker(out: Path, url: str) -> subprocess.Popen[bytes]:
    """Returns the tracker's process, once it listens."""
    log = out / "tracker.log"
    host, port = url.removeprefix("http://").split(":")
    with log.open("wb") as stream:
        command = [str(BIN / "p2pl-tracker"), "serve", "--host", host, "--port", port]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    end = time.monotonic() + 20
    while "listening on" not in log.read_text():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            sys.exit(f"the tracker did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return process


def start_peer(out: Path, torrent: Path, index: int) -> subprocess.Popen[bytes]:
    """Returns the process of one peer."""
    shard = ["--partition", PARTITION, "--shard", f"{index}/{PEERS}"]
    place = ["--run-dir", str(out / f"peer-{index}"), "--listen", "127.0.0.1:0"]
    with (out / f"peer-{index}.log").open("wb") as stream:
        return subprocess.Popen(
            [str(BIN / "p2pl"), "join", str(torrent), "--data", "digits", *shard, *place],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def watch(out: Path, peers: list[subprocess.Popen[bytes]]) -> None:
    """Shows the rounds of all peers until every one has finished."""
    end = time.monotonic() + DEADLINE_S
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            running = [peer.poll() is None for peer in peers]
            live.update(progress(out))
            if not any(running):
                break
            if time.monotonic() > end:
                sys.exit(f"the peers did not finish within {DEADLINE_S:.0f} s; logs are in {out}")
            time.sleep(0.25)
    for index, peer in enumerate(peers):
        if peer.returncode:
            log = (out / f"peer-{index}.log").read_text()
            sys.exit(f"peer {index} failed with exit code {peer.returncode}:\n{log}")


def progress(out: Path) -> Table:
    """Returns one line a peer: round, accuracy, whom it trusts how much."""
    table = Table(box=None, pad_edge=False)
    for heading in ("peer", "round", "loss", "accuracy", "cohort (trust)"):
        table.add_column(heading)
    for index in range(PEERS):
        log = out / f"peer-{index}" / "rounds.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        if not lines:
            table.add_row(str(index), "starting")
            continue
        last = json.loads(lines[-1])
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
    import p2pl

    shard = p2pl.Shard(index, PEERS, PARTITION)
    run = p2pl.join(torrent, data="digits", shard=shard, alone=True, run_dir=run_dir)
    return (run.summary and run.summary.accuracy) or 0.0


if __name__ == "__main__":
    main()
