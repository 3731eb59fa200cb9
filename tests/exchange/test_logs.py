"""Update logs between nodes of one process: every version that is mixed was committed to before."""

import asyncio
from pathlib import Path

import pytest
import torch
from exchange.test_in_memory import all_of  # the same three nodes, which keep logs here
from support.logs import ended, logged_file, logging_nodes, records_of

from p2pl.events import Event
from p2pl.network.in_memory import MemoryNetwork


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
