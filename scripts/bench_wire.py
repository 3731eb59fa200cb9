"""How fast p2pl pulls a model, beside bare pyzmq moving the same bytes under CURVE.

Sender and receiver are two fresh processes on loopback. Bare pyzmq and the wire take turns, with
the same bytes in chunks of the same size, so that a noisy machine is noisy for both. The bare
receiver speaks no protocol and checks no digest, and its processes leave the allocator as it is,
while the wire has it keep freed buffers; the wire's clock covers connecting, the handshake, the
cards, credit and the digest. Both put the bytes into one buffer: `kept` memory was used before,
as in every round but the first; `new` memory is taken while the clock runs.

    scripts/bench wire                      100 MiB and 1 GiB, 15 times each: 100 MiB take 0.1 s
    scripts/bench wire --mib 400 --repeats 3 --json
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection

import zmq

from p2pl.network.keys import Identity
from p2pl.network.pull import Pulled
from p2pl.network.version import Commits, Version
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import PeerAddress
from p2pl.updates.keeper import Keeper, sha256
from p2pl.updates.log import UpdateLog
from p2pl.updates.log import Version as Named

MIB = 1 << 20
SESSION_ID = "00" * 32
DEADLINE_S = 300.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Run:
    """One transfer, as its receiver saw it."""

    seconds: float
    cpu_s: float  # of sender and receiver together
    grown_mib: float  # peak memory of the receiver, above what it had before


@dataclass(frozen=True)
class Row:
    """Medians for one size."""

    mib: int
    memory: str
    bare_gib_s: float
    wire_gib_s: float
    ratio: float
    bare_cpu_s_per_gib: float
    wire_cpu_s_per_gib: float
    bare_grown_mib: float
    wire_grown_mib: float


def payload(size: int) -> bytes:
    """Returns `size` bytes; random within each MiB, since CURVE takes as long for any bytes."""
    return (os.urandom(MIB) * (size // MIB + 1))[:size]


def peak_mib() -> float:
    """Returns the most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def cpu_s() -> float:
    """Returns the processor time that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bare_sender(pipe: Connection, size: int, chunk: int) -> None:
    public, secret = zmq.curve_keypair()
    data = memoryview(payload(size))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.curve_server, router.curve_publickey, router.curve_secretkey = True, public, secret
        router.sndhwm = 0
        port = router.bind_to_random_port(f"tcp://{HOST}")
        used_s = cpu_s()
        pipe.send((port, public))
        route, _ = router.recv_multipart()
        for offset in range(0, size, chunk):
            router.send(route, zmq.SNDMORE)
            router.send(data[offset : offset + chunk], copy=False)
        pipe.recv()
        pipe.send(cpu_s() - used_s)


def bare_receiver(
    pipe: Connection, size: int, chunk: int, memory: str, port: int, server_key: bytes
) -> None:
    before = peak_mib()
    buffer = bytearray(size) if memory == "kept" else None
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.curve_serverkey = server_key
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.rcvhwm = 0
        dealer.connect(f"tcp://{HOST}:{port}")
        began, used_s, offset = time.perf_counter(), cpu_s(), 0
        dealer.send(b"go")
        buffer = buffer or bytearray(size)
        while offset < size:
            frame = dealer.recv(copy=False)
            buffer[offset : offset + len(frame)] = frame.buffer
            offset += len(frame)
        pipe.send(Run(time.perf_counter() - began, cpu_s() - used_s, peak_mib() - before))


def wire_of(identity: Identity, chunk: int, *, logs: bool) -> CurveWire:
    return CurveWire(
        identity, session_id=SESSION_ID, listen=f"{HOST}:0", chunk_bytes=chunk, committed=logs
    )


def keeper_of(identity: Identity) -> Keeper:
    """Returns what a peer of a session with update logs has, in memory alone."""
    log = UpdateLog(SESSION_ID, identity.private_key)
    return Keeper(log, None, identity, time.time, lambda _: True)


def wire_sender(pipe: Connection, size: int, chunk: int, *, logs: bool = False) -> None:
    async def serve() -> None:
        identity, data, commits = Identity.generate(), payload(size), None
        if logs:
            hashed = sha256(data)
            answer = await keeper_of(identity).commit(Named("trained", 1, hashed))
            commits = Commits(hashed, hashed, answer)
        async with wire_of(identity, chunk, logs=logs) as wire:
            await wire.publish(Version(round=1, samples=1, payload=data, commits=commits))
            used_s = cpu_s()
            pipe.send((wire.port, wire.curve_key, identity.peer_id))
            await asyncio.to_thread(pipe.recv)
            pipe.send(cpu_s() - used_s)

    asyncio.run(serve())


def wire_receiver(
    pipe: Connection,
    size: int,
    chunk: int,
    memory: str,
    *where: *tuple[int, str, str],
    logs: bool = False,
) -> None:
    port, curve_key, peer_id = where

    async def fetch() -> None:
        address = PeerAddress(id=peer_id, host=HOST, port=port, curve_key=curve_key)
        identity = Identity.generate()
        keeper = keeper_of(identity) if logs else None
        async with wire_of(identity, chunk, logs=logs) as wire:
            before = peak_mib()
            into = memoryview(bytearray(size)) if memory == "kept" else None
            began, used_s = time.perf_counter(), cpu_s()
            asked = keeper.question(peer_id) if keeper else None
            pulled = await wire.pull(
                address,
                have=None,
                round=1,
                wait_s=0,
                deadline_s=DEADLINE_S,
                size=size,
                into=into,
                said=asked.data if asked else None,
            )
            assert isinstance(pulled, Pulled)
            if keeper and asked:
                keeper.take(peer_id, asked, pulled.commitment, pulled.hash)
            pipe.send(Run(time.perf_counter() - began, cpu_s() - used_s, peak_mib() - before))

    asyncio.run(fetch())


ENDS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "bare": (bare_sender, bare_receiver),
    "wire": (wire_sender, wire_receiver),
    "logs": (partial(wire_sender, logs=True), partial(wire_receiver, logs=True)),
}


def measure(kind: str, size: int, chunk: int, memory: str) -> Run:
    """Returns one transfer between two fresh processes."""
    processes = multiprocessing.get_context("spawn")
    to_sender, sender_end = processes.Pipe()
    to_receiver, receiver_end = processes.Pipe(duplex=False)
    send, receive = ENDS[kind]
    sender = processes.Process(target=send, args=(sender_end, size, chunk), daemon=True)
    sender.start()
    where = to_sender.recv()
    arguments = (receiver_end, size, chunk, memory, *where)
    receiver = processes.Process(target=receive, args=arguments, daemon=True)
    receiver.start()
    receiver_end.close()
    run = to_receiver.recv()
    assert isinstance(run, Run)
    receiver.join()
    to_sender.send("stop")
    sender_s = to_sender.recv()
    sender.join()
    return replace(run, cpu_s=run.cpu_s + sender_s)


def compare(mib: int, chunk: int, memory: str, repeats: int) -> Row:
    runs: dict[str, list[Run]] = {"bare": [], "wire": []}
    for _ in range(repeats):
        for kind in runs:
            runs[kind].append(measure(kind, mib * MIB, chunk, memory))
    seconds = {kind: statistics.median(run.seconds for run in each) for kind, each in runs.items()}
    cpu = {kind: statistics.median(run.cpu_s for run in each) for kind, each in runs.items()}
    grown = {kind: max(run.grown_mib for run in each) for kind, each in runs.items()}
    return Row(
        mib=mib,
        memory=memory,
        bare_gib_s=round(mib / 1_024 / seconds["bare"], 3),
        wire_gib_s=round(mib / 1_024 / seconds["wire"], 3),
        ratio=round(seconds["bare"] / seconds["wire"], 3),
        bare_cpu_s_per_gib=round(cpu["bare"] * 1_024 / mib, 2),
        wire_cpu_s_per_gib=round(cpu["wire"] * 1_024 / mib, 2),
        bare_grown_mib=round(grown["bare"], 1),
        wire_grown_mib=round(grown["wire"], 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench wire", description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[100, 1_024], help="sizes in MiB")
    parser.add_argument("--chunk-kib", type=int, default=1_024)
    parser.add_argument("--memory", nargs="+", default=["kept", "new"], choices=["kept", "new"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    options = parser.parse_args()
    rows = [
        compare(mib, options.chunk_kib << 10, memory, options.repeats)
        for mib in options.mib
        for memory in options.memory
    ]
    if options.json:
        print(json.dumps({"chunk_kib": options.chunk_kib, "rows": [asdict(row) for row in rows]}))
        return
    print(" " * 48 + "CPU s/GiB           receiver grew by MiB")
    print(
        "   MiB  memory  bare GiB/s  wire GiB/s  ratio      bare       wire        bare        wire"
    )
    for row in rows:
        print(
            f"{row.mib:6}  {row.memory:>6}  {row.bare_gib_s:10.3f}  {row.wire_gib_s:10.3f}"
            f"  {row.ratio:5.2f}  {row.bare_cpu_s_per_gib:9.2f}  {row.wire_cpu_s_per_gib:9.2f}"
            f"  {row.bare_grown_mib:10.1f}  {row.wire_grown_mib:10.1f}"
        )


if __name__ == "__main__":
    main()
