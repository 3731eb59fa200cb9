"""A peer that shows two histories, or serves what it has not committed to, among honest peers.

Real peers over real sockets, with a real tracker: five honest ones, and one liar that signs one
update log for some of them and another one for the others.
"""

import asyncio

import msgspec
import pytest
from support.hostile import Hostile, Lie, hostile
from support.joins import Watching, run_with, session_file
from support.processes import Swarm

from p2pl.api.card import card_of
from p2pl.api.ledger import verified
from p2pl.api.run import load as load_run
from p2pl.data.load import Shard, load
from p2pl.learning.checkpoint import build
from p2pl.protocol.session import Mixing, SessionFile
from p2pl.protocol.updates.fault import fault_in
from p2pl.run.log import RoundEntry, Summary, read_run

pytestmark = pytest.mark.swarm
HONEST = 5
ROUNDS = 5


def logged(swarm: Swarm, kind: str, seed: int) -> tuple[SessionFile, bytes]:
    """Returns a session of six whose peers keep update logs, and its initial checkpoint."""
    many = {"cohort": HONEST, "min_peers": HONEST + 1, "pull_deadline_s": 20.0, "wait_s": 4.0}
    file = session_file(swarm, kind=kind, rounds=ROUNDS, **many)
    rule = Mixing(rule="age" if kind == "gossip" else "uniform")
    session = msgspec.structs.replace(file.session, seed=seed, mixing=rule, ledger=True)
    payload, promised = build(session)
    return SessionFile("digits", session, promised, trackers=((swarm.url,),)), payload


async def among(
    swarm: Swarm, file: SessionFile, payload: bytes, lie: Lie
) -> tuple[list[str], Hostile, str]:
    """Returns the ids of the honest peers, the liar, and all that the honest were shown."""
    views = [Watching() for _ in range(HONEST)]
    async with hostile(lie, file, swarm.url, payload) as liar:
        done = await asyncio.gather(
            *(one_peer(swarm, file, number, view) for number, view in enumerate(views))
        )
    return [one.peer_id for one in done], liar, "".join(view.text.getvalue() for view in views)


async def one_peer(swarm: Swarm, file: SessionFile, number: int, view: Watching) -> Summary:
    """Returns how one honest peer ends."""
    run_dir = swarm.folder / f"peer-{number}"
    run_dir.mkdir()
    data = load("digits", file.session.task, shard=Shard(number, HONEST, "iid"))
    return await run_with(file, run_dir, data, view, seeding_s=1.0, on_signals=False)


def rounds_of(swarm: Swarm, number: int) -> tuple[RoundEntry, ...]:
    """Returns the rounds of an honest peer."""
    return read_run(swarm.folder / f"peer-{number}").rounds


def test_a_peer_with_two_histories_is_found_within_two_rounds_and_has_no_weight_from_then_on(
    swarm: Swarm,
) -> None:
    file, payload = logged(swarm, "cohort", seed=70)
    honest, liar, shown = asyncio.run(among(swarm, file, payload, "histories"))
    who = liar.identity.peer_id
    assert set(liar.sides) == set(honest)
    assert set(liar.sides.values()) == {0, 1}
    for number in range(HONEST):
        folder, rounds = swarm.folder / f"peer-{number}", rounds_of(swarm, number)
        proof = fault_in((folder / f"two-histories-{who[:16]}.txt").read_text())
        assert proof.peer_id == who
        assert proof.check().startswith("it has signed two")
        assert [one.round for one in rounds] == list(range(1, ROUNDS + 1))
        for one in rounds[1:]:
            assert one.trust.get(who, 0.0) == 0
        told = {**rounds[-1].rejected, **rounds[-1].resting}
        assert "it has signed two" in told[who]
        for other in honest:
            assert not (folder / f"two-histories-{other[:16]}.txt").exists()
    assert f"{who[:8]} is not trusted any more" in shown
    findings = verified([swarm.folder, folder / f"two-histories-{who[:16]}.txt"])
    assert [one.text for one in findings if not one.holds] == []
    assert len(findings) == HONEST + 1
    card = card_of(load_run(folder), "model.safetensors")
    proof_text = card.split("```json\n")[1].split("```")[0]
    (swarm.folder / "proof.json").write_text(proof_text)
    (found,) = verified([swarm.folder / "proof.json"])
    assert found.holds
    assert f"round {ROUNDS} (final)" in found.text


def test_a_version_that_was_not_committed_to_is_never_mixed(swarm: Swarm) -> None:
    file, payload = logged(swarm, "gossip", seed=71)
    _, liar, _ = asyncio.run(among(swarm, file, payload, "uncommitted"))
    who = liar.identity.peer_id
    assert liar.asked > 0
    reasons = set()
    for number in range(HONEST):
        rounds = rounds_of(swarm, number)
        assert all(one.trust.get(who, 0.0) == 0 for one in rounds)
        reasons |= {one.rejected[who] for one in rounds if who in one.rejected}
    assert any("not the one that its author has committed to" in one for one in reasons)
