"""Gossiping peers as real processes: neighbours without a server."""

from pathlib import Path

import pytest
from support.processes import PATIENCE_S, ROOT, Peer, Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()


GOSSIP = '[exchange.gossip]\nmode = "push-pull"\n\n[mixing]\nrule = "age"'
KIND = (
    ("cohort = 3", 'cohort = 1\nkind = "gossip"'),
    ("min_peers = 6", "min_peers = 3"),
    ("rounds = 20", "rounds = 80"),
    ("start_deadline_s = 60.0", f"start_deadline_s = 60.0\n\n{GOSSIP}"),
)


def start(swarm: Swarm, torrent: Path, *options: str) -> list[Peer]:
    """Starts three peers, each with a random shard of the digits."""
    shard = ("--data", "digits", "--partition", "iid", "--shard")
    return [swarm.peer(f"peer-{i}", torrent, *shard, f"{i}/3", *options) for i in range(3)]


def test_once_they_have_met_peers_gossip_without_any_server(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *KIND)
    peers = start(swarm, torrent, "--seed-for", "3")
    wait_until(lambda: min(p.last_round() for p in peers) >= 2, PATIENCE_S, peers[0].text())
    tracker.kill()
    at = max(peer.last_round() for peer in peers)
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    for peer in peers:
        after = [entry for entry in peer.rounds() if entry["round"] > at + 1]
        assert after
        met = {other for entry in after for other in entry["received"]}
        assert len(met) == 2  # one neighbour at a time, drawn among all I know
        assert any(len(entry["received"]) == 2 for entry in after)  # and who told me
        assert sum(entry["tracker_bytes"] for entry in after) == 0
        assert peer.summary()["accuracy"] > 90
