"""Update logs between nodes of one process: every version that is mixed was committed to before."""

import asyncio
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from exchange.test_in_memory import all_of  # the same three nodes, which keep logs here
from support.logs import ended, keeper_of, logged_file, logging_nodes, records_of
from support.nodes import ROUNDS, node

from p2pl.api.ledger import verified
from p2pl.events import Event
from p2pl.exchange.base import EXCHANGES
from p2pl.exchange.node import Node
from p2pl.exchange.round import run
from p2pl.learning import models
from p2pl.learning.weights import flatten
from p2pl.network.in_memory import MemoryNetwork, MemoryTransport
from p2pl.network.keys import Identity
from p2pl.privacy.opening import Book, made_private
from p2pl.privacy.policy import Wanted
from p2pl.protocol.session import SessionFile
from p2pl.protocol.updates.entry import Entry, encode
from p2pl.protocol.updates.message import Commitment, Question, read_commitment, read_question
from p2pl.run.state import PeerState, load_state
from p2pl.updates.file import mix_hash


@pytest.mark.parametrize("kind", ["cohort", "gossip", "braintorrent"])
def test_every_version_that_is_mixed_stands_in_its_author_s_log(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    told: list[list[Event]] = [[], [], []]
    nodes = logging_nodes(logged_file(kind), MemoryNetwork(), tmp_path, told)
    with ended(nodes):
        states = asyncio.run(all_of(nodes))
    logs = {one.peer_id: records_of(one) for one in nodes}
    digests = {who: {one.signed.entry.digest for one in log} for who, log in logs.items()}
    parts = 0
    for one, state in zip(nodes, states, strict=True):
        entries = [record.signed.entry for record in logs[one.peer_id]]
        assert [entry.again for entry in entries] == [0] * len(entries)
        assert state.logged == 0  # of the state in memory; that on disk says more
        for record in logs[one.peer_id]:
            for part in record.mix.parts if record.mix else ():
                assert part.digest in digests[part.peer.hex()]
                parts += part.peer.hex() != one.peer_id
        assert one.keeper is not None
        assert not one.keeper.watch.faults
        assert one.keeper.watch.cosigned  # others have seen its log grow
    assert parts >= 6


async def goes_on(one: Node, rounds: int) -> PeerState:
    """Returns how a node ends that goes on from what it has on disk, if there is something."""
    begin = flatten(models.build(one.session))
    one.learner, one.rounds, one.seeding_s = one.learner.beginning(begin), rounds, 0.0
    memory = type(one.learner.memory(None))
    state = load_state(one.run_dir, one.file.id, len(begin), memory) or PeerState(0, begin)
    one.keeper = keeper_of(one, one.transport.identity, least=state.logged)
    with closing(one.worker), ended([one]):
        state = await run(one, EXCHANGES.find(one.session.exchange.kind)(), state)
        one.keeper.save()
        await one.directory.leave()
    return state


async def all_go_on(nodes: list[Node], rounds: int) -> list[int]:
    """Returns which rounds they have reached."""
    return [one.round for one in await asyncio.gather(*(goes_on(one, rounds) for one in nodes))]


@pytest.mark.parametrize("kind", ["cohort", "gossip", "braintorrent"])
def test_logs_go_on_after_a_restart_and_a_peer_that_comes_late_checks_them(
    kind: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    file = logged_file(kind)
    exchange = msgspec.structs.replace(file.session.exchange, min_peers=2)
    file = replace(file, session=msgspec.structs.replace(file.session, exchange=exchange))
    first = MemoryNetwork(committed=True)
    begun = [node(file, first, tmp_path, number, []) for number in range(2)]
    assert asyncio.run(all_go_on(begun, 2)) == [2, 2]
    before = [records_of(one) for one in begun]
    again = MemoryNetwork(committed=True)
    identities = [one.transport.identity for one in begun] + [Identity.generate()]
    nodes = [
        node(file, again, tmp_path, number, [], identity)
        for number, identity in enumerate(identities)
    ]
    assert asyncio.run(all_go_on(nodes, ROUNDS + 2)) == [ROUNDS + 2] * 3
    for one, records in zip(nodes, before, strict=False):
        assert records_of(one)[: len(records)] == records  # the log has only grown
    late = nodes[2].keeper
    assert late is not None
    assert not any(one.keeper.watch.faults for one in nodes if one.keeper)
    proven = [late.watch._seen[one.peer_id].proven for one in nodes[:2]]
    assert all(head and head.size > len(was) for head, was in zip(proven, before, strict=True))
    findings = verified([tmp_path], every=True)
    assert [one.text for one in findings if not one.holds] == []
    assert len(findings) == 3


# What a peer says of a version, and of a log: each is paid for by the budget, or no matter of it.
SAID = {
    Entry: "index previous time_s again term round stage digest epsilon mix",
    Commitment: "author signed head inclusion consistency heard faults",
    Question: "known cosignature heard faults",
}


def test_private_peers_tell_in_their_logs_what_was_spent_and_nothing_of_their_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    heard: list[tuple[bytes, bytes]] = []
    pulled = MemoryTransport._pulled

    def listening(*given: Any) -> Any:  # noqa: ANN401  # as the transport's own
        came = pulled(*given)
        heard.append((given[-1], came.commitment))
        return came

    monkeypatch.setattr(MemoryTransport, "_pulled", listening)
    file = logged_file("cohort")
    nodes = private_nodes(file, MemoryNetwork(committed=True), tmp_path)
    assert asyncio.run(all_go_on(nodes, ROUNDS)) == [ROUNDS] * 3
    assert {kind: " ".join(kind.__struct_fields__) for kind in SAID} == SAID
    said = b"".join(encode(read_question(asked)) for asked, _ in heard)
    said += b"".join(encode(read_commitment(came)) for _, came in heard)
    for one in nodes:
        records = records_of(one)
        spent = [record.signed.entry.epsilon for record in records]
        trained = [
            it for it, record in zip(spent, records, strict=True) if record.signed.entry.round
        ]
        assert spent == sorted(spent)  # type: ignore[type-var]
        assert 0 < trained[0] < trained[-1] <= 2.0  # type: ignore[operator]
        mixes = [record.mix for record in records if record.mix]
        assert len(mixes) >= ROUNDS - 1
        for mix in mixes:  # it stays with the peer, and its hash cannot be guessed
            assert mix.salt not in said
            assert encode(mix)[: -len(mix.salt) - 2] not in said
        assert mix_hash(mixes[0]) in said
        assert len({mix.salt for mix in mixes}) == len(mixes)


def private_nodes(file: SessionFile, network: MemoryNetwork, folder: Path) -> list[Node]:
    """Returns three nodes that train privately."""
    nodes = [node(file, network, folder, number, []) for number in range(3)]
    for one in nodes:
        book = Book(one.run_dir, file.id, bytes(32))
        trainer: Any = one.learner.trainer
        private = made_private(file.session, trainer, Wanted(2.0), ROUNDS, book, None)
        one.learner = replace(one.learner, trainer=private)
    return nodes
