"""Five raft peers as real processes: the leader dies, the network is cut, and they go on."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.networks import HUB, Cables
from support.processes import BIN, PATIENCE_S, ROOT, Peer, Running, Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
PEERS = 5
KIND = (
    ("cohort = 3", 'cohort = 1\nkind = "raft"\nwait_s = 1.0'),
    ("min_peers = 6", f"min_peers = {PEERS}"),
    ("local_epochs = 2", "local_epochs = 4"),
    ("seed = 1", 'seed = 1\n\n[mixing]\nrule = "samples"'),
)


def shard(index: int) -> list[str]:
    return ["--data", "digits", "--partition", "iid", "--shard", f"{index}/{PEERS}"]


def events(peer: Peer, *kinds: str) -> list[dict[str, Any]]:
    """Returns what a peer has written down so far, of these kinds."""
    path = peer.run_dir / "raft.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] in kinds]


def leader_of(peers: list[Peer]) -> Peer | None:
    """Returns the peer that leads the latest term that anybody leads."""
    roles = [(events(peer, "role")[-1], peer) for peer in peers if events(peer, "role")]
    leading = [(role["term"], peer.name) for role, peer in roles if role["role"] == "leader"]
    by_name = {peer.name: peer for peer in peers}
    return by_name[max(leading)[1]] if leading else None


def reached(peers: list[Peer], round_index: int) -> bool:
    return all(peer.last_round() >= round_index for peer in peers)


def decided(peers: list[Peer]) -> dict[int, set[int]]:
    """Returns the terms in which each round's model was decided."""
    rounds: dict[int, set[int]] = {}
    for peer in peers:
        for event in events(peer, "decided"):
            rounds.setdefault(event["round"], set()).add(event["term"])
    return rounds


def check_one_leader_a_term(peers: list[Peer]) -> None:
    leaders: dict[int, set[str]] = {}
    for peer in peers:
        for event in events(peer, "role"):
            if event["role"] == "leader":
                leaders.setdefault(event["term"], set()).add(event["peer"])
    assert all(len(who) == 1 for who in leaders.values()), leaders


def check_same_model(peers: list[Peer]) -> None:
    models = {(peer.run_dir / "model.safetensors").read_bytes() for peer in peers}
    assert len(models) == 1


def test_a_dead_leader_is_followed_by_another_and_training_goes_on(swarm: Swarm) -> None:
    swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *KIND, ("rounds = 20", "rounds = 30"))
    peers = [swarm.peer(f"peer-{index}", torrent, *shard(index)) for index in range(PEERS)]
    wait_until(lambda: reached(peers, 3), PATIENCE_S, "three rounds")
    leader = leader_of(peers)
    assert leader is not None
    rest = [peer for peer in peers if peer is not leader]
    killed_s = time.time()
    leader.kill()
    # Usually half a second later; votes may be split, and a busy machine stand still.
    wait_until(lambda: leader_of(rest) is not None, 30, "another leader")
    # The dead one comes back, and fetches what it missed.
    died_at = leader.last_round()
    wait_until(lambda: reached(rest, died_at + 2), PATIENCE_S, "rounds without the dead leader")
    mine = shard(peers.index(leader))
    back = swarm.late_peer(leader.name, torrent, *mine, others=rest)
    rest.append(back)
    for peer in rest:
        assert peer.wait() == 0, peer.text()
        assert peer.summary()["rounds"] == 30
        assert peer.summary()["accuracy"] > 90
    assert [event for event in events(back, "fetched") if event["time"] > killed_s]
    check_same_model(rest)
    check_one_leader_a_term(rest)
    assert all(len(terms) == 1 for terms in decided(rest).values()), "a round decided twice"


@pytest.fixture
def cables() -> Iterator[Cables]:
    """Returns a network of five hosts that can be cut; skips where there is none to be had."""
    try:
        laid = Cables(PEERS)
    except OSError as fault:
        pytest.skip(str(fault))
    yield laid
    laid.close()


def start_on(swarm: Swarm, cables: Cables, index: int, torrent: Path) -> Peer:
    """Starts a peer on a host of its own."""
    run_dir = swarm.folder / f"peer-{index}"
    listen = ["--listen", f"{cables.address(index)}:0", "--run-dir", str(run_dir)]
    command = [str(BIN / "p2pl"), "join", str(torrent), *listen, *shard(index)]
    started = swarm.start(f"peer-{index}", cables.on(index, command))
    return Peer(started.name, started.process, started.output, started.stream, run_dir)


def start_tracker_on(swarm: Swarm, cables: Cables) -> Running:
    command = [str(BIN / "p2pl-tracker"), "serve", "--host", HUB, "--port", str(swarm.port)]
    tracker = swarm.start("tracker", cables.on(None, command))
    wait_until(lambda: f"http://{HUB}" in tracker.text(), PATIENCE_S, "tracker ready")
    return tracker


def test_a_minority_decides_nothing_and_the_healed_network_has_one_leader(
    swarm: Swarm, cables: Cables
) -> None:
    start_tracker_on(swarm, cables)
    here = swarm.create(SPEC, "digits", *KIND, ("rounds = 20", "rounds = 40"))
    torrent = swarm.folder / "there.torrent"
    toml, url = str(here.with_suffix(".toml")), f"http://{HUB}:{swarm.port}"
    create = ["create", toml, "--out", str(torrent), "--tracker", url]
    assert swarm.start("create", [str(BIN / "p2pl"), *create]).wait() == 0
    shutil.copy(here.with_suffix(".safetensors"), torrent.with_suffix(".safetensors"))
    peers = [start_on(swarm, cables, index, torrent) for index in range(PEERS)]
    wait_until(lambda: reached(peers, 3), PATIENCE_S, "three rounds")
    leader = leader_of(peers)
    assert leader is not None
    first = peers.index(leader)
    few = [first, (first + 1) % PEERS]
    minority = [peers[index] for index in few]
    majority = [peer for peer in peers if peer not in minority]
    cables.cut_off(few)
    at = max(peer.last_round() for peer in minority)
    wait_until(lambda: reached(majority, at + 3), PATIENCE_S, "rounds of the majority")
    healed_s = time.time()
    for peer in minority:
        # A majority's results may have come before the cut; what is made of them is the last.
        logged = events(peer, "decided", "aggregated", "fetched")
        assert max(event["round"] for event in logged) <= at + 1, logged
        assert peer.last_round() <= at + 1
    cables.mend(few)
    wait_until(lambda: leader_of(peers) in majority, PATIENCE_S, "the majority's leader")
    for peer in peers:
        assert peer.wait() == 0, peer.text()
        assert peer.summary()["rounds"] == 40
    for peer in minority:
        assert [event for event in events(peer, "fetched") if event["time"] > healed_s]
    check_same_model(peers)
    check_one_leader_a_term(peers)
    assert all(len(terms) == 1 for terms in decided(peers).values()), "a round decided twice"
