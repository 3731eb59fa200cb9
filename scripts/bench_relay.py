"""How fast a relay copies, beside a bare asyncio splice.

Both copy the same bytes between the same two sockets of this machine, in turns, so that a noisy
machine is noisy for both. The bare splice joins whichever two connections come first, by asyncio's
streams (`read`, `write`, `drain`): no messages, no limits, no counting. The relay is `p2pl-tracker
relay`, and its clock begins when the two are joined.

    scripts/bench relay                     1 GiB, 9 times
    scripts/bench relay --mib 4096 --repeats 3 --json
    scripts/bench relay --round-trip 0.1    how long a pull takes to its first byte, 5 times

With `--round-trip`, caller, relay and callee each have a network namespace, and every byte takes
half that time between a peer and the relay (`soak_lines.py`; needs root). The callee listens at the
relay already. The clock runs from before the caller dials: until it is joined to the callee, and
until it has the callee's model, which is one short message: its first byte. The bare line between
the two peers, through the same switch, is pulled over as well.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import soak_lines
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.network.dial import Direct
from p2pl.network.keys import Identity
from p2pl.network.relay import Pumps, RelayListener, Speaker
from p2pl.network.traffic import Traffic
from p2pl.network.version import Version
from p2pl.network.ways import Ways
from p2pl.network.wire import CurveWire
from p2pl.protocol import endpoint, relay
from p2pl.protocol.announce import PeerAddress

MIB = 1 << 20
HOST = "127.0.0.1"
SESSION = bytes(32)
DEADLINE_S = 300.0
READ_BYTES = 256 << 10  # of the bare splice, at once
MODEL = bytes(1_000)
PROGRAM = Path(sys.executable).with_name("p2pl-tracker")


@dataclass(frozen=True)
class Peer:
    """Who is pulled from."""

    id: str
    curve_key: str
    port: int


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


@dataclass(frozen=True)
class Start:
    """How long one pull took, in seconds."""

    joined_s: float
    first_byte_s: float


def pull_once(where: str, peer: Peer) -> Start:
    """Returns how long it takes until a peer's model is here.

    Args:
        where: an endpoint, `relay://` or `tcp://`.
        peer: whose.
    """

    async def scenario() -> Start:
        way, session_id = endpoint.parse(where), SESSION.hex()
        speaker, pumps = Speaker(Identity.generate(), SESSION), Pumps(Traffic())
        ways = Timed(Ways(Direct(), speaker, pumps))
        direct = way if way.kind == "tcp" else endpoint.Endpoint("tcp", HOST, 1)
        address = PeerAddress(
            id=peer.id,
            host=direct.host,
            port=direct.port,
            curve_key=peer.curve_key,
            version=2,
            endpoints=(way,),
        )
        async with CurveWire(speaker.identity, session_id=session_id, dialler=ways) as wire:
            begun_s = time.perf_counter()
            await wire.pull(
                address, have=None, round=0, wait_s=0.0, deadline_s=DEADLINE_S, size=len(MODEL)
            )
            took_s = time.perf_counter() - begun_s
        await pumps.close()
        return Start(ways.opened_s - begun_s, took_s)

    return asyncio.run(scenario())


class Timed:
    """A dialler that says when it had a stream."""

    def __init__(self, ways: Ways) -> None:
        self.opened_s = 0.0
        self._ways = ways

    async def open(
        self, address: PeerAddress, *, deadline_s: float, hello: bytes = b""
    ) -> socket.socket:
        """Returns a stream to a peer."""
        stream = await self._ways.open(address, deadline_s=deadline_s, hello=hello)
        self.opened_s = time.perf_counter()
        return stream


def serve(where: str) -> None:
    """Serves a model to whoever comes, directly or by the relay `where`; says who it is."""

    async def scenario() -> None:
        identity = Identity.generate()
        pumps = Pumps(Traffic())
        speaker = Speaker(identity, SESSION)
        async with CurveWire(identity, session_id=SESSION.hex()) as wire:
            await wire.publish(Version(1, 1, MODEL))
            here = (HOST, wire.port)
            listener = RelayListener(
                [endpoint.parse(where)], speaker, here, pumps=pumps, rng=random.Random()
            )
            listening = asyncio.create_task(listener.run())
            while not listener.is_listening:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            peer = Peer(identity.peer_id, wire.curve_key, wire.port)
            print(json.dumps(asdict(peer)), flush=True)
            await listening

    asyncio.run(scenario())


def starts(round_trip_s: float, repeats: int) -> dict[str, list[Start]]:
    """Returns how long pulls took through a relay, and over a bare line as long as both legs."""
    names = ("relay", "callee", "caller")
    own = [sys.executable, __file__]
    with soak_lines.Switch(names, random.Random(1)) as switch, contextlib.ExitStack() as stack:
        for name in ("callee", "caller"):
            switch.lines[name].delay_s = round_trip_s / 2
        at = {name: switch.lines[name].address for name in names}

        def begin(name: str, *words: str) -> subprocess.Popen[str]:
            inside = [*switch.inside(name), *words]
            process = subprocess.Popen(inside, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.terminate)
            return process

        relay_at = f"relay://{at['relay']}:4001"
        options = ["--open", "--host", "0.0.0.0", "--drain-s", "0", "--log-level", "error"]
        begin("relay", str(PROGRAM), "relay", *options)
        told = begin("callee", *own, "--serve", relay_at).stdout
        assert told is not None
        peer = Peer(**json.loads(told.readline()))
        found: dict[str, list[Start]] = {}
        for name, where in (
            ("by the relay", relay_at),
            ("directly", f"tcp://{at['callee']}:{peer.port}"),
        ):
            pulling = [*own, "--pull", where, "--of", json.dumps(asdict(peer))]
            pulling += ["--repeats", str(repeats)]
            said = begin("caller", *pulling).communicate()[0]
            found[name] = [Start(**json.loads(line)) for line in said.splitlines()]
        return found


def show_starts(found: dict[str, list[Start]]) -> None:
    """Prints medians and the longest."""
    print(f"{'':<14} {'joined':>10} {'first byte':>10} {'longest':>10}")
    for name, times in found.items():
        middle = [
            statistics.median(getattr(one, field.name) for one in times) for field in fields(Start)
        ]
        shown = " ".join(f"{1e3 * one:>7.0f} ms" for one in middle)
        print(f"{name:<14} {shown} {1e3 * max(one.first_byte_s for one in times):>7.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1_024, help="to copy in a turn")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--round-trip", type=float, metavar="S", help="of a peer and the relay")
    for hidden in ("--serve", "--pull", "--of"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    if asked.pull:
        for _ in range(asked.repeats):
            print(json.dumps(asdict(pull_once(asked.pull, Peer(**json.loads(asked.of))))))
        return
    if asked.round_trip is not None:
        show_starts(starts(asked.round_trip, asked.repeats or 5))
        return
    row = measure(asked.mib, asked.repeats or 9)
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
