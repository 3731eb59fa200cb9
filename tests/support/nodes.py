"""Nodes of one process, with shards of the digits, over a network in memory."""

from pathlib import Path

import msgspec
from support.processes import ROOT

from p2pl.data.load import Shard, load
from p2pl.events import Event, Events
from p2pl.exchange.node import Node
from p2pl.learner import Learner
from p2pl.learning import models
from p2pl.learning.checkpoint import build
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import Identity
from p2pl.protocol import session as sessions
from p2pl.protocol.session import SessionFile

SPEC = (ROOT / "torrentfiles" / "digits.toml").read_text()
ROUNDS = 3


def session_file(kind: str) -> SessionFile:
    """Returns a short session for three peers."""
    wanted = sessions.read_spec(SPEC).session()
    exchange = msgspec.structs.replace(
        wanted.exchange, kind=kind, rounds=ROUNDS, cohort=2, min_peers=3, wait_s=60.0
    )
    wanted = msgspec.structs.replace(wanted, exchange=exchange)
    return SessionFile("digits", wanted, build(wanted)[1], trackers=())


def node(  # as a test wants it
    file: SessionFile,
    network: MemoryNetwork,
    folder: Path,
    number: int,
    told: list[Event],
    identity: Identity | None = None,
) -> Node:
    """Returns one of three nodes, with its shard of the digits; one that comes back has its key."""
    identity = identity or Identity.generate()
    data = load("digits", file.session.task, shard=Shard(number, 3, "iid"))
    transport, directory = network.join(identity)
    names = (file.id, identity.peer_id)
    model = models.build(file.session)
    where = folder / str(number)
    where.mkdir(exist_ok=True)
    return Node(
        file=file,
        learner=Learner.of(file.session, names, model, data.train, data.test),
        transport=transport,
        directory=directory,
        events=Events((told.append,)),
        run_dir=where,
        rounds=ROUNDS,
        seeding_s=60.0,
    )
