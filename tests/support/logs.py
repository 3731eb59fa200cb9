"""Update logs in tests: nodes of one process that keep them, and what stands in a run directory."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from support.nodes import node, session_file

from p2pl.events import Event
from p2pl.exchange.node import Node
from p2pl.learning.checkpoint import build
from p2pl.network.in_memory import MemoryNetwork
from p2pl.network.keys import Identity
from p2pl.protocol.session import SessionFile
from p2pl.updates.file import LOG_FILE, Record, read
from p2pl.updates.keeper import Keeper
from p2pl.updates.log import UpdateLog


def logged_file(kind: str) -> SessionFile:
    """Returns a short session for three peers that keep update logs."""
    file = session_file(kind)
    session = msgspec.structs.replace(file.session, ledger=True)
    return replace(file, session=session, checkpoint=build(session)[1])


def keeper_of(
    one: Node, identity: Identity, *, least: int = 0, now_s: float = 1_700_000_000.0
) -> Keeper:
    """Returns the keeper of a node's log, which is in its run directory."""
    log = UpdateLog.open(one.run_dir, one.file.id, identity.private_key, least=least)
    knows = one.directory.known.__contains__
    return Keeper(log, one.run_dir, identity, lambda: now_s, knows)


def logging_nodes(
    file: SessionFile, network: MemoryNetwork, folder: Path, told: list[list[Event]]
) -> list[Node]:
    """Returns three nodes that keep update logs."""
    network.committed = True
    nodes = [node(file, network, folder, number, told[number]) for number in range(3)]
    for one in nodes:
        one.keeper = keeper_of(one, one.transport.identity)
    return nodes


@contextlib.contextmanager
def ended(nodes: Sequence[Node]) -> Iterator[None]:
    """Closes the logs of nodes in the end."""
    try:
        yield
    finally:
        for one in nodes:
            if one.keeper is not None:
                one.keeper.close()


def records_of(one: Node) -> tuple[Record, ...]:
    """Returns what stands in a node's log, checked."""
    kept = read(one.run_dir / LOG_FILE)
    assert kept is not None
    assert kept.owner.public_key == one.transport.identity.public_key
    return kept.records
