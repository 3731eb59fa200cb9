"""One site that trains ten times longer than the others, with real processes and sockets."""

import sys
from pathlib import Path

import pytest
from support.processes import ROOT, Peer, Swarm

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
SCRIPT = Path(__file__).with_name("slow_peer.py")
PEERS, ROUNDS = 3, 24
CHANGES = (
    ("rounds = 20", f"rounds = {ROUNDS}\nwait_s = 3.0\n"),
    ("cohort = 3", f"cohort = {PEERS - 1}"),
    ("min_peers = 6", f"min_peers = {PEERS}"),
    ("start_deadline_s = 60.0", "start_deadline_s = 120.0"),  # three start at once, on few cores
)


def peer(swarm: Swarm, torrent: Path, number: int, *others: Path) -> Peer:
    """Returns one peer, whose training lasts as long as ten rounds of these others."""
    run_dir = swarm.folder / f"peer-{number}"
    words = [str(torrent), f"{number}/{PEERS}", str(run_dir), *map(str, others)]
    running = swarm.start(f"peer-{number}", [sys.executable, str(SCRIPT), *words])
    return Peer(running.name, running.process, running.output, running.stream, run_dir)


def test_a_site_ten_times_slower_takes_part_in_a_third_of_the_rounds_and_is_named_in_the_others(
    swarm: Swarm,
) -> None:
    swarm.tracker()
    torrent = swarm.create(f'{SPEC}\n[mixing]\nrule = "uniform"\n', "digits", *CHANGES)
    fast = [peer(swarm, torrent, number) for number in range(1, PEERS)]
    slow = peer(swarm, torrent, 0, fast[0].run_dir)
    for one in (*fast, slow):
        one.succeed()
    who = slow.summary()["peer_id"]
    for one in fast:
        # Until the slow one has gone over its last round, or this one has.
        rounds = one.rounds()
        took_part = [entry["trust"].get(who, 0.0) > 0 for entry in rounds]
        assert sum(took_part) >= len(rounds) / 3, [entry["rejected"] for entry in rounds]
        without = [entry for entry, took in zip(rounds, took_part, strict=True) if not took]
        for entry in without:
            assert who in entry["rejected"] or who in entry["resting"], entry
        told = one.summary()["left_out"].get(who, {"times": 0, "rounds": []})
        assert told["times"] == len(without)
        assert told["rounds"] == [entry["round"] for entry in without][:20]
        assert not without or told["why"]
    # On its own, each of its rounds is of many of theirs, and ends where theirs are.
    assert slow.last_round() == ROUNDS
    assert len(slow.rounds()) <= ROUNDS
