"""How fast a relay copies, beside a bare asyncio splice.

Both copy the same bytes between the same two sockets of this machine, in turns, so that a noisy
machine is noisy for both. The bare splice joins whichever two connections come first, by asyncio's
streams (`read`, `write`, `drain`): no messages, no limits, no counting. The relay is `p2pl-tracker
relay`, and its clock begins when the two are joined.

    scripts/bench relay                     1 GiB, 9 times
    scripts/bench relay --mib 4096 --repeats 3 --json
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.protocol import relay

MIB = 1 << 20
HOST = "127.0.0.1"
SESSION = bytes(32)
DEADLINE_S = 300.0
READ_BYTES = 256 << 10  # of the bare splice, at once
PROGRAM = Path(sys.executable).with_name("p2pl-tracker")


@dataclass(frozen=True)
class Row:
    """Medians over all turns, and the ratio's lowest and highest turn."""

    mib: int
    bare_mib_s: float
    relay_mib_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    bare_cpu_s_per_gib: float
    relay_cpu_s_per_gib: float


def bare(pipe: Connection) -> None:
    """Joins each two connections, until it is ended."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    waiting: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.append((reader, writer))
        if len(waiting) == 2:
            (one, its), (other, others) = waiting
            waiting.clear()
            await asyncio.gather(copy(one, others), copy(other, its))

    async def main() -> None:
        server = await asyncio.start_server(meet, HOST, 0, limit=1 << 20)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def bare_splice() -> Iterator[tuple[int, psutil.Process]]:
    """Yields the port of a bare splice in a process of its own, and that."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=bare, args=(there,), daemon=True)
    process.start()
    yield here.recv(), psutil.Process(process.pid)
    process.terminate()
    process.join()


@contextmanager
def relay_program() -> Iterator[tuple[int, psutil.Process]]:
    """Yields the port of a relay that is open to all, and its process."""
    words = [
        str(PROGRAM),
        "relay",
        "--open",
        "--port",
        "0",
        "--drain-s",
        "0",
        "--log-level",
        "error",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        yield port, psutil.Process(process.pid)
        process.terminate()


def dial(port: int) -> socket.socket:
    """Returns a connection to a port of this machine."""
    there = socket.create_connection((HOST, port), DEADLINE_S)
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return there


def hear(there: socket.socket) -> relay.Told:
    """Returns the next message of a relay."""
    head = there.recv(relay.LENGTH_BYTES, socket.MSG_WAITALL)
    return relay.decode_told(there.recv(relay.length_of(head), socket.MSG_WAITALL))


def say(port: int, message: relay.Said) -> socket.socket:
    """Returns a new connection to a relay, over which this was said."""
    there = dial(port)
    there.sendall(relay.PREFACE + relay.encode(message))
    return there


@contextmanager
def joined(port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yields two connections that a relay has joined."""
    keys = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    said = relay.listen(keys[1], session=SESSION, time_s=time.time())
    with say(port, said) as listening:
        hear(listening)
        call = relay.call(keys[0], session=SESSION, target=said.peer, time_s=time.time())
        with say(port, call) as caller:
            ring = hear(listening)
            assert isinstance(ring, relay.Ring)
            with say(port, relay.Accept(ring.call)) as callee:
                assert hear(caller) == hear(callee) == relay.Joined()
                yield caller, callee


def transfer(source: socket.socket, sink: socket.socket, mib: int) -> float:
    """Returns the MiB a second at which bytes come out of `sink` that go into `source`."""
    data, room = bytes(MIB), bytearray(MIB)

    def write() -> None:
        for _ in range(mib):
            source.sendall(data)

    writing = threading.Thread(target=write)
    begun_s = time.perf_counter()
    writing.start()
    left = mib * MIB
    while left:
        left -= sink.recv_into(room)
    took_s = time.perf_counter() - begun_s
    writing.join()
    return mib / took_s


def cpu_s(process: psutil.Process) -> float:
    """Returns the processor time that a process has used."""
    used = process.cpu_times()
    return float(used.user + used.system)


def measure(mib: int, repeats: int) -> Row:
    """Returns how fast both copy."""
    speeds: dict[str, list[float]] = {"bare": [], "relay": []}
    with bare_splice() as (splice, its), relay_program() as (program, ours):
        for turn in range(-1, repeats):  # the first one warms up
            if turn == 0:
                begun = cpu_s(its), cpu_s(ours)
            with dial(splice) as source:
                source.sendall(b"1")
                with dial(splice) as sink:
                    assert sink.recv(1) == b"1"
                    bare_speed = transfer(source, sink, mib)
            with joined(program) as (caller, callee):
                relay_speed = transfer(callee, caller, mib)
            if turn >= 0:
                speeds["bare"].append(bare_speed)
                speeds["relay"].append(relay_speed)
        gib = repeats * mib / 1_024
        cpu = [(cpu_s(one) - before) / gib for one, before in zip((its, ours), begun, strict=True)]
    ratios = [ours / bare for ours, bare in zip(speeds["relay"], speeds["bare"], strict=True)]
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    ratio = (statistics.median(ratios), min(ratios), max(ratios))
    return Row(mib, middle["bare"], middle["relay"], *ratio, *cpu)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1_024, help="to copy in a turn")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    row = measure(asked.mib, asked.repeats)
    if asked.json:
        print(json.dumps(asdict(row)))
        return
    print(
        f"{'MiB':>6} {'bare MiB/s':>11} {'relay MiB/s':>12} {'ratio':>6} {'lowest..highest':>16}",
        end="",
    )
    print(f" {'bare CPU s/GiB':>15} {'relay CPU s/GiB':>16}")
    print(
        f"{row.mib:>6} {row.bare_mib_s:>11,.0f} {row.relay_mib_s:>12,.0f} {row.ratio:>6.2f}"
        f" {row.ratio_low:>9.2f}..{row.ratio_high:<5.2f}"
        f" {row.bare_cpu_s_per_gib:>15.2f} {row.relay_cpu_s_per_gib:>16.2f}"
    )


if __name__ == "__main__":
    main()
