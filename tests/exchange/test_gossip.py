"""Ages, neighbours and pushes, on numbers small enough to check by hand; and runs in every mode."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from support.joins import run, session_file
from support.processes import Swarm

from p2pl.errors import RunDirError
from p2pl.exchange.gossip import Age, age_of
from p2pl.mixing.base import Mixed, PeerModel
from p2pl.mixing.trust.row import Trust
from p2pl.protocol.session import Exchange, Gossip
from p2pl.run.log import Summary, read_run
from p2pl.run.state import PeerState


def models(**ages: int) -> dict[str, PeerModel]:
    """Returns one model of each age."""
    return {peer: PeerModel(age, 10, torch.zeros(1)) for peer, age in ages.items()}


def mixed(**row: float) -> Mixed:
    """Returns a mix with this row."""
    return Mixed(torch.zeros(1), row, {}, Trust())


def test_an_average_is_as_old_as_the_oldest_model_in_it() -> None:
    assert age_of(mixed(me=0.5, a=0.5), models(a=7), age=3, cap=9) == 7
    assert age_of(mixed(me=0.5, a=0.5), models(a=2), age=3, cap=9) == 3
    assert age_of(mixed(me=1.0, a=0.0), models(a=7), age=3, cap=9) == 3  # not in it
    assert age_of(mixed(me=0.5, a=0.5), models(a=10**9), age=3, cap=9) == 9  # forged


def test_the_age_is_read_back_from_a_saved_state() -> None:
    assert Age.of(PeerState(4, torch.zeros(1), memory={"age": 3})) == 3
    assert Age.of(PeerState(0, torch.zeros(1))) == 0
    with pytest.raises(RunDirError, match="age"):
        Age.of(PeerState(4, torch.zeros(1), memory={"age": -3}))


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start a tracker in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("mode", ["push", "pull", "push-pull"])
def test_models_travel_in_every_mode(swarm: Swarm, mode: str) -> None:
    swarm.tracker()
    form = "hybrid" if mode == "pull" else "client-to-client"
    gossip = msgspec.convert({"mode": mode, "form": form}, Gossip)
    file = session_file(swarm, kind="gossip", cohort=2, min_peers=3, gossip=gossip, wait_s=2.0)

    async def all_three() -> list[Summary]:
        return list(await asyncio.gather(*(run(swarm, file, f"peer-{i}") for i in range(3))))

    summaries = asyncio.run(all_three())
    assert [summary.rounds for summary in summaries] == [4, 4, 4]
    for index, summary in enumerate(summaries):
        entries = read_run(swarm.folder / f"peer-{index}").rounds
        assert len(summary.peers_met) == 2
        assert sum(len(entry.received) for entry in entries) >= (4 if mode == "push" else 6)
        assert summary.accuracy is not None
        assert summary.accuracy > 80


def test_a_session_that_does_not_speak_of_gossip_is_written_as_before() -> None:
    plain = Exchange(rounds=1, cohort=1)
    assert "gossip" not in msgspec.to_builtins(plain)
    assert "gossip" not in msgspec.to_builtins(
        msgspec.convert({"rounds": 1, "cohort": 1}, Exchange)
    )
