"""Three trackers on one Valkey lose each other and their store while a swarm trains.

    scripts/soak_replicas [--peers 12] [--rounds 150] [--draws 100000]

What is done: peers train on the digits and know three trackers, real processes on this machine that
share a server of Valkey or Redis. Once they train, each tracker is killed and started again in
turn, and then the server is killed and stays away for 20 seconds. At the end every peer must have
finished, and nobody may have been counted twice. Then cohorts are drawn from the store, as
scripts/draws does for each store.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from draws import DRAWS, shared, uniform
from launcher import ROOT, Fault, Peer, Running, Swarm, wait_until
from valkey_server import Server

from p2pl.protocol.session.metainfo import decode

SPEC = ROOT / "torrentfiles" / "digits.toml"
REPLICAS = 3
AWAY_S = 20.0
DONE_S = 3_600.0


def main() -> None:
    """Runs the swarm, and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2pl-") as folder:
        server = Server(Path(folder))
        try:
            server.start()
            hurt(server, options.peers, options.rounds)
            print(json.dumps(asyncio.run(uniform(shared(server.url), options.draws))), flush=True)
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


if __name__ == "__main__":
    main()
