"""How fast p2pl pulls a model over a slow line, beside one bare TCP connection over the same line.

Each line is made of two network namespaces (root on Linux; else this says so and ends). The bare
connection is opened, says one byte, and takes as many bytes as the model has; the clock runs from
before it is dialled. The wire is measured at its first pull from a peer, which dials and shakes
hands, and at the next one, after a pause in which the connection is kept; and the same by way of
`p2pl-tracker relay`, which hangs on a good line of its own while the peer that is pulled from has
the slow one: the worse case, for its answers to calls have to come out of there. They take turns.
At last five peers pull at once from the same one, and Jain's index says how evenly: of the
bytes that each has when the first of them is done; and the same by the relay, and for five bare
connections.

    scripts/bench slow                       the three lines, five times each
    scripts/bench slow --mib 5 --lines 200,0,100 --repeats 5 --json
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from soak_lines import Switch, can_have_lines

from p2pl.network.dial import Direct
from p2pl.network.keys import Identity
from p2pl.network.pull import Pulled
from p2pl.network.relay import Pumps, RelayListener, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.version import Version
from p2pl.network.ways import Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol import endpoint
from p2pl.protocol.announce import PeerAddress

MIB = 1 << 20
PROGRAM = Path(sys.executable).with_name("p2pl-tracker")
SESSION_ID = "00" * 32
DEADLINE_S = 300.0
AT_ONCE = 5
PAUSE_S = 3.0  # many times what makes the kernel begin slowly again
KINDS = ("bare", "first", "next", "relay_first", "relay_next")
EVEN = ("bare_jain", "jain", "relay_jain")
LINES = ("100,1,20", "200,0,100", "300,0.1,50")  # round trip in ms, loss in %, Mbit/s


@dataclass(frozen=True)
class Row:
    """What was measured over one line.

    Attributes:
        line: round trip in ms, loss in %, Mbit/s.
        seconds: medians, by kind of transfer.
        ratios: how fast each was beside the bare one of the same turn: median, lowest, highest.
        even: Jain's index of five at once.
    """

    line: str
    seconds: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    even: dict[str, float]


async def serve(size: int, chunk: int, relay: str) -> None:
    """Serves a model, directly and by a relay, and bare bytes, until it is killed."""
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
        speaker, pumps = Speaker(identity, bytes.fromhex(SESSION_ID)), Pumps(Traffic())
        here = ("127.0.0.1", wire.port)
        at = [endpoint.parse(relay)]
        listener = RelayListener(at, speaker, here, pumps=pumps, rng=random.Random())
        listening = asyncio.create_task(listener.run())
        while not listener.is_listening:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        port = bare.sockets[0].getsockname()[1]
        print(json.dumps([port, wire.port, wire.curve_key, identity.peer_id]), flush=True)
        await listening


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


@contextlib.asynccontextmanager
async def a_wire(chunk: int) -> AsyncIterator[CurveWire]:
    """Yields the wire of a new peer."""
    identity, pumps = Identity.generate(), Pumps(Traffic())
    ways = Ways(Direct(), Speaker(identity, bytes.fromhex(SESSION_ID)), pumps)
    async with CurveWire(
        identity, session_id=SESSION_ID, listen="0.0.0.0:0", chunk_bytes=chunk, dialler=ways
    ) as wire:
        yield wire
    await pumps.close()


async def take(options: argparse.Namespace, size: int, chunk: int) -> None:
    """Prints what was measured at the other end of the line, as JSON."""
    host, bare_port, port, key, peer_id = json.loads(options.take)
    address = PeerAddress(id=peer_id, host=host, port=port, curve_key=key)
    relay = endpoint.parse(options.relay)
    relayed = PeerAddress(
        id=peer_id, host=host, port=port, curve_key=key, version=2, endpoints=(relay,)
    )
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.repeats):
        times["bare"].append(await take_bare(host, bare_port, size))
        for where, name in ((address, ""), (relayed, "relay_")):
            async with a_wire(chunk) as wire:
                times[f"{name}first"].append(await pull(wire, where, size))
                await asyncio.sleep(PAUSE_S)
                times[f"{name}next"].append(await pull(wire, where, size))
    even = {
        "bare_jain": await bare_at_once(host, bare_port, size),
        "jain": await at_once(address, size, chunk),
        "relay_jain": await at_once(relayed, size, chunk),
    }
    print(json.dumps([times, even]), flush=True)


async def at_once(address: PeerAddress, size: int, chunk: int) -> float:
    """Returns Jain's index over peers that pull at the same time."""
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(a_wire(chunk)) for _ in range(AT_ONCE)]
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
    names = ("far", "near", "relay")
    with Switch(names, random.Random(1)) as switch, contextlib.ExitStack() as stack:
        far = switch.lines["far"]
        far.delay_s, far.loss = trip_ms / 2_000, loss_percent / 100
        far.bytes_s = mbit * 1e6 / 8

        def begin(name: str, words: list[str]) -> str:
            """Starts a program on a line, and returns the first line that it prints."""
            inside = [*switch.inside(name), *words]
            program = subprocess.Popen(inside, stdout=subprocess.PIPE, text=True)
            stack.enter_context(program)
            stack.callback(program.kill)
            assert program.stdout is not None
            return program.stdout.readline()

        relay = [str(PROGRAM), "relay", "--open", "--host", "0.0.0.0", "--log-level", "error"]
        begin("relay", relay)
        own += ["--relay", f"relay://{switch.lines['relay'].address}:4001"]
        where = [far.address, *json.loads(begin("far", [*own, "--serve"]))]
        taken = subprocess.run(
            [*switch.inside("near"), *own, "--take", json.dumps(where)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    times, even = json.loads(taken.stdout)
    ratios = {}
    for kind in KINDS[1:]:
        beside = [bare / took for bare, took in zip(times["bare"], times[kind], strict=True)]
        ratios[kind] = (statistics.median(beside), min(beside), max(beside))
    return Row(line, {kind: statistics.median(times[kind]) for kind in KINDS}, ratios, even)


def show(rows: list[Row]) -> None:
    """Prints a table."""
    title = "times as fast as the bare one: median (range)"
    print(f"{'':>18}  {'':>7}  {title:^78}  {'Jain of 5':^20}")
    print(f"{'ms, loss %, Mbit/s':>18}  {'bare s':>7}", end="")
    print("".join(f"  {kind:>18}" for kind in KINDS[1:]), "  bare  pulls  relay")
    for row in rows:
        shown = "".join(
            f"  {middle:6.2f} ({low:.2f}..{high:.2f})" for middle, low, high in row.ratios.values()
        )
        even = "  ".join(f"{row.even[kind]:.2f}" for kind in EVEN)
        print(f"{row.line:>18}  {row.seconds['bare']:7.2f}{shown}   {even}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench slow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mib", type=float, default=20)
    parser.add_argument("--chunk-kib", type=int, default=1_024)
    parser.add_argument(
        "--lines", nargs="+", default=LINES, help="ms of round trip, loss %%, Mbit/s"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--take", help=argparse.SUPPRESS)
    parser.add_argument("--relay", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size, chunk = int(options.mib * MIB), options.chunk_kib << 10
    if options.serve:
        asyncio.run(serve(size, chunk, options.relay))
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
    show(rows)


if __name__ == "__main__":
    main()
