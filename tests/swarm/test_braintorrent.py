"""Three BrainTorrent peers as real processes: each version travels once to each of the others."""

import re
from itertools import groupby
from pathlib import Path

import pytest
from support.processes import PATIENCE_S, ROOT, Peer, Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
KIND = (
    ("cohort = 3", 'cohort = 3\nkind = "braintorrent"'),
    ("min_peers = 6", "min_peers = 3"),
    ("rounds = 20", "rounds = 6"),
    ("seed = 1", 'seed = 1\n\n[mixing]\nrule = "samples"'),
)


def join(swarm: Swarm, torrent: Path, index: int, *options: str) -> Peer:
    """Starts the peer that holds one of three random shards of the digits."""
    shard = ("--data", "digits", "--partition", "iid", "--shard", f"{index}/3")
    return swarm.peer(f"peer-{index}", torrent, *shard, *options)


def versions_used(peer: Peer, other: str) -> list[int]:
    """Returns the versions of another peer that a peer has merged, in order.

    The last version of all is merged in every round, and counts once.
    """
    in_rounds = [entry["versions"][other] for entry in peer.rounds() if other in entry["versions"]]
    later = re.findall(rf"merged version (\d+) of {other[:8]}", peer.text())
    return [version for version, _ in groupby([*in_rounds, *map(int, later)])]


def test_each_version_is_fetched_exactly_once_by_each_other_peer(swarm: Swarm) -> None:
    swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *KIND)
    # The third needs news for each round, and the others have twelve for it: it goes on fine-tuning
    # when they only listen.
    peers = [join(swarm, torrent, index, "--rounds", "6") for index in range(2)]
    third = join(swarm, torrent, 2, "--rounds", "20")
    for peer in (*peers, third):
        assert peer.wait() == 0, peer.text()
    bumped = third.summary()["peer_id"]
    size = torrent.with_name("digits.safetensors").stat().st_size
    for peer in peers:
        used = versions_used(peer, bumped)
        assert used == sorted(set(used)), used  # none twice
        assert used[-1] == 20
        assert f"merged version 20 of {bumped[:8]}" in peer.text()
        assert peer.summary()["accuracy"] > 85
    for peer in (*peers, third):
        last: dict[str, int] = {}  # a last version is merged in every round, and fetched once
        for entry in peer.rounds():
            for other in entry["cohort"]:
                received, sent = entry["bytes_by_peer"].get(other, (0, 0))
                fetched = other in entry["versions"] and entry["versions"][other] != last.get(other)
                last |= {other: entry["versions"][other]} if fetched else {}
                # A fetch is the model and its headers; else there were only polls.
                assert received // size == fetched, (entry["round"], received)
                polls = 2 + 4 * entry["seconds"]  # of mine, and at least as many of the other's
                assert fetched or received < 200 * 2 * polls, (entry["round"], received, sent)


def test_a_peer_that_was_killed_comes_back_and_fetches_nothing_twice(swarm: Swarm) -> None:
    swarm.tracker()
    rounds = ("rounds = 6", "rounds = 24")
    torrent = swarm.create(SPEC, "digits", *KIND, rounds, ("local_epochs = 2", "local_epochs = 4"))
    peers = [join(swarm, torrent, index) for index in range(3)]
    gone = peers[2]
    wait_until(lambda: gone.last_round() >= 4, PATIENCE_S, f"round 4\n{gone.text()}")
    gone.kill()
    before = gone.rounds()
    at = peers[0].last_round()
    wait_until(lambda: peers[0].last_round() >= at + 4, PATIENCE_S, f"four more\n{peers[0].text()}")
    shard = ("--data", "digits", "--partition", "iid", "--shard", "2/3")
    back = swarm.late_peer("peer-2", torrent, *shard, others=peers[:2])
    for peer in (*peers[:2], back):
        assert peer.wait() == 0, peer.text()
    assert back.rounds()[: len(before)] == before
    ids = [peer.summary()["peer_id"] for peer in (*peers[:2], back)]
    for mine, peer in zip(ids, (*peers[:2], back), strict=True):
        for other in set(ids) - {mine}:
            used = versions_used(peer, other)
            assert used == sorted(set(used)), (peer.name, other, used)
            assert used[-1] == 24  # the newest of all has arrived everywhere
        assert peer.summary()["accuracy"] > 90
    assert len([entry for entry in peers[0].rounds() if ids[2] in entry["left"]]) == 1
    # Once at the start, and once more if the others still trained when it was back.
    assert len([entry for entry in peers[0].rounds() if ids[2] in entry["joined"]]) in (1, 2)
