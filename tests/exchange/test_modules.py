"""Modules with BatchNorm, frozen layers and shared weights, in swarms."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.joins import run_with
from support.modules import batchnorm, session_of
from support.processes import Swarm
from torch import Tensor

from p2pl.api.run import load as load_run
from p2pl.data.load import Shard, load
from p2pl.errors import ModelError
from p2pl.events import Event, Events, RoundEnded
from p2pl.exchange.base import EXCHANGES
from p2pl.exchange.node import Node
from p2pl.exchange.round import run
from p2pl.learner import Learner
from p2pl.learning import models
from p2pl.learning.checkpoint import build
from p2pl.learning.models import MODELS
from p2pl.learning.parts import flatten
from p2pl.mixing.base import PeerModel
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import Identity
from p2pl.protocol.session import SessionFile
from p2pl.run.log import MODEL_FILE
from p2pl.run.state import PeerState

pytestmark = pytest.mark.usefixtures("own_models")
LOCAL = ("training.buffers", "local")


async def peer(
    file: SessionFile, network: MemoryNetwork, folder: Path, number: int, told: list[Event]
) -> tuple[Learner, PeerState]:
    """Returns the learner and the last state of one of three peers, with its shard of digits."""
    identity = Identity.generate()
    shard = Shard(number, 3, "dirichlet:0.5")
    data = load("digits", file.session.task, shard=shard)
    transport, directory = network.join(identity)
    where = folder / str(number)
    where.mkdir()
    model = models.build(file.session)
    begin = PeerState(round=0, weights=flatten(model))
    names = (file.id, identity.peer_id)
    node = Node(
        file=file,
        learner=Learner.of(file.session, names, model, data.train, data.test),
        transport=transport,
        directory=directory,
        events=Events((told.append,)),
        run_dir=where,
        rounds=file.session.exchange.rounds,
        seeding_s=60.0,
    )
    with closing(node.worker):
        state = await run(node, EXCHANGES.find(file.session.exchange.kind)(), begin)
        await directory.leave()
    return node.learner, state


def swarm_in_memory(
    file: SessionFile, folder: Path
) -> tuple[list[dict[str, Tensor]], list[RoundEnded]]:
    """Returns what three peers end with, by name of tensor, and all their rounds."""
    torch.set_num_threads(1)
    network, told = MemoryNetwork(), list[Event]()

    async def everybody() -> list[tuple[Learner, PeerState]]:
        peers = (peer(file, network, folder, number, told) for number in range(3))
        return list(await asyncio.gather(*peers))

    ended = asyncio.run(everybody())
    assert all(state.round == file.session.exchange.rounds for _, state in ended)
    vectors = [learner.trainer.layout.unflatten(state.weights) for learner, state in ended]
    return vectors, [event for event in told if isinstance(event, RoundEnded)]


def same(vectors: list[dict[str, Tensor]], name: str) -> bool:
    """Returns whether all peers hold the same numbers, up to the order of additions."""
    return all(torch.allclose(one[name], vectors[0][name], atol=1e-5) for one in vectors)


@pytest.mark.parametrize("kind", ["cohort", "raft"])
def test_statistics_are_mixed_or_stay_at_home_as_the_session_says(
    kind: str, tmp_path: Path
) -> None:
    exchange = ("exchange.kind", kind)
    (tmp_path / "mix").mkdir()
    vectors, rounds = swarm_in_memory(session_of("own-batchnorm", exchange), tmp_path / "mix")
    assert all(same(vectors, name) for name in vectors[0])
    assert not torch.equal(vectors[0]["2.running_mean"], torch.zeros(8))
    (tmp_path / "local").mkdir()
    file = session_of("own-batchnorm", exchange, LOCAL)
    vectors, told = swarm_in_memory(file, tmp_path / "local")
    own = {name for name in vectors[0] if not same(vectors, name)}
    assert own == {"2.bias", "2.weight", "2.running_mean", "2.running_var"}
    assert sum(one.entry.bytes_in for one in told) < sum(one.entry.bytes_in for one in rounds)


@pytest.mark.parametrize("rule", ["degroot", "median", "krum"])
def test_what_stays_at_home_does_so_under_every_rule_to_the_last_bit(
    rule: str, tmp_path: Path
) -> None:
    file = session_of("own-batchnorm", LOCAL, ("mixing.rule", rule))
    data = load("digits", file.session.task, shard=Shard(0, 3, "iid"))
    learner = Learner.of(
        file.session, (file.id, "me"), models.build(file.session), data.train, None
    )
    own = flatten(models.build(file.session))
    received = {who: PeerModel(1, 9, torch.randn_like(own)) for who in ("a", "b", "c")}
    mixed = learner.mix(own, received, 1).vector
    count = learner.trainer.layout.travelling.total
    assert torch.equal(mixed[count:], own[count:])


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start a tracker in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


def joined(swarm: Swarm, file: SessionFile) -> list[Path]:
    """Returns the run directories of three peers that learned together over real sockets."""
    swarm.tracker()
    file = replace(file, trackers=((swarm.url,),))

    async def one(number: int) -> Path:
        run_dir = swarm.folder / f"peer-{number}"
        run_dir.mkdir()
        data = load("digits", file.session.task, shard=Shard(number, 3, "iid"))
        await run_with(file, run_dir, data)
        return run_dir

    async def everybody() -> list[Path]:
        return list(await asyncio.gather(*map(one, range(3))))

    return asyncio.run(everybody())


@pytest.mark.parametrize("buffers", ["mix", "local"])
def test_batchnorm_over_real_sockets(swarm: Swarm, buffers: str) -> None:
    run_dirs = joined(swarm, session_of("own-batchnorm", ("training.buffers", buffers)))
    saved = [load_file(run_dir / MODEL_FILE) for run_dir in run_dirs]
    assert same(saved, "1.weight")
    for name in ("2.weight", "2.running_mean"):
        assert same(saved, name) == (buffers == "mix")
    module = load_run(run_dirs[0]).model
    assert torch.equal(module.state_dict()["2.running_var"], saved[0]["2.running_var"])


@pytest.mark.parametrize("name", ["own-frozen", "own-tied"])
def test_frozen_layers_stay_frozen_and_shared_weights_travel_once(swarm: Swarm, name: str) -> None:
    file = session_of(name)
    payload, _ = build(file.session)
    (swarm.folder / file.checkpoint_name).write_bytes(payload)
    run_dirs = joined(swarm, file)
    begun = load_file(swarm.folder / file.checkpoint_name)
    saved = [load_file(run_dir / MODEL_FILE) for run_dir in run_dirs]
    trained = {"own-frozen": {"5.bias", "5.weight"}, "own-tied": set(begun)}[name]
    assert set(saved[0]) == set(begun) >= trained
    for tensor in begun:
        assert (tensor in trained) != torch.equal(saved[0][tensor], begun[tensor])
        assert same([{k: v.float() for k, v in one.items()} for one in saved], tensor)
    numbers = sum(begun[tensor].numel() for tensor in trained)
    received = [entry.bytes_in for entry in load_run(run_dirs[0]).rounds]
    assert 8 * numbers < received[-1] < 8 * numbers + 4_000  # two peers, four bytes a number
    assert load_run(run_dirs[1]).model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_peer_whose_module_differs_is_told_in_which_tensor_before_the_first_round(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = session_of("own-batchnorm")
    (swarm.folder / file.checkpoint_name).write_bytes(build(file.session)[0])
    narrow = partial(batchnorm, width=7)
    monkeypatch.setitem(MODELS._registered, "own-batchnorm", narrow)
    with pytest.raises(ModelError, match=r"'1.bias'.*\[8\].*\[7\].*different versions"):
        joined(swarm, file)
