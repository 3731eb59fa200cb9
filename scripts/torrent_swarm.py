"""Clients of BitTorrent and a peer of p2pl exchange a checkpoint, and know each other by a tracker.

    scripts/torrent_swarm [MB]

A session of libtorrent seeds the initial checkpoint of a session of p2pl; a second one, `p2pl join
--fetch torrent`, and qBittorrent (`qbittorrent-nox`, where it is installed) are given the session's
file and nothing else. The weights are not those of the session's seed, so nobody can make them
anew. No client may use anything but the tracker: no DHT, no local discovery, no exchange of peers.
"""

import shutil
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import libtorrent as lt
import msgspec
from launcher import ROOT, Fault, Swarm, free_port, wait_until

from p2pl.network import torrent
from p2pl.protocol.session import SessionFile, decode

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
DONE_S = 1_800.0
QUIET = """[BitTorrent]
Session\\DHTEnabled=false
Session\\LSDEnabled=false
Session\\PeXEnabled=false
Session\\MultiConnectionsPerIp=true
[LegalNotice]
Accepted=true
"""


def session_of(swarm: Swarm, megabytes: int, seed: Path) -> tuple[Path, SessionFile]:
    """Returns a session file, and what is in it; its checkpoint lies in `seed` alone."""
    width = round((megabytes * 1e6 / 4) ** 0.5)
    made = swarm.create(
        SPEC,
        "made",
        ("hidden = [64]", f"hidden = [{width}, {width}]"),
        ("rounds = 20", "rounds = 1"),
        ("local_epochs = 2", "local_epochs = 1"),
        ("min_peers = 6", "min_peers = 1"),
    )
    file = decode(made.read_bytes())
    another_seed = msgspec.structs.replace(file.session, seed=file.session.seed + 1)
    file = replace(file, session=another_seed, trackers=((f"{swarm.url}/announce",),))
    path = swarm.folder / "session.torrent"
    path.write_bytes(file.encode())
    (swarm.folder / file.checkpoint_name).rename(seed / file.checkpoint_name)
    return path, file


class Client:
    """A session of libtorrent that knows a tracker and nothing else."""

    def __init__(self, file: Path, tracker: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        settings: Any = {**torrent.SETTINGS, "listen_interfaces": "127.0.0.1:0"}
        self._session = lt.session(settings, flags=0)
        wanted: Any = lt.load_torrent_file(str(file))
        wanted.save_path = str(folder)
        wanted.trackers = [f"{tracker}/announce"]
        self._handle = self._session.add_torrent(wanted)

    def until_whole(self, who: str) -> None:
        """Returns once it has all of it."""
        wait_until(lambda: self._handle.status().is_seeding, DONE_S, f"{who} has all of it")


def qbittorrent(swarm: Swarm, file: Path, path: Path) -> None:
    """Lets qBittorrent fetch it; returns once it is there as it should be."""
    profile, folder = swarm.folder / "profile", swarm.folder / "qbittorrent"
    settings = profile / "qBittorrent" / "config" / "qBittorrent.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(QUIET)
    folder.mkdir()
    command = ["qbittorrent-nox", f"--profile={profile}", f"--save-path={folder}"]
    client = swarm.start(
        "qbittorrent", [*command, f"--webui-port={free_port()}", "--skip-dialog=true", str(file)]
    )
    found = folder / path.name
    wait_until(lambda: client.is_over or _same(found, path), DONE_S, "qBittorrent has all of it")
    if client.is_over:
        raise Fault(f"qBittorrent ended:\n{client.text()}")


def _same(found: Path, wanted: Path) -> bool:
    """Returns whether a file is there, and holds what it should."""
    is_there = found.is_file() and found.stat().st_size == wanted.stat().st_size
    return is_there and found.read_bytes() == wanted.read_bytes()


def main() -> None:
    """Prints who had it after how long."""
    start_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start_s:6.1f} s  {text}", flush=True)

    try:
        with tempfile.TemporaryDirectory() as name, Swarm(Path(name)) as swarm:
            seed = swarm.folder / "seed"
            seed.mkdir()
            path, file = session_of(swarm, int(sys.argv[1]), seed)
            tracker = swarm.tracker("--sessions", str(path))
            first = Client(path, swarm.url, seed)
            first.until_whole("the first client")
            say(f"a libtorrent session seeds {file.checkpoint.size / 1e6:.0f} MB")
            second = Client(path, swarm.url, swarm.folder / "second")
            second.until_whole("the second client")
            say("a second one has all of it")
            if shutil.which("qbittorrent-nox"):
                qbittorrent(swarm, path, seed / file.checkpoint_name)
                say("qBittorrent has all of it")
            else:
                say("qBittorrent is not installed here")
            options = ("--data", "digits", "--shard", "0/6", "--fetch", "torrent")
            peer = swarm.peer("peer", path, *options)
            peer.succeed(DONE_S)
            told = [line for line in peer.text().splitlines() if "BitTorrent" in line]
            say(f"p2pl join --fetch torrent has it and has trained a round: {told[0].strip()}")
            with urllib.request.urlopen(f"{swarm.url}/metrics", timeout=30) as answer:
                lines = bytes(answer.read()).decode().splitlines()
            print("\n".join(line for line in lines if line.startswith("p2pl_tracker_torrent_ann")))
            if "Traceback" in tracker.text():
                raise Fault(f"the tracker failed:\n{tracker.text()}")
    except Fault as fault:
        sys.exit(f"torrent_swarm: {fault}")


if __name__ == "__main__":
    main()
