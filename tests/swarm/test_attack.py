"""Real processes, two of six of them bad: the honest end as well as if they were not there."""

import subprocess
from pathlib import Path
from statistics import fmean

import pytest
from support.processes import BIN, PATIENCE_S, ROOT, Peer, Swarm

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

PEERS = 6
BAD = ("--attack", "sign-flip:-3")


def run(swarm: Swarm, spec: str, data: str, bad: int) -> list[Peer]:
    """Returns the honest ones of six peers, when all are done; the last `bad` lie."""
    swarm.tracker()
    torrent = swarm.create((ROOT / "torrentfiles" / f"{spec}.toml").read_text(), spec)
    peers = [
        swarm.peer(
            f"peer-{index}",
            torrent,
            *("--data", data, "--shard", f"{index}/{PEERS}", "--partition", "iid"),
            *(BAD if index >= PEERS - bad else ()),
        )
        for index in range(PEERS)
    ]
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    return peers[: PEERS - bad]


def weight_of(liars: set[str], peer: Peer, after: int) -> float:
    """Returns how much of the peer's mixes after a round the liars were, 0..1."""
    rows = [entry["trust"] for entry in peer.rounds() if entry["round"] > after]
    return fmean(sum(row.get(liar, 0.0) for liar in liars) for row in rows)


def test_two_of_six_that_lie_are_found_out_and_cost_little(swarm: Swarm) -> None:
    honest = run(swarm, "digits", "digits", 2)
    accuracies = [peer.summary()["accuracy"] for peer in honest]
    # Four alone reach 97 in a simulation, and equal sharing under this attack 59.
    assert min(accuracies) > 94, accuracies
    names = {peer.summary()["peer_id"] for peer in honest}
    met = {other for peer in honest for other in peer.summary()["peers_met"]}
    liars = met - names
    assert len(liars) == 2
    for peer in honest:
        assert weight_of(liars, peer, after=5) < 0.02
        reasons = [r for entry in peer.rounds() for who, r in entry["rejected"].items()]
        assert any("direction" in reason or "damage" in reason for reason in reasons)
        # Once seen through, they are asked again in every tenth round alone.
        asked = [bool(liars & set(entry["cohort"])) for entry in peer.rounds()[5:]]
        assert sum(asked) <= 5, asked  # and a few times more where they were met late


def test_a_liar_may_not_join_the_swarm_of_others(tmp_path: Path) -> None:
    torrent = ROOT / "torrentfiles" / "digits.torrent"
    command = [str(BIN / "p2pl"), "join", str(torrent), "--data", "digits", *BAD]
    command += ["--run-dir", str(tmp_path / "run"), "--tracker", "http://tracker.example:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "tracker.example" in done.stderr
    assert "127.0.0.1" in done.stderr
    shown = subprocess.run([str(BIN / "p2pl"), "join", "--help"], capture_output=True, text=True)
    assert "--attack" not in shown.stdout
