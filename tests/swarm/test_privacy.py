"""Real processes that train privately: no log ever shows more than the budget."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.processes import PATIENCE_S, ROOT, Peer, Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

EPSILON = 3.0
SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
PRIVATE = (
    ('name = "mlp"\narguments = { hidden = [64] }', 'name = "logreg"'),
    ("batch_size = 16", "batch_size = 32"),
    ("momentum = 0.9\n", ""),
    ("rounds = 20", "rounds = 25"),
    ("min_peers = 6", "min_peers = 3"),
    ("cohort = 3", "cohort = 2"),
)
DEMANDED = ("[exchange]", f"[privacy]\nrequired = true\nmax_epsilon = {EPSILON}\n\n[exchange]")


def options(index: int) -> tuple[str, ...]:
    """Returns the options of a peer with a third of the digits."""
    shard = ("--data", "digits", "--shard", f"{index}/3")
    return (*shard, "--dp-epsilon", str(EPSILON), "--dp-clip", "0.5")


def is_waiting(text: Callable[[], str]) -> bool:
    """Returns whether a peer has said that it waits for others."""
    return "waiting for peers" in text()


def epsilons(peer: Peer) -> list[float]:
    """Returns what each round's log says was spent."""
    return [entry["epsilon"] for entry in peer.rounds()]


def steps(peer: Peer) -> int:
    """Returns how many steps the accounts on disk have paid for."""
    told: dict[str, Any] = json.loads((peer.run_dir / "privacy.json").read_text())
    return sum(charge["steps"] for charge in told["accounts"]["training"]["spent"])


def test_no_peer_spends_more_than_its_budget_though_it_is_killed_and_comes_back(
    swarm: Swarm,
) -> None:
    swarm.tracker()
    long = (("rounds = 25", "rounds = 16"), ("local_epochs = 2", "local_epochs = 20"))
    torrent = swarm.create(SPEC, "digits", *PRIVATE, DEMANDED, *long)
    a_round = 20 * 12  # epochs of the 384 examples to train on, in batches of 32
    peers = [swarm.peer(f"peer-{index}", torrent, *options(index)) for index in range(3)]
    for _ in range(2):  # the first one is killed in the middle of a round, and again
        killed = peers[0]
        seen = killed.last_round()
        wait_until(lambda: killed.last_round() > seen, PATIENCE_S, f"round {seen + 1}")  # noqa: B023
        wait_until(lambda: steps(killed) > a_round * len(killed.rounds()), PATIENCE_S, "begun")  # noqa: B023
        killed.kill()
        paid = steps(killed)
        assert paid > a_round * len(killed.rounds())  # the round that nobody ever saw is paid for
        peers[0] = swarm.late_peer("peer-0", torrent, *options(0), others=peers[1:])
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    for peer in peers:
        spent = epsilons(peer)
        assert spent == sorted(spent)
        # A round that was paid for and never seen is in the summary, and in no log line.
        assert 0 < spent[-1] <= peer.summary()["epsilon"] <= EPSILON
    mine = peers[0].rounds()
    # Where the others were done before it was back, it took their model, and no round of its own.
    assert peers[0].summary()["rounds"] == 16
    # More than the rounds that are seen: what it had paid for when it was killed stays paid for.
    assert steps(peers[0]) > a_round * sum(1 for entry in mine if entry["samples"])
    assert steps(peers[1]) == pytest.approx(16 * a_round, rel=0.1)
    accuracies = [peer.summary()["accuracy"] for peer in peers]
    assert min(accuracies) > 60, accuracies


def test_a_peer_whose_budget_is_spent_goes_on_serving_and_mixing(swarm: Swarm) -> None:
    swarm.tracker()
    torrent = swarm.create(SPEC, "digits", *PRIVATE, ("rounds = 25", "rounds = 12"))
    # It planned for 4 rounds, and then stays for all 12.
    short = swarm.peer("peer-0", torrent, *options(0), "--rounds", "4", "--alone")
    assert short.wait() == 0, short.text()
    # A run that was alone may not go on with others: from here on, it was not.
    marker = short.run_dir / "session.json"
    marker.write_text(json.dumps(json.loads(marker.read_bytes()) | {"alone": False}))
    # The others wait for it before their first round; else it may be done before they begin.
    others = [swarm.peer(f"peer-{index}", torrent, *options(index)) for index in (1, 2)]
    for text in [peer.text for peer in others]:
        wait_until(partial(is_waiting, text), PATIENCE_S, "waiting")
    peers = [swarm.peer("peer-0", torrent, *options(0)), *others]
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    mine = peers[0].rounds()
    after = [entry for entry in mine if entry["round"] > 4]
    assert after
    assert all(entry["samples"] == 0 for entry in after[1:])
    assert all(entry["epsilon"] <= EPSILON for entry in mine)
    assert any(entry["received"] for entry in after)
    pulled_from_me = [
        peers[0].summary()["peer_id"] in entry["received"] for entry in peers[1].rounds()
    ]
    assert any(pulled_from_me)
    assert len({round(peer.summary()["accuracy"], -1) for peer in peers}) <= 2  # one model


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "this session demands differential privacy"),
        (("--dp-epsilon", "8"), "allowed at most 3, which the session demands"),
        (("--dp-epsilon", "0"), "epsilon: got 0.0, allowed above 0"),
        (("--dp-epsilon", "3", "--dp-delta", "0.01"), "below 1/n"),
    ],
)
def test_what_is_not_private_enough_ends_before_anything_is_sent(
    swarm: Swarm, more: tuple[str, ...], message: str
) -> None:
    torrent = swarm.create(SPEC, "digits", *PRIVATE, DEMANDED)
    peer = swarm.peer("peer-0", torrent, "--data", "digits", "--shard", "0/3", *more)
    assert peer.wait() == 2
    assert message in peer.text()
    assert "Traceback" not in peer.text()
