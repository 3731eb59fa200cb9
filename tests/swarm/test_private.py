"""Private sessions as real processes: the invited train together, and all others are refused."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from support.commands import p2pl
from support.joins import Watching, run, session_file
from support.processes import BIN, PATIENCE_S, ROOT, Peer, Swarm, wait_until

from p2pl.learning.checkpoint import build
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.network.membership import Group, Membership
from p2pl.network.wire import CurveWire
from p2pl.protocol import session as session_format
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.invitation import Invitation, invite, to_text
from p2pl.protocol.session import Mixing, SessionFile
from p2pl.run.log import Summary

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
LONG = (("rounds = 20", "rounds = 100000"), ("min_peers = 6", "min_peers = 3"))
KINDS = ("cohort", "gossip", "braintorrent", "raft")
STRANGERS = ("uninvited", "expired", "elsewhere")
UNKNOWN = "no invitation is known for its key"


@dataclass
class Club:
    """A private session in which three peers train, of which one is to be revoked."""

    swarm: Swarm
    torrent: Path
    file: SessionFile
    author: Identity
    peers: Sequence[Peer]

    def key(self, name: str) -> Path:
        return self.swarm.folder / f"{name}.pem"

    def id(self, name: str) -> str:
        return Identity.load_or_create(self.key(name)).peer_id

    def join(self, name: str, shard: int) -> Peer:
        """Starts a peer that the author has invited just now."""
        paper = self.swarm.folder / f"{name}.invitation"
        who = self.id(name)
        done = p2pl("invite", self.torrent, "--peer", who, "--expires", "1d", "--out", paper)
        assert done.returncode == 0, done.stderr
        shown = ("--data", "digits", "--shard", f"{shard}/3", "--invitation", str(paper))
        return self.swarm.peer(name, self.torrent, *shown, "--identity", str(self.key(name)))

    async def find(self, peer: str) -> PeerAddress:
        """Returns where a peer is, as another invited one is told."""
        me = Identity.generate()
        given = invite(self.author.private_key, session_id=self.file.id, peer_id=me.peer_id)
        members = Membership(Group(self.file.id, self.author.public_key, given))
        wire = CurveWire(me, session_id=self.file.id, listen="127.0.0.1:0", membership=members)
        async with wire:
            told = Announcer(
                self.file.id, me, wire.curve_key, wire.port, wire.proof, self.file.info
            )
            directory = TrackerDirectory([[self.swarm.url]], told, membership=members)
            async with directory:
                answer = await directory.announce("started", numwant=10)
                await directory.leave()
        return next(one for one in answer.peers if one.id == peer)

    def dial(self, name: str, session_id: str) -> dict[str, object]:
        """Returns what comes of it when somebody dials the first peer, in a process of its own."""
        to = asyncio.run(self.find(self.id("peer-0")))
        script = Path(__file__).with_name("uninvited.py")
        words = ["--session", session_id, "--key", str(self.key(name)), "--peer", to.id]
        words += ["--to", f"{to.host}:{to.port}", f"--curve-key={to.curve_key}"]
        done = subprocess.run(
            [sys.executable, script, *words], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        came: dict[str, object] = json.loads(done.stdout)
        return came

    def refused(self, name: str, session_id: str, why: str) -> None:
        """Fails unless somebody who dials is refused in the handshake, and named once."""
        came, one = self.dial(name, session_id), self.peers[0]
        assert isinstance(came["reasons"], list)
        assert all("refused the CURVE key" in reason for reason in came["reasons"]), came
        assert came["bytes_in"] == 0
        line = f"refused 127.0.0.1: {why} (CURVE key {came['key']})"
        wait_until(lambda: line in one.text(), PATIENCE_S, f"{line}\n{one.text()}")
        assert one.text().count(str(came["key"])) == 1


@pytest.fixture(scope="module")
def club(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Club]:
    """Returns a private session in which three peers train."""
    with Swarm(tmp_path_factory.mktemp("club")) as swarm:
        swarm.tracker("--private")
        torrent = swarm.create(SPEC, "digits", *LONG, options=["--private"])
        file = session_format.decode(torrent.read_bytes())
        key = torrent.with_suffix(".author.pem")
        assert key.stat().st_mode & 0o777 == 0o600
        club = Club(swarm, torrent, file, Identity.load_or_create(key), [])
        club.peers = [club.join(f"peer-{number}", number) for number in range(3)]
        ready = "two rounds together"
        wait_until(lambda: min(one.last_round() for one in club.peers) >= 2, PATIENCE_S, ready)
        yield club


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused_in_the_handshake_and_named(club: Club, stranger: str) -> None:
    session_id = "cd" * 32 if stranger == "elsewhere" else club.file.id
    club.refused(stranger, session_id, UNKNOWN)


def test_whoever_joins_without_a_good_invitation_is_told_what_to_do(club: Club) -> None:
    folder = club.swarm.folder
    given = invite(
        club.author.private_key,
        session_id=club.file.id,
        peer_id=club.id("expired"),
        not_after_s=int(time.time()) - 60,
    )
    paper = folder / "old.invitation"
    paper.write_text(to_text(given))
    elsewhere = folder / "other.torrent"
    session = msgspec.structs.replace(club.file.session, seed=2)
    elsewhere.write_bytes(replace(club.file, session=session).encode())
    ask = "ask the author of the session for one, for the id of your key: [0-9a-f]{64}"
    for torrent, name, shown, words in (
        (club.torrent, "expired", [paper], "the invitation ended at"),
        (club.torrent, "uninvited", [], "--invitation is missing"),
        (club.torrent, "uninvited", [folder / "peer-0.invitation"], "it is for peer"),
        (elsewhere, "expired", [paper], "for another session"),
    ):
        where = ["--identity", club.key(name), "--run-dir", folder / "none"]
        papers = ["--invitation", *shown] if shown else []
        done = p2pl("join", torrent, "--data", "digits", *where, *papers)
        assert done.returncode == 2
        assert words in done.stderr
        assert re.search(ask, done.stderr), done.stderr


def test_a_late_joiner_and_one_that_resumes_are_admitted(club: Club) -> None:
    one, other, _ = club.peers
    assert other.stop(signal.SIGINT) == 130, other.text()
    before = other.last_round()
    again, late = club.join(other.name, 1), club.join("late", 2)
    club.peers = [one, again, club.peers[2]]
    for peer in (again, late):
        wait_until(lambda p=peer: p.last_round() > before + 1, PATIENCE_S, peer.text())  # type: ignore[misc]
        assert peer.rounds()[-1]["received"]
    news = {club.id("late"), club.id(again.name)}
    wait_until(lambda: news & set(one.rounds()[-1]["received"]), PATIENCE_S, one.text())
    late.kill()


def test_whoever_is_revoked_is_refused_from_then_on_and_told(club: Club) -> None:
    one, other, leaver = club.peers
    gone = club.id(leaver.name)
    done = p2pl("revoke", club.torrent, "--peer", gone)
    assert done.returncode == 0, done.stderr
    told = "the author has taken back 1 invitation (list 1)"
    wait_until(lambda: told in one.text() and told in other.text(), PATIENCE_S, one.text())
    club.refused(
        leaver.name, club.file.id, "its invitation was taken back by the author of the session"
    )
    wait_until(lambda: "ask the author" in str(leaver.rounds()), PATIENCE_S, leaver.text())
    for peer in (one, other):
        before = peer.last_round()
        reached = f"a round after {before}"
        wait_until(lambda p=peer, b=before: p.last_round() > b + 2, PATIENCE_S, reached)  # type: ignore[misc]
        assert gone not in peer.rounds()[-1]["received"]
        assert peer.stop(signal.SIGINT) == 130
    again = p2pl("invite", club.torrent, "--peer", gone)
    assert again.returncode == 2
    assert "it needs a new key" in again.stderr
    leaver.kill()  # who would train on, by itself, beside the tests that follow


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Returns one tracker for all kinds; it has not been told of any session."""
    with Swarm(tmp_path_factory.mktemp("tracker")) as swarm:
        swarm.tracker()
        yield swarm


def test_the_author_runs_a_relay_and_invitations_are_tickets_to_it(tmp_path: Path) -> None:
    author = Identity.load_or_create(tmp_path / "club.author.pem")  # `create` takes it as it is
    with Swarm(tmp_path) as swarm:
        swarm.tracker("--private")
        words = ["relay", "--port", "0", "--author", author.public_key.hex()]
        relay = swarm.start("relay", [str(BIN / "p2pl-tracker"), *words])
        wait_until(lambda: "relaying on" in relay.text() or relay.is_over, PATIENCE_S, "relay")
        where = relay.text().split()[-1]
        changes = (("rounds = 20", "rounds = 2"), ("min_peers = 6", "min_peers = 2"))
        options = ["--private", "--relay-url", where]
        torrent = swarm.create(SPEC, "club", *changes, options=options)
        file = session_format.decode(torrent.read_bytes())
        assert file.relays == (where,)
        peers = []
        for number in range(2):
            key, paper = (tmp_path / f"{number}.{suffix}" for suffix in ("pem", "invitation"))
            who = Identity.load_or_create(key).peer_id
            given = invite(author.private_key, session_id=file.id, peer_id=who)
            paper.write_text(to_text(given))
            shown = ["--data", "digits", "--shard", f"{number}/2", "--relay", "always"]
            shown += ["--invitation", str(paper), "--identity", str(key)]
            peers.append(swarm.peer(f"peer-{number}", torrent, *shown))
        for peer in peers:
            peer.succeed(PATIENCE_S)
            assert [len(entry["received"]) for entry in peer.rounds()] == [1, 1], peer.text()
            assert peer.summary()["bytes_relayed"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_exchange_work_in_a_private_session(
    tracker: Swarm, tmp_path: Path, kind: str
) -> None:
    swarm = Swarm(tmp_path)
    swarm.port = tracker.port
    author = Identity.generate()
    open_file = session_file(swarm, kind=kind, rounds=3, cohort=2, min_peers=3, wait_s=1.0)
    rule = {"raft": "samples", "gossip": "age"}.get(kind, "uniform")
    session = msgspec.structs.replace(
        open_file.session, private=True, author=author.public_key.hex(), mixing=Mixing(rule=rule)
    )
    payload, promised = build(session)
    file = replace(open_file, session=session, checkpoint=promised)
    (swarm.folder / file.checkpoint_name).write_bytes(payload)

    def invited(name: str) -> Invitation:
        (swarm.folder / name).mkdir(exist_ok=True)
        who = Identity.load_or_create(swarm.folder / name / "identity.pem").peer_id
        return invite(author.private_key, session_id=file.id, peer_id=who)

    async def together() -> list[Summary]:
        names = [f"peer-{number}" for number in range(3)]
        runs = [
            run(swarm, file, name, view=Watching(), seeding_s=1.0, invitation=invited(name))
            for name in names
        ]
        return list(await asyncio.gather(*runs))

    ids = set()
    for summary in asyncio.run(together()):
        ids.add(summary.peer_id)
        assert (summary.state, summary.rounds) == ("finished", 3)
        assert summary.peers_met
    assert len(ids) == 3
