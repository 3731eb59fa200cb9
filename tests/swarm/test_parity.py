"""The simulator and the network are one program: in lockstep they compute the same parameters."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.processes import ROOT, Swarm

from p2pl.data.load import load
from p2pl.network.keys import Identity
from p2pl.protocol import session
from p2pl.simulation.engine import Result, run
from p2pl.simulation.setup import Setup

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(600)]

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
PEERS = 4
PARTITION = "dirichlet:0.1"  # labels skewed enough that a learned row is not an equal one
RULES = {
    "degroot": 'rule = "degroot"\ntrust_gate = 0.0\nwarmup_rounds = 0',
    "uniform": 'rule = "uniform"',
}
IN_STEP = (
    ("rounds = 20", "rounds = 5\nlockstep = true\nwait_s = 30.0"),
    ("learning_rate = 0.1", 'learning_rate = 0.1\nschedule = "cosine"'),
    ("min_peers = 6", "min_peers = 4"),
    ("start_deadline_s = 60.0", "start_deadline_s = 120.0"),  # four start at once, on few cores
)


@pytest.mark.parametrize("rule", RULES)
def test_a_swarm_in_lockstep_and_a_simulation_give_the_same_parameters(
    swarm: Swarm, rule: str
) -> None:
    swarm.tracker()
    torrent = swarm.create(f"{SPEC}\n[mixing]\n{RULES[rule]}\n", "digits", *IN_STEP)
    ids = [_identity(swarm.folder / f"peer-{number}") for number in range(PEERS)]
    shards = ("--data", "digits", "--partition", PARTITION, "--partition-seed", "3", "--shard")
    peers = [
        swarm.peer(f"peer-{number}", torrent, *shards, f"{number}/{PEERS}")
        for number in range(PEERS)
    ]
    for peer in peers:
        assert peer.wait() == 0, peer.text()
    simulated = _simulated(torrent, tuple(ids))
    for number, peer in enumerate(peers):
        rounds = peer.rounds()
        assert [len(entry["received"]) for entry in rounds] == [PEERS - 1] * 5, rounds
        for entry, one in zip(rounds, simulated.rounds, strict=True):
            assert entry["trust"] == pytest.approx(dict(one.entries[number].trust), abs=1e-5)
        learner = simulated.learners[number]
        ours = load_file(peer.run_dir / "model.safetensors")
        theirs = learner.trainer.layout.unflatten(simulated.vectors[number])
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
    rows = [entry["trust"] for peer in peers for entry in peer.rounds()]
    weights = {weight for row in rows for weight in row.values()}
    assert (weights == {1 / PEERS}) == (rule == "uniform"), weights


def _identity(run_dir: Path) -> str:
    """Returns the id of the peer that will run in this directory."""
    run_dir.mkdir()
    return Identity.load_or_create(run_dir / "identity.pem").peer_id


def _simulated(torrent: Path, ids: tuple[str, ...]) -> Result:
    """Returns the simulation of the same peers, with their shards, in the same session."""
    file = session.decode(torrent.read_bytes())
    setup = Setup(
        session=file.session,
        session_id=file.id,
        peers=PEERS,
        partition=PARTITION,
        partition_seed=3,
        peer_ids=ids,
        engine="sequential",  # as a peer computes; stacked, it rounds otherwise, and that can grow
    )
    return run(setup, load("digits", file.session.task), torch.device("cpu"))
