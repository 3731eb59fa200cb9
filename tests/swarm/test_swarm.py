"""A tracker and peers as real processes: they learn together, and survive what happens to them."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from support.processes import BIN, PATIENCE_S, ROOT, Peer, Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
PEERS = 6
# Longer than the published session, so that there is time to kill somebody in the middle of it.
LONG = (("rounds = 20", "rounds = 40"), ("local_epochs = 2", "local_epochs = 8"))


def shard(index: int, peers: int = PEERS) -> tuple[str, ...]:
    """Returns the options of the peer that holds one of `peers` random shards of the digits."""
    return ("--data", "digits", "--partition", "iid", "--shard", f"{index}/{peers}")


def start_all(swarm: Swarm, torrent: Path) -> list[Peer]:
    """Starts six peers."""
    return [swarm.peer(f"peer-{index}", torrent, *shard(index)) for index in range(PEERS)]


def test_six_strangers_end_up_with_one_good_model(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    torrent = swarm.create(SPEC, "digits")
    peers = start_all(swarm, torrent)
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    summaries = [peer.summary() for peer in peers]
    accuracies = [summary["accuracy"] for summary in summaries]
    assert min(accuracies) > 90, accuracies
    assert max(accuracies) - min(accuracies) < 4, accuracies  # one model, not six
    for peer, summary in zip(peers, summaries, strict=True):
        rounds = peer.rounds()
        assert summary["rounds"] == rounds[-1]["round"] == 20
        assert len(summary["peers_met"]) >= 4  # random cohorts of 3 out of 5, for 20 rounds
        assert all(abs(sum(entry["trust"].values()) - 1) < 1e-6 for entry in rounds)
        assert (peer.run_dir / "model.safetensors").stat().st_size > 2_600
    assert tracker.stop() == 0


def test_a_swarm_survives_killed_peers_and_a_killed_tracker(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *LONG)
    peers = start_all(swarm, torrent)
    wait_until(lambda: peers[0].last_round() >= 5, PATIENCE_S, f"round 5\n{peers[0].text()}")
    peers[4].kill()
    peers[5].kill()
    before = peers[4].rounds()
    returned = swarm.late_peer("peer-4", torrent, *shard(4), others=peers[:4])
    wait_until(lambda: peers[0].last_round() >= 8, PATIENCE_S, f"round 8\n{peers[0].text()}")
    tracker.kill()
    wait_until(lambda: peers[0].last_round() >= 12, PATIENCE_S, f"round 12\n{peers[0].text()}")
    swarm.tracker()
    left = [*peers[:4], returned]
    for peer in left:
        assert peer.wait() == 0, peer.text()
    accuracies = [peer.summary()["accuracy"] for peer in left]
    assert min(accuracies) > 90, accuracies
    after = returned.rounds()
    assert before
    assert after[: len(before)] == before  # the log goes on where the killed process left it
    # On a busy machine it may be back only when the others are done, and has their last model.
    assert after[-1]["round"] == 40 or "the swarm is at round 40" in returned.text()
    assert returned.summary()["rounds"] == 40


def test_a_late_peer_takes_the_swarms_model_and_ends_with_the_others(swarm: Swarm) -> None:
    swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *LONG)
    peers = start_all(swarm, torrent)
    wait_until(lambda: peers[0].last_round() >= 10, PATIENCE_S, f"round 10\n{peers[0].text()}")
    late = swarm.late_peer("late", torrent, *shard(0, 7), others=peers)
    for peer in (*peers, late):
        assert peer.wait() == 0, peer.text()
    assert late.rounds()[0]["round"] > 10
    others = [peer.summary()["accuracy"] for peer in peers]
    assert late.summary()["accuracy"] > min(others) - 2


def test_ctrl_c_leaves_properly_and_the_same_command_resumes(swarm: Swarm) -> None:
    swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *LONG, ("min_peers = 6", "min_peers = 2"))
    one = swarm.peer("one", torrent, *shard(0))
    other = swarm.peer("other", torrent, *shard(1))
    wait_until(lambda: one.last_round() >= 3, PATIENCE_S, f"round 3\n{one.text()}")
    assert one.stop(signal.SIGINT) == 130, one.text()
    before = one.rounds()
    assert one.summary()["state"] == "interrupted"
    again = swarm.peer("one", torrent, *shard(0))
    assert again.wait() == 0, again.text()
    assert other.wait() == 0, other.text()
    assert again.rounds()[: len(before)] == before
    assert again.summary()["rounds"] == 40
    assert again.summary()["peer_id"] == one.summary()["peer_id"]


def test_bad_peers_are_named_and_cost_only_themselves(swarm: Swarm) -> None:
    swarm.tracker()
    spec = (("min_peers = 6", "min_peers = 8"), ("cohort = 3", "cohort = 7"))
    deadline = ("start_deadline_s = 60.0", "start_deadline_s = 200.0\npull_deadline_s = 3.0")
    torrent = swarm.create(SPEC, "digits", *spec, deadline)
    checkpoint = torrent.with_name("digits.safetensors")
    script = Path(__file__).with_name("bad_peers.py")
    peers = [swarm.peer(f"peer-{index}", torrent, *shard(index, 4)) for index in range(4)]
    # Who fails rests, the longer the oftener: those who wait for a slow peer must not meet the bad
    # ones all the while, or these would rest until all is over.
    here = "waiting for peers: 4 of 8"
    wait_until(lambda: all(here in peer.text() for peer in peers), PATIENCE_S, here)
    for kind in ("garbage", "nan", "stall", "liar"):
        options = ["--torrent", str(torrent), "--checkpoint", str(checkpoint)]
        swarm.start(kind, [sys.executable, str(script), kind, *options, "--tracker", swarm.url])
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    for peer in peers:
        rounds = peer.rounds()
        reasons = {reason for entry in rounds for reason in entry["rejected"].values()}
        assert len({bad for entry in rounds for bad in entry["rejected"]}) >= 4, reasons
        assert any("NaN" in reason for reason in reasons), reasons
        nonsense = [entry for entry in rounds if "NaN" in str(entry["rejected"])]
        assert len(nonsense) < len(rounds) / 2  # who answers nonsense is soon asked less often
        assert median(entry["seconds"] for entry in rounds) < 3.0  # no deadline in most of them
        assert peer.summary()["accuracy"] > 88


def test_without_a_tracker_the_exit_code_is_3_and_nothing_is_left_half_done(swarm: Swarm) -> None:
    torrent = swarm.create(SPEC, "digits")
    peer = swarm.peer("peer", torrent, *shard(0))
    assert peer.wait() == 3, peer.text()
    assert swarm.url in peer.text()
    assert peer.rounds() == []


def test_a_peer_alone_needs_nobody(swarm: Swarm) -> None:
    torrent = swarm.create(SPEC, "digits")
    peer = swarm.peer("peer", torrent, *shard(0), "--alone", "--rounds", "3")
    assert peer.wait() == 0, peer.text()
    assert [entry["round"] for entry in peer.rounds()] == [1, 2, 3]
    assert peer.summary()["bytes_in"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "digits", "--shard", "7/6"), "--shard"),
        (("--data", "digits", "--partition", "magic", "--shard", "0/6"), "--partition"),
        (("--data", "./nowhere"), "--data"),
        (("--data", "digits", "--device", "abacus"), "--device"),
        (("--data", "digits", "--precision", "half"), "--precision"),
        (("--data", "digits", "--tracker", "ftp://x"), "--tracker"),
        (("--data", "digits", "--listen", "nonsense"), "--listen"),
    ],
)
def test_wrong_options_end_with_2_and_say_why(
    swarm: Swarm, options: tuple[str, ...], words: str
) -> None:
    torrent = swarm.create(SPEC, "digits")
    where = str(swarm.folder / "run")
    command = [str(BIN / "p2pl"), "join", str(torrent), "--run-dir", where, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "got" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_ends_with_2(swarm: Swarm) -> None:
    torrent = swarm.create(SPEC, "digits")
    swarm.tracker()
    listen = ("--listen", f"127.0.0.1:{swarm.port}", "--run-dir", str(swarm.folder / "run"))
    command = [str(BIN / "p2pl"), "join", str(torrent), *shard(0), *listen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2, done.stderr
    assert str(swarm.port) in done.stderr


def test_a_tampered_checkpoint_is_refused_in_words(swarm: Swarm) -> None:
    torrent = swarm.create(SPEC, "digits")
    checkpoint = torrent.with_name("digits.safetensors")
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(data)
    peer = swarm.peer("peer", torrent, *shard(0), "--alone")
    assert peer.wait() == 2, peer.text()
    assert "root" in peer.text()


def test_a_run_directory_belongs_to_one_session(swarm: Swarm) -> None:
    torrent = swarm.create(SPEC, "digits")
    assert swarm.peer("peer", torrent, *shard(0), "--alone", "--rounds", "1").wait() == 0
    other = swarm.create(SPEC, "digits", ("seed = 1", "seed = 2"), options=["--force"])
    peer = swarm.peer("peer", other, *shard(0), "--alone", "--rounds", "1")
    assert peer.wait() == 2, peer.text()
    assert "--run-dir" in peer.text()


def test_inspect_shows_what_create_made(swarm: Swarm) -> None:
    torrent = swarm.create(SPEC, "digits")
    command = [str(BIN / "p2pl"), "inspect", str(torrent), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    shown = json.loads(done.stdout)
    assert shown["name"] == "digits"
    assert shown["trackers"] == [[swarm.url]]
    assert shown["p2pl"]["mixing"]["rule"] == "degroot"
    assert shown["checkpoint"]["bytes"] == torrent.with_name("digits.safetensors").stat().st_size
