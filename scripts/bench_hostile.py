"""What honest peers notice of strangers who wear a tracker down: latency, and who is in cohorts.

    scripts/bench hostile [--seconds 10] [--only NAME]…

Each part starts a tracker with its default limits, and attacks it from another process, while 40
peers announce twice a second, each from an address of its own (127.0.1.N) over a connection that is
kept, and answer when they are dialled. The yardstick is the first part, in which nobody attacks:

    quiet       nobody does anything
    slow        2,000 connections that send a byte of a request's head a second, and come back when
                they are hung up on
    pipelined   40 connections of 1 MiB of requests each that read no answer
    full        a tracker that may hold 500 peers, and is told of 1,000 from other addresses
    sybils      1,000 dead identities in the honest peers' session, from 1,000 other addresses
    relayed     the same, who say that the tracker's relay leads to them
    callers     the same, who say that nothing leads to them, as peers behind NAT without a relay

In the last two, only that relay leads to the honest peers as well. "alive" is the share of honest
peers among all whom the honest are told of, ten asked for. Shared machines make all times longer:
compare them with the first line.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher import Swarm, free_port

from p2pl.network.keys import Identity
from p2pl.network.relay import Pumps, RelayListener, Speaker
from p2pl.network.traffic import Traffic
from p2pl.protocol import announce as messages
from p2pl.protocol.announce import Announce
from p2pl.protocol.endpoint import parse
from p2pl.protocol.reach import GREETING

HONEST = 40
EVERY_S = 0.5
COHORT = 10
SESSION = b"h" * 32
CURVE_KEY = "x" * 40
NOBODY_LISTENS = 9
SLOW, PIPELINED, DEAD = 2_000, 40, 1_000
PARTS: dict[str, tuple[str, ...]] = {
    "quiet": (),
    "slow": (),
    "pipelined": (),
    "full": ("--max-peers", "500"),
    "sybils": (),
    "relayed": ("--relay", "{port}", "--relay-url", "relay://127.0.0.1:{port}"),
    "callers": ("--relay", "{port}", "--relay-url", "relay://127.0.0.1:{port}"),
}


class Stranger:
    """An identity that announces itself, with one connection from one address."""

    def __init__(self, url: str, host: str, port: int) -> None:
        parts = urlsplit(url)
        self._tracker, self._from = (parts.hostname or "", parts.port or 0), (host, 0)
        self.identity = Identity.generate()
        self.ways: tuple[str, ...] | None = None  # by which it is reached; None: as it is seen
        self._port, self._sequence = port, 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def announce(self, event: messages.Event = "update") -> tuple[int, bytes, float]:
        """Returns status and body of the answer, and the seconds it took."""
        self._sequence += 1
        said = Announce(
            session=SESSION,
            public_key=self.identity.public_key,
            curve_key=CURVE_KEY,
            port=self._port,
            event=event,
            sequence=self._sequence,
            time_s=int(time.time()),
            numwant=COHORT,
            version=1 if self.ways is None else 2,
            endpoints=self.ways or (),
        )
        body = messages.encode(said, self.identity.private_key)
        head = f"POST /announce HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        start_s = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._tracker, local_addr=self._from)
        reader, writer = self._streams
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        return int(answer.split(b" ", 2)[1]), content, time.perf_counter() - start_s

    async def close(self) -> None:
        """Ends the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def elsewhere(number: int) -> str:
    """Returns another address of this machine."""
    return f"127.{16 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


@contextlib.asynccontextmanager
async def taking_calls(peers: list[Stranger], port: int) -> AsyncIterator[None]:
    """Has peers take calls at the relay that the tracker names, and say so."""
    pumps, tasks = Pumps(Traffic()), []
    for peer in peers:
        peer.ways = ()
        answer = messages.decode_answer((await peer.announce("started"))[1])
        speaker = Speaker(peer.identity, SESSION, functools.partial(_given, answer.ticket))
        relays, rng = list(map(parse, answer.relays)), random.Random()
        listener = RelayListener(relays, speaker, ("127.0.0.1", port), pumps=pumps, rng=rng)
        tasks.append(asyncio.create_task(listener.run()))
        while not listener.is_listening:  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.01)
        peer.ways = answer.relays
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pumps.close()


def _given(ticket: bytes, _: object) -> bytes:
    return ticket


async def honest(url: str, seconds: float, *, by_relay: bool) -> dict[str, float]:
    """Returns what honest peers saw."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    took_s: list[float] = []
    refused, told, alive = 0, 0, 0
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(await asyncio.start_server(greet, "0.0.0.0", 0))
        port = door.sockets[0].getsockname()[1]
        peers = [Stranger(url, f"127.0.1.{1 + number}", port) for number in range(HONEST)]
        if by_relay:
            await stack.enter_async_context(taking_calls(peers, port))
        for peer in peers:
            await peer.announce("started")
        end_s = time.perf_counter() + seconds

        async def go_on(peer: Stranger) -> None:
            nonlocal refused, told, alive
            await asyncio.sleep(random.uniform(0, EVERY_S))
            while time.perf_counter() < end_s:
                status, content, spent_s = await peer.announce()
                took_s.append(spent_s)
                refused += status != 200
                if status == 200:
                    named = messages.decode_answer(content).peers
                    told += len(named)
                    alive += sum(other.port == port for other in named)
                await asyncio.sleep(EVERY_S)

        print("ready", flush=True)
        await asyncio.gather(*map(go_on, peers))
    took_s.sort()
    figures = {"announces": len(took_s), "refused": refused, "alive": alive / max(1, told)}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        figures[name] = 1e3 * took_s[int(share * len(took_s))]
    return figures


def arrived(number: int, there: set[int], of: int) -> None:
    """Notes that a connection is there, and says so once all of them were."""
    if number not in there:
        there.add(number)
        if len(there) == of:
            print("ready", flush=True)


async def slow(url: str) -> None:
    """Holds connections that never get to the end of a request."""
    parts, there = urlsplit(url), set[int]()

    async def one(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                where = (elsewhere(number % 100), 0)
                _, writer = await asyncio.open_connection(
                    parts.hostname, parts.port, local_addr=where
                )
                arrived(number, there, SLOW)
                writer.write(b"POST /announce HTTP/1.1\r\nx-a: ")
                while not writer.is_closing():
                    writer.write(b"b")
                    await writer.drain()
                    await asyncio.sleep(1)
            await asyncio.sleep(1)

    await asyncio.gather(*map(one, range(SLOW)))


async def pipelined(url: str) -> None:
    """Asks and asks on connections whose answers nobody reads."""
    parts, there = urlsplit(url), set[int]()
    asked = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 30_000

    async def one(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(
                    parts.hostname, parts.port, local_addr=(elsewhere(number), 0), limit=1
                )
                arrived(number, there, PIPELINED)
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(asked)
                await writer.drain()
                await asyncio.sleep(1)
                writer.close()
            await asyncio.sleep(0.1)

    await asyncio.gather(*map(one, range(PIPELINED)))


async def dead(url: str, *, by_relay: bool = False, by_nothing: bool = False) -> None:
    """Announces identities at which nobody answers, and goes on to do so."""
    strangers = [Stranger(url, elsewhere(number), NOBODY_LISTENS) for number in range(DEAD)]
    is_said, ways = False, None
    if by_relay or by_nothing:
        strangers[0].ways = ()
        answer = messages.decode_answer((await strangers[0].announce("started"))[1])
        ways = answer.relays if by_relay else ()
    for stranger in strangers:
        stranger.ways = ways
    while True:
        for stranger in strangers:
            await stranger.announce("update" if is_said else "started")
            await stranger.close()
        if not is_said:
            print("ready", flush=True)
            is_said = True


ATTACKS: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
    "slow": slow,
    "pipelined": pipelined,
    "full": dead,
    "sybils": dead,
    "relayed": functools.partial(dead, by_relay=True),
    "callers": functools.partial(dead, by_nothing=True),
}
BY_RELAY = ("relayed", "callers")  # the honest, too


@contextlib.contextmanager
def attacked(name: str, url: str) -> Iterator[None]:
    """Attacks from another process, once what has to be there first is there."""
    if name not in ATTACKS:
        yield
        return
    command = [sys.executable, __file__, "--attack", name, "--url", url]
    attacker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert attacker.stdout
        attacker.stdout.readline()
        yield
    finally:
        attacker.kill()
        attacker.wait(timeout=30)


def measured(name: str, seconds: float) -> dict[str, float]:
    """Returns the figures of one part."""
    with tempfile.TemporaryDirectory() as folder, Swarm(Path(folder)) as swarm:
        port, key = str(free_port()), str(Path(folder) / "relay-key.pem")
        options = [word.format(port=port) for word in PARTS[name]] + ["--relay-key", key]
        swarm.tracker("--min-interval", "0.1", "--log-level", "error", *options)
        command = [sys.executable, __file__, "--honest", "--url", swarm.url]
        command += ["--by-relay"] if name in BY_RELAY else []
        first = name == "full"  # whoever is there before it is full stays
        with contextlib.ExitStack() as stack:
            if not first:
                stack.enter_context(attacked(name, swarm.url))
            peers = subprocess.Popen(
                [*command, "--seconds", f"{seconds:g}"], stdout=subprocess.PIPE, text=True
            )
            stack.callback(peers.wait, timeout=30)
            stack.callback(peers.kill)
            assert peers.stdout
            peers.stdout.readline()
            if first:
                stack.enter_context(attacked(name, swarm.url))
            said, _ = peers.communicate(timeout=60 * seconds)
    figures: dict[str, float] = json.loads(said.splitlines()[-1])
    return figures


def main() -> None:
    """Prints a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of announces, each part")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="a part; repeatable")
    parser.add_argument("--attack", choices=list(ATTACKS), help=argparse.SUPPRESS)
    parser.add_argument("--honest", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--by-relay", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        asyncio.run(ATTACKS[options.attack](options.url))
        return
    if options.honest:
        seen = asyncio.run(honest(options.url, options.seconds, by_relay=options.by_relay))
        print(json.dumps(seen))
        return
    print(f"load {os.getloadavg()[0]:.0f}, {os.cpu_count()} cores; {HONEST} honest peers")
    print(f"{'':>10}  announces  refused  p50 ms  p99 ms  alive")
    for name in options.only or PARTS:
        seen = measured(name, options.seconds)
        print(
            f"{name:>10}  {seen['announces']:9,.0f}  {seen['refused']:7,.0f}  {seen['p50_ms']:6.1f}"
            f"  {seen['p99_ms']:6.1f}  {100 * seen['alive']:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
