"""The version vector, on numbers small enough to check by hand, and runs of two peers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.joins import Watching, run, session_file
from support.processes import Swarm

from p2pl.errors import RunDirError
from p2pl.exchange.braintorrent import VersionVector
from p2pl.mixing.base import PeerModel
from p2pl.mixing.trust.row import Trust
from p2pl.network.known import MAX_KNOWN
from p2pl.run.log import Summary, read_run
from p2pl.run.state import PeerState, load_state


def models(**versions: int) -> dict[str, PeerModel]:
    """Returns one model of each version."""
    return {peer: PeerModel(version, 10, torch.zeros(1)) for peer, version in versions.items()}


def test_at_the_start_nobody_has_moved() -> None:
    assert not VersionVector().moved("a", 0)
    assert VersionVector().moved("a", 1)


def test_a_version_counts_as_moved_until_it_has_been_merged() -> None:
    vector = VersionVector().after(models(a=3, b=1))
    assert not vector.moved("a", 3)
    assert vector.moved("a", 4)
    assert vector.moved("b", 2)
    assert vector.moved("c", 1)
    assert vector.after(models(b=2)).used == {"a": 3, "b": 2}


def test_a_peer_that_lost_its_state_and_begins_again_has_moved() -> None:
    assert VersionVector().after(models(a=7)).moved("a", 1)


def test_a_peer_that_was_killed_before_it_saved_its_newest_has_not_moved() -> None:
    vector = VersionVector().after(models(a=7))
    assert not vector.moved("a", 6)
    assert not vector.moved("a", 7)
    assert vector.moved("a", 8)


def test_the_vector_is_bounded_and_forgets_those_merged_longest_ago() -> None:
    many = {f"{number}": PeerModel(1, 1, torch.zeros(1)) for number in range(MAX_KNOWN)}
    vector = VersionVector().after(many).after(models(new=1))
    assert len(vector.used) == MAX_KNOWN
    assert not vector.moved("new", 1)
    assert vector.moved("0", 1)


def test_the_vector_is_read_back_from_a_saved_state() -> None:
    vector = VersionVector().after(models(a=3))
    assert VersionVector.of(PeerState(1, torch.zeros(1), memory=vector.memory())) == vector
    assert VersionVector.of(PeerState(0, torch.zeros(1))) == VersionVector()
    with pytest.raises(RunDirError, match="version vector"):
        VersionVector.of(PeerState(1, torch.zeros(1), memory={"used": {"a": -1}}))


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start a tracker in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


def test_two_peers_merge_each_others_versions_and_save_which(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm, kind="braintorrent")

    async def both() -> list[Summary]:
        return list(await asyncio.gather(run(swarm, file, "peer-0"), run(swarm, file, "peer-1")))

    one, other = asyncio.run(both())
    assert (one.state, one.rounds, other.rounds) == ("finished", 4, 4)
    entries = read_run(swarm.folder / "peer-0").rounds
    used = [entry.versions[other.peer_id] for entry in entries if entry.versions]
    # Only the last version of who is done is merged again in a later round.
    earlier = [version for version in used if version < other.rounds]
    assert earlier == sorted(set(earlier))
    assert used == sorted(used)
    assert used
    assert entries[0].joined == (other.peer_id,)
    state = load_state(swarm.folder / "peer-0", file.id, parameters=4_810, memory=Trust)
    assert state is not None
    assert VersionVector.of(state).used == {other.peer_id: 4}


def test_a_peer_alone_fine_tunes_after_waiting_for_nobody(swarm: Swarm) -> None:
    swarm.tracker()
    view = Watching()
    file = session_file(swarm, kind="braintorrent", start_deadline_s=5.0)
    summary = asyncio.run(run(swarm, file, "peer-0", view=view))
    assert (summary.state, summary.rounds, summary.peers_met) == ("finished", 4, ())
    assert summary.seconds < 20  # of 4 rounds, none waited for news that nobody could bring
    assert "waiting for peers: 1 of 2" in view.text.getvalue()
