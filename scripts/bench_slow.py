"""How fast p2pl pulls a model over a slow line, beside one bare TCP connection over the same line.

Each line is made of two network namespaces (root on Linux; else this says so and ends). The bare
connection is opened, says one byte, and takes as many bytes as the model has; the clock runs from
before it is dialled. The wire is measured at its first pull from a peer, which dials and shakes
hands, and at the next one, after a pause in which the connection is kept. They take turns. At last
five peers pull at once from the same one, and Jain's index says how evenly: of the bytes that each
has when the first of them is done; and the same for five bare connections.

    scripts/bench slow                       the three lines, three times each
    scripts/bench slow --mib 5 --lines 200,0,100 --repeats 5 --json
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from soak_lines import Switch, can_have_lines

from p2pl.network.keys import Identity
from p2pl.network.pull import Pulled
from p2pl.network.version import Version
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import PeerAddress

MIB = 1 << 20
SESSION_ID = "00" * 32
DEADLINE_S = 300.0
AT_ONCE = 5
PAUSE_S = 3.0  # many times what makes the kernel begin slowly again
LINES = ("100,1,20", "200,0,100", "300,0.1,50")  # round trip in ms, loss in %, Mbit/s


@dataclass(frozen=True)
class Row:
    """Medians for one line."""

    line: str
    bare_s: float
    first_s: float
    next_s: float
    first_ratio: float
    next_ratio: float
    jain: float
    bare_jain: float


async def serve(size: int, chunk: int) -> None:
    """Serves a model, and bare bytes, until it is killed."""
    data = os.urandom(MIB) * (size // MIB + 1)

    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(data[:size])
        await writer.drain()
        writer.close()

    identity = Identity.generate()
    wire = CurveWire(identity, session_id=SESSION_ID, listen="0.0.0.0:0", chunk_bytes=chunk)
    bare = await asyncio.start_server(give, "0.0.0.0", 0)
    async with wire, bare:
        await wire.publish(Version(1, 1, data[:size]))
        port = bare.sockets[0].getsockname()[1]
        print(json.dumps([port, wire.port, wire.curve_key, identity.peer_id]), flush=True)
        await asyncio.Event().wait()


async def take_bare(host: str, port: int, size: int, had: list[int] | None = None) -> float:
    """Returns the seconds that a bare connection takes; counts in `had[0]` what came."""
    began_s, had = time.perf_counter(), had or [0]
    reader, writer = await asyncio.open_connection(host, port, limit=MIB)
    writer.write(b"x")
    while had[0] < size:
        had[0] += len(await reader.read(MIB))
    took_s = time.perf_counter() - began_s
    writer.close()
    return took_s


async def pull(wire: CurveWire, address: PeerAddress, size: int) -> float:
    """Returns the seconds that a pull takes."""
    began_s = time.perf_counter()
    pulled = await wire.pull(
        address, have=None, round=1, wait_s=0, deadline_s=DEADLINE_S, size=size
    )
    assert isinstance(pulled, Pulled)
    return time.perf_counter() - began_s


def a_wire(chunk: int) -> CurveWire:
    return CurveWire(
        Identity.generate(), session_id=SESSION_ID, listen="0.0.0.0:0", chunk_bytes=chunk
    )


async def take(options: argparse.Namespace, size: int, chunk: int) -> None:
    """Prints what was measured at the other end of the line, as JSON."""
    host, bare_port, port, key, peer_id = json.loads(options.take)
    address = PeerAddress(id=peer_id, host=host, port=port, curve_key=key)
    times: dict[str, list[float]] = {"bare": [], "first": [], "next": []}
    for _ in range(options.repeats):
        times["bare"].append(await take_bare(host, bare_port, size))
        async with a_wire(chunk) as wire:
            times["first"].append(await pull(wire, address, size))
            await asyncio.sleep(PAUSE_S)
            times["next"].append(await pull(wire, address, size))
    even = await at_once(address, size, chunk)
    print(json.dumps([times, even, await bare_at_once(host, bare_port, size)]), flush=True)


async def at_once(address: PeerAddress, size: int, chunk: int) -> float:
    """Returns Jain's index over peers that pull at the same time."""
    wires = [a_wire(chunk) for _ in range(AT_ONCE)]
    async with wires[0], wires[1], wires[2], wires[3], wires[4]:
        pulls = [asyncio.create_task(pull(wire, address, size)) for wire in wires]
        await asyncio.wait(pulls, return_when=asyncio.FIRST_COMPLETED)
        have = [wire.traffic.bytes_in for wire in wires]
        await asyncio.gather(*pulls)
    return jain(have)


async def bare_at_once(host: str, port: int, size: int) -> float:
    """Returns Jain's index over bare connections at the same time."""
    had = [[0] for _ in range(AT_ONCE)]
    taking = [asyncio.create_task(take_bare(host, port, size, one)) for one in had]
    await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
    have = [one[0] for one in had]
    await asyncio.gather(*taking)
    return jain(have)


def jain(have: list[int]) -> float:
    """Returns Jain's index: 1 where all have the same, a fifth where one of five has everything."""
    return sum(have) ** 2 / (len(have) * sum(one**2 for one in have))


def measure(line: str, options: argparse.Namespace) -> Row:
    """Returns what was measured over one line."""
    trip_ms, loss_percent, mbit = map(float, line.split(","))
    own = [sys.executable, str(Path(__file__)), "--mib", str(options.mib)]
    own += ["--chunk-kib", str(options.chunk_kib), "--repeats", str(options.repeats)]
    with Switch(("far", "near"), random.Random(1)) as switch:
        far = switch.lines["far"]
        far.delay_s, far.loss = trip_ms / 2_000, loss_percent / 100
        far.bytes_s = mbit * 1e6 / 8
        serving = subprocess.Popen(
            [*switch.inside("far"), *own, "--serve"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert serving.stdout is not None
            where = [far.address, *json.loads(serving.stdout.readline())]
            taken = subprocess.run(
                [*switch.inside("near"), *own, "--take", json.dumps(where)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        finally:
            serving.kill()
            serving.wait()
    times, even, bare_even = json.loads(taken.stdout)
    bare, first, later = (statistics.median(times[kind]) for kind in ("bare", "first", "next"))
    return Row(
        line=line,
        bare_s=round(bare, 2),
        first_s=round(first, 2),
        next_s=round(later, 2),
        first_ratio=round(bare / first, 3),
        next_ratio=round(bare / later, 3),
        jain=round(even, 3),
        bare_jain=round(bare_even, 3),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench slow", description=__doc__)
    parser.add_argument("--mib", type=float, default=20)
    parser.add_argument("--chunk-kib", type=int, default=1_024)
    parser.add_argument(
        "--lines", nargs="+", default=LINES, help="ms of round trip, loss %%, Mbit/s"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--take", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size, chunk = int(options.mib * MIB), options.chunk_kib << 10
    if options.serve:
        asyncio.run(serve(size, chunk))
        return
    if options.take:
        asyncio.run(take(options, size, chunk))
        return
    if not can_have_lines():
        print("bench slow: needs root, `ip` and /dev/net/tun, to make network namespaces")
        return
    rows = [measure(line, options) for line in options.lines]
    if options.json:
        print(json.dumps({"mib": options.mib, "rows": [asdict(row) for row in rows]}))
        return
    print("ms, loss %, Mbit/s   bare s  first s   next s  first/bare  next/bare  Jain of 5  bare")
    for row in rows:
        print(
            f"{row.line:>18}  {row.bare_s:7.2f}  {row.first_s:7.2f}  {row.next_s:7.2f}"
            f"  {row.first_ratio:10.2f}  {row.next_ratio:9.2f}"
            f"  {row.jain:9.3f}  {row.bare_jain:.3f}"
        )


if __name__ == "__main__":
    main()
