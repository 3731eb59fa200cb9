"""Announces a second, latency and memory of the tracker, beside bittorrent-tracker (Node).

    scripts/bench tracker [--peers 1000 100000 1000000] [--seconds 10] [--store URL] [--json]

What is done, once for each number of peers: a process pinned to one core fills the tracker's store
through `MemoryStore.announce` with that many peers over 100 sessions (signatures are not checked
while filling; memory a peer is the growth of its resident set), then serves HTTP exactly as
`p2pl-tracker serve` does, with the rate limits and the cap per address lifted, because all load
comes from one address. The other core sends announces signed beforehand over keep-alive
connections with wrk, or, where wrk is not installed, with a small client of our own. Each body is
sent once, comes from a peer that is known already, asks for ten peers, and is verified by the
tracker. "refused" must be 0; "CPU us" is the tracker's processor time an announce, which says more
than the rate where others use the machine. bittorrent-tracker gets announces of 20,000 peers over
100 swarms, unsigned as BEP 3 has them; so does opentracker, which wants a new connection for each.
With --store, peers stand in that server of Valkey or
Redis, under keys of their own that stay there; its processor time and its memory are not measured:
"CPU us" and "bytes/peer" are the tracker's.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from launcher import free_port

from p2pl.protocol import announce as messages
from p2pl.protocol.announce import Announce
from p2pl_tracker import app, server
from p2pl_tracker.store import SharedStore, connected
from p2pl_tracker.swarm import Limits, MemoryStore, Store

HERE = Path(__file__).resolve().parent
SESSIONS = 100
SIGNERS = 20_000  # identities that send; the other known peers only stand in the store
NUMWANT = 10
BODIES_PER_S = 9_000  # more than one core can answer: no body is sent twice
START_DEADLINE_S = 300
CURVE_KEY = "x" * 40


def session(index: int) -> bytes:
    return hashlib.sha256(b"session %d" % (index % SESSIONS)).digest()


def signer(index: int) -> Ed25519PrivateKey:
    seed = hashlib.sha256(b"bench signer %d" % index).digest()
    return Ed25519PrivateKey.from_private_bytes(seed)


def announced(index: int, public_key: bytes, sequence: int) -> Announce:
    return Announce(
        session=session(index),
        public_key=public_key,
        curve_key=CURVE_KEY,
        port=1_024 + index % 60_000,
        event="update",
        sequence=sequence,
        time_s=int(time.time()),
        numwant=NUMWANT,
    )


def pin(core: int) -> None:
    """Pins this process to one core, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core]})


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def fill(store: Store, peers: int) -> dict[str, float]:
    """Returns what it took to put `peers` peers into the store."""
    signers = min(peers, SIGNERS)
    keys = [signer(index).public_key().public_bytes_raw() for index in range(signers)]
    before, start_s = resident_bytes(), time.perf_counter()
    for index in range(peers):
        known = index < signers
        key = keys[index] if known else hashlib.sha256(b"bench peer %d" % index).digest()
        host = f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}"
        await store.announce(announced(index, key, 0), host)
    seconds = time.perf_counter() - start_s
    return {
        "fill_us": seconds / peers * 1e6,
        "bytes_per_peer": (resident_bytes() - before) / peers,
    }


def serve(peers: int, url: str | None) -> None:
    """Fills a store and serves it until SIGTERM; prints what the fill took, then the URL."""
    pin(0)
    limits = Limits(
        ttl_s=3_600,
        max_peers=2 * peers,
        max_peers_per_session=2 * peers,
        max_peers_per_address=2 * peers,
        min_interval_s=0,
    )
    store: Store = MemoryStore(limits)
    if url is None:
        filled = asyncio.run(fill(store, peers))
    else:
        prefix = f"bench-{secrets.token_hex(4)}:"
        filled = asyncio.run(fill_shared(SharedStore(connected(url), limits, prefix=prefix), peers))
        store = SharedStore(connected(url), limits, prefix=prefix)  # of the server's own loop
    print(json.dumps(filled), flush=True)
    policy = app.Policy(limits=limits, address_rate=0, checks=False)  # its peers are made up
    application = app.create_app(policy, store=store)
    server.serve(
        application,
        server.listen("127.0.0.1", 0),
        on_ready=lambda url: print(f"listening on {url}", flush=True),
    )


async def fill_shared(store: Store, peers: int) -> dict[str, float]:
    """Returns what `fill` does, and ends the connections."""
    try:
        return await fill(store, peers)
    finally:
        await store.aclose()


def write_bodies(path: Path, peers: int, count: int) -> None:
    """Writes `count` signed announces, a line each, spread evenly over the signing peers."""
    signers = min(peers, SIGNERS)
    keys = [signer(index) for index in range(signers)]
    public = [key.public_key().public_bytes_raw() for key in keys]
    order = list(range(signers))
    random.Random(1).shuffle(order)
    with path.open("wb") as lines:
        for sent in range(count):
            index = order[sent % signers]
            announce = announced(index, public[index], 1 + sent)
            lines.write(messages.encode(announce, keys[index]) + b"\n")


@contextlib.contextmanager
def process(*command: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(timeout=30)


def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout
    line = running.stdout.readline()
    if not line:
        sys.exit(f"bench: {running.args!r} ended before it was ready")
    return line


def url_of(running: subprocess.Popen[str]) -> str:
    return line_of(running).removeprefix("listening on ").strip()


def load(url: str, bodies: Path | None, seconds: float, connections: int) -> dict[str, float]:
    """Returns what the load generator on the other core saw."""
    if shutil.which("wrk"):
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
        command += ["-s", str(HERE / "bench_tracker.lua"), url]
        command += ["--", str(bodies)] if bodies else []
    else:
        command = [sys.executable, __file__, "--load", url, "--seconds", str(seconds)]
        command += ["--connections", str(connections)]
        command += ["--bodies", str(bodies)] if bodies else []
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + START_DEADLINE_S,
        preexec_fn=lambda: pin(1),
    )
    seen: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    seen["announces_per_s"] = seen["requests"] / seen["seconds"]
    return seen


async def send_all(
    url: str, bodies: list[bytes], seconds: float, connections: int
) -> dict[str, float]:
    """Returns what our own client saw: for machines without wrk."""
    address = urlsplit(url)
    waiting = iter(bodies)
    took_s: list[float] = []
    refused = 0
    end_s = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while (start_s := time.perf_counter()) < end_s and (body := next(waiting, None)):
            head = f"POST /announce HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            refused += not answer.startswith(b"HTTP/1.1 200")
            took_s.append(time.perf_counter() - start_s)
        writer.close()

    start_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    spent_s = time.perf_counter() - start_s
    took_s.sort()
    return {
        "requests": len(took_s),
        "seconds": spent_s,
        "refused": refused,
        "failed": 0,
        "p50_ms": took_s[len(took_s) // 2] * 1e3,
        "p99_ms": took_s[int(len(took_s) * 0.99)] * 1e3,
        "max_ms": took_s[-1] * 1e3,
    }


def cpu_seconds(running: subprocess.Popen[str]) -> float:
    """Returns the processor time a process has taken so far."""
    fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loaded(
    running: subprocess.Popen[str], url: str, bodies: Path | None, args: argparse.Namespace
) -> dict[str, float]:
    """Returns what the load generator saw, and the processor time of the tracker an announce."""
    before_s = cpu_seconds(running)
    seen = load(url, bodies, args.seconds, args.connections)
    seen["cpu_us"] = (cpu_seconds(running) - before_s) / seen["requests"] * 1e6
    return seen


def measure_ours(peers: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the figures of our tracker with `peers` known peers."""
    bodies = folder / "bodies"
    where = ["--store", args.store] if args.store else []
    with process(sys.executable, __file__, "--serve", str(peers), *where) as tracker:
        filled = json.loads(line_of(tracker))
        url = url_of(tracker)
        write_bodies(bodies, peers, int(args.seconds * BODIES_PER_S))
        seen = loaded(tracker, url, bodies, args)
    name = "p2pl-tracker, shared" if args.store else "p2pl-tracker"
    return {"tracker": name, "peers": peers, **filled, **seen}


def measure_node(args: argparse.Namespace, folder: Path) -> dict[str, Any] | str:
    """Returns the figures of bittorrent-tracker, or why there are none."""
    if not (shutil.which("node") and shutil.which("npm") and shutil.which("wrk")):
        return "bittorrent-tracker: skipped, it needs node, npm and wrk"
    shutil.copy(HERE / "bench_tracker.mjs", folder)
    install = [
        "npm",
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "bittorrent-tracker",
    ]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180)
    if installed.returncode:
        reason = (installed.stderr.strip().splitlines() or ["npm install failed"])[-1]
        return f"bittorrent-tracker: skipped, {reason}"
    core = min(os.sched_getaffinity(0))
    node = ["taskset", "-c", str(core), "node", "bench_tracker.mjs"]
    with process(*node, cwd=folder) as tracker:
        seen = loaded(tracker, url_of(tracker), None, args)
    return {"tracker": "bittorrent-tracker", "peers": 20_000, **seen}


def measure_opentracker(args: argparse.Namespace, folder: Path) -> dict[str, Any] | str:
    """Returns the figures of opentracker, or why there are none."""
    if not (shutil.which("opentracker") and shutil.which("wrk")):
        return "opentracker: skipped, it needs opentracker and wrk (Debian has both)"
    swarms = folder / "swarms"  # Debian's serves those alone that stand in a file
    swarms.write_text("".join("a1" * 19 + f"{index:02x}\n" for index in range(SESSIONS)))
    folder.chmod(0o755)  # it becomes another user
    port, core = str(free_port()), min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), "opentracker", "-i", "127.0.0.1", "-p", port]
    with process(*command, "-d", str(folder), "-w", "/swarms", cwd=folder) as tracker:
        time.sleep(1)  # it says nothing once it serves
        seen = loaded(tracker, f"http://127.0.0.1:{port}", None, args)
    # It ends each connection behind its answer, which wrk counts as a failure to read.
    return {"tracker": "opentracker", "peers": 20_000, **seen, "failed": 0}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the figures for people."""
    names = ["tracker", "known peers", "announces/s", "p50 ms", "p99 ms", "max ms", "CPU us"]
    lines = [[*names, "refused", "bytes/peer"]]
    for row in rows:
        memory = f"{row['bytes_per_peer']:.0f}" if "bytes_per_peer" in row else "-"
        times = [f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms", "cpu_us")]
        figures = [f"{row['peers']:,}", f"{row['announces_per_s']:,.0f}", *times]
        lines.append([row["tracker"], *figures, f"{row['refused'] + row['failed']:.0f}", memory])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, each")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--no-node", action="store_true", help="leave the yardsticks out")
    parser.add_argument("--store", help="valkey://HOST:PORT/DB or unix:///PATH; default: memory")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--bodies", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.store)
        return
    if args.load:
        bodies = args.bodies.read_bytes().splitlines()
        sent = send_all(args.load, bodies, args.seconds, args.connections)
        print(json.dumps(asyncio.run(sent)))
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for peers in args.peers:
            rows.append(measure_ours(peers, args, folder))
        if not args.no_node:
            for found in (measure_node(args, folder), measure_opentracker(args, folder)):
                if isinstance(found, str):
                    notes.append(found)
                else:
                    rows.append(found)
    if args.json:
        print(json.dumps({"rows": rows, "notes": notes}))
        return
    print(f"one core for the tracker, {args.connections} connections, {args.seconds:g} s each")
    print("\n".join([table(rows), *notes]))


if __name__ == "__main__":
    main()
