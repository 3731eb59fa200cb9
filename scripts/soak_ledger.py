"""An honest peer that is killed at random times, and makes rounds anew, is never accused.

A process keeps an update log in a run directory and serves a version each round; two watchers in
this process pull each of them, as peers do, and tell each other what they have seen. After some
rounds the process is killed (SIGKILL) at a random moment of its next one, and another one goes on
in the directory: the versions that it makes of the same rounds are others. In the end the watchers
must hold no proof, the log must hold, and all that was seen of it must be in it.

So that it is known that the watchers would find one, the log is put back to where it was a few
lives before, and the peer goes on from there: both must have the proof then. (Of much older states,
they have no entries any more: such a log is turned down as shorter than it was.)

    scripts/soak_ledger                 100 kills
    scripts/soak_ledger --kills 1000 --seed 7
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from p2pl.errors import FrameError
from p2pl.network.keys import Identity
from p2pl.protocol.updates.entry import encode
from p2pl.protocol.updates.message import Question
from p2pl.updates.file import LOG_FILE, read
from p2pl.updates.keeper import Keeper, sha256
from p2pl.updates.log import UpdateLog, Version

SESSION = "5e" * 32
MOST_ROUNDS = 8  # of one life; none: it is killed where it opens its log
LONGEST_S = 0.02  # from the last answer to the kill; chosen: an entry is made and written in it
ANEW = 0.3  # the share of rounds that a peer which has not been killed makes anew
BACK = 2  # lives; no more rounds than entries that a watcher remembers
DEADLINE_S = 60.0  # for an answer


def watcher() -> Keeper:
    """Returns what one other peer knows."""
    identity = Identity.generate()
    log = UpdateLog(SESSION, identity.private_key)
    log.append(Version("trained", 0, sha256(b"")), 1.0)
    return Keeper(log, None, identity, time.time, lambda _: True)


def live(folder: Path, me: Identity, life: int, least: int, pipe: Connection) -> None:
    """Serves versions until it is killed: for each, the pipe brings questions and takes answers."""
    rng = random.Random(life)
    log = UpdateLog.open(folder, SESSION, me.private_key, least=least)
    keeper = Keeper(log, None, me, time.time, lambda _: False)
    # What a saved state knows of is at most what the log has; the round may be one too early.
    index = max((one.entry.round for one in log.entries), default=0)
    while True:
        index += rng.random() > ANEW
        log.mixed(index, {log.peer_id: 1.0}, {}, {})
        made = log.append(Version("trained", index, sha256(os.urandom(8))), time.time())
        pipe.send(("served", len(log)))
        for _ in range(2):
            who, question = pipe.recv()
            pipe.send((made.entry.digest, keeper.answer_for(made)(who, question)))


class Swarm:
    """Two watchers, and the peer that is killed.

    Attributes:
        watchers: what the two know.
        seen: entries of the peer's log that somebody has seen.
        pulls: versions that were pulled.
        refused: reasons for which one was turned down.
    """

    def __init__(self, folder: Path, me: Identity) -> None:
        self.folder, self.me = folder, me
        self.watchers = (watcher(), watcher())
        self.seen = self.pulls = 0
        self.refused: list[str] = []

    def life(self, number: int, rng: random.Random, least: int) -> None:
        """Has the peer live for some rounds, and kills it in the next one."""
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        arguments = (self.folder, self.me, number, least, there)
        process = fork.Process(target=live, args=arguments, daemon=True)
        process.start()
        there.close()
        assert process.pid is not None
        with contextlib.suppress(EOFError, ConnectionError):
            for _ in range(rng.randrange(MOST_ROUNDS + 1)):
                if not here.poll(DEADLINE_S):
                    break
                self.seen = max(self.seen, here.recv()[1])
                self._pull(here)
        time.sleep(rng.uniform(0.0, LONGEST_S))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        here.close()

    def _pull(self, pipe: Connection) -> None:
        """Has both watchers pull the version that is served."""
        author = self.me.peer_id
        for one in self.watchers:
            asked = one.question(author)
            pipe.send((one.log.peer_id, asked.data))
            if not pipe.poll(DEADLINE_S):
                raise EOFError
            digest, came = pipe.recv()
            self.pulls += 1
            try:
                one.take(author, asked, came, digest)
            except FrameError as why:
                self.refused.append(str(why))
        self._gossip()

    def _gossip(self) -> None:
        """Has one watcher ask the other one, with all that it has heard."""
        one, other = self.watchers
        question = Question((), None, one.watch.heard_for(other.log.peer_id), ())
        other.answer_for(other.log.entries[0])(one.log.peer_id, encode(question))

    @property
    def accusers(self) -> int:
        """How many watchers hold a proof of two histories."""
        return sum(bool(one.watch.faults) for one in self.watchers)


def main() -> None:
    """Kills the peer so many times, and prints one JSON object; exit code 1: it was accused."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder, me = Path(temporary) / "run", Identity.generate()
        folder.mkdir()
        swarm = Swarm(folder, me)
        for number in range(asked.kills):
            swarm.life(number, rng, swarm.seen)
            if number == max(0, asked.kills - BACK):
                shutil.copy(folder / LOG_FILE, Path(temporary) / "older")
        kept = read(folder / LOG_FILE, every=True)
        entries = len(kept.records) if kept else 0
        anew = kept.records[-1].signed.entry.again if kept and kept.records else 0
        accused, refused, pulls = swarm.accusers, list(swarm.refused), swarm.pulls
        lost = max(0, swarm.seen - entries)
        shutil.copy(Path(temporary) / "older", folder / LOG_FILE)  # what no honest peer does
        for number in range(asked.kills, asked.kills + 20):
            if swarm.accusers < len(swarm.watchers):
                swarm.life(number, rng, 0)
        told = {
            "kills": asked.kills,
            "entries": entries,
            "made_anew": anew,
            "pulls": pulls,
            "turned_down": len(refused),
            "accusers": accused,
            "entries_lost": lost,
            "accusers_once_its_log_was_put_back": swarm.accusers,
        }
    print(json.dumps(told, indent=1))
    well = not (refused or accused or lost) and swarm.accusers == len(swarm.watchers)
    sys.exit(0 if well and entries else 1)


if __name__ == "__main__":
    main()
