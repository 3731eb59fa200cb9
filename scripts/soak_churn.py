"""Peers come to a tracker and leave it all day; its memory must stay as it is.

    scripts/soak_churn [--hours 24] [--peers 100]
    scripts/soak_churn --real 30 [--peers 100]

By a virtual clock: a tracker in this process hears signed announces, once a virtual minute of each
peer. A peer stays for two hours on average; half say that they leave, half fall silent, and another
identity comes in its place. Strangers ask for nonsense meanwhile. Memory is what Python holds after
a full collection (blocks), once an hour; resident memory stands beside it.

For real: the same against a process of `p2pl-tracker serve`, a hundred times as fast: each peer
announces every second and stays for half a minute. Its resident memory is read every 30 seconds.

After a warm-up (a twelfth of a day; twelve minutes for real, in which the tracker comes to remember
as many that left as it ever will), the mean of the first half and that of the second half may
differ by 2 %.
"""

import argparse
import asyncio
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from bench_hostile import Stranger, elsewhere
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from launcher import Fault, Swarm
from starlette.types import Message

from p2pl.protocol import announce as messages
from p2pl.protocol.announce import Announce
from p2pl_tracker.app import Policy, create_app

SESSIONS = 10
ADDRESSES = 500
STAY_MIN = 120
MOST = 0.02
WARM_HOURS, WARM_S = 2, 720
REAL_STAY_S = 30.0
LOOK_EVERY_S = 30.0


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Visitor:
    """A peer of a tracker in this process."""

    def __init__(self, rng: random.Random) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        self._session = bytes([rng.randrange(SESSIONS)]) * 32
        self.host = elsewhere(rng.randrange(ADDRESSES))
        self.minutes = 1 + int(rng.expovariate(1 / STAY_MIN))
        self._sequence = 0

    def says(self, event: messages.Event, now_s: float) -> bytes:
        """Returns an announce."""
        self._sequence += 1
        said = Announce(
            session=self._session,
            public_key=self._key.public_key().public_bytes_raw(),
            curve_key="x" * 40,
            port=9_000,
            event=event,
            sequence=self._sequence,
            time_s=int(now_s),
            numwant=5,
        )
        return messages.encode(said, self._key)


class Tracker:
    """A tracker in this process, without a socket."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self._app = create_app(Policy(checks=False), now=clock, wall=clock, rng=rng)

    async def ask(self, host: str, method: str, path: str, body: bytes = b"") -> int:
        """Returns the status of an answer."""
        path, _, query = path.partition("?")
        status = 0

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(b"content-length", b"%d" % len(body))],
            "client": (host, 40_000),
            "server": ("127.0.0.1", 8_000),
            "scheme": "http",
            "http_version": "1.1",
            "root_path": "",
        }
        await self._app(scope, receive, send)
        return status


async def simulated(hours: int, count: int) -> list[float]:
    """Returns how many blocks Python holds at the end of each hour."""
    clock, rng = Clock(), random.Random(1)
    tracker = Tracker(clock, rng)
    peers = [Visitor(rng) for _ in range(count)]
    for peer in peers:
        await tracker.ask(peer.host, "POST", "/announce", peer.says("started", clock()))
    held: list[float] = []
    for hour in range(hours):
        for _ in range(60):
            clock.now_s += 60
            for at, peer in enumerate(peers):
                peers[at] = await next_minute(tracker, peer, rng)
            await nonsense(tracker, rng)
        gc.collect()
        held.append(sys.getallocatedblocks())
        resident = psutil.Process().memory_info().rss / 2**20
        print(f"hour {hour + 1:2}: {held[-1]:,.0f} blocks, {resident:.1f} MiB", flush=True)
    return held[WARM_HOURS:]


async def next_minute(tracker: Tracker, peer: Visitor, rng: random.Random) -> Visitor:
    """Lets a peer announce; returns it, or who comes in its place."""
    now_s = tracker.clock()
    peer.minutes -= 1
    if peer.minutes > 0:
        said = peer.says("update", now_s)
        if await tracker.ask(peer.host, "POST", "/announce", said) != 200:
            raise Fault("an announce was refused")
        return peer
    if rng.random() < 0.5:
        await tracker.ask(peer.host, "POST", "/announce", peer.says("stopped", now_s))
    new = Visitor(rng)
    await tracker.ask(new.host, "POST", "/announce", new.says("started", now_s))
    return new


async def nonsense(tracker: Tracker, rng: random.Random) -> None:
    """Asks for what there is not, from here and there."""
    for _ in range(10):
        host = elsewhere(rng.randrange(ADDRESSES))
        await tracker.ask(host, "POST", "/announce", rng.randbytes(40))
        await tracker.ask(host, "GET", f"/scrape?session={rng.randbytes(32).hex()}")
        await tracker.ask(host, "GET", f"/announce?info_hash={rng.randbytes(20).hex()}&port=1")


async def real(minutes: float, count: int) -> list[float]:
    """Returns the resident memory of a tracker, in MiB, every 30 seconds after the warm-up."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as folder, Swarm(Path(folder)) as swarm:
        tracker = swarm.tracker("--interval", "1", "--ttl", "5", "--no-check")
        process = psutil.Process(tracker.process.pid)
        start_s = time.monotonic()

        async def visit() -> None:
            while True:
                stranger = Stranger(swarm.url, elsewhere(rng.randrange(ADDRESSES)), 9)
                leave_s = time.monotonic() + rng.expovariate(1 / REAL_STAY_S)
                await stranger.announce("started")
                while time.monotonic() < leave_s:
                    await asyncio.sleep(1)
                    await stranger.announce()
                if rng.random() < 0.5:
                    await stranger.announce("stopped")
                await stranger.close()

        visitors = [asyncio.create_task(visit()) for _ in range(count)]
        held: list[float] = []
        while (spent_s := time.monotonic() - start_s) < 60 * minutes:
            await asyncio.wait(visitors, timeout=LOOK_EVERY_S, return_when="FIRST_COMPLETED")
            for visitor in visitors:
                if visitor.done():
                    visitor.result()
            resident = process.memory_info().rss / 2**20
            print(f"{spent_s / 60:5.1f} min: {resident:.1f} MiB", flush=True)
            if spent_s > WARM_S:
                held.append(resident)
        for visitor in visitors:
            visitor.cancel()
        await asyncio.gather(*visitors, return_exceptions=True)
    return held


def growth(held: Sequence[float]) -> float:
    """Returns by what part the second half differs from the first."""
    half = len(held) // 2
    return statistics.fmean(held[half:]) / statistics.fmean(held[:half]) - 1


def main() -> None:
    """Prints what was held, and fails where it grew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=int, default=24, help="of the virtual clock, at least 4")
    parser.add_argument("--peers", type=int, default=100, help="at a time")
    parser.add_argument("--real", type=float, metavar="MINUTES", help="for real; at least 15")
    options = parser.parse_args()
    try:
        if options.real:
            held = asyncio.run(real(options.real, options.peers))
        else:
            held = asyncio.run(simulated(options.hours, options.peers))
        grown = growth(held)
        print(f"the second half differs from the first by {100 * grown:+.2f} %")
        if abs(grown) > MOST:
            raise Fault(f"memory is not flat to {100 * MOST:g} %")
    except Fault as fault:
        sys.exit(f"soak_churn: {fault}")


if __name__ == "__main__":
    main()
