"""Three trackers on one Valkey lose each other and their store while a swarm trains.

    scripts/soak_replicas [--peers 12] [--rounds 150] [--draws 100000]

What is done: peers train on the digits and know three trackers, real processes on this machine that
share a server of Valkey or Redis. Once they train, each tracker is killed and started again in
turn, and then the server is killed and stays away for 20 seconds. At the end every peer must have
finished, and nobody may have been counted twice. Then cohorts are drawn from the store, among as
many made-up peers, of which the statistic of chi-squared is printed beside what 99.9 % of uniform
draws stay below.
"""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from launcher import ROOT, Fault, Peer, Running, Swarm, wait_until
from valkey_server import Server

from p2pl.protocol.announce import Announce
from p2pl.protocol.session.metainfo import decode
from p2pl_tracker.store import SharedStore, connected
from p2pl_tracker.swarm import Limits

SPEC = ROOT / "torrentfiles" / "digits.toml"
REPLICAS = 3
AWAY_S = 20.0
DONE_S = 3_600.0
DRAWN_AMONG = 50
COHORT = 5
# Of chi-squared with 49 degrees of freedom, times (1 - 5/50): without replacement, it is smaller.
UNLIKELY = 85.4 * 0.9 * 50 / 49


def main() -> None:
    """Runs the swarm, and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--draws", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2pl-") as folder:
        server = Server(Path(folder))
        try:
            server.start()
            hurt(server, options.peers, options.rounds)
            print(json.dumps(asyncio.run(uniform(server.url, options.draws))), flush=True)
        except Fault as fault:
            sys.exit(f"soak_replicas: {fault}")
        finally:
            server.kill()


def hurt(server: Server, count: int, rounds: int) -> None:
    """Trains while trackers and their store come and go."""
    changes = (
        ("rounds = 20", f"rounds = {rounds}"),
        ("min_peers = 6", f"min_peers = {count}"),
        ("start_deadline_s = 60.0", "start_deadline_s = 900.0"),
    )
    start_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start_s:7.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as name, Swarm(Path(name)) as swarm:
        ports = [swarm.port + index for index in range(REPLICAS)]
        trackers = [replica(swarm, server, port) for port in ports]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        more = [word for url in urls[:-1] for word in ("--tracker", url)]
        torrent = swarm.create(SPEC.read_text(), "replicas", *changes, options=more)
        peers = [
            swarm.peer(f"peer-{at}", torrent, "--data", "digits", "--shard", f"{at}/{count}")
            for at in range(count)
        ]
        behind(peers, 3)
        say(f"{count} peers train")
        session = decode(torrent.read_bytes()).id
        for index, port in enumerate(ports):
            trackers[index].kill()
            say(f"tracker {index} is killed")
            behind(peers, 3)
            say(f"everybody has done 3 rounds more; {alive(urls, session)} are counted")
            trackers[index] = replica(swarm, server, port)
        server.kill()
        say("the store is killed")
        time.sleep(AWAY_S)
        done = [peer.last_round() for peer in peers]
        server.start()
        say(f"the store is there again; rounds meanwhile up to {max(done)}")
        behind(peers, 2)
        say(f"everybody has done 2 rounds more; {alive(urls, session)} are counted")
        for peer in peers:
            peer.succeed(DONE_S)
        accuracy = sorted(round(peer.summary()["accuracy"], 1) for peer in peers)
        say(f"every peer finished: {accuracy[0]} to {accuracy[-1]} %")


def replica(swarm: Swarm, server: Server, port: int) -> Running:
    """Returns a tracker that shares the store."""
    swarm.port = port
    return swarm.tracker("--store", server.url, "--interval", "5", "--log-level", "error")


def behind(peers: Sequence[Peer], rounds: int) -> None:
    """Returns once every peer that still runs has done so many rounds more."""
    before = [peer.last_round() for peer in peers]

    def reached() -> bool:
        pairs = zip(peers, before, strict=True)
        return all(peer.is_over or peer.last_round() >= done + rounds for peer, done in pairs)

    wait_until(reached, DONE_S, f"{rounds} rounds of everybody")


def alive(urls: Sequence[str], session: str) -> int:
    """Returns how many peers the first tracker that answers counts."""
    for url in urls:
        try:
            with urllib.request.urlopen(f"{url}/scrape?session={session}", timeout=10) as answer:
                counted: int = json.load(answer)["sessions"][session]["alive"]
                return counted
        except OSError:
            continue
    raise Fault("no tracker answers")


async def uniform(url: str, draws: int) -> dict[str, float]:
    """Returns chi-squared over so many peers that were drawn, and what it should stay below."""
    store = SharedStore(connected(url), Limits(min_interval_s=0.0), prefix=secrets.token_hex(4))
    session, seen = secrets.token_bytes(32), Counter[bytes]()
    for at in range(DRAWN_AMONG + 1):
        await store.announce(announced(session, at, 1), f"10.0.0.{at}")
    for at in range(draws // COHORT):
        welcome = await store.announce(announced(session, 0, 2 + at), "10.0.0.0")
        seen.update(peer.row for peer in welcome.peers)
    await store.aclose()
    expected = sum(seen.values()) / DRAWN_AMONG
    found = sum((count - expected) ** 2 / expected for count in seen.values())
    if len(seen) != DRAWN_AMONG or found > UNLIKELY:
        raise Fault(f"draws are not uniform: {found:.1f} of {len(seen)} peers")
    return {"draws": sum(seen.values()), "chi_squared": found, "unlikely": UNLIKELY}


def announced(session: bytes, number: int, sequence: int) -> Announce:
    return Announce(
        session=session,
        public_key=number.to_bytes(32),
        curve_key="x" * 40,
        port=1 + number,
        event="update",
        sequence=sequence,
        time_s=int(time.time()),
        numwant=COHORT,
    )


if __name__ == "__main__":
    main()
